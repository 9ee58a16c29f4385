"""What stands in the audit log, what never does, and when."""

import asyncio
import json
import os
import stat

import grpc
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from murmura.api.dataset.v1 import dataset_service_pb2 as dataset
from murmura.api.dataset.v1 import dataset_service_pb2_grpc
from murmura.api.inference.v1 import inference_service_pb2 as inference
from murmura.api.ledger.v1 import ledger_service_pb2 as ledger
from murmura.api.ledger.v1 import ledger_service_pb2_grpc
from murmura.api.trainer.v1 import trainer_service_pb2 as trainer
from murmura.api.trainer.v1 import trainer_service_pb2_grpc
from services.common import audit
from services.common.audit import Audit, AuditFile, resources_of
from services.common.auth import Auth
from services.common.errors import MurmuraError, not_found
from services.common.server import interceptors
from services.common.tokens import TrustedKeys, mint
from tests.unit.common.test_calls import bearer, details, jwk

KEY = Ed25519PrivateKey.generate()
REQUEST_ID = "6c1f8a52-7d3b-4f0e-9f57-3f2f6c0b9a11"
SECRET = "François Dupont suffers"


class Ledger(ledger_service_pb2_grpc.LedgerServiceServicer):
    async def GetAccount(self, request, context):
        if request.name == "accounts/unknown":
            raise not_found(request.name)
        if request.name == "accounts/bug":
            raise KeyError(SECRET)
        return ledger.GetAccountResponse()

    async def OpenAccount(self, request, context):
        return ledger.OpenAccountResponse()


class Dataset(dataset_service_pb2_grpc.DatasetServiceServicer):
    def __init__(self):
        self.hold = asyncio.Event()

    async def ReadRows(self, request, context):
        yield dataset.ReadRowsResponse(unit_count=1)
        await self.hold.wait()
        raise MurmuraError(grpc.StatusCode.PERMISSION_DENIED, "JOB_TOKEN_MISMATCH", "no", {"dataset": "datasets/d"})

    async def RegisterDataset(self, request, context):
        for _ in ():
            yield


class Worker(trainer_service_pb2_grpc.WorkerServiceServicer):
    async def UploadAdapter(self, request_iterator, context):
        async for _ in request_iterator:
            pass
        return trainer.UploadAdapterResponse()


class Site:
    def __init__(self, directory):
        self.path = directory / "audit.jsonl"
        keys = directory / "trusted.json"
        keys.write_text(json.dumps({"keys": [jwk(KEY, "k", ["analyst", "steward", "worker"])]}))
        self.file = AuditFile(self.path)
        layers = interceptors(Auth(TrustedKeys(keys)), Audit("ledger", self.file))
        self.server = grpc.aio.server(interceptors=layers)
        self.datasets = Dataset()
        ledger_service_pb2_grpc.add_LedgerServiceServicer_to_server(Ledger(), self.server)
        dataset_service_pb2_grpc.add_DatasetServiceServicer_to_server(self.datasets, self.server)
        trainer_service_pb2_grpc.add_WorkerServiceServicer_to_server(Worker(), self.server)
        self.port = self.server.add_insecure_port("127.0.0.1:0")

    def lines(self):
        return [json.loads(line) for line in self.path.read_text().splitlines()]

    async def refused(self, call):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call
        return caught.value

    async def read(self, name="accounts/a", role="analyst"):
        request = ledger.GetAccountRequest(name=name)
        metadata = (*bearer(mint(KEY, "k", f"{role}@test", [role], 60)), ("x-request-id", "mine-1"))
        return await self.ledger.GetAccount(request, metadata=metadata)

    async def open(self, role="steward", lineage="phee"):
        request = ledger.OpenAccountRequest(request_id=REQUEST_ID, lineage=lineage, epsilon=1, delta=1e-5)
        await self.ledger.OpenAccount(request, metadata=bearer(mint(KEY, "k", f"{role}@test", [role], 60)))


