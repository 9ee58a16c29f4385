"""Whatever an identity provider answers, keys that count go on counting, and it is asked again."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from typing import Any

import pytest

from services.common import oidc
from services.common.issuer import Configuration
from services.common.oidc import Issuer, KeyUnknown, usable_keys
from tests.support.identity_provider import EC, ED, RSA, Provider, public
from tests.support.launchers import until

DISCOVERY = "/.well-known/openid-configuration"
DEEP = b"[" * 100_000
ODD: list[Any] = [None, True, 1, -1, 1.5, 1e308, "", "=", "é", "\0", [], [1], {}, {"a": 1}]
ODD += ["AQAB", "P-256", "P-521", "secp256k1", "Ed25519", "Ed448", "X25519", "RSA", "EC", "OKP", "oct", "none", "HS256"]
MEMBERS = ["alg", "use", "key_ops", "d", "x5c", "kty", "crv", "n", "e", "x", "y", "kid"]


@pytest.fixture
def provider() -> Iterator[Provider]:
    made = Provider()
    yield made
    made.stop()


def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let keys be fetched every moment."""
    for name in ("UNKNOWN_KEY_S", "REFRESH_S", "RETRY_S"):
        monkeypatch.setattr(oidc, name, 0.02)


def odd_key(chance: random.Random) -> dict[str, Any]:
    key = dict(chance.choice([public(RSA, "rsa"), public(EC, "ec"), public(ED, "ed")]))
    for _ in range(chance.randint(1, 3)):
        member = chance.choice(MEMBERS)
        if chance.random() < 0.2:
            key.pop(member, None)
        elif isinstance(key.get(member), str) and chance.random() < 0.4:
            cut = chance.randrange(len(key[member]) + 1)
            key[member] = key[member][:cut] + chance.choice(["A", "_", "=", "é", "AAAA"]) + key[member][cut + 1 :]
        else:
            key[member] = chance.choice(ODD)
    return key


def test_what_is_no_key_is_left_out_and_the_others_count() -> None:
    chance = random.Random(7)
    odd = [odd_key(chance) for _ in range(3000)]
    # One of them may have kept a good key under its name, or lost that: a name of its own is nobody else's.
    found = usable_keys([*odd, public(ED, "good")])
    assert found["good"].algorithm == "EdDSA"
    assert {key.algorithm for key in found.values()} <= {"RS256", "ES256", "EdDSA"}


@pytest.mark.parametrize("path", [DISCOVERY, "/keys"])
@pytest.mark.parametrize(
    "answer",
    [b"", b"\xff", b"{", b"null", b"7", b"[]", b"{}", b'{"keys": {}}', b'{"keys": [[]], "jwks_uri": 7}', DEEP],
    ids=lambda answer: answer[:12].decode("latin-1"),
)
def test_a_provider_is_asked_again_after_any_answer(
    provider: Provider, monkeypatch: pytest.MonkeyPatch, path: str, answer: bytes
) -> None:
    often(monkeypatch)
    provider.odd[path] = answer
    issuer = Issuer(Configuration(provider.url, "murmura", roles={"doctors": "analyst"}))
    issuer.start()
    try:
        time.sleep(0.1)  # some answers of that kind
        del provider.odd[path]
        until(lambda: issuer._keys, 10)
        assert issuer.verify(provider.token()).subject == "ana"
    finally:
        issuer.close()


def test_keys_count_on_while_the_provider_answers_nonsense(provider: Provider, monkeypatch: pytest.MonkeyPatch) -> None:
    often(monkeypatch)
    issuer = Issuer(Configuration(provider.url, "murmura", roles={"doctors": "analyst"}))
    issuer.start()
    try:
        until(lambda: issuer._keys, 10)
        provider.odd["/keys"] = b'{"keys": "none"}'
        time.sleep(0.2)
        assert issuer.verify(provider.token()).subject == "ana"
        # A key of which nothing can be made is one that nobody has; it shuts nobody else out.
        del provider.odd["/keys"]
        provider.keys = [public(RSA, "rsa") | {"alg": [1]}, public(ED, "ed")]
        until(lambda: "rsa" not in issuer._keys, 10)
        with pytest.raises(KeyUnknown):
            issuer.verify(provider.token(sub="ben"))
        assert issuer.verify(provider.token(ED, "ed", "EdDSA")).subject == "ana"
    finally:
        issuer.close()
