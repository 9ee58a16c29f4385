"""Privacy accounting in one integer currency per account. Pure: numbers in, numbers out.

An account fixes a unit mechanism U = (sigma_0, q_0): one step of the Poisson-subsampled Gaussian. The default samples
everyone (q_0 = 1), which makes U a plain Gaussian. A budget is a number N of units; a job costs the smallest number n
whose composition is at least as revealing as the job, for every epsilon and in both directions, apart from a truncation
probability delta_0. Adding integers is then sound even when each job is chosen after seeing the results of the last.
The argument and its sources stand in README.md.

Everything rounds against the analyst: prices up, capacities down, epsilons of statements up.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy.special import ndtr, ndtri

from services.ledger.discretisation import Array, hardly_private, require_some
from services.ledger.discretisation import Unpriceable as Unpriceable
from services.ledger.profiles import (
    LARGEST_EPSILON,
    gaussian_delta,
    lower_deltas,
    upper_deltas,
)
from services.ledger.profiles import Mechanism as Mechanism
from services.ledger.search import MOST, last

DEFAULT_SIGMA = 1000.0
E18 = 10**18
# A grid of epsilons: cells of this width, and never fewer than so many.
CELL = 0.01
LEAST_CELLS = 4000
_SAFETY = 1e-12


@dataclass(frozen=True)
class Unit:
    """The currency: one step of the Poisson-subsampled Gaussian.

    Attributes:
        noise_multiplier: sigma_0.
        sampling_probability: q_0, in (0, 1]; 1 makes the unit 1/sigma_0-GDP.
    """

    noise_multiplier: float = DEFAULT_SIGMA
    sampling_probability: float = 1.0

    @property
    def gaussian(self) -> bool:
        """Whether compositions of units have a closed form."""
        return self.sampling_probability == 1.0

    def mu(self, units: int) -> float:
        """Return the Gaussian-DP parameter of `units` Gaussian units."""
        return math.sqrt(units) / self.noise_multiplier

    def compose(self, units: int) -> Mechanism:
        """Return `units` units as a mechanism."""
        return Mechanism(self.noise_multiplier, self.sampling_probability, units)

    def upper(self, units: int, epsilons: Array) -> Array:
        """Bound delta from above, in the worse direction. Shape as `epsilons`."""
        if units <= 0:
            return np.zeros_like(epsilons)
        if self.gaussian:
            return gaussian_delta(self.mu(units), epsilons)
        worse: Array = upper_deltas(self.compose(units), epsilons).max(axis=0)
        return worse

    def lower(self, units: int, epsilons: Array) -> Array:
        """Bound delta from below: shape (2, epsilons), for the two directions."""
        if units <= 0:
            return np.zeros((2, len(epsilons)))
        if self.gaussian:
            return np.stack([gaussian_delta(self.mu(units), epsilons) * (1 - _SAFETY)] * 2)
        return lower_deltas(self.compose(units), epsilons)

    def estimate(self, mu: float) -> int:
        """Return about how many units make mu-GDP (central limit theorem); only ever where a search begins.

        Raises:
            Unpriceable: if doubles hardly tell a unit from nothing.
        """
        require_some(self.noise_multiplier, self.sampling_probability)
        spread = self.sampling_probability * math.sqrt(math.expm1(min(self.noise_multiplier**-2, 700.0)))
        return max(1, min(MOST, round((mu / spread) ** 2)))


@dataclass(frozen=True)
class Cap:
    """What an account promises: all jobs together are (epsilon, delta)-private.

    Attributes:
        epsilon: epsilon.
        delta_e18: delta in units of 10^-18.
        pool_e18: the part of delta that is set aside for truncation, in units of 10^-18.
        unit: the currency.
    """

    epsilon: float
    delta_e18: int
    pool_e18: int
    unit: Unit

    @property
    def profile_delta(self) -> float:
        """The delta that the units themselves may reach: delta less the pool, rounded down."""
        return (self.delta_e18 - self.pool_e18) / E18 * (1 - _SAFETY)


@dataclass(frozen=True)
class Statement:
    """What a number of units promises.

    Attributes:
        epsilon: at the account's delta.
        mu: Gaussian-DP parameter; 0 when the account's unit is not Gaussian.
        tpr_at_0_1_percent: best attacker's true-positive rate at 0.1 % false positives.
        tpr_at_1_percent: the same at 1 %.
        advantage: best attacker's true-positive less false-positive rate.
    """

    epsilon: float
    mu: float
    tpr_at_0_1_percent: float
    tpr_at_1_percent: float
    advantage: float


def units_at(cap: Cap, epsilon: float) -> int:
    """Return the largest number of units whose composition has at most the cap's profile delta at `epsilon`."""
    if epsilon <= 0:
        return 0
    point = np.array([min(epsilon, LARGEST_EPSILON)])

    def fits(units: int) -> bool:
        return bool(cap.unit.upper(units, point)[0] <= cap.profile_delta)

    mu = _gaussian_mu(point[0], cap.profile_delta)
    return last(fits, cap.unit.estimate(mu), "this epsilon and delta amount to no limit at all")


