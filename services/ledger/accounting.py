"""Privacy accounting in one integer currency per account. Pure: numbers in, numbers out.

An account fixes a unit mechanism U, one Gaussian release with noise multiplier sigma_0. A budget is a number N of
units; a job costs the smallest number n whose composition is at least as revealing as the job, for every epsilon and
in both directions, apart from a truncation probability delta_0. Adding integers is then sound even when each job is
chosen after seeing the results of the last (Gaussian differential privacy composes fully adaptively: Smith and
Thakurta, arXiv 2210.17520; Dong, Roth and Su, arXiv 1905.02383, for the profile). The argument stands in README.md.

Everything rounds against the analyst: prices up, capacities down, epsilons of statements up.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from dp_accounting.pld import privacy_loss_distribution as pld
from numpy.typing import NDArray
from scipy.special import log_ndtr, ndtr, ndtri

DEFAULT_SIGMA = 1000.0
E18 = 10**18
CELL = 0.01
LEAST_CELLS = 4000
_SAFETY = 1e-12
_MOST_UNITS = 10**12


class Unpriceable(ValueError):
    """The mechanism has no finite price in this currency; more noise is the remedy."""


@dataclass(frozen=True)
class Unit:
    """The currency: one Gaussian release.

    Attributes:
        noise_multiplier: sigma_0; one unit is 1/sigma_0-GDP.
    """

    noise_multiplier: float = DEFAULT_SIGMA

    def mu(self, units: int) -> float:
        """Return the Gaussian-DP parameter of `units` units."""
        return math.sqrt(units) / self.noise_multiplier


@dataclass(frozen=True)
class Mechanism:
    """A composition of Poisson-subsampled Gaussian mechanisms: what DP-SGD does.

    Attributes:
        noise_multiplier: standard deviation of the noise over the clipping norm.
        sampling_probability: probability that a privacy unit takes part in a step, in (0, 1].
        steps: number of steps.
    """

    noise_multiplier: float
    sampling_probability: float
    steps: int


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
        mu: Gaussian-DP parameter.
        tpr_at_0_1_percent: best attacker's true-positive rate at 0.1 % false positives.
        tpr_at_1_percent: the same at 1 %.
        advantage: best attacker's true-positive less false-positive rate.
    """

    epsilon: float
    mu: float
    tpr_at_0_1_percent: float
    tpr_at_1_percent: float
    advantage: float


def gaussian_delta(mu: float, epsilon: float | NDArray[np.float64]) -> NDArray[np.float64]:
    """Return delta(epsilon) of a mu-GDP mechanism (Dong, Roth and Su, corollary 1). Shape as `epsilon`."""
    eps = np.asarray(epsilon, dtype=np.float64)
    if mu <= 0:
        return np.zeros_like(eps)
    left = ndtr(-eps / mu + mu / 2)
    right = np.exp(eps + log_ndtr(-eps / mu - mu / 2))
    delta: NDArray[np.float64] = np.maximum(left - right, 0.0)
    return delta


def gaussian_epsilon(mu: float, delta: float) -> float:
    """Return the smallest epsilon (rounded up) at which a mu-GDP mechanism has at most `delta`."""
    if gaussian_delta(mu, 0.0) <= delta:
        return 0.0
    low, high = 0.0, 1.0
    while gaussian_delta(mu, high) > delta:
        low, high = high, 2 * high
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if gaussian_delta(mu, middle) > delta else (low, middle)
    return high


def units_at(cap: Cap, epsilon: float) -> int:
    """Return the largest number of units whose composition has at most the cap's profile delta at `epsilon`."""
    if epsilon <= 0:
        return 0
    low, high = 0, 1
    while _fits(cap, high, epsilon):
        low, high = high, 2 * high
        if high > _MOST_UNITS:
            raise Unpriceable("this epsilon and delta amount to no limit at all")
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if _fits(cap, middle, epsilon) else (low, middle)
    return low


def capacity(cap: Cap) -> int:
    """Return the number of units that the cap holds, rounded down."""
    return units_at(cap, cap.epsilon)


def epsilon_of(cap: Cap, units: int) -> float:
    """Return the epsilon, at the account's delta, of a number of units; rounded up."""
    return gaussian_epsilon(cap.unit.mu(units), cap.profile_delta) if units > 0 else 0.0


def affordable_epsilon(cap: Cap, units: int) -> float:
    """Return the greatest target epsilon that a job with `units` units left can be given; rounded down."""
    if units <= 0:
        return 0.0
    epsilon = math.floor(epsilon_of(cap, units) * 1e4) / 1e4
    while epsilon > 0 and units_at(cap, epsilon) > units:
        epsilon = max(0.0, epsilon - 1e-4)
    return epsilon


