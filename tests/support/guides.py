"""READMEs that run: their blocks, in order, as a person would copy them.

`sh` blocks must end well. In a `console` block `$ ` begins a command, and what follows it is what it prints: `…` stands
for anything in a line, a line of `…` alone for any lines. `python` blocks share one namespace.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

BLOCK = re.compile(r"^( *)```(\w*)\n(.*?)^\1```$", re.M | re.S)
PATIENCE_S = 300
# What whoever runs the tests has done already.
DONE_BEFORE = ("make setup", ". .venv/bin/activate")


@dataclass(frozen=True)
class Block:
    """A block of a README.

    Attributes:
        language: as it is marked; empty: none.
        text: without the marks.
        line: where it begins.
    """

    language: str
    text: str
    line: int


def blocks(path: Path) -> list[Block]:
    """Return the blocks of a README."""
    text = path.read_text()
    return [Block(m[2], textwrap.dedent(m[3]), text.count("\n", 0, m.start()) + 2) for m in BLOCK.finditer(text)]


class Reader:
    """Somebody who does what a README says.

    Args:
        path: of the README.
        place: where they are.
        environment: besides the test's own.
    """

    def __init__(self, path: Path, place: Path, environment: dict[str, str]) -> None:
        self._path, self._place = path, place
        self._environment = os.environ | environment | {"COLUMNS": "120"}
        self._environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        self.namespace: dict[str, Any] = {"__name__": "__main__"}

    def do(self, block: Block) -> None:
        """Do what a block says, and see what it promises."""
        if block.language == "sh":
            lines = [line for line in block.text.splitlines() if line not in DONE_BEFORE]
            self._run("\n".join(lines), block)
        elif block.language == "console":
            for command, expected in _commands(block.text):
                told = self._run(command, block)
                assert matches(told, expected), (
                    f"{self._at(block)}: {command}\n--- says\n{told}\n--- promised\n{expected}"
                )
        elif block.language == "python":
            # As many empty lines before it as make a traceback name the README's line.
            code = compile("\n" * (block.line - 1) + block.text, str(self._path), "exec")
            exec(code, self.namespace)

    def _run(self, command: str, block: Block) -> str:
        done = subprocess.run(
            ["bash", "-eo", "pipefail", "-c", command],
            cwd=self._place,
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=PATIENCE_S,
        )
        assert done.returncode == 0, f"{self._at(block)}: {command}\n{done.stdout}"
        return done.stdout

    def _at(self, block: Block) -> str:
        return f"{self._path.name}, line {block.line}"


def _commands(text: str) -> Iterator[tuple[str, str]]:
    """Yield each command with what it is said to print."""
    for part in re.split(r"^\$ ", text, flags=re.M)[1:]:
        command, _, expected = part.partition("\n")
        yield command, expected


def matches(told: str, expected: str) -> bool:
    """Say whether a command printed what was promised; spaces at the end of a line mean nothing."""
    pattern = ""
    for line in expected.splitlines():
        if line.strip() == "…":
            pattern += r"(?:.*\n)*?"
        else:
            pattern += ".*".join(re.escape(part) for part in line.rstrip().split("…")) + r"[ \t]*\n"
    text = told if told.endswith("\n") or not told else told + "\n"
    return re.fullmatch(pattern, text) is not None
