"""The rows of a frame as they are sent to a worker: messages with columns, and messages with the units of rows."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
import pyarrow as pa
from numpy.typing import NDArray

from services.dataset import batches, execution, outgoing
from services.dataset import expressions as ex
from services.dataset.vault import Vault

# Rows on their way: messages with their columns, and their units.
_Part = tuple[list[bytes], NDArray[np.int64]]


@dataclass(frozen=True)
class Columns:
    """Which columns are sent.

    Attributes:
        text: what the texts' column is named in what is sent.
        completion: the completions'; empty where there are none.
        stored: the numbers of those columns at rest, if the frame's operations leave them as they are; else None.
        made: the frame's columns by the names under which they are sent.
    """

    text: str
    completion: str
    stored: tuple[int, ...] | None
    made: dict[str, str]


def columns_of(operations: Sequence[ex.Operation], columns: Sequence[str], text: str, completion: str = "") -> Columns:
    """Choose columns of a frame.

    Args:
        operations: of the frame, checked.
        columns: of the dataset.
        text: a column of the frame.
        completion: another one, or the same; empty for none.
    """
    stored = untouched(operations, columns)
    if stored is None:
        made = {"text": text} | ({"completion": completion} if completion else {})
        return Columns("text", "completion" if completion else "", None, made)
    texts, completions = stored[text], stored[completion] if completion else ""
    chosen = sorted({columns.index(column) for column in (texts, completions) if column})
    return Columns(texts, completions, tuple(chosen), {})


def read(
    vault: Vault,
    storage_id: str,
    columns: Columns,
    operations: Sequence[ex.Operation],
    slots: range,
    units: NDArray[np.int64],
) -> Generator[bytes]:
    """Yield serialised messages of about a mebibyte with the rows in which no column is empty.

    Args:
        vault: where they lie.
        storage_id: of the dataset.
        columns: those to send.
        operations: of the frame, checked.
        slots: those that it covers.
        units: the unit's number of each of them; shape (slots,).

    Raises:
        Sealed: as `Vault.pieces`.
        HolderAway: as `Vault.pieces`.
    """
    if columns.stored is not None:
        parts = _as_they_are(vault, storage_id, columns.stored, slots, units)
    else:
        parts = _together(_made(vault.read(storage_id, slots), units, operations, columns.made))
    waiting: list[NDArray[np.int64]] = []
    held = 0
    for messages, numbers in parts:
        yield from messages
        waiting.append(numbers)
        held += numbers.nbytes
        if held >= batches.PIECE_BYTES:
            yield outgoing.units(np.concatenate(waiting))
            waiting, held = [], 0
    if held:
        yield outgoing.units(np.concatenate(waiting))


def untouched(operations: Sequence[ex.Operation], columns: Sequence[str]) -> dict[str, str] | None:
    """Return which stored column each column of a frame is, where operations make none and drop no row; else None.

    Args:
        operations: checked.
        columns: of the dataset.
    """
    names = {name: name for name in columns}
    for operation in operations:
        if isinstance(operation, ex.Rename):
            names = {operation.columns.get(name, name): column for name, column in names.items()}
        elif not isinstance(operation, ex.Select | ex.Drop | ex.Slice):
            return None
    return names


def _as_they_are(
    vault: Vault, storage_id: str, columns: Sequence[int], slots: range, units: NDArray[np.int64]
) -> Iterator[_Part]:
    """Pass columns on as they were sealed; a piece is taken apart only where not all of its rows are sent."""
    start = 0
    for piece in vault.pieces(storage_id, slots, columns):
        numbers = units[start : start + len(piece.asked)]
        start += len(piece.asked)
        if piece.whole and piece.full:
            yield list(piece.columns), numbers
            continue
        batch = piece.batch()
        # As in `execution.run`; nothing that is stored is too long, and a text that is missing has no length either.
        alive = np.logical_and.reduce([batches.lengths(column) > 0 for column in batch.columns])
        if alive.any():
            yield [outgoing.rows(batch.filter(pa.array(alive)))], numbers[alive]


def _made(
    stored: Iterator[pl.DataFrame],
    units: NDArray[np.int64],
    operations: Sequence[ex.Operation],
    kept: dict[str, str],
) -> Iterator[pl.DataFrame]:
    """Put rows through the operations."""
    start = 0
    for rows in stored:
        yield from execution.run(rows, units[start : start + rows.height], operations, kept)
        start += rows.height


def _together(parts: Iterator[pl.DataFrame]) -> Iterator[_Part]:
    """Put parts together and cut them, so that messages are few and yet small, whatever the lengths of texts."""
    waiting: list[pl.DataFrame] = []
    held = 0
    for part in parts:
        waiting.append(part)
        held += int(batches.sizes(part).sum())
        if held >= batches.PIECE_BYTES:
            *whole, rest = batches.cut(pl.concat(waiting))
            yield from map(_part, whole)
            waiting, held = [rest], int(batches.sizes(rest).sum())
    if waiting:
        yield from map(_part, batches.cut(pl.concat(waiting)))


def _part(rows: pl.DataFrame) -> _Part:
    return [outgoing.rows(batches.batch(rows.drop(execution.UNIT)))], rows[execution.UNIT].to_numpy()
