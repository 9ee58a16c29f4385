"""The rows of a frame, as the dataset service gives them to a worker."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import grpc
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from murmura.api.dataset.v1 import dataset_service_pb2 as pb
from murmura.api.dataset.v1 import expressions_pb2
from murmura.api.trainer.v1 import trainer_pb2
from services.common import fields
from services.trainer.worker.wire import Token, patiently

ReadRows = Callable[..., Iterator[bytes]]
_METHOD = "/murmura.api.dataset.v1.DatasetService/ReadRows"
_ROWS = fields.tag(pb.ReadRowsResponse, "arrow_ipc")
_UNITS = fields.tag(pb.ReadRowsResponse, "units")


class RowsUnavailable(Exception):
    """The dataset service does not give the rows."""


@dataclass(frozen=True)
class Received:
    """The rows, in the order in which they came. Kept out of `repr`.

    Attributes:
        units: the unit of each row, from 0.
        texts: the text, prompt or conversation of each row.
        completions: of each row; empty where there are none.
        checkpoint_key: 32 bytes, the same for every worker of the job.
    """

    units: list[int] = field(repr=False)
    texts: list[str] = field(repr=False)
    completions: list[str] = field(repr=False)
    checkpoint_key: bytes = field(repr=False)


def read_call(channel: Any) -> ReadRows:
    """Return the call that reads rows, with its answers as they come."""
    call: ReadRows = channel.unary_stream(_METHOD, request_serializer=pb.ReadRowsRequest.SerializeToString)
    return call


def parts(answers: Iterator[bytes]) -> Iterator[pb.ReadRowsResponse | pa.RecordBatch | NDArray[np.int64]]:
    """Yield what answers hold: columns, the units of rows, and, in a message of no such form, what is said of both."""
    for answer in answers:
        if rows := fields.read(_ROWS, answer):
            yield from pa.ipc.open_stream(rows)
        elif units := fields.read(_UNITS, answer):
            yield np.frombuffer(units, "<i8")
        else:
            message = pb.ReadRowsResponse.FromString(answer)
            yield message
            if message.arrow_ipc:
                yield from pa.ipc.open_stream(message.arrow_ipc)
            if message.units:
                yield np.array(message.units, np.int64)


def read_rows(
    call: ReadRows, token: Token, frame: expressions_pb2.Frame, assignment: trainer_pb2.Assignment
) -> Received:
    """Read all rows of a frame.

    Args:
        call: of the dataset service.
        token: of the job.
        frame: one of the two that the job token names.
        assignment: which columns.

    Raises:
        RowsUnavailable: if the service refuses, or is away for too long.
    """
    request = pb.ReadRowsRequest(
        frame=frame, text_column=assignment.text_column, completion_column=assignment.completion_column
    )

    def read() -> Received:
        said = pb.ReadRowsResponse()
        units: list[int] = []
        texts: list[str] = []
        completions: list[str] = []
        for part in parts(call(request, metadata=token.metadata())):
            if isinstance(part, np.ndarray):
                units.extend(part.tolist())
            elif isinstance(part, pa.RecordBatch):
                for name, into in ((said.text_field, texts), (said.completion_field, completions)):
                    if name and name in part.schema.names:
                        into.extend(part[name].to_pylist())
            elif part.text_field:
                said = part
        # A row under another's unit would be hidden less than is promised.
        expected = len(texts) if assignment.completion_column else 0
        if len(units) != len(texts) or len(completions) != expected:
            raise RowsUnavailable
        return Received(units, texts, completions, said.checkpoint_key)

    try:
        return patiently(read)
    except grpc.RpcError:
        raise RowsUnavailable from None
