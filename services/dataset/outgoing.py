"""Rows as the messages in which they are sent.

A column at rest is sealed as such a message: what comes out of the cipher goes to gRPC as it is.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from murmura.api.dataset.v1 import dataset_service_pb2 as pb
from services.common import fields
from services.dataset import batches

_ROWS = fields.tag(pb.ReadRowsResponse, "arrow_ipc")
_UNITS = fields.tag(pb.ReadRowsResponse, "units")


def rows(batch: pa.RecordBatch) -> bytes:
    """Return a serialised `ReadRowsResponse` with an Arrow stream of a batch."""
    return fields.write(_ROWS, batches.parts(batch))


def units(numbers: NDArray[np.int64]) -> bytes:
    """Return a serialised `ReadRowsResponse` with the units of rows."""
    return fields.write(_UNITS, [np.ascontiguousarray(numbers, "<i8").view(np.uint8)])


def batch(message: bytes) -> pa.RecordBatch:
    """Return the batch of a message that `rows` made; shares its memory."""
    stream = fields.read(_ROWS, message)
    if stream is None:
        raise ValueError("a message without rows")
    return batches.batch_of(stream)
