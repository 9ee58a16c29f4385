"""From rows of text to tokenised privacy units.

Which rows of a unit take part depends on that unit (and chance) alone. An empty text has no tokens and takes no part,
so that a unit whose rows are zeroed out contributes exactly nothing, which is what the neighbouring relation asks for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from services.trainer.worker.loss import IGNORED
from services.trainer.worker.streams import KeyedStream


@dataclass(frozen=True)
class Row:
    """One tokenised text. Kept out of `repr`.

    Attributes:
        ids: token ids, int64, shape (length,); empty for a text without tokens.
        labels: `ids` where a token is to be predicted, `IGNORED` elsewhere; same shape. The first is never predicted.
    """

    ids: NDArray[np.int64] = field(repr=False)
    labels: NDArray[np.int64] = field(repr=False)

    @classmethod
    def of(cls, ids: Sequence[int] | NDArray[np.int64]) -> Row:
        """Return a row in which every token is predicted from those before it."""
        tokens = np.asarray(ids, dtype=np.int64)
        return cls(tokens, tokens)

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def trains(self) -> bool:
        """Whether there is a token to predict; a row that trains nothing takes no part."""
        return bool((self.labels[1:] != IGNORED).any())


@dataclass(frozen=True)
class Unit:
    """One privacy unit: all rows that stand or fall together.

    Attributes:
        rows: its tokenised rows; may be empty. Kept out of `repr`.
    """

    rows: tuple[Row, ...] = field(repr=False)


def group_units(
    rows: Sequence[Row],
    unit_indices: Sequence[int],
    unit_count: int,
    max_rows_per_unit: int,
    stream: KeyedStream,
) -> list[Unit]:
    """Group rows by unit and choose at random, once, which rows of a large unit take part.

    Args:
        rows: tokenised rows; those that train nothing are left out.
        unit_indices: the unit of each row, from 0.
        unit_count: number of slots, public; units without rows exist.
        max_rows_per_unit: at most so many rows of one unit take part in the whole run.
        stream: chooses the rows.

    Returns:
        `unit_count` units.
    """
    if max_rows_per_unit < 1:
        raise ValueError("max_rows_per_unit must be at least 1")
    grouped: list[list[Row]] = [[] for _ in range(unit_count)]
    for row, unit in zip(rows, unit_indices, strict=True):
        if not 0 <= unit < unit_count:
            raise ValueError("a row belongs to a unit that the dataset does not have")
        if row.trains:
            grouped[unit].append(row)
    units = []
    for members in grouped:
        order = stream.shuffled(len(members))[:max_rows_per_unit]
        units.append(Unit(tuple(members[position] for position in order)))
    return units


def pad(rows: Sequence[Row], device: torch.device) -> tuple[Tensor, Tensor]:
    """Pad rows on the right to the longest; returns input ids and labels, both (rows, length)."""
    length = max(len(row) for row in rows)
    # Which token pads does not matter: nothing looks at it. Token 0 exists in every vocabulary.
    ids = torch.zeros((len(rows), length), dtype=torch.int64)
    labels = torch.full_like(ids, IGNORED)
    for position, row in enumerate(rows):
        ids[position, : len(row)] = torch.from_numpy(row.ids)
        labels[position, : len(row)] = torch.from_numpy(row.labels)
    return ids.to(device), labels.to(device)
