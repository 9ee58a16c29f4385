"""Registering: from a steward's request and the rows of a source to what will be kept.

The order makes a crash harmless wherever it falls. Rows are sealed as they come, under a key that is only in memory;
then the account is opened, by a request whose id follows from its terms; then rows and key get their place, under an
id that follows from the steward's request; last, one transaction lets the dataset be seen and remembers the answer.
Whoever retries passes the same points again; what a registration that nobody retries has left is swept away at the
next start.
"""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Generator
from dataclasses import dataclass, field

import grpc
import polars as pl

from murmura.api.dataset.v1 import dataset_pb2
from murmura.api.dataset.v1 import dataset_service_pb2 as pb
from murmura.api.dataset.v1 import expressions_pb2 as frames_pb2
from murmura.api.ledger.v1 import ledger_pb2, ledger_service_pb2
from services.common.errors import MurmuraError, invalid
from services.common.requests import body_hash
from services.common.tokens import Principal
from services.dataset import columns, mock
from services.dataset import expressions as ex
from services.dataset.catalogue import Catalogue
from services.dataset.sources import Sources
from services.dataset.units import Units
from services.dataset.vault import Incoming

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
        rows: encrypted, and read by nobody before they are kept.
        units: the unit's number of each slot, packed.
        fingerprint: of the content.
        storage_id: where the rows will be.
    """

    resource: dataset_pb2.Dataset
    rows: Incoming = field(repr=False)
    units: bytes = field(repr=False)
    fingerprint: str
    storage_id: str


def check(request: pb.RegisterDatasetRequest, catalogue: Catalogue, steward: Principal) -> None:
    """Refuse what need not be read to be refused.

    Raises:
        MurmuraError: if something is wrong with the request.
    """
    if request.source.WhichOneof("kind") is None:
        raise invalid("source", "must name a file or a table")
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


def prepare(
    request: pb.RegisterDatasetRequest, catalogue: Catalogue, sources: Sources, steward: Principal
) -> Generator[int | Prepared]:
    """Read the source: yields the number of rows now and then, and at last what is to be kept.

    Rows are encrypted as they come, so that memory does not grow with them. Close the generator when what it gave was
    kept, or will not be: it leaves nothing that was not.

    Raises:
        MurmuraError: if the source is broken; names a line and a column, never content.
    """
    declared = {column.name: _DECLARABLE[column.type] for column in request.columns}
    storage_id = hashlib.sha256(f"{request.request_id.lower()} {body_hash(request)}".encode()).hexdigest()[:24]
    units, fingerprint, empty = Units(), catalogue.vault.fingerprint(), None
    incoming = catalogue.vault.incoming(storage_id)
    try:
        for item in sources.read(request.source, request.privacy_unit_column, declared, catalogue.vault):
            if isinstance(item, int):
                yield item
                continue
            units.add(item.get_column(request.privacy_unit_column))
            fingerprint.add(item)
            incoming.add(item)
            empty = item.clear()
        assert empty is not None  # noqa: S101 - a source without a row is unreadable
        digest = fingerprint.hexdigest()
        resource = _resource(request, empty, units, steward)
        resource.lineage = _lineage(request, catalogue, steward, digest)
        yield Prepared(resource, incoming, units.packed(), digest, storage_id)
    except columns.Unreadable as problem:
        place = describe(request.source)
        raise MurmuraError(
            grpc.StatusCode.INVALID_ARGUMENT,
            "SOURCE_UNREADABLE",
            f"{place}: {problem}. Nothing was registered.",
            {"source": place, "line": str(problem.line)},
        ) from None
    finally:
        incoming.discard()
        fingerprint.close()
        units.close()


def describe(source: dataset_pb2.Source) -> str:
    """Return how a steward has named a source."""
    if source.WhichOneof("kind") == "sql":
        return f"table {source.sql.table!r} of connection {source.sql.connection!r}"
    return source.file.url


def _resource(
    request: pb.RegisterDatasetRequest, empty: pl.DataFrame, units: Units, steward: Principal
) -> dataset_pb2.Dataset:
    """Return what is public of a dataset; `empty` has its columns and no row."""
    said = {column.name: column for column in request.columns}
    resource = dataset_pb2.Dataset(
        name=f"datasets/{request.dataset_id}",
        display_name=request.display_name,
        privacy_unit_column=request.privacy_unit_column,
        row_count=units.slots,
        unit_count=units.count,
        state=dataset_pb2.DATASET_STATE_READY,
        policy=request.policy,
        owner=steward.subject,
    )
    for series in empty.get_columns():
        column = resource.schema.columns.add(
            name=series.name, type=frames_pb2.ValueType.Value(f"VALUE_TYPE_{columns.type_of(series)}")
        )
        if series.name in said:
            column.description = said[series.name].description
            column.public_values.extend(said[series.name].public_values)
    resource.create_time.GetCurrentTime()
    return resource


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
