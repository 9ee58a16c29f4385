"""The datasets of this service: registering, finding, describing and reading them. No gRPC in here but its errors."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import grpc
import numpy as np
import polars as pl
import pyarrow as pa
from numpy.typing import NDArray

from murmura.api.dataset.v1 import dataset_pb2
from murmura.api.dataset.v1 import expressions_pb2 as frames_pb2
from services.common.errors import MurmuraError, not_found
from services.common.tokens import Principal
from services.dataset import execution, frames, mock
from services.dataset import expressions as ex
from services.dataset.registry import Registry
from services.dataset.vault import Sealed, Vault

CHUNK_ROWS = 2_000
CHUNK_BYTES = 1 << 20


@dataclass(frozen=True)
class Described:
    """A checked frame.

    Attributes:
        dataset: what it is over.
        storage_id: where the rows are stored.
        operations: checked.
        shape: its schema and slots.
        unit_count: privacy units that own at least one of its slots.
    """

    dataset: dataset_pb2.Dataset
    storage_id: str
    operations: list[ex.Operation]
    shape: ex.Shape
    unit_count: int


class Catalogue:
    """The datasets.

    Args:
        registry: public facts.
        vault: encrypted rows.
    """

    def __init__(self, registry: Registry, vault: Vault) -> None:
        self.registry = registry
        self.vault = vault
        # Which slots share a unit is public under our neighbouring relation; keeping it saves decrypting per call.
        self._units = lru_cache(maxsize=64)(self._load_units)

    def visible(self, name: str, principal: Principal) -> tuple[dataset_pb2.Dataset, str]:
        """Return a dataset and where its rows are, if the caller may know of it.

        Raises:
            MurmuraError: NOT_FOUND, the same for what does not exist and what is not for the caller.
        """
        found = self.registry.get(name)
        if found is None or not may_use(found[0], principal):
            raise not_found(name)
        return found

    def describe(self, frame: frames_pb2.Frame, principal: Principal) -> Described:
        """Check a frame. Touches no row's content.

        Raises:
            MurmuraError: if it is not allowed.
        """
        dataset, storage_id = self.visible(frame.dataset, principal)
        shape = ex.Shape(
            {column.name: dataset_type(column) for column in dataset.schema.columns},
            range(dataset.row_count),
        )
        try:
            operations = frames.operations(frame)
            for operation in operations:
                shape = ex.after(shape, operation)
        except ex.Rejected as rejection:
            raise MurmuraError(
                grpc.StatusCode.INVALID_ARGUMENT,
                "EXPRESSION_REJECTED",
                f"The frame asks for something that is not allowed: {rejection}.",
                {"operation": rejection.operation},
            ) from None
        except ex.UnknownColumn as unknown:
            raise unknown_column(unknown.column, unknown.columns) from None
        units = self._units(storage_id)[shape.slots.start : shape.slots.stop]
        return Described(dataset, storage_id, operations, shape, int(np.unique(units).size))

    def mock_rows(self, described: Described, count: int) -> list[dataset_pb2.MockRow]:
        """Make mock rows of a frame."""
        public = {column.name: list(column.public_values) for column in described.dataset.schema.columns}
        return mock.rows(described.shape.schema, public, count)

    def schema_message(self, described: Described) -> dataset_pb2.Schema:
        """Return a frame's schema as a message."""
        known = {column.name: column for column in described.dataset.schema.columns}
        return dataset_pb2.Schema(
            columns=[
                dataset_pb2.Column(
                    name=name,
                    type=frames_pb2.ValueType.Value(f"VALUE_TYPE_{kind}"),
                    description=known[name].description if name in known else "",
                )
                for name, kind in described.shape.schema.items()
            ]
        )

    def read(self, described: Described, text_column: str) -> Iterator[bytes]:
        """Yield the rows of a frame as Arrow IPC streams of about a mebibyte.

        Raises:
            MurmuraError: if the text column is missing or no text, or the rows cannot be opened.
        """
        check_text_column(described.shape, text_column)
        try:
            rows = self.vault.load(described.storage_id)
        except Sealed:
            raise MurmuraError(
                grpc.StatusCode.FAILED_PRECONDITION,
                "SOURCE_UNREADABLE",
                f"The rows of {described.dataset.name} cannot be opened: the master key is missing or another one.",
                {"source": described.dataset.name},
            ) from None
        kept = execution.run(rows, described.operations, text_column)
        longest = max((len(text.encode()) for text in kept["text"]), default=1) or 1
        size = max(1, min(CHUNK_ROWS, CHUNK_BYTES // longest))
        for start in range(0, kept.height, size):
            yield _ipc(kept.slice(start, size).to_arrow())

    def _load_units(self, storage_id: str) -> NDArray[np.int64]:
        return self.vault.load(storage_id)[execution.UNIT].to_numpy()


def may_use(dataset: dataset_pb2.Dataset, principal: Principal) -> bool:
    """Say whether a principal may know of a dataset."""
    if principal.has("steward", "operator", "service", "worker"):
        return True
    return not dataset.policy.analysts or principal.subject in dataset.policy.analysts


def with_units(rows: pl.DataFrame, unit_column: str) -> pl.DataFrame:
    """Number the privacy units in the order of their first slots."""
    numbers = rows[unit_column].cast(pl.String).fill_null("").rank("dense")
    firsts = {value: index for index, value in enumerate(dict.fromkeys(numbers.to_list()))}
    units = pl.Series(execution.UNIT, [firsts[value] for value in numbers.to_list()], dtype=pl.Int64)
    return rows.with_columns(units)


def new_storage_id() -> str:
    """Return a name for stored rows that says nothing."""
    return secrets.token_hex(12)


def dataset_type(column: dataset_pb2.Column) -> str:
    """Return a column's type as the expressions know it."""
    return frames_pb2.ValueType.Name(column.type).removeprefix("VALUE_TYPE_")


def check_text_column(shape: ex.Shape, name: str) -> None:
    """Check that a column exists and holds text.

    Raises:
        MurmuraError: if not.
    """
    if name not in shape.schema:
        raise unknown_column(name, tuple(shape.schema))
    if shape.schema[name] != ex.STRING:
        raise MurmuraError(
            grpc.StatusCode.INVALID_ARGUMENT,
            "EXPRESSION_REJECTED",
            f"Column {name!r} holds {shape.schema[name]}, and training takes text.",
            {"operation": "text_column"},
        )


def unknown_column(name: str, columns: tuple[str, ...]) -> MurmuraError:
    """Return the refusal of a column that does not exist."""
    listed = ", ".join(columns)
    return MurmuraError(
        grpc.StatusCode.INVALID_ARGUMENT,
        "COLUMN_UNKNOWN",
        f"There is no column {name!r} in this frame; there are {listed}.",
        {"column": name, "columns": listed},
    )


def _ipc(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return bytes(sink.getvalue())