@pytest.fixture
async def site(tmp_path, monkeypatch):
    monkeypatch.setattr(audit, "REOPEN_S", 0.0)
    made = Site(tmp_path)
    await made.server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{made.port}") as channel:
        made.ledger = ledger_service_pb2_grpc.LedgerServiceStub(channel)
        made.dataset = dataset_service_pb2_grpc.DatasetServiceStub(channel)
        made.worker = trainer_service_pb2_grpc.WorkerServiceStub(channel)
        yield made
    made.datasets.hold.set()
    await made.server.stop(None)
    made.file.close()


async def test_a_line_says_who_what_on_which_whether_why_and_when(site):
    await site.refused(site.read("accounts/unknown"))
    (line,) = site.lines()
    assert line.pop("time").endswith("+00:00")
    assert line == {
        "service": "ledger",
        "subject": "analyst@test",
        "by": "token",
        "method": "/murmura.api.ledger.v1.LedgerService/GetAccount",
        "resources": ["accounts/unknown"],
        "decision": "denied",
        "code": "NOT_FOUND",
        "reason": "RESOURCE_NOT_FOUND",
        "request_id": "mine-1",
    }


async def test_writes_are_in_the_file_when_the_answer_is_and_reads_soon_after(site):
    await site.open()
    assert [line["decision"] for line in site.lines()] == ["allowed"]
    await site.read()
    await asyncio.sleep(4 * audit.FLUSH_S)
    assert [line["method"].rpartition("/")[2] for line in site.lines()] == ["OpenAccount", "GetAccount"]


async def test_a_refusal_is_in_the_file_before_the_caller_has_it(site):
    nobody = site.ledger.GetAccount(ledger.GetAccountRequest(name="accounts/a"))
    assert (await site.refused(nobody)).code() == grpc.StatusCode.UNAUTHENTICATED
    await site.refused(site.open("analyst"))
    await site.refused(site.open(lineage="BAD"))
    seen = [(line["subject"], line["code"], line["reason"], line["resources"]) for line in site.lines()]
    assert seen == [
        ("", "UNAUTHENTICATED", "TOKEN_INVALID", ["accounts/a"]),
        ("analyst@test", "PERMISSION_DENIED", "ROLE_DENIED", []),
        ("steward@test", "INVALID_ARGUMENT", "FIELD_RULES", []),
    ]


async def test_rows_do_not_leave_before_the_line_that_says_so(site):
    request = dataset.ReadRowsRequest(text_column="text")
    request.frame.dataset = "datasets/phee"
    call = site.dataset.ReadRows(request, metadata=bearer(mint(KEY, "k", "worker:1", ["worker"], 60)))
    assert (await call.read()).unit_count == 1
    (line,) = site.lines()
    assert (line["subject"], line["resources"], line["decision"]) == ("worker:1", ["datasets/phee"], "allowed")
    site.datasets.hold.set()
    await site.refused(call.read())
    assert [(line["decision"], line["reason"]) for line in site.lines()] == [
        ("allowed", ""),
        ("denied", "JOB_TOKEN_MISMATCH"),
    ]


async def test_a_stream_that_its_caller_leaves_is_one_decision(site):
    request = dataset.ReadRowsRequest(text_column="text")
    request.frame.dataset = "datasets/phee"
    call = site.dataset.ReadRows(request, metadata=bearer(mint(KEY, "k", "worker:1", ["worker"], 60)))
    await call.read()
    call.cancel()
    await asyncio.sleep(0.2)
    assert [line["decision"] for line in site.lines()] == ["allowed"]


async def test_an_upload_names_the_job_of_its_first_message(site):
    def messages():
        yield trainer.UploadAdapterRequest(job="trainingJobs/1", data=SECRET.encode())
        yield trainer.UploadAdapterRequest(data=SECRET.encode())

    await site.worker.UploadAdapter(messages(), metadata=bearer(mint(KEY, "k", "worker:1", ["worker"], 60)))
    (line,) = site.lines()
    assert (line["resources"], line["decision"]) == (["trainingJobs/1"], "allowed")


