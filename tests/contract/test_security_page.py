"""Each defence that the security page claims names a test that exists."""

from __future__ import annotations

import re
from pathlib import Path

TESTS = Path(__file__).parents[1]
PAGE = TESTS.parent / ".github/SECURITY.md"


def named() -> list[tuple[Path, str]]:
    """The tests that the page names: file and name. A column says where its files are, if they are shorter."""
    found, folder = [], ""
    for line in PAGE.read_text().splitlines():
        if heading := re.search(r"test under `([\w/]+)`", line):
            folder = heading[1]
        elif not line.startswith("|"):
            folder = ""
        found += [(TESTS / folder / path, name) for path, name in re.findall(r"`([\w/]+\.py)::(\w+)`", line)]
    return found


def test_every_test_that_is_named_exists() -> None:
    missing = [
        f"{path.relative_to(TESTS)}::{name}"
        for path, name in named()
        if not path.exists() or not re.search(rf"^(?:(?:async )?def {name}\(|{name} = )", path.read_text(), re.M)
    ]
    assert not missing, "the security page names tests that are not there: " + ", ".join(missing)


def test_every_defence_names_one() -> None:
    text = PAGE.read_text().partition("## Defences")[2].partition("## What is not defended")[0]
    rows = [line for line in text.splitlines() if line.startswith("|") and not re.match(r"\|(-|.*\| test)", line)]
    assert len(rows) > 40
    assert [row for row in rows if "::" not in row] == []
