"""One step of the Poisson-subsampled Gaussian as a discrete pair of distributions, from above and from below. Pure.

A profile is handled as its *gain*, H(epsilon) - max(0, 1 - e^epsilon): what a step reveals beyond nothing. Gains keep
their relative precision at both ends, where H itself is 1 or 0 up to rounding. In x = e^epsilon, H is convex with a
slope between -1 and 0, and the gain is H less a function that is linear on each side of x = 1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from dp_accounting.pld.privacy_loss_mechanism import AdjacencyType, GaussianPrivacyLoss
from numpy.typing import NDArray
from scipy.special import log_ndtr, ndtr

Array = NDArray[np.float64]

REMOVE, ADD = AdjacencyType.REMOVE, AdjacencyType.ADD
# Noise and losses are cut where their mass falls below e^-40 (4e-18); what is cut is counted as infinite loss.
_LOG_TAIL = -40.0
# How far a lower bound of one step may lie above the exact profile: rounding of doubles.
STEP_SLACK = 1e-15
# Whatever has more is not private by far, or was cut too finely: a composition takes seconds by then.
MOST_CELLS = 1 << 20
# What is less, doubles hardly tell from nothing; no mechanism that anybody would run comes near.
_LEAST_NOISE, _LEAST_PROBABILITY = 1e-3, 1e-12


class Unpriceable(ValueError):
    """The mechanism has no finite price in this currency; more noise is the remedy."""


@dataclass(frozen=True, eq=False)
class Lattice:
    """Gains at points that lie one interval of epsilon apart; 0 is one of them.

    Attributes:
        interval: distance of two points.
        lowest: the first point, in intervals; negative.
        gains: at each point, shape (points,).
    """

    interval: float
    lowest: int
    gains: Array

    @property
    def x(self) -> Array:
        """Return e^epsilon of the points."""
        return np.asarray(np.exp((np.arange(len(self.gains)) + self.lowest) * self.interval), dtype=np.float64)

    def masses(self) -> tuple[Array, float]:
        """Connect the dots: the pair whose profile is linear in x between the points. Returns the infinite mass last.

        Source: Doroshenko et al., arXiv 2207.04380, algorithm 1. What it takes are second differences, in which a
        linear part cancels; the kink at x = 1 gives loss zero a mass of one.
        """
        rises = np.diff(self.gains)
        masses = np.empty_like(self.gains)
        masses[0] = rises[0] / math.expm1(self.interval) - self.gains[0]
        masses[1:-1] = (rises[1:] - rises[:-1] * math.exp(self.interval)) / math.expm1(self.interval)
        masses[-1] = rises[-1] / math.expm1(-self.interval)
        masses[-self.lowest] += 1.0
        return np.maximum(masses, 0.0), float(self.gains[-1])


def exact_gains(sigma: float, probability: float, direction: AdjacencyType, interval: float) -> Lattice:
    """Return one step's exact gains, by dp-accounting's closed form.

    Raises:
        Unpriceable: if the mechanism is too revealing to be represented.
    """
    least, most = bounds(sigma, probability, direction)
    lowest = min(-1, math.floor(least / interval))
    highest = max(1, math.ceil(most / interval))
    if highest - lowest > MOST_CELLS:
        raise hardly_private()
    above = step_delta(sigma, probability, direction, interval * np.arange(highest + 1, dtype=np.float64))
    # Below zero a profile is that of the other direction seen from behind: H(eps) = 1 - e^eps + e^eps H'(-eps).
    epsilons = interval * np.arange(1, -lowest + 1, dtype=np.float64)
    below = (np.exp(-epsilons) * step_delta(sigma, probability, ADD if direction is REMOVE else REMOVE, epsilons))[::-1]
    return Lattice(interval, lowest, np.concatenate([below, above]))


def bounds(sigma: float, probability: float, direction: AdjacencyType) -> tuple[float, float]:
    """Return the least and the greatest loss of one step, apart from a mass of e^-40.

    Raises:
        Unpriceable: as `require_some`.
    """
    require_some(sigma, probability)
    loss = GaussianPrivacyLoss(
        sigma, sampling_prob=probability, adjacency_type=direction, log_mass_truncation_bound=_LOG_TAIL
    )
    found = loss.connect_dots_bounds()
    return found.epsilon_lower, found.epsilon_upper


def step_delta(sigma: float, probability: float, direction: AdjacencyType, epsilons: Array) -> Array:
    """Return one step's exact profile at epsilons of at least 0. Shape as `epsilons`.

    What dp-accounting's `get_delta_for_epsilon` computes point by point, for all of them at once: where the loss is at
    least epsilon, an interval of outcomes, less e^epsilon times the same of the neighbour.
    """
    with np.errstate(divide="ignore", over="ignore"):
        stays, joins = np.log1p(-probability), math.log(probability)
        if direction is REMOVE:
            # The loss that the outcome would have if everyone took part: log(1 + (e^eps - 1) / q).
            near = np.log1p(np.expm1(epsilons) / probability)
            far = epsilons - joins + np.log1p(-(1 - probability) * np.exp(-epsilons))
            outcome = -0.5 - sigma**2 * np.where(epsilons < 1, near, far)
            own = (1 - probability) * ndtr(outcome / sigma) + probability * ndtr((outcome + 1) / sigma)
            found = own - np.exp(epsilons + log_ndtr(outcome / sigma))
        else:
            # As above, seen from the other side; no outcome's loss is greater than -log(1 - q).
            near = np.log1p(np.maximum(np.expm1(-epsilons) / probability, -1.0))
            far = np.log(np.maximum(np.exp(-epsilons) - (1 - probability), 0.0)) - joins
            outcome = 0.5 + sigma**2 * np.where(epsilons < 1, near, far)
            other = np.logaddexp(stays + log_ndtr(outcome / sigma), joins + log_ndtr((outcome - 1) / sigma))
            found = ndtr(outcome / sigma) - np.exp(epsilons + other)
    delta: Array = np.clip(found, 0.0, 1.0)
    return delta


def require_some(sigma: float, probability: float) -> None:
    """Refuse a step that doubles do not tell from one without noise, or without anyone in it.

    Raises:
        Unpriceable: naming what to raise.
    """
    if sigma < _LEAST_NOISE:
        raise hardly_private()
    if probability < _LEAST_PROBABILITY:
        raise Unpriceable("hardly anyone takes part in a step; raise the sampling probability")


def hardly_private() -> Unpriceable:
    """Return the refusal of a mechanism that reveals too much to be represented."""
    return Unpriceable("this mechanism is hardly private; raise the noise multiplier")


def lower_gains(sigma: float, probability: float, direction: AdjacencyType, interval: float) -> Lattice:
    """Return gains that, with straight lines between them, lie under the exact ones everywhere.

    Each dot sinks by as much as the chords beside it would overshoot, a matter of the second order in the interval.

    Raises:
        Unpriceable: if the result cannot be shown to lie under the exact profile.
    """
    exact = exact_gains(sigma, probability, direction, interval)
    cells, zero = _Cells(exact), -exact.lowest
    overshoot = np.maximum(cells.chords(exact.gains, cells.meeting) - cells.support(cells.meeting), 0.0)
    sunk = _sunk(exact.gains, overshoot)
    dots = np.maximum(sunk, 0.0)
    # A dot that would sink under zero rests on it; the next one inward then must not rise above where it was.
    for index in np.flatnonzero((sunk <= 0)[1:-1]) + 1:
        inward = index + 1 if index < zero else index - 1
        dots[inward] = min(dots[inward], exact.gains[index])
    # So, too, where the profile reaches zero within its outermost cell: that cell's outer dot cannot sink at all.
    high = cells.chords(dots, cells.meeting) > cells.support(cells.meeting)
    for end, inward in ((0, 1), (-1, -2)):
        if high[end]:
            dots[inward] = min(dots[inward], exact.gains[end])
    x = exact.x
    dots = np.append(_convex_minorant(x[: zero + 1], dots[: zero + 1])[:-1], _convex_minorant(x[zero:], dots[zero:]))
    least = np.maximum(1 - x, 0.0)
    for share in (0.0, cells.meeting, 1.0):
        # The slack is of what is left to reveal, so that the exception of one step is a probability.
        slack = STEP_SLACK * (1 - cells.chords(least, share) - cells.support(share))
        if np.any(cells.chords(dots, share) > cells.support(share) + np.maximum(slack, 0.0)):
            raise Unpriceable("no lower bound of this unit was found; choose a larger sampling probability")
    return Lattice(interval, exact.lowest, dots)


def _sunk(gains: Array, overshoot: Array) -> Array:
    """Lower each dot by the greater overshoot of the two cells that it bounds."""
    lowered: Array = gains - np.maximum(np.append(overshoot, 0.0), np.insert(overshoot, 0, 0.0))
    return lowered


class _Cells:
    """The exact gain between its dots, bounded from below by the prolonged chords of the cells on both sides.

    A chord of other dots, less the greater of two lines, is concave on a cell: greatest at an end or where they meet.

    Args:
        exact: the dots.
    """

    def __init__(self, exact: Lattice) -> None:
        zero = -exact.lowest
        width, gains = np.diff(exact.x), exact.gains
        slopes = np.diff(gains) / width
        # Past the ends the profile's slope is -1 at least, or 0 at most: either way the gain's is 0.
        below, above = np.insert(slopes[:-1], 0, 0.0), np.append(slopes[1:], 0.0)
        # Across x = 1 the profile's slope is the gain's less one on the left.
        below[zero] -= 1.0
        above[zero - 1] += 1.0
        self._at, self._to, self._below, self._above = gains[:-1], gains[1:], below * width, above * width
        with np.errstate(divide="ignore", invalid="ignore"):
            meeting = (self._to - self._above - self._at) / (self._below - self._above)
        self.meeting: Array = np.where(np.isfinite(meeting), np.clip(meeting, 0.0, 1.0), 0.5)

    def support(self, share: Array | float) -> Array:
        """Return the bound at a share of the way through each cell."""
        lines = np.maximum(self._at + share * self._below, self._to - (1 - share) * self._above)
        positive: Array = np.maximum(lines, 0.0)
        return positive

    @staticmethod
    def chords(dots: Array, share: Array | float) -> Array:
        """Return the lines between the dots at a share of the way through each cell."""
        lines: Array = dots[:-1] + share * np.diff(dots)
        return lines


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
