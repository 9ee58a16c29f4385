"""The dataset service's gRPC face."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator
from typing import Any

import grpc
import polars as pl

from murmura.api.dataset.v1 import dataset_pb2, dataset_service_pb2_grpc
from murmura.api.dataset.v1 import dataset_service_pb2 as pb
from murmura.api.dataset.v1 import expressions_pb2 as frames_pb2
from murmura.api.ledger.v1 import ledger_pb2, ledger_service_pb2, ledger_service_pb2_grpc
from services.common.auth import current_principal
from services.common.errors import MurmuraError, invalid
from services.common.pages import page
from services.common.requests import body_hash, frame_digest, reused
from services.common.upstream import Upstream
from services.dataset import sources
from services.dataset.catalogue import Catalogue, may_use, new_storage_id, with_units

_NAMESPACE = uuid.UUID("d1f5a8f0-4f0d-5b8e-8a3a-1f7c0e9d2b44")
DEFAULT_MOCK_ROWS = 5


class DatasetService(dataset_service_pb2_grpc.DatasetServiceServicer):
    """Keeps private rows and lets them go to one place only.

    Args:
        catalogue: the datasets.
        ledger: where budgets are kept.
    """

    def __init__(self, catalogue: Catalogue, ledger: Upstream) -> None:
        self._catalogue = catalogue
        self._registry = catalogue.registry
        self._ledger = ledger
        self._ledger_stub = ledger_service_pb2_grpc.LedgerServiceStub(ledger.channel)
        self._registering = asyncio.Lock()

    async def RegisterDataset(
        self, request: pb.RegisterDatasetRequest, context: Any
    ) -> AsyncIterator[pb.RegisterDatasetResponse]:
        """Read rows in, open the account, and only then let the dataset be seen."""
        name = f"datasets/{request.dataset_id}"
        async with self._registering:
            if (served := self._served(request)) is not None:
                yield pb.RegisterDatasetResponse(rows_read=served.row_count, dataset=served)
                return
            if self._registry.get(name) is not None:
                raise MurmuraError(
                    grpc.StatusCode.ALREADY_EXISTS,
                    "RESOURCE_EXISTS",
                    f"{name} exists already, registered otherwise. Choose another name, or delete it first.",
                    {"resource": name},
                )
            rows: pl.DataFrame | None = None
            reader = sources.read(request.source.file)
            try:
                while rows is None:
                    item = await asyncio.to_thread(next, reader)
                    if isinstance(item, int):
                        yield pb.RegisterDatasetResponse(rows_read=item)
                    else:
                        rows = item
                resource = self._resource(request, name, rows)
            except sources.Unreadable as problem:
                raise MurmuraError(
                    grpc.StatusCode.INVALID_ARGUMENT,
                    "SOURCE_UNREADABLE",
                    f"{request.source.file.url}: {problem}. Nothing was registered.",
                    {"source": request.source.file.url, "line": str(problem.line)},
                ) from None
            storage_id = new_storage_id()
            numbered = with_units(rows, request.privacy_unit_column)
            resource.unit_count = numbered["__unit"].n_unique()
            resource.lineage = self._lineage(request, rows)
            resource.account = await self._open_account(request, resource)
            await asyncio.to_thread(self._catalogue.vault.store, storage_id, numbered)
            self._registry.put(resource, storage_id, request.request_id, body_hash(request))
            yield pb.RegisterDatasetResponse(rows_read=rows.height, dataset=resource)

    async def GetDataset(self, request: pb.GetDatasetRequest, context: Any) -> pb.GetDatasetResponse:
        """Read what is public of a dataset."""
        dataset, _ = self._catalogue.visible(request.name, current_principal())
        return pb.GetDatasetResponse(dataset=dataset)

    async def ListDatasets(self, request: pb.ListDatasetsRequest, context: Any) -> pb.ListDatasetsResponse:
        """List the datasets that the caller may use."""
        principal = current_principal()
        found = [dataset for dataset in self._registry.all() if may_use(dataset, principal)]
        chosen, token = page(found, request.page_size, request.page_token)
        return pb.ListDatasetsResponse(datasets=chosen, next_page_token=token)

    async def UpdatePolicy(self, request: pb.UpdatePolicyRequest, context: Any) -> pb.UpdatePolicyResponse:
        """Change who may use a dataset."""
        if (served := self._served(request)) is not None:
            return pb.UpdatePolicyResponse(dataset=served)
        dataset, storage_id = self._catalogue.visible(request.name, current_principal())
        terms = (
            "epsilon",
            "delta",
            "unlimited_allowed",
            "unit_noise_multiplier",
            "unit_sampling_probability",
        )
        for term in terms:
            if getattr(request.policy, term) != getattr(dataset.policy, term):
                raise invalid(f"policy.{term}", "is kept by the ledger; propose a cap change there")
        dataset.policy.CopyFrom(request.policy)
        self._registry.put(dataset, storage_id, request.request_id, body_hash(request))
        return pb.UpdatePolicyResponse(dataset=dataset)

    async def DeleteDataset(self, request: pb.DeleteDatasetRequest, context: Any) -> pb.DeleteDatasetResponse:
        """Erase the key, then the rows, then forget the name. The ledger keeps the account."""
        if self._is_repeated(request) is None:
            _, storage_id = self._catalogue.visible(request.name, current_principal())
            await asyncio.to_thread(self._catalogue.vault.erase, storage_id)
            self._registry.delete(request.name, request.request_id, body_hash(request))
        return pb.DeleteDatasetResponse()

    async def DescribeFrame(self, request: pb.DescribeFrameRequest, context: Any) -> pb.DescribeFrameResponse:
        """Check a frame and say what is public of it."""
        described = await asyncio.to_thread(self._catalogue.describe, request.frame, current_principal())
        return pb.DescribeFrameResponse(
            schema=self._catalogue.schema_message(described),
            row_count=len(described.shape.slots),
            unit_count=described.unit_count,
            mock_rows=self._catalogue.mock_rows(described, request.mock_rows or DEFAULT_MOCK_ROWS),
        )

    async def ReadRows(self, request: pb.ReadRowsRequest, context: Any) -> AsyncIterator[pb.ReadRowsResponse]:
        """Stream rows to the one worker whose token names exactly this frame, while its reservation is pending."""
        claims = current_principal().claims
        if claims.get("dataset") != request.frame.dataset or claims.get("frame_sha256") != frame_digest(request.frame):
            raise _mismatch(request.frame.dataset, "is for other rows")
        await self._require_pending(str(claims.get("reservation", "")), request.frame.dataset)
        described = await asyncio.to_thread(self._catalogue.describe, request.frame, current_principal())
        yield pb.ReadRowsResponse(unit_count=described.unit_count)
        chunks = self._catalogue.read(described, request.text_column)
        while (chunk := await asyncio.to_thread(next, chunks, None)) is not None:
            yield pb.ReadRowsResponse(arrow_ipc=chunk)

    async def QueryStatistic(self, request: pb.QueryStatisticRequest, context: Any) -> pb.QueryStatisticResponse:
        """Not yet."""
        raise MurmuraError(
            grpc.StatusCode.UNIMPLEMENTED,
            "NOT_IN_THIS_RELEASE",
            "Noisy statistics are not in this release; schema and slot counts are free with DescribeFrame.",
            {"feature": "QueryStatistic"},
        )

    def _resource(self, request: pb.RegisterDatasetRequest, name: str, rows: pl.DataFrame) -> dataset_pb2.Dataset:
        schema = sources.schema_of(rows)
        if request.privacy_unit_column not in schema:
            raise sources.Unreadable(
                f"there is no column {request.privacy_unit_column!r}; there are {', '.join(schema)}"
            )
        said = {column.name: column for column in request.columns}
        columns = [
            dataset_pb2.Column(
                name=column,
                type=frames_pb2.ValueType.Value(f"VALUE_TYPE_{kind}"),
                description=said[column].description if column in said else "",
                public_values=said[column].public_values if column in said else (),
            )
            for column, kind in schema.items()
        ]
        resource = dataset_pb2.Dataset(
            name=name,
            display_name=request.display_name,
            schema=dataset_pb2.Schema(columns=columns),
            privacy_unit_column=request.privacy_unit_column,
            row_count=rows.height,
            state=dataset_pb2.DATASET_STATE_READY,
            policy=request.policy,
            owner=current_principal().subject,
        )
        resource.create_time.GetCurrentTime()
        return resource

    def _lineage(self, request: pb.RegisterDatasetRequest, rows: pl.DataFrame) -> str:
        if request.derived_from:
            parent, _ = self._catalogue.visible(request.derived_from, current_principal())
            return parent.lineage
        return self._catalogue.vault.lineage(rows)

    async def _open_account(self, request: pb.RegisterDatasetRequest, resource: dataset_pb2.Dataset) -> str:
        """Open the lineage's account. The request id follows from the terms, so that a retry is the same request."""
        policy = request.policy
        opening = ledger_service_pb2.OpenAccountRequest(
            lineage=resource.lineage,
            epsilon=policy.epsilon,
            delta=policy.delta,
            unlimited_allowed=policy.unlimited_allowed,
            unlimited_principals=policy.unlimited_principals,
            on_behalf_of=resource.owner,
        )
        if policy.unit_noise_multiplier:
            opening.unit.CopyFrom(
                ledger_pb2.UnitMechanism(
                    noise_multiplier=policy.unit_noise_multiplier,
                    sampling_probability=policy.unit_sampling_probability,
                )
            )
        opening.request_id = str(uuid.uuid5(_NAMESPACE, opening.SerializeToString(deterministic=True).hex()))
        answer = await self._ledger.call(self._ledger_stub.OpenAccount, opening)
        return str(answer.account.name)

    async def _require_pending(self, reservation: str, dataset: str) -> None:
        """Let no row go without a reservation that is still open: a finished job's token reads nothing."""
        if not reservation:
            raise _mismatch(dataset, "names no reservation")
        request = ledger_service_pb2.GetReservationRequest(name=reservation)
        answer = await self._ledger.call(self._ledger_stub.GetReservation, request)
        if answer.reservation.state != ledger_pb2.RESERVATION_STATE_PENDING:
            raise _mismatch(dataset, "belongs to a job that has ended")

    def _is_repeated(self, request: Any) -> str | None:
        """Return the dataset's name if this request was served before.

        Raises:
            MurmuraError: if its id was used for something else.
        """
        known = self._registry.request(request.request_id)
        if known is None:
            return None
        if known[0] != body_hash(request):
            raise reused(request.request_id)
        return known[1]

    def _served(self, request: Any) -> dataset_pb2.Dataset | None:
        name = self._is_repeated(request)
        return self._catalogue.visible(name, current_principal())[0] if name else None


def _mismatch(dataset: str, why: str) -> MurmuraError:
    return MurmuraError(
        grpc.StatusCode.PERMISSION_DENIED,
        "JOB_TOKEN_MISMATCH",
        f"This job token {why}.",
        {"dataset": dataset},
    )
