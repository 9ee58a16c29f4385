"""The file of trusted keys, and the file with a service's own token, while a service runs."""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from services.common import tokens
from services.common.errors import MurmuraError
from services.common.tokens import TokenRejected, TrustedKeys, mint, trusted
from services.common.upstream import Upstream
from tests.support.identity_provider import EC, ED, public


def jwks(**more: Any) -> str:
    return json.dumps({"keys": [public(ED, "deployment") | {"may_issue": ["analyst"]} | more]})


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tokens, "REREAD_S", 0.0)
    path = tmp_path / "trusted.json"
    path.write_text(jwks())
    return path


def replace(path: Path, text: str) -> None:
    """Replace a file; the clock of a file system may not have moved on since it was written."""
    path.write_text(text)
    facts = path.stat()
    os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns + 1_000_000))


@pytest.mark.parametrize("text", ["", "{", "[]", '{"keys": 7}', '{"keys": [7]}', jwks(may_issue="analyst")])
def test_a_file_that_is_none_takes_nobody_s_key_away(file: Path, text: str) -> None:
    keys = TrustedKeys(file)
    token = mint(ED, "deployment", "ana@local", ["analyst"], 60)
    assert keys.verify(token).subject == "ana@local"
    replace(file, text)
    assert keys.verify(token).subject == "ana@local"
    assert keys.verify(mint(ED, "deployment", "eve@local", ["analyst"], 60)).subject == "eve@local"
    replace(file, '{"keys": []}')
    with pytest.raises(TokenRejected):
        keys.verify(token)


def test_a_file_that_is_away_for_a_moment_takes_nobody_s_key_away(file: Path) -> None:
    keys = TrustedKeys(file)
    token = mint(ED, "deployment", "ana@local", ["analyst"], 60)
    keys.verify(token)
    file.unlink()
    assert keys.verify(token).subject == "ana@local"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("[]", "no JWKS"),
        ("{}", "no JWKS"),
        ('{"keys": [7]}', r"keys\[0\] of the file that it names has no kid"),
        ('{"keys": [{}]}', r"keys\[0\] of the file that it names has no kid"),
        (jwks(kid=7), r"keys\[0\] of the file that it names has no kid"),
        (json.dumps({"keys": [public(EC, "ec")]}), "the key 'ec' is no public Ed25519 key"),
        (jwks(x="AA"), "the key 'deployment' is no public Ed25519 key"),
        (jwks(alg=[1], kty=None), "the key 'deployment' is no public Ed25519 key"),
        (jwks(may_issue=None), "the key 'deployment' says in may_issue what is no list of roles"),
        (jwks(may_issue=[7]), "the key 'deployment' says in may_issue what is no list of roles"),
    ],
)
def test_what_is_wrong_with_trusted_keys_is_said(text: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        trusted(text)


@pytest.mark.parametrize("content", [None, b"", b"two words", b"\xff", "ü".encode(), b"a\nb"])
async def test_a_service_that_cannot_read_its_token_says_so(tmp_path: Path, content: bytes | None) -> None:
    file = tmp_path / "token"
    if content is not None:
        file.write_bytes(content)
    upstream = Upstream("ledger", "127.0.0.1:1", SimpleNamespace(certificates=None, service_token_file=file))  # type: ignore[arg-type]
    with pytest.raises(MurmuraError, match="cannot read the token that it shows to the ledger") as caught:
        await upstream.call(upstream.channel.unary_unary("/a/B"), b"")
    assert (caught.value.reason, caught.value.metadata) == ("DEPENDENCY_UNAVAILABLE", {"service": "ledger"})
    await upstream.close()
