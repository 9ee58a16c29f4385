"""An identity provider that speaks HTTP, and a server with all interceptors that believes it."""

import asyncio
import base64
import hashlib
import hmac
import json
import threading
import time

import grpc
import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from murmura.api.ledger.v1 import ledger_service_pb2 as ledger
from murmura.api.ledger.v1 import ledger_service_pb2_grpc
from services.common import oidc
from services.common.auth import Auth, current_principal
from services.common.errors import MurmuraError
from services.common.issuer import Configuration
from services.common.oidc import Issuer, usable_keys
from services.common.server import interceptors
from services.common.tokens import TrustedKeys, mint
from tests.support.identity_provider import EC, ED, RSA, Provider, public
from tests.unit.common.test_calls import bearer, details, jwk

ROLES = {"doctors": "analyst", "data office": "steward"}
DEPLOYMENT = Ed25519PrivateKey.generate()


class Ledger(ledger_service_pb2_grpc.LedgerServiceServicer):
    async def GetAccount(self, request, context):
        answer = ledger.GetAccountResponse()
        answer.account.name = f"{current_principal().subject} {','.join(sorted(current_principal().roles))}"
        return answer


class Site:
    def __init__(self, channel, issuer, provider):
        self.issuer, self.provider = issuer, provider
        self._stub = ledger_service_pb2_grpc.LedgerServiceStub(channel)

    async def whoami(self, token):
        answer = await self._stub.GetAccount(ledger.GetAccountRequest(name="accounts/a"), metadata=bearer(token))
        return answer.account.name

    async def refused(self, token):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await self.whoami(token)
        return caught.value.code(), details(caught.value)[0].reason.removeprefix("ERROR_REASON_")


INVALID = (grpc.StatusCode.UNAUTHENTICATED, "TOKEN_INVALID")


@pytest.fixture
def provider():
    made = Provider()
    yield made
    made.stop()


async def until(condition):
    for _ in range(100):
        if condition():
            return
        await asyncio.sleep(0.05)
    pytest.fail("not within 5 s")


@pytest.fixture
def configuration(provider):
    return Configuration(provider.url, "murmura", roles=ROLES)


