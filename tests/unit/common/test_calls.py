"""A real server with all interceptors: who gets in, what is refused, and what an error may say."""

import asyncio
import base64
import errno
import json
import time

import grpc
import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from google.rpc import error_details_pb2, status_pb2

from murmura.api.dataset.v1 import dataset_service_pb2 as dataset
from murmura.api.dataset.v1 import dataset_service_pb2_grpc
from murmura.api.ledger.v1 import ledger_service_pb2 as ledger
from murmura.api.ledger.v1 import ledger_service_pb2_grpc
from murmura.api.trainer.v1 import trainer_service_pb2 as trainer
from murmura.api.trainer.v1 import trainer_service_pb2_grpc
from services.common import tokens
from services.common.auth import Auth, current_principal
from services.common.errors import MurmuraError
from services.common.server import interceptors
from services.common.tokens import TrustedKeys, mint

SECRET = "François Dupont suffers"
DEPLOYMENT, TRAINER, STRANGER = (Ed25519PrivateKey.generate() for _ in range(3))


class Panic(BaseException):
    """As what is written in Rust ends with: no `Exception`."""


class Ledger(ledger_service_pb2_grpc.LedgerServiceServicer):
    async def GetAccount(self, request, context):
        if request.name == "accounts/bug":
            raise KeyError(SECRET)
        if request.name == "accounts/panic":
            raise Panic(SECRET)
        if request.name == "accounts/full":
            raise KeyError(SECRET) from OSError(errno.ENOSPC, SECRET)
        if request.name == "accounts/refusal":
            raise MurmuraError(grpc.StatusCode.FAILED_PRECONDITION, "JOB_STATE", "no", {"job": "j", "state": "s"})
        answer = ledger.GetAccountResponse()
        answer.account.name = current_principal().subject
        return answer

    async def OpenAccount(self, request, context):
        return ledger.OpenAccountResponse()


class Dataset(dataset_service_pb2_grpc.DatasetServiceServicer):
    async def RegisterDataset(self, request, context):
        yield dataset.RegisterDatasetResponse(rows_read=1)
        raise ValueError(SECRET)


class Worker(trainer_service_pb2_grpc.WorkerServiceServicer):
    async def UploadAdapter(self, request_iterator, context):
        count = [message async for message in request_iterator]
        return trainer.UploadAdapterResponse(adapter=f"{current_principal().subject} {len(count)}")


def jwk(key, kid, may_issue):
    x = base64.urlsafe_b64encode(key.public_key().public_bytes_raw()).rstrip(b"=").decode()
    return {"kty": "OKP", "crv": "Ed25519", "alg": "EdDSA", "kid": kid, "x": x, "may_issue": may_issue}


