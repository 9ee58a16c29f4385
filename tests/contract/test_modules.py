"""Modules have one purpose and a size that a reader can hold; a longer one says why."""

from __future__ import annotations

import ast
import statistics
from pathlib import Path

ROOT = Path(__file__).parents[2]
# "About 300": a handful more is not worth a wall in the wrong place.
MOST_LINES = 305
REASON = "Longer than most modules"


def modules() -> dict[Path, str]:
    """Our modules and their text; generated ones are nobody's to read."""
    found = {}
    for folder in ("services", "clients/python/src/murmura", "deploy"):
        for path in (ROOT / folder).rglob("*.py"):
            if "/murmura/api/" not in str(path):
                found[path] = path.read_text()
    return found


def test_each_module_says_why_it_is_there() -> None:
    silent = [str(path.relative_to(ROOT)) for path, text in modules().items() if not ast.get_docstring(ast.parse(text))]
    assert silent == []


def test_a_long_module_says_why_it_is_long() -> None:
    for path, text in modules().items():
        lines, said = text.count("\n"), REASON in (ast.get_docstring(ast.parse(text)) or "")
        assert (lines > MOST_LINES) == said, f"{path.relative_to(ROOT)} has {lines} lines"


def test_half_of_them_are_short() -> None:
    assert statistics.median(text.count("\n") for text in modules().values()) <= 150