@pytest.fixture
async def site(tmp_path, provider, configuration, monkeypatch):
    monkeypatch.setattr(oidc, "UNKNOWN_KEY_S", 0.3)
    monkeypatch.setattr(oidc, "RETRY_S", 0.3)
    path = tmp_path / "trusted.json"
    path.write_text(json.dumps({"keys": [jwk(DEPLOYMENT, "deployment", ["analyst"])]}))
    issuer = Issuer(configuration)
    issuer.start()
    server = grpc.aio.server(interceptors=interceptors(Auth(TrustedKeys(path), issuer)))
    ledger_service_pb2_grpc.add_LedgerServiceServicer_to_server(Ledger(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    await until(lambda: provider.asked)
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        made = Site(channel, issuer, provider)
        await until(lambda: issuer._keys)
        yield made
    await server.stop(None)
    issuer.close()


@pytest.mark.parametrize(("key", "kid", "algorithm"), [(RSA, "rsa", "RS256"), (EC, "ec", "ES256"), (ED, "ed", "EdDSA")])
async def test_people_of_the_provider_come_in(site, key, kid, algorithm):
    token = site.provider.token(key, kid, algorithm)
    assert await site.whoami(token) == "ana analyst"
    assert await site.whoami(token) == "ana analyst"


async def test_the_deployments_own_tokens_still_count(site):
    assert await site.whoami(mint(DEPLOYMENT, "deployment", "eve@local", ["analyst"], 60)) == "eve@local analyst"


async def test_groups_become_roles_and_nothing_else_does(site):
    token = site.provider.token
    assert await site.whoami(token(groups=["doctors", "data office"])) == "ana analyst,steward"
    assert await site.whoami(token(groups="data office")) == "ana steward"
    denied = (grpc.StatusCode.PERMISSION_DENIED, "ROLE_DENIED")
    for groups in (None, [], ["choir"], ["steward"], ["service"], {"doctors": True}, [["doctors"]], 7):
        assert await site.refused(token(groups=groups, roles=["steward", "service"])) == denied


PEM = RSA.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)


def part(value):
    return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=").decode()


def by_hand(provider, secret, kid="rsa", **header):
    """A token under a public key taken as a secret; the library refuses to make one."""
    signed = f"{part({'alg': 'HS256', 'typ': 'JWT', 'kid': kid, **header})}.{part(provider.claims())}"
    mac = base64.urlsafe_b64encode(hmac.digest(secret, signed.encode(), hashlib.sha256)).rstrip(b"=").decode()
    return f"{signed}.{mac}"


async def test_no_token_chooses_its_own_algorithm(site):
    provider = site.provider
    n = base64.urlsafe_b64decode(provider.keys[0]["n"] + "==")
    assert await site.refused(jwt.encode(provider.claims(), "", algorithm="none", headers={"kid": "rsa"})) == INVALID
    for secret in (PEM, PEM.strip(), n, json.dumps(provider.keys[0]).encode()):
        assert await site.refused(by_hand(provider, secret)) == INVALID
    # A key is for one algorithm, even where its kind could do another.
    for other in ("RS512", "PS256"):
        assert await site.refused(provider.token(algorithm=other)) == INVALID
    # Neither does a token bring its own key, or say where it is.
    stranger = rsa.generate_private_key(65537, 2048)
    for header in ({"jwk": public(stranger, "rsa")}, {"jku": f"{provider.url}/other"}, {"kid": "ec"}, {}):
        token = provider.token(stranger, headers={"kid": "rsa", **header})
        assert await site.refused(token) == INVALID


@pytest.mark.parametrize(
    "changed",
    [
        {"aud": "another"},
        {"aud": None},
        {"exp": "a minute ago"},
        {"exp": None},
        {"iat": None},
        {"nbf": "in an hour"},
        {"iat": "in an hour"},
        {"sub": None},
        {"sub": ""},
        {"sub": "x" * 201},
        {"sub": "service:trainer"},
        {"sub": "worker:1"},
        {"iss": "https://evil.example"},
        {"iss": None},
    ],
    ids=lambda changed: "-".join(f"{name}={str(value)[:16]}" for name, value in changed.items()),
)
async def test_a_claim_that_is_wrong_or_missing_ends_it(site, changed):
    moments = {"a minute ago": int(time.time()) - 60, "in an hour": int(time.time()) + 3600}
    claims = {name: moments.get(value, value) for name, value in changed.items()}
    assert await site.refused(site.provider.token(**claims)) == INVALID


async def test_a_signature_that_was_tampered_with_ends_it(site):
    head, body, signature = site.provider.token().split(".")
    other = part(site.provider.claims(groups=["data office"]))
    assert await site.refused(f"{head}.{other}.{signature}") == INVALID
    assert await site.refused(f"{head}.{body}.") == INVALID


async def test_a_token_that_was_good_expires_all_the_same(site, monkeypatch):
    monkeypatch.setattr(oidc, "LEEWAY_S", 0)
    token = site.provider.token(exp=int(time.time()) + 2)
    assert await site.whoami(token) == "ana analyst"
    await asyncio.sleep(2.1)
    assert await site.refused(token) == INVALID


async def test_a_new_key_counts_at_once_and_a_withdrawn_one_no_more(site):
    successor = ec.generate_private_key(ec.SECP256R1())
    old = site.provider.token()
    assert await site.whoami(old) == "ana analyst"
    site.provider.keys = [public(successor, "next")]
    await asyncio.sleep(0.4)
    answers = await asyncio.gather(*(site.whoami(site.provider.token(successor, "next", "ES256")) for _ in range(5)))
    assert set(answers) == {"ana analyst"}
    await asyncio.sleep(0.4)
    assert await site.refused(old) == INVALID


async def test_unknown_keys_do_not_make_us_hammer_the_provider(site):
    asked, begun = site.provider.asked, time.monotonic()
    stranger = Ed25519PrivateKey.generate()
    tokens = [site.provider.token(stranger, f"made up {number}", "EdDSA") for number in range(200)]
    assert set(await asyncio.gather(*(site.refused(token) for token in tokens))) == {INVALID}
    assert site.provider.asked - asked <= 1 + (time.monotonic() - begun) / 0.3


async def test_a_provider_that_is_away_stops_nobody_who_could_come_in_before(site):
    site.provider.stop()
    token = site.provider.token(sub="ben")
    assert await site.whoami(token) == "ben analyst"
    begun = time.monotonic()
    stranger = Ed25519PrivateKey.generate()
    assert await site.refused(site.provider.token(stranger, "unknown", "EdDSA")) == INVALID
    assert time.monotonic() - begun < oidc.WAIT_S + 1
    site.provider.start()
    site.provider.keys.append(public(stranger, "unknown"))
    await asyncio.sleep(0.7)
    assert await site.whoami(site.provider.token(stranger, "unknown", "EdDSA")) == "ana analyst"


async def test_keys_are_not_believed_for_ever_while_the_provider_is_away(site, monkeypatch):
    site.provider.stop()
    monkeypatch.setattr(oidc, "KEYS_TRUSTED_S", 0.0)
    assert await site.refused(site.provider.token()) == (grpc.StatusCode.UNAVAILABLE, "DEPENDENCY_UNAVAILABLE")
    # Those who do not depend on it are not concerned.
    assert await site.whoami(mint(DEPLOYMENT, "deployment", "eve@local", ["analyst"], 60)) == "eve@local analyst"
    site.provider.start()


async def test_a_provider_that_was_never_there_is_said_to_be_away(provider, configuration):
    provider.stop()
    issuer = Issuer(configuration)
    issuer.start()
    with pytest.raises(MurmuraError) as caught:
        issuer.verify(provider.token())
    assert caught.value.reason == "DEPENDENCY_UNAVAILABLE"
    issuer.close()
    provider.start()


async def test_checking_keeps_the_loop_free_while_the_provider_is_slow(site, monkeypatch):
    """A fetch that hangs holds up the one that waits for it, and nobody else."""
    fetched = threading.Event()

    def hang(self):
        fetched.wait(60)
        raise OSError

    monkeypatch.setattr(oidc, "WAIT_S", 60.0)
    monkeypatch.setattr(oidc.Fetcher, "keys", hang)
    await asyncio.sleep(0.4)
    waits = asyncio.create_task(site.refused(site.provider.token(ED, "unknown", "EdDSA")))
    await asyncio.sleep(0.05)
    for number in range(20):
        assert await site.whoami(site.provider.token(sub=f"p{number}")) == f"p{number} analyst"
    assert not waits.done()
    fetched.set()
    assert await waits == INVALID


async def test_a_flood_of_unknown_keys_waits_in_small_numbers_only(site, monkeypatch):
    fetched = threading.Event()

    def hang(self):
        fetched.wait(60)
        raise OSError

    monkeypatch.setattr(oidc, "WAIT_S", 60.0)
    monkeypatch.setattr(oidc, "MOST_WAITING", 3)
    monkeypatch.setattr(oidc.Fetcher, "keys", hang)
    await asyncio.sleep(0.4)
    stranger = Ed25519PrivateKey.generate()
    tokens = [site.provider.token(stranger, f"made up {number}", "EdDSA") for number in range(10)]
    calls = [asyncio.create_task(site.refused(token)) for token in tokens]
    await until(lambda: sum(call.done() for call in calls) == 7)
    fetched.set()
    assert set(await asyncio.gather(*calls)) == {INVALID}


async def test_an_unknown_key_is_refused_at_once_where_none_can_be_new(site, monkeypatch):
    monkeypatch.setattr(oidc, "UNKNOWN_KEY_S", 300.0)
    monkeypatch.setattr(oidc, "WAIT_S", 60.0)
    async with asyncio.timeout(20):
        assert await site.refused(site.provider.token(ED, "unknown", "EdDSA")) == INVALID


async def test_callers_that_find_no_keys_do_not_make_us_hammer_the_provider(site, monkeypatch):
    monkeypatch.setattr(oidc, "KEYS_TRUSTED_S", -1.0)
    asked, begun = site.provider.asked, time.monotonic()
    while time.monotonic() < begun + 1:
        assert (await site.refused(site.provider.token()))[0] == grpc.StatusCode.UNAVAILABLE
    assert site.provider.asked - asked <= 2 + (time.monotonic() - begun) / 0.3


async def test_a_discovery_document_of_another_issuer_is_not_believed(provider, configuration):
    provider.claimed = "https://evil.example"
    with pytest.raises(ValueError, match="another's"):
        oidc.Fetcher(configuration).keys()
    provider.claimed = ""
    assert len(oidc.Fetcher(configuration).keys()) == 3


def test_keys_can_be_named_without_discovery(provider):
    provider.claimed = "https://evil.example"
    named = Configuration("https://id.example", "murmura", jwks_url=f"{provider.url}/keys")
    assert len(oidc.Fetcher(named).keys()) == 3


def test_only_strong_keys_for_signatures_count():
    weak = public(rsa.generate_private_key(65537, 1024), "weak")
    found = usable_keys(
        [
            public(RSA, "rsa"),
            weak,
            public(EC, "ec"),
            public(ec.generate_private_key(ec.SECP384R1()), "p384"),
            public(RSA, "encryption", use="enc"),
            public(RSA, "other", alg="RS512"),
            {"kty": "oct", "k": "c2VjcmV0", "kid": "secret"},
            {"kty": "strange", "kid": "strange"},
            "no object",
        ]
    )
    assert {kid: key.algorithm for kid, key in found.items()} == {"rsa": "RS256", "ec": "ES256"}


def test_an_address_counts_only_when_the_provider_has_checked_it(provider):
    issuer = Issuer(Configuration(provider.url, "murmura", subject_claim="email", roles=ROLES))
    assert issuer._subject({"email": "ana@hospital.example", "email_verified": True}) == "ana@hospital.example"
    for claims in ({"email": "ana@hospital.example"}, {"email": "ana@hospital.example", "email_verified": "true"}, {}):
        with pytest.raises(oidc.TokenRejected):
            issuer._subject(claims)


def test_roles_may_lie_deeper_or_under_a_name_with_dots():
    def roles(claim, claims):
        return Configuration("https://x", "m", roles_claim=claim, roles=ROLES).roles_of(claims)

    assert roles("realm_access.roles", {"realm_access": {"roles": ["doctors"]}}) == {"analyst"}
    assert roles("https://murmura/groups", {"https://murmura/groups": ["doctors"]}) == {"analyst"}
    assert roles("realm_access.roles", {"realm_access": "doctors"}) == frozenset()
    assert Configuration("https://x", "m", roles={"doctors": "service"}).roles_of({"groups": "doctors"}) == frozenset()
