"""Each dependency is on the list that says why it is there, and the list names no other."""

from __future__ import annotations

import itertools
import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[3]
LIST = ROOT / "deploy/local/environment/README.md"
OURS = {"murmura", "murmura-services"}


def declared() -> set[str]:
    """What both distributions say that they need."""
    found: set[str] = set()
    for path in (ROOT / "pyproject.toml", ROOT / "clients/python/pyproject.toml"):
        project = tomllib.loads(path.read_text())["project"]
        for requirement in itertools.chain(project["dependencies"], *project["optional-dependencies"].values()):
            found.add(re.match(r"[\w-]+", requirement)[0].lower())  # type: ignore[index]
    return found - OURS


def listed() -> set[str]:
    """What the list names, in the first column of its rows."""
    section = LIST.read_text().partition("## What we depend on")[2]
    rows = [line.split("|")[1] for line in section.splitlines() if line.startswith("| ") and "package" not in line[:10]]
    return {name.lower() for row in rows for name in re.findall(r"`([\w-]+)`", row)}


def test_the_list_is_what_is_declared() -> None:
    assert listed() == declared()
