"""Keys change hands: everything opens before, meanwhile and after, and what opened it before opens it no longer."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import polars as pl
import pytest

from services.common import files
from services.dataset import keys as keys_module
from services.dataset import rewrap as under_test
from services.dataset.keys import HolderAway, TransitKeys
from services.dataset.rewrap import rewrap
from services.dataset.sealing import Sealed
from services.dataset.vault import Vault
from tests.support.registered import store
from tests.support.transit_server import TransitServer

ROWS = pl.DataFrame({"patient": ["p1", "p2"], "text": ["Quillfeather", "Brambleworth"]})
NAMES = ("one", "two", "three")


class Holder:
    """A transit server, and the keys that it holds."""

    def __init__(self, directory: Path, name: str) -> None:
        self.server = TransitServer(name)
        self.keys = self.server.keys(directory / f"{name}.token")


@pytest.fixture
def holders(tmp_path: Path) -> Iterator[tuple[Holder, Holder]]:
    made = (Holder(tmp_path, "murmura"), Holder(tmp_path, "other"))
    yield made
    for one in made:
        one.server.stop()


def opens(vault: Vault, *names: str) -> bool:
    return all(pl.concat(vault.read(name)).equals(ROWS) for name in names)


def fingerprint(vault: Vault) -> str:
    digest = vault.fingerprint()
    digest.add(ROWS)
    try:
        return digest.hexdigest()
    finally:
        digest.close()


@pytest.fixture
def state(tmp_path: Path) -> Path:
    """The directory of a service with three datasets, whose keys a file wraps."""
    vault = Vault(tmp_path / "state")
    for name in NAMES:
        store(vault, name, ROWS)
    return tmp_path / "state"


def content(directory: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(directory.rglob("*")) if path.is_file()}


def test_a_fresh_master_key_opens_all_and_the_old_one_nothing(state: Path, tmp_path: Path) -> None:
    old, before = (state / "master.key").read_bytes(), fingerprint(Vault(state))
    rows = {path: data for path, data in content(state).items() if path.endswith(".aes")}
    assert rewrap(state, None, None) == 1 + len(NAMES)
    fresh = (state / "master.key").read_bytes()
    assert len(fresh) == len(old)
    assert fresh != old
    assert opens(Vault(state), *NAMES)
    # What shares a budget goes on sharing it.
    assert fingerprint(Vault(state)) == before
    # No row was touched.
    assert {path: data for path, data in content(state).items() if path.endswith(".aes")} == rows
    running = Vault(state)
    (state / "master.key").write_bytes(old)
    with pytest.raises(Sealed):
        Vault(state)
    for name in NAMES:
        with pytest.raises(Sealed):
            opens(running, name)


def test_a_service_that_runs_follows(state: Path) -> None:
    running = Vault(state)
    rewrap(state, None, None)
    assert opens(running, *NAMES)
    store(running, "four", ROWS)
    assert opens(Vault(state), *NAMES, "four")


def test_keys_go_from_a_file_to_an_engine_to_another_and_back(state: Path, holders: tuple[Holder, Holder]) -> None:
    first, second = (holder.keys for holder in holders)
    before = fingerprint(Vault(state))
    rewrap(state, None, first)
    assert not (state / "master.key").exists()
    assert opens(Vault(state, first), *NAMES)
    with pytest.raises(Sealed, match="master"):
        Vault(state)
    rewrap(state, first, second)
    assert opens(Vault(state, second), *NAMES)
    with pytest.raises(Sealed, match=r"run `python -m services\.dataset\.rewrap`"):
        Vault(state, first)
    rewrap(state, second, None)
    assert opens(Vault(state), *NAMES)
    with pytest.raises(Sealed):
        Vault(state, second)
    assert fingerprint(Vault(state)) == before


def test_an_engine_wraps_with_its_newest_key_again(state: Path, holders: tuple[Holder, Holder]) -> None:
    """As after a rotation there: what was wrapped before is replaced, so that the old version can be retired."""
    keys = holders[0].keys
    rewrap(state, None, keys)
    before = {path.name: path.read_bytes() for path in state.rglob("*.key")}
    rewrap(state, None, keys)
    after = {path.name: path.read_bytes() for path in state.rglob("*.key")}
    assert before.keys() == after.keys()
    assert all(before[name] != after[name] for name in before)
    assert opens(Vault(state, keys), *NAMES)


class Failing:
    """Writes files, but not the one whose turn is `fails_at`, from 1."""

    def __init__(self, fails_at: int) -> None:
        self._left = fails_at

    def __call__(self, path: Path, data: bytes) -> None:
        self._left -= 1
        if self._left == 0:
            raise OSError("the disk is full")
        files.write(path, data)


@pytest.mark.parametrize("to", ["file", "engine"])
def test_a_run_that_ends_early_loses_nothing_and_is_run_again(
    state: Path, holders: tuple[Holder, Holder], monkeypatch: pytest.MonkeyPatch, to: str
) -> None:
    new = holders[0].keys if to == "engine" else None
    for fails_at in range(1, 20):
        failing = Failing(fails_at)
        for module in (under_test, keys_module):
            monkeypatch.setattr(module, "write", failing)
        try:
            rewrap(state, None, new)
            break
        except OSError:
            if to == "file":
                # Even so, everything opens.
                assert opens(Vault(state), *NAMES)
    # It failed at each of its writes before: of each key, and the two of the file of keys.
    assert fails_at == 2 + len(NAMES) + (2 if to == "file" else 0)
    assert opens(Vault(state, new), *NAMES)


class Slow:
    """Wraps as another does, but not before it is told to."""

    def __init__(self, keys: TransitKeys) -> None:
        self._keys = keys
        self.holder = keys.holder
        self.waits, self.go = threading.Event(), threading.Event()

    def wrap(self, key: bytes, name: str) -> bytes:
        if name == "one":
            self.waits.set()
            assert self.go.wait(10)
        return self._keys.wrap(key, name)

    def unwrap(self, wrapped: bytes, name: str) -> bytes:
        return self._keys.unwrap(wrapped, name)


@pytest.mark.parametrize("what", ["erase", "register"])
def test_what_is_erased_or_registered_meanwhile_waits(state: Path, holders: tuple[Holder, Holder], what: str) -> None:
    """An erased key that came back would be an erased dataset that came back."""
    running, slow = Vault(state), Slow(holders[0].keys)
    changing = threading.Thread(target=rewrap, args=(state, None, slow))
    changing.start()
    assert slow.waits.wait(10)
    done = threading.Event()

    def other() -> None:
        if what == "erase":
            running.erase("one")
        else:
            with pytest.raises(HolderAway):
                # The key that this service knew is gone by now; nothing is wrapped by it.
                store(running, "four", ROWS)
        done.set()

    meanwhile = threading.Thread(target=other)
    meanwhile.start()
    assert not done.wait(0.3)
    slow.go.set()
    changing.join(10)
    assert done.wait(10)
    assert (state / "rows" / "one.key").exists() == (what != "erase")
    assert not (state / "rows" / "four.key").exists()
    assert opens(Vault(state, holders[0].keys), *NAMES[1:])


def test_what_cannot_be_opened_is_left_as_it_is(state: Path, holders: tuple[Holder, Holder], tmp_path: Path) -> None:
    first, second = holders
    rewrap(state, None, first.keys)
    before = content(state)
    for old, new in ((None, None), (None, second.keys), (second.keys, None)):
        with pytest.raises(Sealed, match=r"lineage\.key is not opened by .*MURMURA_OLD_TRANSIT_URL"):
            rewrap(state, old, new)
        assert content(state) == before
    first.server.stop()
    with pytest.raises(HolderAway):
        rewrap(state, first.keys, second.keys)
    assert content(state) == before
    with pytest.raises(Sealed, match="not the directory of a dataset service"):
        rewrap(tmp_path / "elsewhere", None, None)
    assert not (tmp_path / "elsewhere").exists()


def test_an_engine_that_gives_back_something_else_gets_nothing(
    state: Path, holders: tuple[Holder, Holder], monkeypatch: pytest.MonkeyPatch
) -> None:
    keys, before = holders[0].keys, content(state)
    monkeypatch.setattr(keys, "wrap", lambda key, name: TransitKeys.wrap(keys, bytes(32), name))
    with pytest.raises(Sealed, match="does not give back"):
        rewrap(state, None, keys)
    assert content(state) == before


@pytest.mark.parametrize("damaged", [b"", b"short", bytes(33)])
def test_a_damaged_master_key_is_said_to_be_damaged(state: Path, damaged: bytes) -> None:
    (state / "master.key").write_bytes(damaged)
    with pytest.raises(Sealed, match=r"master\.key is damaged"):
        Vault(state)


def test_the_command_says_what_to_do_next(
    state: Path, holders: tuple[Holder, Holder], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MURMURA_STATE_DIR", str(state))
    assert under_test.main() == 0
    said = capsys.readouterr().out
    assert said == "4 keys are wrapped by a fresh master.key. Back it up now: the old one opens old backups alone.\n"
    monkeypatch.setenv("MURMURA_TRANSIT_URL", holders[0].server.url)
    with pytest.raises(SystemExit):
        under_test.main()
    assert "MURMURA_TRANSIT_TOKEN_FILE must be set" in capsys.readouterr().err
    monkeypatch.setenv("MURMURA_TRANSIT_TOKEN_FILE", str(state.parent / "murmura.token"))
    assert under_test.main() == 0
    assert "4 keys are wrapped by the transit key 'murmura'" in capsys.readouterr().out
    monkeypatch.delenv("MURMURA_TRANSIT_URL")
    monkeypatch.setenv("MURMURA_OLD_TRANSIT_URL", holders[0].server.url)
    with pytest.raises(SystemExit):
        under_test.main()
    assert "MURMURA_OLD_TRANSIT_TOKEN_FILE must be set" in capsys.readouterr().err
    monkeypatch.setenv("MURMURA_OLD_TRANSIT_TOKEN_FILE", str(state.parent / "other.token"))
    (state.parent / "other.token").write_text("s.expired")
    assert under_test.main() == 2
    said = capsys.readouterr().err
    assert said.startswith(
        "Nothing is lost, and not every key has changed hands: the transit key 'murmura' does not answer"
    )
    monkeypatch.setenv("MURMURA_STATE_DIR", str(state.parent / "elsewhere"))
    assert under_test.main() == 2
    assert "not the directory of a dataset service" in capsys.readouterr().err
