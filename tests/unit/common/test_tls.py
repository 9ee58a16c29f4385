"""Real servers and real handshakes: who is a service, who is not, and certificates that change under way."""

import asyncio
import json
import ssl
from pathlib import Path

import grpc
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from murmura.api.ledger.v1 import ledger_service_pb2 as ledger
from murmura.api.ledger.v1 import ledger_service_pb2_grpc
from services.common import certificates as files
from services.common.auth import Auth, current_principal
from services.common.certificates import Certificates, Unusable, service_named
from services.common.server import interceptors
from services.common.tls import FreshChannel, server_credentials
from services.common.tokens import TrustedKeys, mint
from services.trainer.worker.wire import connect
from tests.support.certificates import DOMAIN, Authority
from tests.unit.common.test_calls import details, jwk

KEY = Ed25519PrivateKey.generate()
REQUEST_ID = "6c1f8a52-7d3b-4f0e-9f57-3f2f6c0b9a11"


class Ledger(ledger_service_pb2_grpc.LedgerServiceServicer):
    def __init__(self):
        self.hold = asyncio.Event()
        self.shown = []

    async def GetAccount(self, request, context):
        self.shown += context.auth_context().get("x509_pem_cert", ())
        if request.name == "accounts/slow":
            await self.hold.wait()
        answer = ledger.GetAccountResponse()
        answer.account.name = current_principal().subject
        return answer

    async def ReleaseReservation(self, request, context):
        return ledger.ReleaseReservationResponse()


class Site:
    """A ledger with TLS on both its ports."""

    def __init__(self, directory: Path):
        self.directory = directory
        self.authority = Authority(directory / "ours")
        self.own = self.authority.service("ledger")
        self.servicer = Ledger()
        path = directory / "trusted.json"
        path.write_text(json.dumps({"keys": [jwk(KEY, "deployment", ["analyst", "steward", "service"])]}))
        self.server = grpc.aio.server(interceptors=interceptors(Auth(TrustedKeys(path), tls_domain=DOMAIN)))
        ledger_service_pb2_grpc.add_LedgerServiceServicer_to_server(self.servicer, self.server)
        known = self.certificates(self.own)
        self.people = self.server.add_secure_port("127.0.0.1:0", server_credentials(known, of_services=False))
        self.services = self.server.add_secure_port("127.0.0.1:0", server_credentials(known, of_services=True))

    def certificates(self, made):
        return Certificates(made.certificate, made.key, made.authority, DOMAIN)

    def channel(self, made, service="ledger", port=None):
        options = [("grpc.use_local_subchannel_pool", 1)]
        return FreshChannel(f"127.0.0.1:{port or self.services}", service, self.certificates(made), options)


@pytest.fixture
async def site(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "REREAD_S", 0.0)
    made = Site(tmp_path)
    await made.server.start()
    yield made
    made.servicer.hold.set()
    await made.server.stop(None)


async def whoami(channel, name="accounts/a", metadata=None):
    stub = ledger_service_pb2_grpc.LedgerServiceStub(channel)
    return (await stub.GetAccount(ledger.GetAccountRequest(name=name), timeout=10, metadata=metadata)).account.name


async def refused(channel, **call):
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await whoami(channel, **call)
    await channel.close()
    return caught.value


def bearer(role, subject=""):
    token = mint(KEY, "deployment", subject or f"{role}@test", [role], 60)
    return (("authorization", f"Bearer {token}"),)


async def test_a_service_is_who_its_certificate_says(site):
    channel = site.channel(site.authority.service("trainer"))
    assert await whoami(channel) == "service:trainer"
    await channel.close()


async def test_a_certificate_makes_its_holder_one_service_and_no_other(site):
    """The inference service spends nothing, so its certificate cannot."""
    request = ledger.ReleaseReservationRequest(request_id=REQUEST_ID, name="accounts/a/reservations/r")
    for service, allowed in (("trainer", True), ("dataset", True), ("inference", False), ("ledger", False)):
        channel = site.channel(site.authority.service(service, file=f"caller-{service}"))
        stub = ledger_service_pb2_grpc.LedgerServiceStub(channel)
        if allowed:
            await stub.ReleaseReservation(request, timeout=10)
        else:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await stub.ReleaseReservation(request, timeout=10)
            info, _ = details(caught.value)
            assert (info.reason, info.metadata["allowed_roles"]) == (
                "ERROR_REASON_ROLE_DENIED",
                "service:dataset,service:trainer",
            )
        await channel.close()


