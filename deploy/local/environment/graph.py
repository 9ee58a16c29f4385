"""Draw who imports whom into the README, or say that the drawing is old.

    python deploy/local/environment/graph.py [--check]

The rooms are drawn, not each module: import-linter checks the rules, this shows the whole at a glance.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import grimp

README = Path(__file__).resolve().parents[3] / "README.md"
BLOCK = re.compile(r"(?<=<!-- imports: `make graph` draws this -->\n).*?(?=<!-- end of imports -->)", re.DOTALL)
# A module belongs to the first room whose name begins its own.
ROOMS = {
    "murmura.api": "murmura.api<br>the contracts, generated",
    "murmura.cli": "murmura.cli",
    "murmura.console": "murmura.console",
    "murmura.local": "murmura.local<br>the embedded default",
    "murmura": "murmura<br>the SDK",
    "services.common": "services.common",
    "services.ledger": "ledger",
    "services.dataset": "dataset",
    "services.trainer.worker": "trainer.worker<br>lives for one job",
    "services.trainer.cluster": "trainer.cluster<br>Kubernetes",
    "services.trainer": "trainer",
    "services.inference": "inference",
}


def main() -> int:
    """Draw, or with `--check` compare; returns the exit code."""
    text = README.read_text(encoding="utf-8")
    if not BLOCK.search(text):
        print(f"graph: {README.name} has no place for it: the two comments are missing", file=sys.stderr)
        return 1
    drawn = BLOCK.sub(lambda _: mermaid(edges()), text)
    if "--check" in sys.argv:
        if drawn != text:
            print("graph: the imports in README.md are not today's. Next: make graph", file=sys.stderr)
            return 1
        print("graph: the imports in README.md are today's")
        return 0
    README.write_text(drawn, encoding="utf-8")
    return 0


def edges() -> set[tuple[str, str]]:
    """Return which room imports which, directly."""
    graph = grimp.build_graph("murmura", "services", exclude_type_checking_imports=True, cache_dir=None)
    found = set()
    for module in graph.modules:
        for imported in graph.find_modules_directly_imported_by(module):
            found.add((room(module), room(imported)))
    return {(one, other) for one, other in found if one != other}


def room(module: str) -> str:
    """Return the room that a module is in.

    Raises:
        ValueError: if it is in none.
    """
    for name in ROOMS:
        if f"{module}.".startswith(f"{name}."):
            return name
    raise ValueError(f"{module} is in no room: add one to {Path(__file__).name}")


def mermaid(found: set[tuple[str, str]]) -> str:
    """Return the drawing, as GitHub shows it."""
    names = {name: name.replace(".", "_") for name in ROOMS}
    lines = ["```mermaid", "flowchart TD"]
    lines += [f'  {names[name]}["{ROOMS[name]}"]' for name in ROOMS]
    lines += [f"  {names[one]} --> {names[other]}" for one, other in sorted(found)]
    return "\n".join([*lines, "```", ""])


if __name__ == "__main__":
    sys.exit(main())