@pytest.fixture
async def channel(tmp_path):
    path = tmp_path / "trusted.json"
    keys = [jwk(DEPLOYMENT, "deployment", ["analyst", "steward", "service"]), jwk(TRAINER, "trainer", ["worker"])]
    path.write_text(json.dumps({"keys": keys}))
    server = grpc.aio.server(interceptors=interceptors(Auth(TrustedKeys(path))))
    ledger_service_pb2_grpc.add_LedgerServiceServicer_to_server(Ledger(), server)
    dataset_service_pb2_grpc.add_DatasetServiceServicer_to_server(Dataset(), server)
    trainer_service_pb2_grpc.add_WorkerServiceServicer_to_server(Worker(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield channel
    await server.stop(None)


def bearer(token):
    return (("authorization", f"Bearer {token}"),)


def token(role="analyst", key=DEPLOYMENT, kid="deployment", lifetime=60):
    return mint(key, kid, f"{role}@test", [role], lifetime)


async def read_account(channel, name="accounts/a", metadata=None):
    stub = ledger_service_pb2_grpc.LedgerServiceStub(channel)
    return await stub.GetAccount(ledger.GetAccountRequest(name=name), metadata=metadata or bearer(token()))


def details(error):
    status = status_pb2.Status.FromString(dict(error.trailing_metadata())["grpc-status-details-bin"])
    info, bad = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
    for detail in status.details:
        for kind in (info, bad):
            if detail.Is(kind.DESCRIPTOR):
                detail.Unpack(kind)
    return info, bad


@pytest.mark.parametrize("subject", ["service:inference", "service", "ana@test"])
async def test_whoever_is_let_in_as_a_service_spends_only_as_one_that_does(channel, subject):
    stub = ledger_service_pb2_grpc.LedgerServiceStub(channel)
    other = bearer(mint(DEPLOYMENT, "deployment", subject, ["service"], 60))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.OpenAccount(ledger.OpenAccountRequest(), metadata=other)
    assert details(caught.value)[0].metadata["allowed_roles"] == "service:dataset"


async def test_the_handler_knows_who_calls(channel):
    assert (await read_account(channel)).account.name == "analyst@test"


@pytest.mark.parametrize(
    "bad",
    [
        token(lifetime=-10),
        token(key=STRANGER),
        token(kid="unknown"),
        token(role="steward", key=TRAINER, kid="trainer"),
        token(role="worker"),
        jwt.encode({"sub": "x", "roles": ["steward"], "aud": "murmura", "iat": 1, "exp": 2**31}, "", algorithm="none"),
        mint(DEPLOYMENT, "deployment", "x", [], 60),
        "nonsense",
    ],
    ids=[
        "expired",
        "forged",
        "unknown key",
        "key may not issue",
        "key may not issue worker",
        "none",
        "no role",
        "text",
    ],
)
async def test_bad_tokens_are_refused_alike(channel, bad):
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await read_account(channel, metadata=bearer(bad))
    assert caught.value.code() == grpc.StatusCode.UNAUTHENTICATED
    assert details(caught.value)[0].reason == "ERROR_REASON_TOKEN_INVALID"


async def test_a_token_for_someone_else_is_refused(channel):
    now = int(time.time())
    claims = {"sub": "x", "roles": ["analyst"], "aud": "another", "iat": now, "exp": now + 60}
    foreign = jwt.encode(claims, DEPLOYMENT, algorithm="EdDSA", headers={"kid": "deployment"})
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await read_account(channel, metadata=bearer(foreign))
    assert caught.value.code() == grpc.StatusCode.UNAUTHENTICATED


async def test_no_token_and_wrong_role(channel):
    stub = ledger_service_pb2_grpc.LedgerServiceStub(channel)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.GetAccount(ledger.GetAccountRequest(name="accounts/a"))
    assert caught.value.code() == grpc.StatusCode.UNAUTHENTICATED
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await read_account(channel, metadata=bearer(token("worker", TRAINER, "trainer")))
    info, _ = details(caught.value)
    assert (info.reason, info.metadata["allowed_roles"]) == (
        "ERROR_REASON_ROLE_DENIED",
        "analyst,operator,service,steward",
    )


@pytest.mark.parametrize("what", ["bug", "panic"])
async def test_an_unforeseen_error_says_nothing_of_itself(channel, capfd, what):
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await read_account(channel, f"accounts/{what}")
    info, _ = details(caught.value)
    said = f"{caught.value!r} {caught.value.trailing_metadata()}" + "".join(capfd.readouterr())
    assert caught.value.code() == grpc.StatusCode.INTERNAL
    assert info.metadata["error_id"] in caught.value.details()
    assert "Dupont" not in said
    assert "KeyError" not in caught.value.details()


async def test_a_full_disk_is_told_as_such(channel, capfd):
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await read_account(channel, "accounts/full")
    info, _ = details(caught.value)
    assert (caught.value.code(), info.reason) == (grpc.StatusCode.UNAVAILABLE, "ERROR_REASON_DEPENDENCY_UNAVAILABLE")
    assert "room left on the disk" in caught.value.details()
    assert "Dupont" not in f"{caught.value!r} {caught.value.trailing_metadata()}" + "".join(capfd.readouterr())


async def test_an_unforeseen_error_of_a_stream_says_nothing_either(channel, capfd):
    stub = dataset_service_pb2_grpc.DatasetServiceStub(channel)
    request = dataset.RegisterDatasetRequest(
        request_id="6c1f8a52-7d3b-4f0e-9f57-3f2f6c0b9a11", dataset_id="d", privacy_unit_column="p"
    )
    request.source.file.url = "x.csv"
    request.policy.epsilon, request.policy.delta = 1, 1e-5
    seen = []
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        async for message in stub.RegisterDataset(request, metadata=bearer(token("steward"))):
            seen.append(message.rows_read)
    assert seen == [1]
    assert "Dupont" not in f"{caught.value!r}" + "".join(capfd.readouterr())


async def test_a_refusal_arrives_whole(channel):
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await read_account(channel, "accounts/refusal")
    info, _ = details(caught.value)
    assert (info.domain, info.reason, dict(info.metadata)) == (
        "murmura",
        "ERROR_REASON_JOB_STATE",
        {"job": "j", "state": "s"},
    )


async def test_all_violations_are_named_and_no_value_is(channel):
    stub = ledger_service_pb2_grpc.LedgerServiceStub(channel)
    request = ledger.OpenAccountRequest(request_id="secret-id", lineage="BAD", epsilon=float("nan"), delta=1.0)
    request.unit.noise_multiplier, request.unit.sampling_probability = -1, 7
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.OpenAccount(request, metadata=bearer(token("steward")))
    _, bad = details(caught.value)
    found = {item.field: item.description for item in bad.field_violations}
    assert set(found) == {
        "request_id",
        "lineage",
        "epsilon",
        "delta",
        "unit.noise_multiplier",
        "unit.sampling_probability",
    }
    assert found["epsilon"] == "must be a finite number"
    assert "secret-id" not in str(caught.value)


async def test_each_message_of_a_stream_is_checked(channel):
    stub = trainer_service_pb2_grpc.WorkerServiceStub(channel)
    worker = bearer(token("worker", TRAINER, "trainer"))

    async def pieces(*names):
        for name in names:
            yield trainer.UploadAdapterRequest(file_name=name)

    good = await stub.UploadAdapter(pieces("adapter_config.json", ""), metadata=worker)
    assert good.adapter == "worker@test 2"
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.UploadAdapter(pieces("adapter_config.json", "../../etc/passwd"), metadata=worker)
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT


async def test_the_request_id_comes_back(channel):
    stub = ledger_service_pb2_grpc.LedgerServiceStub(channel)
    call = stub.GetAccount(
        ledger.GetAccountRequest(name="accounts/a"), metadata=(*bearer(token()), ("x-request-id", "mine-1"))
    )
    await call
    assert dict(await call.trailing_metadata())["x-request-id"] == "mine-1"


async def test_callers_do_not_mix(channel):
    names = [f"analyst{index}@test" for index in range(20)]
    tokens = [mint(DEPLOYMENT, "deployment", name, ["analyst"], 60) for name in names]
    answers = await asyncio.gather(*(read_account(channel, metadata=bearer(one)) for one in tokens))
    assert [answer.account.name for answer in answers] == names


async def test_a_token_that_was_good_expires_all_the_same(channel):
    brief = token(lifetime=2)
    assert (await read_account(channel, metadata=bearer(brief))).account.name == "analyst@test"
    await asyncio.sleep(2.1)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await read_account(channel, metadata=bearer(brief))
    assert caught.value.code() == grpc.StatusCode.UNAUTHENTICATED


async def test_a_token_that_was_good_is_refused_once_its_key_is_withdrawn(channel, tmp_path):
    known = token()
    await read_account(channel, metadata=bearer(known))
    (tmp_path / "trusted.json").write_text(json.dumps({"keys": [jwk(TRAINER, "trainer", ["worker"])]}))
    await asyncio.sleep(tokens.REREAD_S + 0.1)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await read_account(channel, metadata=bearer(known))
    assert caught.value.code() == grpc.StatusCode.UNAUTHENTICATED