async def test_another_service_cannot_pose_as_the_ledger(site):
    """A caller insists on the name of whom it calls, wherever that one listens."""
    error = await refused(site.channel(site.authority.service("trainer"), service="dataset"))
    assert error.code() == grpc.StatusCode.UNAVAILABLE


async def test_a_certificate_of_another_authority_is_refused(site):
    other = Authority(site.directory / "other")
    stranger = other.service("trainer", authority=site.authority.file)
    assert (await refused(site.channel(stranger))).code() == grpc.StatusCode.UNAVAILABLE


async def test_a_caller_refuses_a_server_of_another_authority(site):
    other = Authority(site.directory / "other")
    error = await refused(site.channel(site.authority.service("trainer", authority=other.file)))
    assert error.code() == grpc.StatusCode.UNAVAILABLE


async def test_an_expired_certificate_is_refused(site, monkeypatch):
    expired = site.authority.service("trainer", expired=True)
    with pytest.raises(Unusable, match=r"trainer\.pem has expired"):
        site.certificates(expired)
    # One who does not look at the own certificate is no better off.
    material = [path.read_bytes() for path in (expired.authority, expired.key, expired.certificate)]
    options = [("grpc.ssl_target_name_override", f"ledger.{DOMAIN}")]
    channel = grpc.aio.secure_channel(
        f"127.0.0.1:{site.services}", grpc.ssl_channel_credentials(*material), options=options
    )
    assert (await refused(channel)).code() == grpc.StatusCode.UNAVAILABLE


async def test_a_persons_certificate_is_no_services(site):
    channel = site.channel(site.authority.issue("ana@hospital.example"))
    error = await refused(channel)
    assert error.code() == grpc.StatusCode.UNAUTHENTICATED
    assert details(error)[0].reason == "ERROR_REASON_TOKEN_INVALID"


async def test_who_has_no_certificate_does_not_reach_the_services_port(site):
    credentials = grpc.ssl_channel_credentials(site.authority.file.read_bytes())
    channel = grpc.aio.secure_channel(f"127.0.0.1:{site.services}", credentials)
    assert (await refused(channel, metadata=bearer("analyst"))).code() == grpc.StatusCode.UNAVAILABLE


async def test_a_person_needs_a_token_and_no_certificate(site):
    credentials = grpc.ssl_channel_credentials(site.authority.file.read_bytes())
    async with grpc.aio.secure_channel(f"127.0.0.1:{site.people}", credentials) as channel:
        assert await whoami(channel, metadata=bearer("analyst")) == "analyst@test"
        for nobody in (None, bearer("service", "service:trainer")):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await whoami(channel, metadata=nobody)
            assert caught.value.code() == grpc.StatusCode.UNAUTHENTICATED


async def test_a_token_of_a_service_opens_nothing_even_beside_a_certificate(site):
    channel = site.channel(site.authority.service("inference"))
    error = await refused(channel, metadata=bearer("service", "service:trainer"))
    assert error.code() == grpc.StatusCode.UNAUTHENTICATED


async def test_in_the_clear_nobody_is_answered(site):
    for port in (site.people, site.services):
        channel = grpc.aio.insecure_channel(f"127.0.0.1:{port}")
        assert (await refused(channel, metadata=bearer("analyst"))).code() == grpc.StatusCode.UNAVAILABLE


