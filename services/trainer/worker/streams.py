"""Keyed random streams: where every random choice of a private run comes from.

Differential privacy holds against whoever cannot predict the noise and the sampling. A general-purpose generator can
be rebuilt from its output, so a run draws from AES-128 in counter mode under a key from the operating system. One
master key gives an independent stream per purpose (sampling, noise, row choice): no choice can then be learned from,
or shifted by, another.
"""

from __future__ import annotations

import hashlib
import os
import secrets
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from randomgen import AESCounter

KEY_BYTES = 32


@dataclass(frozen=True)
class RunKey:
    """The master key of one run. Its bytes never appear in `repr`, so they reach no log by accident.

    Attributes:
        secret: 32 bytes. They belong in the worker's memory and its encrypted checkpoint, nowhere else.
    """

    secret: bytes = field(repr=False)

    def __post_init__(self) -> None:
        if len(self.secret) != KEY_BYTES:
            raise ValueError(f"a run key has {KEY_BYTES} bytes; make one with RunKey.generate()")

    @classmethod
    def generate(cls) -> RunKey:
        """Return a fresh key from the operating system's generator."""
        return cls(secrets.token_bytes(KEY_BYTES))

    def stream(self, purpose: str) -> KeyedStream:
        """Return the stream of one purpose, from its beginning. Streams of different purposes are independent."""
        digest = hashlib.blake2b(purpose.encode(), key=self.secret, digest_size=16).digest()
        return KeyedStream(int.from_bytes(digest, "little"))


class KeyedStream:
    """AES-128 in counter mode as a source of uniform integers and normals, with a state that can be saved."""

    def __init__(self, key: int) -> None:
        self._bits = AESCounter(key=key, counter=0)
        self._generator = np.random.Generator(self._bits)

    def uint64(self, count: int) -> NDArray[np.uint64]:
        """Return `count` uniform 64-bit integers, shape (count,)."""
        drawn: NDArray[np.uint64] = self._bits.random_raw(count)
        return drawn

    def fill_normal(self, room: NDArray[np.float64]) -> None:
        """Fill an array with standard normals in double precision; other threads run meanwhile."""
        self._generator.standard_normal(out=room)

    def shuffled(self, count: int) -> NDArray[np.int64]:
        """Return a uniform permutation of `range(count)`: the order of `count` 64-bit integers."""
        return np.argsort(self.uint64(count), kind="stable")

    def state_dict(self) -> dict[str, Any]:
        """Return the exact position and key of the stream, in plain values. As secret as the key itself."""
        state: dict[str, Any] = self._bits.state
        inner = {name: value if isinstance(value, int) else value.tolist() for name, value in state["s"].items()}
        return state | {"s": inner}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go back to a saved position; the next draws repeat bit by bit."""
        like = self._bits.state["s"]
        inner = {
            name: value if isinstance(value, int) else np.asarray(value, dtype=like[name].dtype)
            for name, value in state["s"].items()
        }
        self._bits.state = state | {"s": inner}


class NormalLanes:
    """Standard normals from several independent streams at once, drawn ahead of need.

    A GPU takes a step in less time than one core needs for its noise, which depends on nothing that the step computes.
    So it is drawn while the step is under way, by as many threads as there are lanes. Which lane a place belongs to
    follows from the count alone: the draws are the same on any machine.

    Args:
        key: of the run.
        purpose: of the noise; each lane is a stream of its own under it.
    """

    LANES = 8

    def __init__(self, key: RunKey, purpose: str) -> None:
        self._streams = [key.stream(f"{purpose}/{lane}") for lane in range(self.LANES)]
        self._threads = ThreadPoolExecutor(min(self.LANES, os.cpu_count() or 1), "noise")
        self._room = np.empty(0)
        self._begun: list[Future[None]] = []
        self._count = 0

    def begin(self, count: int) -> None:
        """Begin to draw `count` normals, over whatever was taken last.

        Raises:
            RuntimeError: if what was begun before has not been taken: noise is drawn once and used once.
        """
        if self._begun:
            raise RuntimeError("noise that was drawn has not been used")
        if len(self._room) < count:
            self._room = np.empty(count)  # kept between steps: fresh pages cost more than the draws
        self._count = count
        edges = [count * lane // self.LANES for lane in range(self.LANES + 1)]
        self._begun = [
            self._threads.submit(stream.fill_normal, self._room[start:stop])
            for stream, start, stop in zip(self._streams, edges, edges[1:], strict=False)
        ]

    def take(self, count: int) -> NDArray[np.float64]:
        """Return `count` normals, shape (count,); to be copied or used up before the next `begin`.

        Raises:
            RuntimeError: if another count was begun.
        """
        if not self._begun:
            self.begin(count)
        if count != self._count:
            raise RuntimeError(f"noise was drawn for {self._count} numbers, not for {count}")
        for lane in self._begun:
            lane.result()
        self._begun = []
        return self._room[:count]

    def state_dict(self) -> list[dict[str, Any]]:
        """Return the position and key of each stream; as secret as the key.

        Raises:
            RuntimeError: if something was begun and not taken: the positions are then those of no step.
        """
        if self._begun:
            raise RuntimeError("the noise of a step is being drawn")
        return [stream.state_dict() for stream in self._streams]

    def load_state_dict(self, state: list[dict[str, Any]]) -> None:
        """Go back to a saved position; the next draws repeat bit by bit."""
        for stream, saved in zip(self._streams, state, strict=True):
            stream.load_state_dict(saved)
