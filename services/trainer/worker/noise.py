"""The Gaussian noise of a private step, and the lattice on which its result is released.

Noise is drawn in double precision from keyed streams and added in double precision, once per logical step, to the
sum of clipped gradients. A floating-point sum betrays its parts in its last bits: not every double can be written as a
possible sum plus a possible draw, and which ones can depends on the rows (Mironov, CCS 2012). So the result is rounded
to a lattice whose spacing is a power of two, about 2⁻¹⁶ of the noise's standard deviation: far coarser than any
rounding error of sum and noise, so that those bits are gone, and so fine that it adds less than 10⁻¹⁰ to the variance.

What is not claimed: the draws are those of a good floating-point sampler (Ziggurat on 64-bit words), not of an exact
discrete Gaussian; events rarer than about 2⁻⁵³ are outside its reach.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from services.trainer.worker.streams import NormalLanes

LATTICE_BITS = 16


class GaussianNoise:
    """Adds N(0, standard_deviation²) to every coordinate and rounds to the lattice.

    Args:
        normals: where the randomness comes from; used by nothing else.
        standard_deviation: noise multiplier times clipping norm, the L2 sensitivity of the sum; 0 adds nothing and
            rounds nothing.

    Attributes:
        spacing: of the lattice; 0 without noise.
    """

    def __init__(self, normals: NormalLanes, standard_deviation: float) -> None:
        if not 0.0 <= standard_deviation < float("inf"):
            raise ValueError("the standard deviation of the noise must be finite and not negative")
        self._normals = normals
        self._standard_deviation = standard_deviation
        # frexp: standard_deviation = m · 2^e with m in [1/2, 1), so spacing is in (2^-17, 2^-16] of it.
        exponent = math.frexp(standard_deviation)[1] - 1 - LATTICE_BITS
        self.spacing = math.ldexp(1.0, exponent) if standard_deviation else 0.0

    def begin(self, count: int) -> None:
        """Begin to draw the noise of `count` numbers, so that `add_` finds it ready."""
        if self._standard_deviation:
            self._normals.begin(count)

    def add_(self, total: Tensor) -> Tensor:
        """Add fresh noise to `total` in place, round it, and return it.

        Args:
            total: sum of clipped gradients, float64, any shape.
        """
        if total.dtype != torch.float64:
            raise TypeError("noise is added in double precision")
        if self._standard_deviation:
            drawn = torch.from_numpy(self._normals.take(total.numel())).view(total.shape)
            # A copy to a GPU ends before this returns: the room it comes from is drawn over by the next step.
            total.add_(drawn.to(total.device), alpha=self._standard_deviation)
            # Exact: dividing and multiplying by a power of two rounds nothing.
            total.div_(self.spacing).round_().mul_(self.spacing)
        return total

    def state_dict(self) -> list[dict[str, Any]]:
        """Return the state of the streams (secret)."""
        return self._normals.state_dict()

    def load_state_dict(self, state: list[dict[str, Any]]) -> None:
        """Restore a saved state; the next noise repeats exactly."""
        self._normals.load_state_dict(state)
