"""Cut rows into pieces of bounded size, and turn pieces into Arrow streams and back."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa

# A piece has about so many bytes; a single row may have more.
PIECE_BYTES = 1 << 20
_CELL_BYTES = 8
# What a stream has beside its schema and its batch.
_STREAM_BYTES = 64


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


def stream(rows: pl.DataFrame) -> bytes:
    """Return rows as an Arrow stream of one batch, whose texts have 32-bit offsets."""
    arrays = []
    for series in rows.rechunk().get_columns():
        array = series.to_arrow(compat_level=pl.CompatLevel.oldest())
        arrays.append(array.cast(pa.string()) if series.dtype == pl.String else array)
    return stream_of(pa.record_batch(arrays, names=rows.columns))


def stream_of(batch: pa.RecordBatch) -> bytes:
    """Return a batch as an Arrow stream."""
    # Measured first: a buffer that grows would copy what it holds several times.
    room = batch.schema.serialize().size + pa.ipc.get_record_batch_size(batch) + _STREAM_BYTES
    buffer = pa.allocate_buffer(room)
    sink = pa.FixedSizeBufferWriter(buffer)
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    return bytes(memoryview(buffer)[: sink.tell()])


def batch_of(plain: bytes) -> pa.RecordBatch:
    """Return the one batch of an Arrow stream; shares its memory."""
    return pa.ipc.open_stream(plain).read_next_batch()


def frame(batch: pa.RecordBatch) -> pl.DataFrame:
    """Return the rows of a batch."""
    return pl.DataFrame(pl.from_arrow(batch))
