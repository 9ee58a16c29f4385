"""The measurement on held-out rows: what one unit adds to it, and what can be read from the noisy result. Pure.

The mean loss of an adapter is released as two sums over privacy units, one of their losses and one that counts them,
with Gaussian noise on both: one step of the Gaussian mechanism in which every unit takes part. Neither how many units
have rows nor any one unit's loss is known to whoever reads the result, and no other number about rows is released.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

DEFAULT_LOSS_BOUND = 8.0
# L2 norm of what one unit adds: both of its entries are in [-1, 1].
UNIT_NORM = math.sqrt(2.0)
# Entries are multiples of 2^-20, so that sums of fewer than 2^32 of them are exact in double precision: what a unit
# changes is then what it adds, whatever the others are.
_STEPS = float(1 << 20)


@dataclass(frozen=True)
class Estimate:
    """What noisy sums say.

    Attributes:
        mean_loss: mean over units of their loss, each cut at the bound, in nats per token.
        standard_error: of `mean_loss`, as far as it comes of the noise.
        units: how many units had rows, noise included.
    """

    mean_loss: float
    standard_error: float
    units: float

    @property
    def perplexity(self) -> float:
        """Exponential of the mean loss."""
        return math.exp(self.mean_loss)


def share(loss: float | None, bound: float) -> tuple[float, float]:
    """Return what one unit adds to the two sums.

    Formal guarantee: the L2 norm is at most `UNIT_NORM`, and a unit without rows adds nothing.

    Args:
        loss: mean over the tokens of the unit's rows, in nats; None without rows. One that is not finite counts as
            none: it would make the sum say so.
        bound: where it is cut, in nats. Losses are counted from the middle, which halves the noise.
    """
    if loss is None or not math.isfinite(loss):
        return 0.0, 0.0
    position = min(2.0 * max(loss, 0.0) / bound - 1.0, 1.0)
    return round(position * _STEPS) / _STEPS, 1.0


def estimate(loss_sum: float, unit_sum: float, bound: float, noise_multiplier: float) -> Estimate:
    """Read noisy sums. Post-processing: costs nothing.

    Args:
        loss_sum: first sum, noise included.
        unit_sum: second sum, noise included.
        bound: where losses were cut.
        noise_multiplier: standard deviation of the noise over `UNIT_NORM`.
    """
    units = max(1.0, unit_sum)
    position = min(max(loss_sum / units, -1.0), 1.0)
    # To first order, of the quotient of two sums with independent noise.
    error = bound / 2 * noise_multiplier * UNIT_NORM * math.sqrt(1 + position**2) / units
    return Estimate(bound / 2 * (1 + position), error, unit_sum)


def greatest_error(units: int, bound: float, noise_multiplier: float) -> float:
    """Return the standard error that `estimate` finds at most, if all of `units` units have rows."""
    return bound * noise_multiplier / units
