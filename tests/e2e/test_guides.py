"""The guides, done as they stand: each command, each line that it is said to print, each cell."""

from __future__ import annotations

from pathlib import Path

import pytest

from murmura.local import deployment
from murmura.local.layout import Layout
from tests.support.guides import Reader, blocks, matches

ROOT = Path(__file__).parents[2]
pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(600)]


def test_the_first_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    guide = ROOT / "clients/python/examples/README.md"
    for name in ("deploy", "services"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.delenv("MURMURA_PROFILE", raising=False)
    # Ports that are free, and the engine that starts in a moment; `murmura up` of the guide finds them.
    layout = Layout(tmp_path / ".murmura", engine="transformers")
    try:
        deployment.up(layout, base_port=0)
        reader = Reader(guide, tmp_path, {})
        for block in blocks(guide):
            reader.do(block)
        model = reader.namespace["model"]
        assert model.audit.kept
        assert {"synthetic.parquet", "report.html", "journal.jsonl"} <= {path.name for path in tmp_path.iterdir()}
    finally:
        deployment.down(layout)


@pytest.mark.parametrize(
    ("told", "expected", "fits"),
    [
        ("a 1 b\n", "a … b\n", True),
        ("a 1 c\n", "a … b\n", False),
        ("one\ntwo\nthree\n", "one\n…\n", True),
        ("one\n", "one\n…\n", True),
        ("one\ntwo\n", "one\n", False),
        ("", "", True),
        ("something\n", "", False),
        ("a.b  \n", "a.b\n", True),
        ("axb\n", "a.b\n", False),
    ],
)
def test_what_a_command_prints_is_compared(told: str, expected: str, fits: bool) -> None:
    assert matches(told, expected) == fits
