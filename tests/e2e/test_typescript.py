"""The TypeScript quickstart, from a clean checkout of its folder, against the real services."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from murmura import Client
from murmura.local.layout import Layout

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

CLIENT = Path(__file__).parents[2] / "clients/typescript"
needs_node = pytest.mark.skipif(shutil.which("npm") is None, reason="needs Node.js 20: no npm on this machine")


def npm(directory: Path, *words: str) -> None:
    done = subprocess.run(["npm", *words], cwd=directory, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The client as `npm ci && npm run generate && npm run build` makes it, beside the contracts."""
    place = tmp_path_factory.mktemp("typescript")
    shutil.copytree(CLIENT.parents[1] / "protos", place / "protos")
    directory = place / "clients/typescript"
    shutil.copytree(CLIENT, directory, ignore=shutil.ignore_patterns("node_modules", "dist", "gen"))
    npm(directory, "ci", "--no-audit", "--no-fund", "--prefer-offline")
    npm(directory, "run", "generate")
    npm(directory, "run", "build")
    return directory


@needs_node
@pytest.mark.timeout(420)
def test_the_quickstart(built: Path, murmura_up: Callable[[str], Layout], tmp_path: Path) -> None:
    layout = murmura_up("tiny")
    source = tmp_path / "notes.jsonl"
    rows = [{"patient": f"p{number // 2}", "text": f"{number} suffers"} for number in range(80)]
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    steward = Client(profile=layout.profile, role="steward")
    steward.register("notes", source, privacy_unit="patient", epsilon=10.0, delta=1e-3)
    done = subprocess.run(
        ["node", "dist/quickstart.js", str(layout.profile), "notes", "tiny"],
        cwd=built,
        capture_output=True,
        text=True,
        timeout=180,
    )
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert "datasets/notes: 80 rows of 40 privacy units" in lines
    assert any(re.fullmatch(r"plan: ε = (2\.9|3\.0)\d, \d+ steps, affordable: true", line) for line in lines)
    assert any(line.startswith("succeeded: ") for line in lines)
    assert any(line.startswith('wrote: "') for line in lines)
    assert any(re.fullmatch(r"refused: BUDGET_EXHAUSTED, ε = \S+ is left", line) for line in lines)
    assert steward.account("notes").spent.units > 0


@needs_node
def test_a_token_travels_nowhere_in_the_clear(built: Path, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("secret")
    endpoints = dict.fromkeys(("dataset", "ledger", "trainer", "inference"), "murmura.hospital.example:7401")
    profile = tmp_path / "profile.json"
    profile.write_text(json.dumps({"endpoints": endpoints, "tokens": {"analyst": str(tmp_path / "token")}}))
    done = subprocess.run(
        ["node", "dist/quickstart.js", str(profile)], cwd=built, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 1
    assert "A token would travel to murmura.hospital.example:7401 in the clear" in done.stderr
