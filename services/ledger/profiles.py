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
from dp_accounting.pld.privacy_loss_mechanism import AdjacencyType
from scipy.special import log_ndtr, ndtr

from services.ledger.discretisation import ADD, REMOVE, STEP_SLACK, Array, exact_gains, lower_gains

DIRECTIONS = (REMOVE, ADD)
_CONVOLUTION_TAIL = 1e-15
# How far the FFT may be off, with a wide margin: a Gaussian composed 10^4 times is, against its closed form, by 1e-13.
ROUNDING = 1e-12
LARGEST_EPSILON = 600.0


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


@lru_cache(maxsize=64)
def _one_step(sigma: float, probability: float, direction: AdjacencyType, interval: float) -> Losses:
    lattice = exact_gains(sigma, probability, direction, interval)
    return Losses(interval, lattice.lowest, *lattice.masses())


@lru_cache(maxsize=16)
def _one_step_below(sigma: float, probability: float, direction: AdjacencyType, interval: float) -> Losses:
    lattice = lower_gains(sigma, probability, direction, interval)
    return Losses(interval, lattice.lowest, *lattice.masses())
