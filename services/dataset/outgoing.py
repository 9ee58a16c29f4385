"""Rows as messages: copied once on their way from the cipher to gRPC."""

from __future__ import annotations

from collections.abc import Generator

import pyarrow as pa

from murmura.api.dataset.v1 import dataset_service_pb2 as pb
from services.common import fields
from services.dataset import batches

_ROWS = fields.tag(pb.ReadRowsResponse, "arrow_ipc")


def messages(rows: Generator[pa.RecordBatch]) -> Generator[bytes]:
    """Yield a serialised `ReadRowsResponse` with an Arrow stream for each batch; closes `rows` at its end."""
    try:
        for batch in rows:
            yield fields.write(_ROWS, batches.parts(batch))
    finally:
        rows.close()
