"""The datasets of this service: finding, describing and reading them. No gRPC in here but its errors."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache

import grpc
import numpy as np
import polars as pl
from numpy.typing import NDArray

from murmura.api.dataset.v1 import dataset_pb2
from murmura.api.dataset.v1 import expressions_pb2 as frames_pb2
from services.common import rights
from services.common.errors import MurmuraError, dependency_unavailable, not_found
from services.common.tokens import Principal
from services.dataset import execution, frames, mock, reading
from services.dataset import expressions as ex
from services.dataset.keys import HolderAway
from services.dataset.registry import Registry
from services.dataset.sealing import Sealed
from services.dataset.vault import Vault


@dataclass(frozen=True)
class Described:
    """A checked frame.

    Attributes:
        dataset: what it is over.
        storage_id: where the rows are stored.
        operations: checked.
        shape: its schema and slots.
        units: the number of each slot's unit within the frame, from 0; shape (slots,).
        unit_count: privacy units that own at least one of its slots.
    """

    dataset: dataset_pb2.Dataset
    storage_id: str
    operations: list[ex.Operation]
    shape: ex.Shape
    units: NDArray[np.int64] = field(repr=False)
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
        self._units = lru_cache(maxsize=64)(registry.units)

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
        """Check a frame. Opens no row: what is public follows from the registry and the operations.

        Raises:
            MurmuraError: if it is not allowed.
        """
        dataset, storage_id = self.visible(frame.dataset, principal)
        shape = ex.Shape(schema_of(dataset), range(dataset.row_count))
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
        units, count = units_within(self._units(storage_id), shape.slots)
        return Described(dataset, storage_id, operations, shape, units, count)

    def mock_rows(self, described: Described, count: int) -> list[list[str]]:
        """Make mock rows of a frame."""
        public = {column.name: list(column.public_values) for column in described.dataset.schema.columns}
        source, schema = schema_of(described.dataset), described.shape.schema
        return mock.rows(source, public, described.operations, schema, count)

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

    def checkpoint_key(self, described: Described, job: str) -> bytes:
        """Return the key for the checkpoints of a job on a dataset: gone when the dataset is erased.

        Raises:
            MurmuraError: if the dataset cannot be opened.
        """
        with _opening(described):
            return self.vault.derived(described.storage_id, f"checkpoint/{job}")

    def columns(self, described: Described, text_column: str, completion_column: str = "") -> reading.Columns:
        """Choose the columns of a frame that are sent to a worker.

        Raises:
            MurmuraError: if one is missing or no text.
        """
        for column in filter(None, (text_column, completion_column)):
            check_text_column(described.shape, column)
        stored = tuple(schema_of(described.dataset))
        return reading.columns_of(described.operations, stored, text_column, completion_column)

    def read(self, described: Described, columns: reading.Columns) -> Generator[bytes]:
        """Yield columns of a frame as serialised messages of about a mebibyte.

        Raises:
            MurmuraError: if the rows cannot be opened.
        """
        with _opening(described):
            yield from reading.read(
                self.vault,
                described.storage_id,
                columns,
                described.operations,
                described.shape.slots,
                described.units,
            )

    def require_openable(self, described: Described) -> None:
        """Refuse what could not be read, before anything is set aside for reading it.

        Raises:
            MurmuraError: if the rows cannot be opened.
        """
        self.checkpoint_key(described, "")

    def applied(self, described: Described) -> Iterator[tuple[dict[str, pl.Series], pl.Series]]:
        """Yield the columns of a frame part by part, and for each row whether it lives.

        Raises:
            MurmuraError: if the rows cannot be opened.
        """
        with _opening(described):
            for rows in self.vault.read(described.storage_id, described.shape.slots):
                for part in execution.parts(rows, described.operations):
                    yield execution.apply(part, described.operations)


@contextmanager
def _opening(described: Described) -> Iterator[None]:
    """Translate what may keep rows shut.

    Raises:
        MurmuraError: SOURCE_UNREADABLE or DEPENDENCY_UNAVAILABLE.
    """
    try:
        yield
    except Sealed:
        raise MurmuraError(
            grpc.StatusCode.FAILED_PRECONDITION,
            "SOURCE_UNREADABLE",
            f"The rows of {described.dataset.name} cannot be opened: the master key is missing or another one.",
            {"source": described.dataset.name},
        ) from None
    except HolderAway as away:
        raise holder_away(away) from None


def holder_away(away: HolderAway) -> MurmuraError:
    """Return the refusal of what needs a key whose holder does not answer."""
    return dependency_unavailable(
        "key holder",
        f"The rows open with {away}, whose holder does not answer or refuses this service. Nothing was changed; try "
        "again shortly, and tell the operator if it stays so.",
        retry_after_s=5,
    )


def units_within(units: NDArray[np.int64], slots: range) -> tuple[NDArray[np.int64], int]:
    """Number the units of some slots from 0, and count them. Slots alone decide: units whose rows all fail count too.

    Args:
        units: the unit's number of each slot of the dataset; shape (slots,).
        slots: those of the frame.
    """
    if len(slots) == len(units) > 0:
        return units, int(units.max()) + 1  # those of a whole dataset are numbered so already
    chosen = units[slots.start : slots.stop]
    # Units are numbered without gaps, so marking them needs a byte each and no sorting of slots.
    present = np.zeros(int(chosen.max()) + 1 if len(chosen) else 0, dtype=bool)
    present[chosen] = True
    return (np.cumsum(present) - 1)[chosen], int(present.sum())


def schema_of(dataset: dataset_pb2.Dataset) -> dict[str, str]:
    """Return a dataset's columns as the expressions know them: name to type."""
    return {
        column.name: frames_pb2.ValueType.Name(column.type).removeprefix("VALUE_TYPE_")
        for column in dataset.schema.columns
    }


def may_use(dataset: dataset_pb2.Dataset, principal: Principal) -> bool:
    """Say whether a principal may know of a dataset."""
    if principal.has("service"):
        return True
    if principal.has("worker"):
        return bool(principal.claims.get("dataset") == dataset.name)
    return rights.may_use(dataset.policy.analysts, principal.subject, principal.roles)


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
