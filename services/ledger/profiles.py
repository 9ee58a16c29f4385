"""Privacy profiles of compositions: delta as a function of epsilon, bounded from above and from below. Pure.

A step of DP-SGD is the Poisson-subsampled Gaussian. Of two neighbours, one holds the privacy unit and the other holds
it emptied, so there are two directions: `remove` compares the first with the second, `add` the second with the first.
Each has its own profile, H(epsilon) = sup over events of P(event) - e^epsilon Q(event).

The upper bound of a composition is the usual one: a discrete pair of distributions whose profile connects the dots of
the exact one (Doroshenko et al., arXiv 2207.04380, algorithm 1), composed by FFT. A currency needs a lower bound
too: the same with dots lowered so far that the lines between them, too, lie under the exact profile. That is checked
cell by cell before it is used, so however the dots were chosen, what is built on them is a lower bound.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from dp_accounting.pld import common
from dp_accounting.pld.privacy_loss_mechanism import AdjacencyType, GaussianPrivacyLoss
from numpy.typing import NDArray
from scipy.special import log_ndtr, ndtr

Array = NDArray[np.float64]

DIRECTIONS = (AdjacencyType.REMOVE, AdjacencyType.ADD)
# Noise and losses are cut where their mass falls below e^-40 (4e-18); what is cut is counted as infinite loss.
_LOG_TAIL = -40.0
_CONVOLUTION_TAIL = 1e-15
# How far, per step, a lower profile may lie above the exact one: rounding of doubles. Added up over the steps.
STEP_SLACK = 1e-15
# How far the FFT may be off, with a wide margin: a Gaussian composed 10^4 times is, against its closed form, by 1e-13.
ROUNDING = 1e-12
LARGEST_EPSILON = 600.0
_MOST_CELLS = 1 << 22


class Unpriceable(ValueError):
    """The mechanism has no finite price in this currency; more noise is the remedy."""


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


@dataclass(frozen=True, eq=False)
class Losses:
    """A discrete privacy loss distribution on a lattice.

    Attributes:
        interval: distance of two losses.
        lowest: the first loss, in intervals.
        masses: probability of each loss, shape (cells,).
        infinite: probability of an infinite loss.
    """

    interval: float
    lowest: int
    masses: Array
    infinite: float

    def compose(self, steps: int) -> Losses:
        """Return the losses of `steps` independent steps; what the convolution cuts off counts as infinite."""
        if steps == 1:
            return self
        offset, masses = common.self_convolve(self.masses, steps, _CONVOLUTION_TAIL)
        infinite = _CONVOLUTION_TAIL - math.expm1(steps * math.log1p(-self.infinite))
        positive = np.maximum(np.asarray(masses, dtype=np.float64), 0.0)
        return Losses(self.interval, self.lowest * steps + offset, positive, infinite)

    def deltas(self, epsilons: Array) -> Array:
        """Return delta at each epsilon, all in [0, `LARGEST_EPSILON`]. Shape as `epsilons`."""
        first = max(0, -self.lowest)  # losses below zero reveal nothing at epsilons above
        losses = (np.arange(first, len(self.masses)) + self.lowest) * self.interval
        masses = self.masses[first:]
        above = np.append(np.cumsum(masses[::-1])[::-1], 0.0)
        below = np.append(np.cumsum((masses * np.exp(-losses))[::-1])[::-1], 0.0)
        index = np.searchsorted(losses, epsilons, side="right")
        deltas: Array = self.infinite + np.maximum(above[index] - np.exp(epsilons) * below[index], 0.0)
        return deltas


def gaussian_delta(mu: float, epsilon: float | Array) -> Array:
    """Return delta(epsilon) of a mu-GDP mechanism (Dong, Roth and Su, corollary 1). Shape as `epsilon`."""
    eps = np.asarray(epsilon, dtype=np.float64)
    if mu <= 0:
        return np.zeros_like(eps)
    left = ndtr(-eps / mu + mu / 2)
    right = np.exp(eps + log_ndtr(-eps / mu - mu / 2))
    delta: Array = np.maximum(left - right, 0.0)
    return delta


def upper_deltas(mechanism: Mechanism, epsilons: Array) -> Array:
    """Bound a composition's profile from above: shape (2, epsilons), `remove` first.

    Raises:
        Unpriceable: if the mechanism is too revealing to be represented.
    """
    return np.stack([losses.deltas(epsilons) for losses in _composed(mechanism)])


def lower_deltas(mechanism: Mechanism, epsilons: Array) -> Array:
    """Bound a composition's profile from below: shape (2, epsilons), `remove` first.

    Raises:
        Unpriceable: if no lower bound close to the profile is found.
    """
    bounds = []
    for losses in _composed_below(mechanism):
        # Twice: once because it was counted as infinite, once because the FFT wraps it round to anywhere.
        doubtful = 2 * losses.infinite + mechanism.steps * STEP_SLACK + ROUNDING
        bounds.append(np.maximum(losses.deltas(epsilons) - doubtful, 0.0))
    return np.stack(bounds)


@lru_cache(maxsize=16)
def _composed(mechanism: Mechanism) -> tuple[Losses, ...]:
    sigma, probability = mechanism.noise_multiplier, mechanism.sampling_probability
    interval = _interval(mechanism)
    return tuple(_one_step(sigma, probability, way, interval).compose(mechanism.steps) for way in DIRECTIONS)


@lru_cache(maxsize=16)
def _composed_below(mechanism: Mechanism) -> tuple[Losses, ...]:
    sigma, probability = mechanism.noise_multiplier, mechanism.sampling_probability
    interval = _unit_interval(sigma, probability)
    return tuple(_one_step_below(sigma, probability, way, interval).compose(mechanism.steps) for way in DIRECTIONS)


def forget() -> None:
    """Empty the caches: for measurements."""
    for cached in (_composed, _composed_below, _one_step, _one_step_below):
        cached.cache_clear()


def _interval(mechanism: Mechanism) -> float:
    """Choose an interval fine beside the whole's loss and one step's, coarse enough to stay fast for small noise."""
    step = mechanism.sampling_probability / mechanism.noise_multiplier
    return float(min(1e-2, max(2e-5, min(math.sqrt(mechanism.steps) * step / 500, step / 4))))


def _unit_interval(sigma: float, probability: float) -> float:
    return min(2e-3, max(1e-5, probability / max(1.0, sigma) / 40))


def _exact(sigma: float, probability: float, direction: AdjacencyType) -> GaussianPrivacyLoss:
    return GaussianPrivacyLoss(
        sigma, sampling_prob=probability, adjacency_type=direction, log_mass_truncation_bound=_LOG_TAIL
    )


def _dots(sigma: float, probability: float, direction: AdjacencyType, interval: float) -> tuple[int, Array]:
    """Return the first point of the lattice, in intervals, and the exact profile on all its points."""
    exact = _exact(sigma, probability, direction)
    bounds = exact.connect_dots_bounds()
    lowest, highest = math.floor(bounds.epsilon_lower / interval), math.ceil(bounds.epsilon_upper / interval)
    if highest - lowest > _MOST_CELLS:
        raise Unpriceable("this mechanism is hardly private; raise the noise multiplier")
    deltas = np.asarray(exact.get_delta_for_epsilon(np.arange(lowest, highest + 1) * interval), dtype=np.float64)
    return lowest, np.minimum.accumulate(np.clip(deltas, 0.0, 1.0))


@lru_cache(maxsize=64)
def _one_step(sigma: float, probability: float, direction: AdjacencyType, interval: float) -> Losses:
    """Connect the dots of the exact profile, which is convex: a pair that reveals a little more."""
    return _connected(interval, *_dots(sigma, probability, direction, interval))


def _connected(interval: float, lowest: int, deltas: Array) -> Losses:
    """Return the discrete pair whose profile goes through the dots and is linear in e^epsilon between them."""
    falls = np.diff(deltas)
    masses = np.empty_like(deltas)
    masses[0] = 1 - deltas[0] + falls[0] / math.expm1(interval)
    masses[1:-1] = (falls[1:] - falls[:-1] * math.exp(interval)) / math.expm1(interval)
    masses[-1] = falls[-1] / math.expm1(-interval)
    return Losses(interval, lowest, np.maximum(masses, 0.0), float(deltas[-1]))


@lru_cache(maxsize=16)
def _one_step_below(sigma: float, probability: float, direction: AdjacencyType, interval: float) -> Losses:
    """Connect lowered dots: a discrete pair whose profile lies under the exact one everywhere.

    Each dot sinks by as much as the chords beside it would overshoot, a matter of the second order in the interval.

    Raises:
        Unpriceable: if the result cannot be shown to lie under the exact profile.
    """
    lowest, exact = _dots(sigma, probability, direction, interval)
    # In x = e^epsilon a profile is convex, falls with a slope between -1 and 0, and is at least max(0, 1 - x).
    x = np.exp((np.arange(len(exact)) + lowest) * interval)
    least = np.maximum(1 - x, 0.0)
    cells = _Cells(x, exact, least)
    overshoot = np.maximum(exact[:-1] + cells.meeting * np.diff(exact) - cells.support(cells.meeting), 0.0)
    sunk = _sunk(exact, overshoot)
    dots = np.maximum(sunk, least)
    # A dot that would sink under `least` rests on it; the next one inward then must not rise above it.
    for index in np.flatnonzero((sunk <= least)[1:-1]) + 1:
        inward = index + 1 if x[index] < 1 else index - 1
        dots[inward] = min(dots[inward], max(least[inward], exact[index] - least[index] + least[inward]))
    dots = _convex_minorant(x, dots)
    for share in (0.0, cells.meeting, 1.0):
        if np.any(dots[:-1] + share * np.diff(dots) > STEP_SLACK + (1 - STEP_SLACK) * cells.support(share)):
            raise Unpriceable("no lower bound of this unit was found; choose a larger sampling probability")
    return _connected(interval, lowest, dots)


def _sunk(exact: Array, overshoot: Array) -> Array:
    """Lower each dot by the greater overshoot of the two cells that it bounds."""
    lowered: Array = exact - np.maximum(np.append(overshoot, 0.0), np.insert(overshoot, 0, 0.0))
    return lowered


class _Cells:
    """The exact profile between its dots, bounded from below by the prolonged chords of the cells on both sides.

    A chord of other dots, less the greater of two lines, is concave on a cell: greatest at an end or where they meet.

    Args:
        x: e^epsilon of the dots.
        exact: the profile there.
        least: the profile of what reveals nothing; 1 is one of the dots, so it is linear on each cell.
    """

    def __init__(self, x: Array, exact: Array, least: Array) -> None:
        self._least = least
        width, falls = np.diff(x), np.diff(exact)
        slopes = falls / width
        self._at, self._to = exact[:-1], exact[1:]
        self._below = np.append(-1.0, slopes[:-1]) * width
        self._above = np.append(slopes[1:], 0.0) * width
        with np.errstate(divide="ignore", invalid="ignore"):
            meeting = (self._to - self._above - self._at) / (self._below - self._above)
        self.meeting: Array = np.where(np.isfinite(meeting), np.clip(meeting, 0.0, 1.0), 0.5)

    def support(self, share: Array | float) -> Array:
        """Return the bound at a share of the way through each cell."""
        least = self._least[:-1] + share * np.diff(self._least)
        found: Array = np.maximum(self._at + share * self._below, self._to - (1 - share) * self._above)
        return np.maximum(found, least)


def _convex_minorant(x: Array, y: Array) -> Array:
    """Return the greatest convex function below the points, on the points."""
    kept: list[int] = []
    for index in range(len(x)):
        while len(kept) > 1:
            i, j = kept[-2], kept[-1]
            if (y[j] - y[i]) * (x[index] - x[i]) < (y[index] - y[i]) * (x[j] - x[i]):
                break
            kept.pop()
        kept.append(index)
    found: Array = np.interp(x, x[kept], y[kept])
    return found
