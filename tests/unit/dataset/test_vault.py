"""Rows at rest: sealed, in pieces, gone with their key, and nothing left of what was not kept."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest

from services.dataset import batches
from services.dataset.sealing import Sealed
from services.dataset.vault import Vault
from tests.support.registered import store

ROWS = pl.DataFrame(
    {"patient": ["Quillfeather", "Quillfeather", "Brambleworth"], "n": [1, 2, 3], "text": ["x", "y", ""]}
)


def everything_in(directory: Path) -> bytes:
    return b"".join(path.read_bytes() for path in sorted(directory.rglob("*")) if path.is_file())


def load(vault: Vault, name: str) -> pl.DataFrame:
    return pl.concat(vault.read(name))


def test_rows_rest_encrypted_and_private(tmp_path: Path) -> None:
    vault = Vault(tmp_path)
    store(vault, "one", ROWS)
    assert load(vault, "one").equals(ROWS)
    held = everything_in(tmp_path)
    assert b"Quillfeather" not in held
    assert b"PAR1" not in held
    assert all(path.stat().st_mode & 0o077 == 0 for path in tmp_path.rglob("*") if path.is_file())


def test_erasing_the_key_erases_the_rows_even_from_a_backup(tmp_path: Path) -> None:
    vault = Vault(tmp_path)
    store(vault, "one", ROWS)
    backup = (tmp_path / "rows" / "one.rows.aes").read_bytes()
    vault.erase("one")
    with pytest.raises(Sealed):
        load(vault, "one")
    (tmp_path / "rows" / "one.rows.aes").write_bytes(backup)
    with pytest.raises(Sealed):
        load(vault, "one")


def test_changed_and_exchanged_rows_are_noticed(tmp_path: Path) -> None:
    vault = Vault(tmp_path)
    store(vault, "one", ROWS)
    store(vault, "two", ROWS.reverse())
    one, two = (tmp_path / "rows" / f"{name}.rows.aes" for name in ("one", "two"))
    sealed = one.read_bytes()
    one.write_bytes(two.read_bytes())
    with pytest.raises(Sealed):
        load(vault, "one")
    one.write_bytes(sealed[:-1] + bytes([sealed[-1] ^ 1]))
    with pytest.raises(Sealed):
        load(vault, "one")


def test_another_master_key_opens_nothing(tmp_path: Path) -> None:
    store(Vault(tmp_path), "one", ROWS)
    (tmp_path / "master.key").write_bytes(bytes(32))
    with pytest.raises(Sealed):
        load(Vault(tmp_path), "one")


@pytest.mark.parametrize("missing", ["master.key", "lineage.key"])
def test_a_lost_key_is_not_made_anew(tmp_path: Path, missing: str) -> None:
    store(Vault(tmp_path), "one", ROWS)
    (tmp_path / missing).unlink()
    with pytest.raises(Sealed, match=missing):
        Vault(tmp_path)


def test_sweeping_leaves_only_what_is_known(tmp_path: Path) -> None:
    vault = Vault(tmp_path)
    for name in ("kept", "orphan"):
        store(vault, name, ROWS)
    (tmp_path / "rows" / "kept.rows.aes.new").write_bytes(b"half")
    vault.sweep({"kept"})
    assert sorted(path.name for path in (tmp_path / "rows").iterdir()) == ["kept.key", "kept.rows.aes"]
    assert load(Vault(tmp_path), "kept").equals(ROWS)


def test_a_dataset_of_many_pieces_opens_only_those_of_its_slots(tmp_path: Path) -> None:
    vault = Vault(tmp_path)
    many = pl.DataFrame({"n": range(40), "text": ["x" * 100_000 + str(n) for n in range(40)]})
    incoming = vault.incoming("many")
    for start in range(0, 40, 7):
        incoming.add(many.slice(start, 7))
    incoming.keep()
    pieces = list(vault.read("many"))
    assert [piece.height for piece in pieces] == [10, 10, 10, 10]
    assert max(batches.sizes(piece).sum() for piece in pieces) <= batches.PIECE_BYTES
    assert pl.concat(pieces).equals(many)
    for slots in (range(0, 1), range(9, 10), range(5, 33), range(39, 40), range(40, 40)):
        assert sum(piece.height for piece in vault.read("many", slots)) == len(slots)
        assert pl.concat([many.clear(), *vault.read("many", slots)]).equals(many[slots.start : slots.stop])


def test_rows_that_were_not_kept_leave_nothing(tmp_path: Path) -> None:
    vault = Vault(tmp_path)
    incoming = vault.incoming("one")
    incoming.add(ROWS)
    incoming.discard()
    assert not list((tmp_path / "rows").iterdir())
    with pytest.raises(Sealed):
        load(vault, "one")
