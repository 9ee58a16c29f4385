"""Cut rows into pieces of bounded size, and turn pieces into Arrow streams and back."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
from numpy.typing import NDArray

# A piece has about so many bytes; a single row may have more.
PIECE_BYTES = 1 << 20
_CELL_BYTES = 8


def sizes(rows: pl.DataFrame) -> Any:
    """Return about how many bytes each row has; shape (rows,)."""
    total = np.full(rows.height, _CELL_BYTES * rows.width, dtype=np.int64)
    for series in rows.get_columns():
        if series.dtype == pl.String:
            total += series.str.len_bytes().fill_null(0).to_numpy()
    return total


def cut(rows: pl.DataFrame) -> Iterator[pl.DataFrame]:
    """Cut rows into pieces of at most `PIECE_BYTES`; a row that is larger is a piece of its own."""
    ends = np.cumsum(sizes(rows))
    start = before = 0
    while start < rows.height:
        stop = max(int(np.searchsorted(ends, before + PIECE_BYTES, side="right")), start + 1)
        yield rows.slice(start, stop - start)
        start, before = stop, int(ends[stop - 1])


def batch(rows: pl.DataFrame) -> pa.RecordBatch:
    """Return rows as one batch, whose texts have 32-bit offsets."""
    arrays = []
    for series in rows.rechunk().get_columns():
        array = series.to_arrow(compat_level=pl.CompatLevel.oldest())
        arrays.append(array.cast(pa.string()) if series.dtype == pl.String else array)
    return pa.record_batch(arrays, names=rows.columns)


def lengths(texts: pa.StringArray) -> NDArray[np.int32]:
    """Return how many bytes each text has, from its offsets alone, and 0 where it is missing; shape (rows,)."""
    offsets = np.frombuffer(texts.buffers()[1], np.int32, count=len(texts) + 1, offset=4 * texts.offset)
    found: NDArray[np.int32] = np.diff(offsets)
    if texts.null_count:
        found[texts.is_null().to_numpy(zero_copy_only=False)] = 0
    return found


def full(column: pa.Array) -> bool:
    """Say whether a column holds texts and none of them is empty or missing."""
    return pa.types.is_string(column.type) and bool(lengths(column).all())


def parts(batch: pa.RecordBatch) -> list[Any]:
    """Return the pieces of memory that make an Arrow stream of a batch, one after the other; they share its memory."""
    sink = _Parts()
    with pa.ipc.new_stream(pa.PythonFile(sink, "w"), batch.schema) as writer:
        writer.write_batch(batch)
    return sink.parts


class _Parts:
    """A file that keeps what is written to it as it came, uncopied."""

    closed = False

    def __init__(self) -> None:
        self.parts: list[Any] = []

    def write(self, part: Any) -> int:
        """Keep a part."""
        self.parts.append(part)
        return len(part)

    def flush(self) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""


def batch_of(stream: bytes | memoryview) -> pa.RecordBatch:
    """Return the one batch of an Arrow stream; shares its memory."""
    return pa.ipc.open_stream(stream).read_next_batch()


def frame(batch: pa.RecordBatch) -> pl.DataFrame:
    """Return the rows of a batch."""
    return pl.DataFrame(pl.from_arrow(batch))