async def test_both_sides_take_new_certificates_without_dropping_a_call(site):
    """The authority itself is replaced, the way it is done: first both are believed, then all are issued anew."""
    own = site.authority.service("trainer")
    channel = site.channel(own)
    slow = asyncio.create_task(whoami(channel, "accounts/slow"))
    assert await whoami(channel) == "service:trainer"
    before, shown = _certificate(site.people), site.servicer.shown[-1]

    successor = Authority(site.directory / "successor")
    both = site.authority.file.read_bytes() + successor.file.read_bytes()
    site.authority.file.write_bytes(both)
    assert await whoami(channel) == "service:trainer"
    for held, name in ((site.own, "ledger"), (own, "trainer")):
        fresh = successor.service(name)
        held.key.write_bytes(fresh.key.read_bytes())
        # Between the two files the pair is no pair: it must not be taken.
        assert await whoami(channel) == "service:trainer"
        held.certificate.write_bytes(fresh.certificate.read_bytes())
        assert await whoami(channel) == "service:trainer"
    site.authority.file.write_bytes(successor.file.read_bytes())
    assert await whoami(channel) == "service:trainer"

    assert await asyncio.to_thread(_certificate, site.people) != before
    assert site.servicer.shown[-1] != shown
    # The old authority counts no more, on either side; a new connection tells.
    left_behind = Authority(site.directory / "left")
    stale = left_behind.service("trainer", authority=successor.file)
    assert (await refused(site.channel(stale))).code() == grpc.StatusCode.UNAVAILABLE
    fresh_channel = site.channel(own)
    assert await whoami(fresh_channel) == "service:trainer"
    await fresh_channel.close()

    assert not slow.done()
    site.servicer.hold.set()
    assert await slow == "service:trainer"
    await channel.close()


async def test_files_that_went_bad_leave_what_was_in_use(site):
    known = site.certificates(site.authority.service("trainer"))
    first = known.current()
    (site.directory / "ours" / "trainer.key").write_text("rubbish")
    assert known.current() is first
    (site.directory / "ours" / "trainer.key").unlink()
    assert known.current() is first
    site.authority.service("trainer")
    assert known.current().version == first.version + 1


async def test_a_worker_believes_the_named_service_only(site, monkeypatch):
    monkeypatch.setenv("MURMURA_TLS_AUTHORITY", str(site.authority.file))
    monkeypatch.setenv("MURMURA_TLS_DOMAIN", DOMAIN)

    def call(service):
        with connect(f"127.0.0.1:{site.people}", service) as channel:
            stub = ledger_service_pb2_grpc.LedgerServiceStub(channel)
            request = ledger.GetAccountRequest(name="accounts/a")
            return stub.GetAccount(request, timeout=10, metadata=bearer("analyst")).account.name

    assert await asyncio.to_thread(call, "ledger") == "analyst@test"
    with pytest.raises(grpc.RpcError) as caught:
        await asyncio.to_thread(call, "dataset")
    assert caught.value.code() == grpc.StatusCode.UNAVAILABLE


async def test_the_sdk_believes_the_named_authority(site, monkeypatch):
    from murmura import errors
    from murmura.client import Client

    token = mint(KEY, "deployment", "ana@test", ["analyst"], 60)

    def call(**how):
        client = Client(f"grpcs://127.0.0.1:{site.people}", token, patience_s=0.1, **how)
        try:
            return client.account("accounts/a").name
        finally:
            client.close()

    assert await asyncio.to_thread(call, authority=site.authority.file) == "ana@test"
    with pytest.raises(errors.Unreachable):
        await asyncio.to_thread(call)
    monkeypatch.setenv("MURMURA_AUTHORITY", str(site.authority.file))
    assert await asyncio.to_thread(call) == "ana@test"
    with pytest.raises(errors.InvalidInput, match="cannot be read"):
        await asyncio.to_thread(call, authority=site.directory / "none.pem")


def test_a_certificate_names_one_service_or_none():
    assert service_named([b"trainer.murmura.internal", b"127.0.0.1"], DOMAIN) == "trainer"
    for names in (
        [],
        [b"trainer"],
        [b"trainer.murmura.internal", b"ledger.murmura.internal"],
        [b"evil.trainer.murmura.internal"],
        [b"*.murmura.internal"],
        [b"trainer.murmura.internal.evil.example"],
        [b"root.murmura.internal"],
        ["trainér.murmura.internal".encode()],
        [b"spiffe://x/trainer.murmura.internal"],
    ):
        assert service_named(names, DOMAIN) is None


def _certificate(port: int) -> str:
    return ssl.get_server_certificate(("127.0.0.1", port))
