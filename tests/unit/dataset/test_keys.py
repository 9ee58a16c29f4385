"""Who wraps the data keys: a file, or a transit engine that is asked over HTTP."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import polars as pl
import pytest

from services.dataset.keys import HolderAway, TransitKeys
from services.dataset.sealing import Sealed
from services.dataset.vault import Vault
from tests.support.registered import store
from tests.support.transit_server import TransitServer

ROWS = pl.DataFrame({"patient": ["p1"], "text": ["Quillfeather"]})
DATA_KEY = bytes(range(32))


@pytest.fixture
def server() -> Iterator[TransitServer]:
    made = TransitServer()
    yield made
    made.stop()


@pytest.fixture
def keys(server: TransitServer, tmp_path: Path) -> TransitKeys:
    return server.keys(tmp_path / "token")


def test_a_key_opens_under_its_own_name_only(keys: TransitKeys) -> None:
    wrapped = keys.wrap(DATA_KEY, "one")
    assert DATA_KEY not in wrapped
    assert keys.unwrap(wrapped, "one") == DATA_KEY
    for broken in (wrapped[:-8] + b"AAAAAAA=", b"no ciphertext", b"\xff"):
        with pytest.raises(Sealed):
            keys.unwrap(broken, "one")
    with pytest.raises(Sealed):
        keys.unwrap(wrapped, "two")


def test_no_key_that_opens_a_dataset_lies_here(keys: TransitKeys, server: TransitServer, tmp_path: Path) -> None:
    state = tmp_path / "state"
    store(Vault(state, keys), "one", ROWS)
    assert not (state / "master.key").exists()
    assert pl.concat(Vault(state, keys).read("one")).equals(ROWS)
    server.key = bytes(32)
    with pytest.raises(Sealed, match=r"lineage\.key was wrapped by another key than the transit key 'murmura'"):
        Vault(state, keys)
    with pytest.raises(Sealed):
        Vault(state)


def test_rows_of_a_local_key_do_not_become_another_holder_s(keys: TransitKeys, tmp_path: Path) -> None:
    store(Vault(tmp_path / "state"), "one", ROWS)
    with pytest.raises(Sealed, match="another key"):
        Vault(tmp_path / "state", keys)


def test_a_holder_who_is_away_or_refuses_is_told_from_a_lost_key(
    keys: TransitKeys, server: TransitServer, tmp_path: Path
) -> None:
    vault = Vault(tmp_path / "state", keys)
    store(vault, "one", ROWS)
    (tmp_path / "token").write_text("s.expired")
    with pytest.raises(HolderAway, match="murmura"):
        list(vault.read("one"))
    # Renewed on disk, it counts without a restart.
    (tmp_path / "token").write_text(server.token)
    assert next(vault.read("one")).equals(ROWS)
    server.stop()
    with pytest.raises(HolderAway):
        list(vault.read("one"))


@pytest.mark.parametrize("status", [200, 204, 302, 400, 403, 429, 500, 503])
@pytest.mark.parametrize(
    "body",
    [
        b"<html>Sign in</html>",
        b"",
        b"\xff",
        b"null",
        b"[]",
        b"{}",
        b'{"data": null}',
        b'{"data": {}}',
        b'{"data": {"ciphertext": 7, "plaintext": 7}}',
        # None of the engine's own, and no key: kept, or used, they would be rows that nobody can open again.
        b'{"data": {"ciphertext": "AAAA", "plaintext": "AAAA"}}',
        b'{"data": {"ciphertext": "", "plaintext": "%s"}}' % (b"A" * 43 + b"!"),
        b"[" * 20_000,
    ],
    ids=lambda body: body[:24].decode("latin-1"),
)
def test_what_is_no_answer_of_a_transit_engine_is_none(
    keys: TransitKeys, server: TransitServer, status: int, body: bytes
) -> None:
    wrapped = keys.wrap(DATA_KEY, "one")
    server.odd = (status, b"" if status == 204 else body)
    with pytest.raises(HolderAway):
        keys.wrap(DATA_KEY, "one")
    with pytest.raises(HolderAway):
        keys.unwrap(wrapped, "one")
    server.odd = None
    assert keys.unwrap(wrapped, "one") == DATA_KEY


def test_keys_do_not_travel_in_the_clear(tmp_path: Path) -> None:
    for url in ("http://vault.example:8200", "vault.example", "ftp://127.0.0.1"):
        with pytest.raises(ValueError, match="https"):
            TransitKeys(url, "murmura", tmp_path, "transit", None)