async def test_nothing_of_a_message_or_an_error_is_in_the_file(site):
    await site.refused(site.read(f"accounts/a\n{SECRET}"))
    await site.refused(site.read("accounts/bug"))
    request = dataset.RegisterDatasetRequest(
        request_id=REQUEST_ID, dataset_id="phee", display_name=SECRET, privacy_unit_column=SECRET
    )
    request.source.file.url = SECRET
    request.policy.epsilon, request.policy.delta = 1, 1e-5
    steward = bearer(mint(KEY, "k", "steward@test", ["steward"], 60))
    assert [answer async for answer in site.dataset.RegisterDataset(request, metadata=steward)] == []
    text = site.path.read_text()
    assert "Dupont" not in text
    assert [(line["resources"], line["decision"]) for line in site.lines()] == [
        ([], "denied"),
        (["accounts/bug"], "failed"),
        (["datasets/phee"], "allowed"),
    ]


def test_only_what_has_the_form_of_a_name_counts_as_one():
    assert resources_of(inference.GenerateRequest(model="adapters/a", prompt="datasets/x")) == ["adapters/a"]
    assert resources_of(inference.GenerateRequest(model=SECRET, prompt="adapters/a")) == []
    spent = ledger.CreateReservationRequest(account="accounts/a", principal=SECRET, job=SECRET)
    assert resources_of(spent) == ["accounts/a"]
    job = trainer.CreateTrainingJobRequest()
    job.spec.base_model, job.spec.frame.dataset = "baseModels/tiny", "datasets/phee"
    assert sorted(resources_of(job)) == ["baseModels/tiny", "datasets/phee"]
    operation = job.spec.frame.operations.add()
    operation.filter.predicate.literal.string_value = "accounts/hidden"
    assert sorted(resources_of(job)) == ["baseModels/tiny", "datasets/phee"]


async def test_after_a_rotation_lines_go_to_a_new_file(site):
    await site.open()
    moved = site.path.with_suffix(".1")
    site.path.rename(moved)
    await site.open()
    await site.open()
    assert (len(moved.read_text().splitlines()), len(site.lines())) == (1, 2)


async def test_the_file_is_added_to_and_its_owners_alone(site, tmp_path):
    await site.open()
    again = AuditFile(site.path)
    again.write('{"more": 1}')
    again.close()
    assert len(site.lines()) == 2
    assert stat.S_IMODE(site.path.stat().st_mode) == 0o600


async def test_what_cannot_be_written_down_is_not_done(site, monkeypatch):
    """A full disk: the call under way ends in an error, and no other is begun until there is room."""
    write, full = os.write, True

    def maybe(descriptor, data):
        if full:
            write(descriptor, data[:7])
            return 7
        return write(descriptor, data)

    monkeypatch.setattr(audit.os, "write", maybe)
    assert (await site.refused(site.open())).code() == grpc.StatusCode.INTERNAL
    error = await site.refused(site.open())
    assert error.code() == grpc.StatusCode.UNAVAILABLE
    assert details(error)[0].metadata["service"] == "audit log"
    full = False
    await site.open()
    whole = [json.loads(line) for line in site.path.read_text().splitlines() if line.endswith("}")]
    # Nothing is lost: what was allowed and could not be written, what was refused for it, and what went well.
    assert [line["code"] for line in whole] == ["OK", "UNAVAILABLE", "OK"]


async def test_a_full_disk_does_not_fill_the_memory(site, monkeypatch):
    monkeypatch.setattr(audit, "MOST_WAITING", 5)
    monkeypatch.setattr(audit.os, "write", lambda *_: 0)
    for _ in range(9):
        await site.refused(site.open())
    assert len(site.file._waiting) == 5
