"""Where a terminal knows few characters, what is printed is spelt, and nothing ends with an error."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from contextlib import redirect_stdout
from pathlib import Path

import pytest
from rich.progress import Progress

from murmura import display
from murmura.cli.shared import print_json

WORDS = "✓ ε = 22 for François, 3 μs…"
SPELT = {
    "utf-8": WORDS,
    "cp1252": "ok epsilon = 22 for François, 3 mus…",
    "latin-1": "ok epsilon = 22 for François, 3 mus...",
    "ascii": "ok epsilon = 22 for Fran?ois, 3 mus...",
}


class Terminal(io.TextIOWrapper):
    def __init__(self, encoding: str) -> None:
        self.bytes = io.BytesIO()
        super().__init__(self.bytes, encoding=encoding, write_through=True)

    def isatty(self) -> bool:
        return True

    def written(self) -> str:
        return self.bytes.getvalue().decode(self.encoding)


@pytest.mark.parametrize("encoding", SPELT)
def test_what_cannot_be_written_is_spelt(encoding: str) -> None:
    with redirect_stdout(terminal := Terminal(encoding)):
        display.say(WORDS)
    assert terminal.written() == SPELT[encoding] + "\n"


@pytest.mark.parametrize("encoding", SPELT)
def test_so_it_is_while_a_bar_is_there(encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    with redirect_stdout(terminal := Terminal(encoding)), Progress(console=display.console) as bar:
        bar.add_task("ε…", total=2)
        display.say(WORDS)
        print(WORDS)
    assert terminal.written().count(SPELT[encoding]) == 2


@pytest.mark.parametrize("encoding", SPELT)
def test_json_loses_nothing(encoding: str) -> None:
    with redirect_stdout(terminal := Terminal(encoding)):
        print_json({"name": WORDS})
    assert json.loads(terminal.written()) == {"name": WORDS}


@pytest.mark.parametrize("words", [["doctor"], ["status"], ["policy", "check", "notes-ε"]])
@pytest.mark.parametrize("encoding", ["latin-1", "cp1252"])
def test_the_command_does_not_fail_over_a_character(words: list[str], encoding: str, tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONIOENCODING": encoding}
    command = [sys.executable, "-c", "from murmura.cli import main; main()", *words]
    done = subprocess.run(command, env=environment, capture_output=True, timeout=60, cwd=tmp_path, check=False)
    assert done.stdout + done.stderr
    assert b"UnicodeEncodeError" not in done.stdout + done.stderr
