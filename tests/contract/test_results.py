"""The page of figures says what the benches printed, and nothing is missing from it."""

from __future__ import annotations

import json

from tests.bench.bars import BENCHES, Figure, at
from tests.bench.results import KEPT, PAGE, page


def test_the_page_is_what_the_benches_printed() -> None:
    assert PAGE.read_text() == page(json.loads(KEPT.read_text())), "next: python -m tests.bench.results --write-only"


def test_no_cell_is_empty() -> None:
    text = PAGE.read_text()
    assert "Never run here" not in text
    cells = [cell.strip() for line in text.splitlines() if line.startswith("|") for cell in line.split("|")[1:-1]]
    assert cells and all(cells) and "nan" not in cells


def test_what_is_short_is_said_first_with_what_was_tried() -> None:
    text = PAGE.read_text()
    first = text.partition("\n## Short of its bar\n")[2].partition("\n## ")[0]
    assert first.count("\n- **") == text.count("| **no** |")
    assert "Nobody has looked into it yet" not in first


def test_a_bar_is_a_bar() -> None:
    least, most = Figure("", "", at("a", 0), least=0.6), Figure("", "", at("a"), most=2.0)
    assert (least.met(0.6), least.met(0.59), most.met(2.0), most.met(2.1)) == (True, False, True, False)
    assert least.of({"a": [0.5]}) == 0.5
    kept = {
        "ledger": {
            "figures": {
                s: dict.fromkeys(
                    ("one_account_over_echo", "many_accounts_over_echo", "p99_over_echo", "overspent"), 0.4
                )
                for s in ("sqlite", "redis")
            },
            "date": "2026-01-01",
            "minutes": 1,
            "machine": "m",
        }
    }
    told = page(kept)
    assert "**ledger: sqlite: calls/s on one account**" in told and told.count("| **no** |") == 4
    assert set(BENCHES) - {"ledger"} == set(told.partition("Never run here: ")[2].partition(".")[0].split(", "))
