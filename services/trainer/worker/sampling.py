"""Exact Poisson sampling of privacy units.

The ledger charges for steps in which every unit takes part independently with probability q. Shuffled batches are a
different mechanism, with much less privacy (arXiv 2403.17673, 2405.20769), and a draw per micro-batch is yet another.
So there is one draw per logical step, over all slots of the dataset, and micro-batches are cut from it afterwards.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from services.trainer.worker.streams import KeyedStream

_WORD = 64


class PoissonSampler:
    """Draws the units of one logical step.

    Formal guarantee: in every draw each unit is included independently, with probability floor(q 2^64) / 2^64. That is
    q itself for q >= 2^-11 and less than 2^-64 below q otherwise; a smaller probability is never less private.

    Args:
        stream: where the randomness comes from; used by nothing else.
        units: number of slots, public.
        probability: q in (0, 1].
    """

    def __init__(self, stream: KeyedStream, units: int, probability: float) -> None:
        if not 0.0 < probability <= 1.0:
            raise ValueError(f"the sampling probability must be in (0, 1], not {probability}")
        if units < 1:
            raise ValueError("there are no privacy units to sample from")
        self._stream = stream
        self._units = units
        self._threshold = math.floor(math.ldexp(probability, _WORD))

    def draw(self) -> NDArray[np.int64]:
        """Return the indices of this step's units, ascending; shape (batch,), where batch may be 0."""
        words = self._stream.uint64(self._units)
        if self._threshold >> _WORD:
            return np.arange(self._units)
        return np.flatnonzero(words < np.uint64(self._threshold))

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the stream (secret)."""
        return self._stream.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a saved state; the next draw repeats exactly."""
        self._stream.load_state_dict(state)
