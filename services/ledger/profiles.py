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
from dp_accounting.pld.privacy_loss_mechanism import AdjacencyType
from scipy.fft import irfft, next_fast_len, rfft
from scipy.special import log_ndtr, ndtr

from services.ledger.discretisation import (
    ADD,
    MOST_CELLS,
    REMOVE,
    STEP_SLACK,
    Array,
    bounds,
    exact_gains,
    hardly_private,
    lower_gains,
)

DIRECTIONS = (REMOVE, ADD)
_CONVOLUTION_TAIL = 1e-15
# How far the FFT may be off, with a wide margin: a Gaussian composed 10^4 times is, against its closed form, by 1e-14,
# and one composed 10^8 times by 3e-11.
ROUNDING = 1e-12
_ROUNDING_A_STEP = 3e-18
LARGEST_EPSILON = 600.0
# A step whose losses lie far apart is cut into so many cells, however finely it would be cut else.
_CELLS_A_STEP = 1 << 17


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
        """Return the losses of `steps` independent steps; what is cut off or misplaced on the way counts as infinite.

        Raises:
            Unpriceable: if they lie too far apart to be represented.
        """
        if steps == 1:
            return self
        first, last = self._reach(steps)
        count = last - first + 1
        if count > MOST_CELLS:
            raise hardly_private()
        length = next_fast_len(max(count, len(self.masses)), real=True)
        # The transform wraps round: what lies beyond its length comes out at the remainder.
        wrapped = irfft(rfft(self.masses, length) ** steps, length)
        masses = np.maximum(np.roll(wrapped, -first)[:count], 0.0)
        cut = _CONVOLUTION_TAIL + steps * _ROUNDING_A_STEP
        infinite = cut - math.expm1(steps * math.log1p(-self.infinite))
        return Losses(self.interval, self.lowest * steps + first, masses, infinite)

    def _reach(self, steps: int) -> tuple[int, int]:
        """Return the first and the last cell that a sum of `steps` losses reaches, apart from a mass of 10^-15.

        Chernoff's bound holds at every order. It cuts close at some between what fits a Gaussian and what doubles hold:
        a sum of many small losses wants orders far lower than one of a few large ones.
        """
        cells = np.arange(len(self.masses))
        total = self.masses.sum()
        mean = (cells * self.masses).sum() / total
        variance = max(((cells - mean) ** 2 * self.masses).sum() / total, 1e-300)
        allowance = math.log(2 / _CONVOLUTION_TAIL)
        gaussian = math.sqrt(2 * allowance / (steps * variance))
        first, last = 0, (len(cells) - 1) * steps
        for order in np.geomspace(min(gaussian, 1 / len(cells)) / 8, 600 / len(cells), 24):
            power = np.exp(order * cells)
            last = min(last, math.ceil((steps * math.log((self.masses * power).sum()) + allowance) / order))
            first = max(first, math.floor(-(steps * math.log((self.masses / power).sum()) + allowance) / order))
        return first, last

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
    sigma, probability = mechanism.noise_multiplier, mechanism.sampling_probability
    step = probability / sigma
    fine = max(2e-5, min(math.sqrt(mechanism.steps) * step / 500, step / 4))
    return float(min(1e-2, max(fine, _span(sigma, probability) / _CELLS_A_STEP)))


def _unit_interval(sigma: float, probability: float) -> float:
    fine = max(1e-5, probability / max(1.0, sigma) / 40)
    return min(2e-3, max(fine, _span(sigma, probability) / _CELLS_A_STEP))


def _span(sigma: float, probability: float) -> float:
    """Return how far the losses of one step lie apart."""
    least, most = bounds(sigma, probability, REMOVE)
    return most - least


@lru_cache(maxsize=64)
def _one_step(sigma: float, probability: float, direction: AdjacencyType, interval: float) -> Losses:
    lattice = exact_gains(sigma, probability, direction, interval)
    return Losses(interval, lattice.lowest, *lattice.masses())


@lru_cache(maxsize=16)
def _one_step_below(sigma: float, probability: float, direction: AdjacencyType, interval: float) -> Losses:
    lattice = lower_gains(sigma, probability, direction, interval)
    return Losses(interval, lattice.lowest, *lattice.masses())
