"""A damaged, odd or hostile file is read or refused by line and column, never anything else, and never by its content.

`MURMURA_FUZZ_SECONDS` says for how long; a few seconds without it. A file that is neither stays where pytest keeps what
failed.
"""

from __future__ import annotations

import os
import random
import time
from collections import Counter
from pathlib import Path

import polars as pl
import pytest

from murmura.api.dataset.v1 import dataset_pb2
from services.dataset.columns import Unreadable
from services.dataset.sources import Sources
from services.dataset.units import Units
from services.dataset.vault import Vault
from tests.support.file_fuzz import SECRET, UNIT, damaged, files

# Of one file, on a machine that does other things too. The slowest that was seen took half a second.
MOST_SECONDS = 10.0


def registered(path: Path, vault: Vault) -> int:
    """Take a file the way that a registration takes; returns how many rows there are."""
    source = dataset_pb2.Source(file=dataset_pb2.FileSource(url=str(path)))
    fingerprint, units, incoming = vault.fingerprint(), Units(), vault.incoming("rows")
    try:
        read = [item for item in Sources(["/"]).read(source, UNIT, {}, vault) if isinstance(item, pl.DataFrame)]
        for rows in read:
            units.add(rows.get_column(UNIT))
            fingerprint.add(rows)
            incoming.add(rows)
        fingerprint.hexdigest()
        incoming.keep()
        kept = pl.concat(vault.read("rows"))
        assert kept.equals(pl.concat(read)), "what was sealed is what was read"
        return kept.height
    finally:
        incoming.discard()
        fingerprint.close()
        units.close()


def test_any_file_is_read_or_refused_by_line_and_column(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    vault, corpus = Vault(tmp_path / "vault"), files()
    chance = random.Random(int(os.environ.get("MURMURA_FUZZ_SEED", "7")))
    for ending, content in corpus:
        (tmp_path / f"whole.{ending}").write_bytes(content)
        assert registered(tmp_path / f"whole.{ending}", vault) == 40
    seen: Counter[str] = Counter()
    end = time.monotonic() + float(os.environ.get("MURMURA_FUZZ_SECONDS", "5"))
    while time.monotonic() < end:
        ending, content = chance.choice(corpus)
        path = tmp_path / f"damaged.{ending}"
        path.write_bytes(damaged(content, chance))
        begun = time.monotonic()
        try:
            registered(path, vault)
            seen["read"] += 1
        except Unreadable as refused:
            assert SECRET not in str(refused)
            assert refused.__suppress_context__ or refused.__context__ is None
            seen["refused"] += 1
        assert time.monotonic() - begun < MOST_SECONDS
    # A library that prints what it chokes on writes into the service's log.
    printed = capfd.readouterr()
    assert (printed.out, printed.err) == ("", "")
    assert min(seen["read"], seen["refused"]) > 20
    with capfd.disabled():
        if "MURMURA_FUZZ_SECONDS" in os.environ:
            print(f"\n{seen['read']} files read, {seen['refused']} refused")
