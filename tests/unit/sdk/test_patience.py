"""Waiting for a service that is away: the same on both clients, and never where something could happen twice."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
import pytest

from murmura import calls, connection, errors
from murmura.aio_connection import AsyncConnection
from murmura.api.dataset.v1 import dataset_pb2, dataset_service_pb2_grpc
from murmura.api.dataset.v1 import dataset_service_pb2 as messages
from murmura.calls import Call, datasets
from murmura.client import Client
from murmura.connection import Connection, Profile
from services.common.errors import STATUS_DETAILS, MurmuraError

OUTAGES = 2


class Service(dataset_service_pb2_grpc.DatasetServiceServicer):
    """Refuses the first calls, and answers from then on."""

    def __init__(self) -> None:
        self.asked: list[Any] = []
        self.refusal: grpc.StatusCode | MurmuraError = grpc.StatusCode.UNAVAILABLE

    async def _answer(self, request: Any, context: Any) -> None:
        self.asked.append(request)
        if len(self.asked) > OUTAGES:
            return
        if isinstance(self.refusal, MurmuraError):
            details = self.refusal.status().SerializeToString()
            context.set_trailing_metadata(((STATUS_DETAILS, details),))
            await context.abort(self.refusal.code, self.refusal.message)
        await context.abort(self.refusal, "no")

    async def GetDataset(self, request: Any, context: Any) -> messages.GetDatasetResponse:
        await self._answer(request, context)
        return messages.GetDatasetResponse(dataset=dataset_pb2.Dataset(name=request.name))

    async def UpdatePolicy(self, request: Any, context: Any) -> messages.UpdatePolicyResponse:
        await self._answer(request, context)
        return messages.UpdatePolicyResponse(dataset=dataset_pb2.Dataset(name=request.name))


@pytest.fixture
async def service(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[tuple[Service, Profile]]:
    monkeypatch.setattr(connection, "RETRY_S", 0.01)
    server, made = grpc.aio.server(), Service()
    dataset_service_pb2_grpc.add_DatasetServiceServicer_to_server(made, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    yield made, Profile({"dataset": f"127.0.0.1:{port}"}, "token", secure=False)
    await server.stop(None)


async def _blocking(profile: Profile, call: Call) -> Any:
    client = Client.__new__(Client)
    client.connection = Connection(profile, 5.0)
    try:
        return await asyncio.to_thread(client.run, call)
    finally:
        client.close()


async def _on_asyncio(profile: Profile, call: Call) -> Any:
    made = AsyncConnection(profile, 5.0)
    try:
        return await made.run(call)
    finally:
        await made.close()


Run = Callable[[Profile, Call], Any]
both = pytest.mark.parametrize("run", [_blocking, _on_asyncio])


@both
async def test_a_read_and_a_write_with_an_id_are_sent_again(service: tuple[Service, Profile], run: Run) -> None:
    for call in (datasets.get_dataset("d"), datasets.update_policy("d", dataset_pb2.Policy(), 1)):
        service[0].asked.clear()
        assert (await run(service[1], call)).dataset.name == "datasets/d"
        assert service[0].asked == [call.request] * (OUTAGES + 1)


@both
async def test_a_write_without_an_id_is_sent_once(service: tuple[Service, Profile], run: Run) -> None:
    call = Call("dataset", "UpdatePolicy", messages.UpdatePolicyRequest(name="datasets/d"))
    with pytest.raises(errors.Unreachable, match="murmura up"):
        await run(service[1], call)
    assert len(service[0].asked) == 1


@both
async def test_what_is_not_an_outage_is_not_tried_again(service: tuple[Service, Profile], run: Run) -> None:
    service[0].refusal = MurmuraError(
        grpc.StatusCode.ABORTED, "VERSION_CONFLICT", "Someone was first.", {"version": "2"}
    )
    with pytest.raises(errors.Conflict, match=r"Someone was first\.") as refusal:
        await run(service[1], datasets.get_dataset("d"))
    assert (refusal.value.reason, refusal.value.metadata) == ("VERSION_CONFLICT", {"version": "2"})
    assert len(service[0].asked) == 1


@both
async def test_a_deadline_is_a_problem_with_a_next_step(service: tuple[Service, Profile], run: Run) -> None:
    service[0].refusal = grpc.StatusCode.DEADLINE_EXCEEDED
    with pytest.raises(errors.Unreachable, match="murmura status"):
        await run(service[1], datasets.get_dataset("d"))
    assert len(service[0].asked) == 1


def test_an_id_follows_from_who_asks_and_what() -> None:
    wish = messages.GetDatasetRequest(name="datasets/d")
    assert calls.request_id("ana", wish) == calls.request_id("ana", wish)
    assert uuid.UUID(calls.request_id("ana", wish))
    others = {calls.request_id("bob", wish), calls.request_id("ana", wish, "1")}
    assert len(others | {calls.request_id("ana", wish)}) == 3
