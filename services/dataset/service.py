"""The dataset service's gRPC face."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from typing import Any, TypeVar

import grpc
from google.protobuf.message import Message

from murmura.api.dataset.v1 import dataset_pb2, dataset_service_pb2_grpc, expressions_pb2
from murmura.api.dataset.v1 import dataset_service_pb2 as pb
from murmura.api.ledger.v1 import ledger_pb2, ledger_service_pb2
from services.common.auth import current_principal
from services.common.errors import MurmuraError
from services.common.ledger import Ledger
from services.common.locks import Locks
from services.common.pages import page
from services.common.requests import body_hash, frame_digest, reused
from services.common.tokens import Principal
from services.dataset import policies, registration
from services.dataset.catalogue import Catalogue, holder_away, may_use
from services.dataset.keys import HolderAway
from services.dataset.queries import Queries
from services.dataset.registration import Prepared
from services.dataset.registry import OtherLineage
from services.dataset.sources import Sources
from services.dataset.threads import ahead, whole

DEFAULT_MOCK_ROWS = 5
Answer = TypeVar("Answer", bound=Message)


class DatasetService(dataset_service_pb2_grpc.DatasetServiceServicer):
    """Keeps private rows and lets them go to one place only.

    Args:
        catalogue: the datasets.
        sources: what can be registered.
        ledger: where budgets are kept.
    """

    def __init__(self, catalogue: Catalogue, sources: Sources, ledger: Ledger) -> None:
        self._catalogue = catalogue
        self._registry = catalogue.registry
        self._sources = sources
        self._ledger = ledger
        self._queries = Queries(catalogue, ledger)
        self._locks = Locks()

    async def RegisterDataset(
        self, request: pb.RegisterDatasetRequest, context: Any
    ) -> AsyncIterator[pb.RegisterDatasetResponse]:
        """Read rows in, open the account, and only then let the dataset be seen."""
        async with self._locks.of(f"datasets/{request.dataset_id}"):
            if (served := self._served(request, pb.RegisterDatasetResponse)) is not None:
                yield served
                return
            steward = current_principal()
            registration.check(request, self._catalogue, steward)
            reading = registration.prepare(request, self._catalogue, self._sources, steward)
            try:
                prepared: Prepared | None = None
                while prepared is None:
                    item = await whole(next, reading)
                    if isinstance(item, Prepared):
                        prepared = item
                    else:
                        yield pb.RegisterDatasetResponse(rows_read=item)
                opened = await self._ledger.call(self._ledger.stub.OpenAccount, registration.opening(prepared.resource))
                prepared.resource.account = opened.account.name
                prepared.resource.policy_version = policies.next_version(self._registry, prepared.resource.name)
                answer = pb.RegisterDatasetResponse(rows_read=prepared.resource.row_count, dataset=prepared.resource)
                # One thread does both: a caller who leaves in between cancels neither half.
                await whole(self._keep, prepared, _entry(request, answer))
            finally:
                await whole(reading.close)
            yield answer

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
        async with self._locks.of(request.name):
            if (served := self._served(request, pb.UpdatePolicyResponse)) is not None:
                return served
            steward = current_principal()
            dataset, _ = self._catalogue.visible(request.name, steward)
            policies.change(dataset, request, self._registry)
            answer = pb.UpdatePolicyResponse(dataset=dataset)
            self._registry.update(dataset, steward.subject, _entry(request, answer))
            return answer

    async def ListPolicyVersions(
        self, request: pb.ListPolicyVersionsRequest, context: Any
    ) -> pb.ListPolicyVersionsResponse:
        """List what a policy has said, and who said so."""
        self._catalogue.visible(request.name, current_principal())
        versions = self._registry.policies(request.name)
        chosen, token = page(versions, request.page_size, request.page_token)
        return pb.ListPolicyVersionsResponse(policy_versions=chosen, next_page_token=token)

    async def CheckPolicy(self, request: pb.CheckPolicyRequest, context: Any) -> pb.CheckPolicyResponse:
        """Say what a person could do with a dataset."""
        dataset, _ = self._catalogue.visible(request.name, current_principal())
        person = Principal(request.principal, frozenset(request.roles or ("analyst",)))
        rights = policies.rights_of(dataset, await policies.money(self._ledger, dataset.account), person)
        return pb.CheckPolicyResponse(rights=rights, policy_version=dataset.policy_version)

    async def DeleteDataset(self, request: pb.DeleteDatasetRequest, context: Any) -> pb.DeleteDatasetResponse:
        """Erase the key, then the rows, then forget the name. The ledger keeps the account."""
        async with self._locks.of(request.name):
            if (served := self._served(request, pb.DeleteDatasetResponse)) is not None:
                return served
            _, storage_id = self._catalogue.visible(request.name, current_principal())
            await asyncio.to_thread(self._catalogue.vault.erase, storage_id)
            answer = pb.DeleteDatasetResponse()
            self._registry.delete(request.name, _entry(request, answer))
            return answer

    async def DescribeFrame(self, request: pb.DescribeFrameRequest, context: Any) -> pb.DescribeFrameResponse:
        """Check a frame and say what is public of it."""
        described = await asyncio.to_thread(self._catalogue.describe, request.frame, current_principal())
        return pb.DescribeFrameResponse(
            schema=self._catalogue.schema_message(described),
            row_count=len(described.shape.slots),
            unit_count=described.unit_count,
            mock_rows=[
                dataset_pb2.MockRow(values=values)
                for values in self._catalogue.mock_rows(described, request.mock_rows or DEFAULT_MOCK_ROWS)
            ],
        )

    async def ReadRows(  # type: ignore[override]
        self, request: pb.ReadRowsRequest, context: Any
    ) -> AsyncIterator[pb.ReadRowsResponse | bytes]:
        """Stream rows to the one worker whose token names exactly this frame, while what pays for it is pending."""
        worker = current_principal()
        purpose = _purpose(worker.claims, request.frame)
        described = await asyncio.to_thread(self._catalogue.describe, request.frame, worker)
        columns = self._catalogue.columns(described, request.text_column, request.completion_column)
        await self._require_pending(worker.claims, f"{purpose}reservation", described.dataset)
        key = await asyncio.to_thread(self._catalogue.checkpoint_key, described, str(worker.claims.get("job", "")))
        yield pb.ReadRowsResponse(
            unit_count=described.unit_count,
            checkpoint_key=key,
            text_field=columns.text,
            completion_field=columns.completion,
        )
        async for message in ahead(self._catalogue.read(described, columns)):
            yield message

    async def QueryStatistic(self, request: pb.QueryStatisticRequest, context: Any) -> pb.QueryStatisticResponse:
        """Answer with noise, after the ledger has charged it; or say what it would cost."""
        async with self._locks.of(f"requests/{request.request_id.lower()}"):
            return await self._queries.answer(request, current_principal())

    async def _require_pending(self, claims: dict[str, Any], claim: str, dataset: dataset_pb2.Dataset) -> None:
        """Let no row go without an open reservation on its own account: a finished job's token reads nothing."""
        name = str(claims.get(claim, ""))
        if not name.startswith(f"{dataset.account}/reservations/"):
            raise _mismatch(dataset.name, "names no reservation on the account of these rows")
        request = ledger_service_pb2.GetReservationRequest(name=name)
        answer = await self._ledger.call(self._ledger.stub.GetReservation, request)
        if answer.reservation.job != claims.get("job"):
            raise _mismatch(dataset.name, "names the reservation of another job")
        if answer.reservation.state != ledger_pb2.RESERVATION_STATE_PENDING:
            raise _mismatch(dataset.name, "belongs to a job that has ended")

    def _keep(self, prepared: Prepared, entry: tuple[str, str, bytes]) -> None:
        try:
            prepared.rows.keep()
            self._registry.add(prepared.resource, prepared.storage_id, prepared.units, prepared.fingerprint, entry)
        except BaseException as failure:
            self._catalogue.vault.erase(prepared.storage_id)
            if isinstance(failure, sqlite3.IntegrityError):
                # The same id came for another dataset at the same moment, and that one was first.
                raise reused(entry[0]) from None
            if isinstance(failure, HolderAway):
                raise holder_away(failure) from None
            if isinstance(failure, OtherLineage):
                raise registration.two_accounts() from None
            raise

    def _served(self, request: Any, kind: type[Answer]) -> Answer | None:
        """Return the first answer to this request if it was served before.

        Raises:
            MurmuraError: if its id was used for something else.
        """
        known = self._registry.answer(request.request_id.lower())
        if known is None:
            return None
        if known[0] != body_hash(request):
            raise reused(request.request_id)
        return kind.FromString(known[1])


def _purpose(claims: dict[str, Any], frame: expressions_pb2.Frame) -> str:
    """Return the prefix of the claims that are for a frame: a job's own rows, or those that it is measured on.

    Raises:
        MurmuraError: if the token is for neither.
    """
    if claims.get("dataset") == frame.dataset:
        digest = frame_digest(frame)
        for prefix in ("", "evaluation_"):
            if claims.get(f"{prefix}frame_sha256") == digest:
                return prefix
    raise _mismatch(frame.dataset, "is for other rows")


def _entry(request: Any, answer: Message) -> tuple[str, str, bytes]:
    return request.request_id.lower(), body_hash(request), answer.SerializeToString()


def _mismatch(dataset: str, why: str) -> MurmuraError:
    return MurmuraError(
        grpc.StatusCode.PERMISSION_DENIED,
        "JOB_TOKEN_MISMATCH",
        f"This job token {why}.",
        {"dataset": dataset},
    )
