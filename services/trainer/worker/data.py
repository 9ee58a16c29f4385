"""From rows of text to tokenised privacy units, and from a batch of units to padded micro-batches.

Two rules keep a unit's influence its own: which rows of a unit take part depends on that unit (and chance) alone, and
rows are never packed with another unit's into one sequence. An empty text has no tokens and takes no part, so that a
unit whose rows are zeroed out contributes exactly nothing, which is what the neighbouring relation asks for.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from services.trainer.worker.loss import IGNORED
from services.trainer.worker.streams import KeyedStream

_TOKENIZER_BATCH = 512


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


@dataclass(frozen=True)
class MicroBatch:
    """Rows of similar length, padded on the right.

    Under a causal model padding on the right is never seen by what stands before it, so no attention mask is needed.

    Attributes:
        input_ids: shape (rows, length).
        labels: shape (rows, length); `IGNORED` on padding.
        unit_of_row: position of each row's unit among the units given; shape (rows,).
        weights: one over the number of the unit's rows, so that a unit's loss is the mean over its rows; shape (rows,).
    """

    input_ids: Tensor
    labels: Tensor
    unit_of_row: Tensor
    weights: Tensor


def encode_rows(tokenizer: Any, texts: Iterable[str], max_length: int) -> list[Row]:
    """Tokenise texts as `bos text eos`, cut to `max_length` tokens (a cut text has no eos).

    Args:
        tokenizer: a public transformers tokenizer; special tokens that it would add itself are left out.
        texts: the rows.
        max_length: at least 2.

    Returns:
        One row per text; empty for a text without tokens.
    """
    if max_length < 2:
        raise ValueError("max_length must leave room for at least two tokens")
    bos = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    eos = tokenizer.eos_token_id
    if bos is None or eos is None:
        raise ValueError("the tokenizer of the base model has no end-of-text token")
    everything = list(texts)
    encoded: list[Row] = []
    for start in range(0, len(everything), _TOKENIZER_BATCH):
        batch = everything[start : start + _TOKENIZER_BATCH]
        for ids in tokenizer(batch, add_special_tokens=False)["input_ids"]:
            encoded.append(Row.of([bos, *ids, eos][:max_length] if ids else []))
    return encoded


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


def micro_batches(units: Sequence[Unit], token_budget: int, device: torch.device) -> Iterator[MicroBatch]:
    """Cut the rows of some units into padded batches of at most `token_budget` tokens, the longest rows first.

    Rows are ordered by length, so a unit may straddle batches; `unit_of_row` brings it together again. A row longer
    than the budget gets a batch of its own.
    """
    rows = [(row, index, 1.0 / len(u.rows)) for index, u in enumerate(units) for row in u.rows]
    rows.sort(key=lambda entry: -len(entry[0]))
    start = 0
    while start < len(rows):
        longest = len(rows[start][0])
        chosen = rows[start : start + max(1, token_budget // longest)]
        start += len(chosen)
        input_ids, labels = pad([row for row, _, _ in chosen], device)
        yield MicroBatch(
            input_ids=input_ids,
            labels=labels,
            unit_of_row=torch.tensor([index for _, index, _ in chosen], device=device),
            weights=torch.tensor([weight for _, _, weight in chosen], dtype=torch.float64, device=device),
        )


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