def capacity(cap: Cap) -> int:
    """Return the number of units that the cap holds, rounded down."""
    return units_at(cap, cap.epsilon)


def epsilon_of(cap: Cap, units: int) -> float:
    """Return the epsilon, at the account's delta, of a number of units; rounded up, infinite past `LARGEST_EPSILON`."""
    if units <= 0:
        return 0.0
    ends = np.concatenate([[0.0], np.geomspace(1e-6, LARGEST_EPSILON, 400)])
    for _ in range(4):
        enough = cap.unit.upper(units, ends) <= cap.profile_delta
        if enough[0]:
            return float(ends[0])
        if not enough[-1]:
            return math.inf
        first = int(np.argmax(enough))
        ends = np.linspace(ends[first - 1], ends[first], 400)
    return float(ends[-1])


def affordable_epsilon(cap: Cap, units: int) -> float:
    """Return the greatest target epsilon that a job with `units` units left can be given; rounded down."""
    if units <= 0:
        return 0.0
    epsilon = math.floor(min(epsilon_of(cap, units), LARGEST_EPSILON) * 1e4) / 1e4
    # A target is affordable unless one unit more would fit it too.
    while epsilon > 0 and cap.unit.upper(units + 1, np.array([epsilon]))[0] <= cap.profile_delta:
        epsilon = max(0.0, epsilon - 1e-4)
    return epsilon


def price(mechanism: Mechanism, unit: Unit, truncation: float) -> int:
    """Return the smallest n with delta_M(eps) <= d0 + (1 - d0) delta_{U^n}(eps) for all eps, in both directions.

    Profiles fall with epsilon, so the comparison on a grid is rigorous: the mechanism at the left end of each cell
    against the units at its right end, and past the last cell the mechanism against the truncation alone. The
    mechanism's profile is bounded from above, the units' from below. A mechanism with the unit's own noise and
    sampling needs no comparison: it is so many units.

    Args:
        mechanism: what will run.
        unit: the currency.
        truncation: delta_0, the probability with which the comparison may fail.

    Raises:
        Unpriceable: if no number of units is enough.
    """
    if _is_weaker(mechanism, unit) and _is_weaker(unit.compose(1), mechanism):
        return mechanism.steps
    grid, profile = _profile(mechanism, truncation)

    def falls_short(units: int) -> bool:
        return not _dominates(unit, units, grid, profile, truncation)

    own = Unit(mechanism.noise_multiplier, mechanism.sampling_probability)
    ratio = unit.estimate(1.0) / own.estimate(1.0)
    guess = max(1, round(ratio * mechanism.steps))
    least = 1 + last(falls_short, guess, "no number of units covers this mechanism; raise the noise multiplier")
    return min(least, mechanism.steps) if _is_weaker(mechanism, unit) else least


