"""Registering: from a steward's request and the rows of a source to what will be kept.

The order makes a crash harmless wherever it falls. The account is opened first, by a request whose id follows from its
terms; then the rows are sealed under an id that follows from the steward's request; last, one transaction lets the
dataset be seen and remembers the answer. Whoever retries passes the same points again; what a registration that nobody
retries has left is swept away at the next start.
"""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field

import grpc
import numpy as np
import polars as pl
from numpy.typing import NDArray

from murmura.api.dataset.v1 import dataset_pb2
from murmura.api.dataset.v1 import dataset_service_pb2 as pb
from murmura.api.dataset.v1 import expressions_pb2 as frames_pb2
from murmura.api.ledger.v1 import ledger_pb2, ledger_service_pb2
from services.common.errors import MurmuraError, invalid
from services.common.requests import body_hash
from services.common.tokens import Principal
from services.dataset import columns, mock, sources
from services.dataset import expressions as ex
from services.dataset.catalogue import Catalogue

_NAMESPACE = uuid.UUID("d1f5a8f0-4f0d-5b8e-8a3a-1f7c0e9d2b44")
LINEAGE_CHARACTERS = 20
_DECLARABLE = {
    frames_pb2.ValueType.Value(f"VALUE_TYPE_{kind}"): kind
    for kind in (ex.STRING, ex.INTEGER, ex.FLOAT, ex.BOOLEAN, ex.TIMESTAMP)
}


@dataclass(frozen=True)
class Prepared:
    """A dataset that is ready to be kept.

    Attributes:
        resource: what is public of it; its account is not known yet.
        rows: one line a slot.
        units: the unit's number of each slot; shape (slots,).
        fingerprint: of the content.
        storage_id: where the rows will be.
    """

    resource: dataset_pb2.Dataset
    rows: pl.DataFrame = field(repr=False)
    units: NDArray[np.int64] = field(repr=False)
    fingerprint: str
    storage_id: str


def check(request: pb.RegisterDatasetRequest, catalogue: Catalogue, steward: Principal) -> None:
    """Refuse what need not be read to be refused.

    Raises:
        MurmuraError: if something is wrong with the request.
    """
    kind = request.source.WhichOneof("kind")
    if kind == "sql":
        raise MurmuraError(
            grpc.StatusCode.UNIMPLEMENTED,
            "NOT_IN_THIS_RELEASE",
            "Databases are not in this release. Export the table as Parquet, CSV or JSON Lines and register the file.",
            {"feature": "SqlSource"},
        )
    if kind is None:
        raise invalid("source", "must name a file")
    if request.derived_from:
        catalogue.visible(request.derived_from, steward)
    seen: set[str] = set()
    for index, column in enumerate(request.columns):
        if column.name in seen:
            raise invalid(f"columns[{index}].name", "is said twice")
        seen.add(column.name)
        if column.type not in _DECLARABLE:
            raise invalid(f"columns[{index}].type", "is no type that a column can have")
        for value in column.public_values:
            try:
                mock.parse(_DECLARABLE[column.type], value)
            except (ValueError, OverflowError):
                raise invalid(f"columns[{index}].public_values", "must all be of the column's type") from None
    name = f"datasets/{request.dataset_id}"
    if catalogue.registry.get(name) is not None:
        raise MurmuraError(
            grpc.StatusCode.ALREADY_EXISTS,
            "RESOURCE_EXISTS",
            f"{name} exists already, registered otherwise. Choose another name, or delete it first.",
            {"resource": name},
        )


def prepare(request: pb.RegisterDatasetRequest, catalogue: Catalogue, steward: Principal) -> Iterator[int | Prepared]:
    """Read the source: yields the number of rows now and then, and at last what is to be kept.

    Raises:
        MurmuraError: if the source is broken; names a line and a column, never content.
    """
    declared = {column.name: _DECLARABLE[column.type] for column in request.columns}
    try:
        for item in sources.read(request.source.file, request.privacy_unit_column, declared):
            if isinstance(item, int):
                yield item
            else:
                yield _prepared(request, catalogue, steward, item)
    except columns.Unreadable as problem:
        raise MurmuraError(
            grpc.StatusCode.INVALID_ARGUMENT,
            "SOURCE_UNREADABLE",
            f"{request.source.file.url}: {problem}. Nothing was registered.",
            {"source": request.source.file.url, "line": str(problem.line)},
        ) from None


