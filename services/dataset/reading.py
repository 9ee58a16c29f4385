"""The rows of a frame in the batches that a worker is sent: columns `unit`, `text` and, if asked for, `completion`."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence

import numpy as np
import polars as pl
import pyarrow as pa
from numpy.typing import NDArray

from services.dataset import batches, execution
from services.dataset import expressions as ex
from services.dataset.vault import Vault


def read(
    vault: Vault,
    storage_id: str,
    columns: Sequence[str],
    operations: Sequence[ex.Operation],
    slots: range,
    units: NDArray[np.int64],
    kept: dict[str, str],
) -> Generator[pa.RecordBatch]:
    """Yield rows in batches of about a mebibyte, without those in which a column that is kept is empty.

    Args:
        vault: where they lie.
        storage_id: of the dataset.
        columns: of the dataset.
        operations: of the frame, checked.
        slots: those that it covers.
        units: the unit's number of each of them; shape (slots,).
        kept: the columns of text to send, by the name under which each is sent.

    Raises:
        Sealed: as `Vault.batches`.
        HolderAway: as `Vault.batches`.
    """
    stored = untouched(operations, columns)
    if stored is not None:
        yield from _as_they_are(vault.batches(storage_id, slots), units, {name: stored[c] for name, c in kept.items()})
    else:
        yield from _together(_made(vault.read(storage_id, slots), units, operations, kept))


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
    stored: Iterator[pa.RecordBatch], units: NDArray[np.int64], kept: dict[str, str]
) -> Iterator[pa.RecordBatch]:
    """Pass columns on as they were stored: a piece at rest is sent without being taken apart."""
    start = 0
    for batch in stored:
        numbers = pa.array(units[start : start + batch.num_rows], pa.int64())
        start += batch.num_rows
        columns = {name: batch.column(column) for name, column in kept.items()}
        # As in `execution.run`; nothing that is stored is too long, and a text that is missing has no length either.
        alive = np.logical_and.reduce([_lengths(column) > 0 for column in columns.values()])
        found = pa.record_batch({"unit": numbers, **columns})
        if not alive.all():
            found = found.filter(pa.array(alive))
        if found.num_rows:
            yield found


def _lengths(texts: pa.StringArray) -> NDArray[np.int32]:
    """Return how many bytes each text has, from its offsets alone; shape (rows,)."""
    offsets = np.frombuffer(texts.buffers()[1], np.int32, count=len(texts) + 1, offset=4 * texts.offset)
    lengths: NDArray[np.int32] = np.diff(offsets)
    if texts.null_count:
        lengths[texts.is_null().to_numpy(zero_copy_only=False)] = 0
    return lengths


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


def _together(parts: Iterator[pl.DataFrame]) -> Iterator[pa.RecordBatch]:
    """Put parts together and cut them, so that batches are few and yet small, whatever the lengths of texts."""
    waiting: list[pl.DataFrame] = []
    held = 0
    for part in parts:
        waiting.append(part)
        held += int(batches.sizes(part).sum())
        if held >= batches.PIECE_BYTES:
            *whole, rest = batches.cut(pl.concat(waiting))
            yield from map(batches.batch, whole)
            waiting, held = [rest], int(batches.sizes(rest).sum())
    if waiting:
        yield from map(batches.batch, batches.cut(pl.concat(waiting)))
