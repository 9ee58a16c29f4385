"""The digest of content: the same for the same rows however they come, and another for all else."""

from __future__ import annotations

import hmac
from pathlib import Path

import polars as pl
import pytest

from services.dataset.vault import Vault

ROWS = pl.DataFrame(
    {"patient": ["Quillfeather", "Quillfeather", "Brambleworth"], "n": [1, 2, 3], "text": ["x", "y", ""]}
)


def fingerprint(vault: Vault, *pieces: pl.DataFrame) -> str:
    made = vault.fingerprint()
    for rows in pieces:
        made.add(rows)
    return made.hexdigest()


@pytest.mark.parametrize(
    "copy",
    [
        ROWS,
        ROWS.reverse(),
        ROWS.select("text", "n", "patient"),
        ROWS.rename({"patient": "person"}),
        ROWS.with_columns(pl.col("n").cast(pl.String)),
        ROWS.with_columns(pl.col("n").cast(pl.Float64)),
        ROWS.with_columns(pl.when(pl.col("text") != "").then(pl.col("text"))),
    ],
)
def test_the_same_content_has_the_same_fingerprint(tmp_path: Path, copy: pl.DataFrame) -> None:
    vault = Vault(tmp_path)
    assert fingerprint(vault, copy) == fingerprint(vault, ROWS)
    assert fingerprint(Vault(tmp_path), copy) == fingerprint(vault, ROWS)


@pytest.mark.parametrize("other", [ROWS.head(2), pl.concat([ROWS, ROWS]), ROWS.with_columns(text=pl.lit("z"))])
def test_other_content_has_another_fingerprint(tmp_path: Path, other: pl.DataFrame) -> None:
    vault = Vault(tmp_path)
    assert fingerprint(vault, other) != fingerprint(vault, ROWS)


def test_a_fingerprint_needs_the_service_s_key(tmp_path: Path) -> None:
    assert fingerprint(Vault(tmp_path / "one"), ROWS) != fingerprint(Vault(tmp_path / "two"), ROWS)


def test_a_fingerprint_is_the_one_that_content_has_always_had(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.dataset.lineage._RUN", 7)
    monkeypatch.setattr("services.dataset.lineage._READ_AT_ONCE", 3)
    vault = Vault(tmp_path)
    many = pl.DataFrame({"n": range(50), "text": [f"{n * 7919 % 50}" for n in range(50)]})
    key = vault._lineage_key
    digests = sorted(hmac.digest(key, "\0".join(sorted(map(str, row))).encode(), "sha256") for row in many.iter_rows())
    assert fingerprint(vault, many) == hmac.digest(key, b"".join(digests), "sha256").hex()
    assert fingerprint(vault, many[20:], many[:20].reverse()) == fingerprint(vault, many)
    assert fingerprint(vault, many, many[:1]) != fingerprint(vault, many)
