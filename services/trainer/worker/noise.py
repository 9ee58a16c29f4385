"""The Gaussian noise of a private step.

Noise is drawn in double precision from the keyed stream and added in double precision, once per logical step, to the
sum of clipped gradients. What is not claimed: the normals are floating-point numbers, so the discretisation attacks of
Mironov (CCS 2012) are made harder by the double precision and the later rounding to single, but not excluded.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from services.trainer.worker.streams import KeyedStream


class GaussianNoise:
    """Adds N(0, standard_deviation²) to every coordinate.

    Args:
        stream: where the randomness comes from; used by nothing else.
        standard_deviation: noise multiplier times clipping norm, the L2 sensitivity of the sum; 0 adds nothing.
    """

    def __init__(self, stream: KeyedStream, standard_deviation: float) -> None:
        if not 0.0 <= standard_deviation < float("inf"):
            raise ValueError("the standard deviation of the noise must be finite and not negative")
        self._stream = stream
        self._standard_deviation = standard_deviation

    def add_(self, total: Tensor) -> Tensor:
        """Add fresh noise to `total` in place and return it.

        Args:
            total: sum of clipped gradients, float64, any shape.
        """
        if total.dtype != torch.float64:
            raise TypeError("noise is added in double precision")
        if self._standard_deviation:
            drawn = torch.from_numpy(self._stream.normal(total.numel())).view(total.shape)
            total.add_(drawn.to(total.device), alpha=self._standard_deviation)
        return total

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the stream (secret)."""
        return self._stream.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a saved state; the next noise repeats exactly."""
        self._stream.load_state_dict(state)