def _prepared(
    request: pb.RegisterDatasetRequest, catalogue: Catalogue, steward: Principal, rows: pl.DataFrame
) -> Prepared:
    said = {column.name: column for column in request.columns}
    units = number_units(rows.get_column(request.privacy_unit_column))
    fingerprint = catalogue.vault.fingerprint(rows)
    resource = dataset_pb2.Dataset(
        name=f"datasets/{request.dataset_id}",
        display_name=request.display_name,
        lineage=_lineage(request, catalogue, steward, fingerprint),
        privacy_unit_column=request.privacy_unit_column,
        row_count=rows.height,
        unit_count=int(units.max()) + 1,
        state=dataset_pb2.DATASET_STATE_READY,
        policy=request.policy,
        owner=steward.subject,
    )
    for series in rows.get_columns():
        column = resource.schema.columns.add(
            name=series.name, type=frames_pb2.ValueType.Value(f"VALUE_TYPE_{columns.type_of(series)}")
        )
        if series.name in said:
            column.description = said[series.name].description
            column.public_values.extend(said[series.name].public_values)
    resource.create_time.GetCurrentTime()
    storage_id = hashlib.sha256(f"{request.request_id.lower()} {body_hash(request)}".encode()).hexdigest()[:24]
    return Prepared(resource, rows, units, fingerprint, storage_id)


def _lineage(request: pb.RegisterDatasetRequest, catalogue: Catalogue, steward: Principal, fingerprint: str) -> str:
    """Return the lineage of content: the one it had before, its parent's, or one of its own.

    Raises:
        MurmuraError: if the content has an account already and another one is asked for: two accounts for the same
            rows would be two budgets.
    """
    known = catalogue.registry.lineage(fingerprint)
    if not request.derived_from:
        return known or fingerprint[:LINEAGE_CHARACTERS]
    parent, _ = catalogue.visible(request.derived_from, steward)
    if known is not None and known != parent.lineage:
        raise two_accounts()
    return parent.lineage


def two_accounts() -> MurmuraError:
    """Return the refusal of a second account for the same rows."""
    return MurmuraError(
        grpc.StatusCode.FAILED_PRECONDITION,
        "POLICY_DENIED",
        "These rows have another account already, and the same rows have one budget. Register them without "
        "derived_from, or as derived from a dataset of that account.",
        {"policy_rule": "one account for the same rows"},
    )


def opening(resource: dataset_pb2.Dataset) -> ledger_service_pb2.OpenAccountRequest:
    """Return the request that opens a dataset's account. Its id follows from its terms: a retry is the same request."""
    policy = resource.policy
    request = ledger_service_pb2.OpenAccountRequest(
        lineage=resource.lineage,
        epsilon=policy.epsilon,
        delta=policy.delta,
        unlimited_allowed=policy.unlimited_allowed,
        unlimited_principals=sorted(policy.unlimited_principals),
        on_behalf_of=resource.owner,
    )
    if policy.unit_noise_multiplier or policy.unit_sampling_probability:
        request.unit.CopyFrom(
            ledger_pb2.UnitMechanism(
                noise_multiplier=policy.unit_noise_multiplier,
                # The ledger's default, which its own rules want spelt out once a unit is named.
                sampling_probability=policy.unit_sampling_probability or 1.0,
            )
        )
    request.request_id = str(uuid.uuid5(_NAMESPACE, request.SerializeToString(deterministic=True).hex()))
    return request


def number_units(values: pl.Series) -> NDArray[np.int64]:
    """Number the privacy units in the order of their first slots; shape (slots,).

    The numbers are pseudonyms: they say which slots share a unit, which is public, and nothing of who it is.
    """
    numbers: dict[object, int] = {}
    return np.array([numbers.setdefault(value, len(numbers)) for value in values.to_list()], dtype=np.int64)
