"""Several processes, one mechanism: data parallel training of one private run.

Every rank draws the same Poisson sample from the same keyed stream and works on its own slots of it, so units are
sampled independently however many ranks there are, and a resumed run may have another number of them. The sums of the
ranks are added; the first rank adds the noise, once; all take the same step. Each rank joins both exchanges of a step
whatever it has drawn: an empty share is a sum of zeros. The ranks of a run trust each other with rows and sums; their
network must be private: this machine's own, or one that the operator vouches for (`processes.py`).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

# Names the file in which ranks find each other; without it they do at the launcher's address.
MEETING = "MURMURA_RANKS_FILE"


class RankLost(Exception):
    """A process of the run is gone, so the others cannot go on."""


class Ranks:
    """The processes of a run, as one of them sees them.

    Args:
        index: of this process; the first one is 0.
        count: of processes. With more than one, torch.distributed's default group connects them.
    """

    def __init__(self, index: int = 0, count: int = 1) -> None:
        if not 0 <= index < count:
            raise ValueError(f"there is no rank {index} of {count}")
        self.index = index
        self.count = count

    @classmethod
    def join(cls) -> Ranks:
        """Return the ranks that torch's launcher has started, connected; one alone where it has not."""
        count = int(os.environ.get("WORLD_SIZE", "1"))
        if count == 1:
            return cls()
        cuda = torch.cuda.is_available()
        if cuda:
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        _take_cores(int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
        meeting: dict[str, Any] = {}
        if path := os.environ.get(MEETING):
            meeting = {"init_method": f"file://{path}", "rank": int(os.environ["RANK"]), "world_size": count}
        dist.init_process_group("nccl" if cuda else "gloo", **meeting)
        return cls(dist.get_rank(), count)

    @property
    def first(self) -> bool:
        """Whether this is the rank that draws noise, saves and reports."""
        return self.index == 0

    def owns(self, slot: int) -> bool:
        """Say whether a slot of the dataset is this rank's."""
        return slot % self.count == self.index

    def total(self, parts: Sequence[Tensor], noised: Callable[[Tensor], object]) -> list[Tensor]:
        """Add up what the ranks have, let the first one add noise, and give the result to all.

        Args:
            parts: float64 tensors of the same shapes on every rank.
            noised: changes the sums in place, all of them laid out in one; called on the first rank only, once.

        Returns:
            Tensors of those shapes, bit for bit the same on every rank.

        Raises:
            RankLost: here as in every other exchange, if a rank is gone.
        """
        flat = torch.cat([part.flatten() for part in parts])
        if self.count > 1:
            with _together():
                dist.reduce(flat, dst=0)
        if self.first:
            noised(flat)
        if self.count > 1:
            with _together():
                dist.broadcast(flat, src=0)
        pieces = flat.split([part.numel() for part in parts])
        return [piece.view(part.shape) for piece, part in zip(pieces, parts, strict=True)]

    def highest(self, value: int) -> int:
        """Return the highest of what the ranks say; every rank must ask."""
        if self.count == 1:
            return value
        said = torch.tensor([value], device=self._device())
        with _together():
            dist.all_reduce(said, dist.ReduceOp.MAX)
            return int(said.item())

    def told(self, value: int) -> int:
        """Return what the first rank says; every rank must ask."""
        if self.count == 1:
            return value
        said = torch.tensor([value], device=self._device())
        with _together():
            dist.broadcast(said, src=0)
            return int(said.item())

    def shared(self, own: bytes) -> bytes:
        """Return the first rank's bytes; every rank must ask."""
        if self.count == 1:
            return own
        said = torch.zeros(self.told(len(own)), dtype=torch.uint8, device=self._device())
        if self.first:
            said.copy_(torch.tensor(list(own), dtype=torch.uint8))
        with _together():
            dist.broadcast(said, src=0)
            return bytes(said.cpu().tolist())

    def left(self) -> Ranks:
        """Return this process as the only one of its run: what the others computed with is its own now."""
        if self.count > 1:
            _take_cores(1)
        return Ranks()

    def leave(self) -> None:
        """Take leave of the others, after the last exchange."""
        if self.count > 1:
            dist.destroy_process_group()

    @staticmethod
    def _device() -> torch.device:
        return torch.device("cuda" if dist.get_backend() == "nccl" else "cpu")


def _take_cores(processes: int) -> None:
    """Compute with this process's share of the machine's cores; torch's launcher leaves one to each process."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    torch.set_num_threads(max(1, cores // processes))


@contextmanager
def _together() -> Iterator[None]:
    """Do what every rank takes part in: what goes wrong with it means that one of them does not."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except RuntimeError:
        raise RankLost from None