def price(mechanism: Mechanism, unit: Unit, truncation: float) -> int:
    """Return the smallest n with delta_M(eps) <= d0 + (1 - d0) delta_{U^n}(eps) for all eps, in both directions.

    Both profiles are monotone, so the comparison on a grid is rigorous: the mechanism at the left end of each cell
    against the units at its right end, and past the last cell the mechanism against the truncation alone. The
    mechanism's profile is dp-accounting's pessimistic PLD.

    Args:
        mechanism: what will run.
        unit: the currency.
        truncation: delta_0, the probability with which the comparison may fail.

    Raises:
        Unpriceable: if no number of units is enough.
    """
    grid, profile = _profile(mechanism, truncation)
    low, high = 0.0, 0.5
    while not _dominates(high, grid, profile, truncation):
        low, high = high, 2 * high
        if (high * unit.noise_multiplier) ** 2 > _MOST_UNITS:
            raise Unpriceable("no number of units covers this mechanism; raise the noise multiplier")
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if _dominates(middle, grid, profile, truncation) else (middle, high)
    return math.ceil((high * unit.noise_multiplier) ** 2 * (1 + _SAFETY))


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
    mu = cap.unit.mu(limit)

    def fits(sigma: float) -> bool:
        mechanism = Mechanism(sigma, sampling_probability, steps)
        try:
            grid, profile = _profile(mechanism, truncation)
        except Unpriceable:
            return False
        return _dominates(mu, grid, profile, truncation)

    low, high = 0.15, 1.0
    while not fits(high):
        low, high = high, 2 * high
        if high > 1e5:
            raise Unpriceable("no noise multiplier reaches this target; raise target_epsilon")
    while high / low > 1.002:
        middle = math.sqrt(low * high)
        low, high = (low, middle) if fits(middle) else (middle, high)
    digits = 4 - 1 - math.floor(math.log10(high))
    sigma = math.ceil(high * 10**digits) / 10**digits
    mechanism = Mechanism(sigma, sampling_probability, steps)
    return mechanism, min(limit, price(mechanism, cap.unit, truncation))


def statement(cap: Cap, units: int, truncation: float) -> Statement:
    """Return what `units` units and a truncation promise, in terms of epsilon and of the best attacker."""
    mu = cap.unit.mu(units)
    rates = [min(1.0, float(ndtr(ndtri(rate) + mu)) + truncation) for rate in (0.001, 0.01)]
    advantage = min(1.0, float(2 * ndtr(mu / 2) - 1) + truncation)
    return Statement(epsilon_of(cap, units), mu, rates[0], rates[1], advantage)


def _fits(cap: Cap, units: int, epsilon: float) -> bool:
    return bool(gaussian_delta(cap.unit.mu(units), epsilon) <= cap.profile_delta)


def _dominates(mu: float, grid: NDArray[np.float64], profile: NDArray[np.float64], truncation: float) -> bool:
    bound = truncation + (1 - truncation) * gaussian_delta(mu, grid[1:]) * (1 - _SAFETY)
    return bool(np.all(profile[:-1] <= bound) and profile[-1] <= truncation)


@lru_cache(maxsize=256)
def _profile(mechanism: Mechanism, truncation: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return a grid of epsilons and the greater of both directions' delta on it, up to where it is truncated."""
    single = pld.from_gaussian_mechanism(
        mechanism.noise_multiplier,
        sampling_prob=mechanism.sampling_probability,
        value_discretization_interval=_discretisation(mechanism),
        log_mass_truncation_bound=-40,
    )
    # The tail that composing may cut off is a hundredth of the truncation, and counted (pessimistic estimate).
    composed = single.self_compose(mechanism.steps, tail_mass_truncation=truncation / 100)
    end = 1.0
    while composed.get_delta_for_epsilon(end) > truncation:
        end *= 1.25
        if end > 2000:
            raise Unpriceable("this mechanism is hardly private; raise the noise multiplier")
    grid = np.linspace(0.0, end, max(LEAST_CELLS, math.ceil(end / CELL)) + 1)
    return grid, np.asarray(composed.get_delta_for_epsilon(grid), dtype=np.float64)


def _discretisation(mechanism: Mechanism) -> float:
    """Choose an interval fine beside one step's loss, coarse enough to stay fast for small noise."""
    spread = math.sqrt(mechanism.steps) * mechanism.sampling_probability / mechanism.noise_multiplier
    return float(min(1e-2, max(5e-5, spread / 500)))