def calibrate(
    cap: Cap, epsilon: float, sampling_probability: float, steps: int, truncation: float
) -> tuple[Mechanism, int]:
    """Find the smallest noise multiplier whose price fits a target epsilon in the account's currency.

    Args:
        cap: the account.
        epsilon: what the job may reach at the account's delta.
        sampling_probability: probability that a unit takes part in a step.
        steps: number of steps.
        truncation: delta_0 of the job.

    Returns:
        The mechanism, its noise multiplier rounded up to four digits, and its price.

    Raises:
        Unpriceable: if no noise multiplier reaches the target.
    """
    limit = units_at(cap, epsilon)
    if limit < 1:
        raise Unpriceable("the target is below one unit of this account; raise target_epsilon")

    def fits(sigma: float) -> bool:
        mechanism = Mechanism(sigma, sampling_probability, steps)
        if _is_weaker(mechanism, cap.unit) and steps <= limit:
            return True
        try:
            grid, profile = _profile(mechanism, truncation)
        except Unpriceable:
            return False
        return _dominates(cap.unit, limit, grid, profile, truncation)

    low, high = 0.15, 1.0
    while not fits(high):
        low, high = high, 2 * high
        if high > 1e5:
            raise Unpriceable("no noise multiplier reaches this target; raise target_epsilon")
    while high / low > 1.0005:
        middle = math.sqrt(low * high)
        low, high = (low, middle) if fits(middle) else (middle, high)
    digits = 4 - 1 - math.floor(math.log10(high))
    sigma = math.ceil(high * 10**digits) / 10**digits
    mechanism = Mechanism(sigma, sampling_probability, steps)
    return mechanism, min(limit, price(mechanism, cap.unit, truncation))


def statement(cap: Cap, units: int, truncation: float) -> Statement:
    """Return what `units` units and a truncation promise, in terms of epsilon and of the best attacker."""
    mu = cap.unit.mu(units) if cap.unit.gaussian else 0.0
    rates = [min(1.0, _true_positives(cap.unit, units, rate) + truncation) for rate in (0.001, 0.01)]
    advantage = min(1.0, float(cap.unit.upper(units, np.zeros(1))[0]) + truncation)
    return Statement(epsilon_of(cap, units), mu, rates[0], rates[1], advantage)


def _true_positives(unit: Unit, units: int, false_positives: float) -> float:
    """Bound the best attacker's true-positive rate. Any (epsilon, delta) gives a bound, so the least of many is one."""
    if unit.gaussian:
        return float(ndtr(ndtri(false_positives) + unit.mu(units)))
    epsilons = np.concatenate([np.linspace(0, 20, 2000), np.linspace(20, LARGEST_EPSILON, 500)])
    deltas = unit.upper(units, epsilons)
    direct = deltas + np.exp(epsilons) * false_positives
    reverse = 1 - np.exp(-epsilons) * (1 - deltas - false_positives)
    return float(min(direct.min(), reverse.min()))


def _is_weaker(mechanism: Mechanism, unit: Unit | Mechanism) -> bool:
    """Say whether a step reveals at most what a unit does: no less noise, no more sampling."""
    return (
        mechanism.noise_multiplier >= unit.noise_multiplier
        and mechanism.sampling_probability <= unit.sampling_probability
    )


def _dominates(unit: Unit, units: int, grid: Array, profile: Array, truncation: float) -> bool:
    bound = truncation + (1 - truncation) * unit.lower(units, grid[1:])
    return bool(np.all(profile[:, :-1] <= bound) and np.all(profile[:, -1] <= truncation))


def _profile(mechanism: Mechanism, truncation: float) -> tuple[Array, Array]:
    """Return a grid of epsilons up to where the truncation covers the rest, and both directions' delta on it."""
    ends = np.concatenate([[1.0], np.geomspace(1.0, LARGEST_EPSILON, 120)[1:]])
    covered = np.all(upper_deltas(mechanism, ends) <= truncation, axis=0)
    if not covered[-1]:
        raise hardly_private()
    end = float(ends[int(np.argmax(covered))])
    grid = np.linspace(0.0, end, max(LEAST_CELLS, math.ceil(end / CELL)) + 1)
    return grid, upper_deltas(mechanism, grid)


def _gaussian_mu(epsilon: float, delta: float) -> float:
    """Return about which mu-GDP has `delta` at `epsilon`."""
    low, high = 0.0, 1.0
    while high < 1e4 and gaussian_delta(high, epsilon) <= delta:
        high *= 2
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if gaussian_delta(middle, epsilon) <= delta else (low, middle)
    return high
