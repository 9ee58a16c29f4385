"""The Python of the READMEs, run as it stands; and a list of what runs each block that does not run here.

The base model is a tiny one under the bundled one's name, so what it writes is nonsense and what it costs is true.
"""

from __future__ import annotations

import ast
import asyncio
import json
import re
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet

import murmura
from murmura import AsyncClient, Client
from murmura import policy as policies
from murmura.api.dataset.v1 import dataset_pb2
from murmura.llm import LLM
from murmura.local.layout import Layout
from tests.support.guides import blocks

ROOT = Path(__file__).parents[2]
CHAT = json.dumps([{"role": "user", "content": "Well?"}, {"role": "assistant", "content": "Yes."}])
# Who runs what this module does not: README, language, how the block begins, and where it is run or why it cannot be.
ELSEWHERE = {
    ("README.md", "", "make demo"): ".ci/run: `make test`, and `make demo-quick`, the short form",
    ("README.md", "", "steward ──"): "a drawing",
    ("README.md", "mermaid", "flowchart"): "deploy/local/environment/graph.py --check, in `make check`",
    ("clients/README.md", "cpp", "#include"): "tests/e2e/test_cpp.py",
    ("clients/README.md", "sh", "mkdir -p gen"): "tests/e2e/test_cpp.py",
    ("clients/typescript/README.md", "", "npm ci"): "tests/e2e/test_typescript.py, npm's commands one by one",
    (
        "clients/python/README.md",
        "",
        "$ murmura budget show",
    ): "tests/integration/ledger/test_watching.py: the same words",
    ("clients/python/README.md", "yaml", "dataset:"): "test_the_policy_of_the_readme_is_one, below",
    (
        "deploy/images/README.md",
        "sh",
        "for target",
    ): "nothing: it needs docker; tests/unit/deploy/test_images.py checks the targets",
    ("services/dataset/README.md", "console", "$ MURMURA_STATE_DIR"): (
        "tests/unit/dataset/test_rewrap.py: the same words; test_dataset_recovery.py, beside a service that runs"
    ),
    ("services/inference/README.md", "sh", "python -m"): "tests/support/inference_process.py, and every e2e test",
    ("services/trainer/README.md", "sh", "python -m"): "tests/support/deployment.py, and every launcher",
    (".github/CONTRIBUTING.md", "", "make test"): ".ci/run, and whoever contributes",
}
GUIDES = {
    "clients/python/examples/README.md": "tests/e2e/test_guides.py",
    "deploy/kubernetes/README.md": "tests/integration/test_first_cluster.py",
}
HERE = ("README.md", "clients/python/README.md")


def pages() -> Iterator[Path]:
    for pattern in ("*.md", ".github/*.md", "*/*.md", "*/*/*.md", "*/*/*/*.md", "*/*/*/*/*.md"):
        for path in sorted(ROOT.glob(pattern)):
            if not any(part in (".venv", ".venv-codegen", "node_modules", ".pytest_cache") for part in path.parts):
                yield path


def test_every_block_of_every_readme_is_run_by_something() -> None:
    unknown, seen = [], set()
    for path in pages():
        name = str(path.relative_to(ROOT))
        for block in blocks(path):
            known = [key for key in ELSEWHERE if key[:2] == (name, block.language) and block.text.startswith(key[2])]
            seen.update(known)
            if not (known or name in GUIDES or (name in HERE and block.language == "python")):
                unknown.append(f"{name}, line {block.line}: {block.text.splitlines()[0]}")
    assert not unknown, "run these, or say in ELSEWHERE what does"
    assert seen == set(ELSEWHERE), "no README has these any more"


def test_the_policy_of_the_readme_is_one(tmp_path: Path) -> None:
    [text] = [block.text for block in blocks(ROOT / "clients/python/README.md") if block.language == "yaml"]
    (tmp_path / "policy.yaml").write_text(text)
    found = policies.read(tmp_path / "policy.yaml")
    assert (found.dataset, found.version, found.policy.epsilon, found.policy.delta) == ("datasets/phee", 3, 25, 1e-4)


@pytest.fixture
def phee(murmura_up: Callable[[str], Layout], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A Murmura as the READMEs take it for granted, with its profile; and a folder to write to."""
    layout = murmura_up("murmura-base")
    source, rows = tmp_path / "notes.parquet", []
    for number in range(120):
        raw = json.dumps({"note": number, "text": f"Case {number} had a fever.", "patient_id": f"p{number // 2}"})
        row = {"patient": f"p{number // 2}", "context": raw, "age": number % 90, "seen": datetime(2026, 1, 2, 3, 4)}
        rows.append(row | {"question": "Why?", "answer": f"{number}", "chat": CHAT})
    parquet.write_table(pa.Table.from_pylist(rows), source)
    steward = Client(profile=layout.profile, role="steward")
    policy = dataset_pb2.Policy(epsilon=400, delta=1e-4, unlimited_allowed=True)
    steward.register("phee", source, privacy_unit="patient", policy=policy)
    monkeypatch.setenv("MURMURA_PROFILE", str(layout.profile))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(path: Path, given: dict[str, Callable[[dict[str, Any]], None]]) -> dict[str, Any]:
    """Run a README's Python; returns its names.

    Args:
        path: of the README.
        given: what the text around a block takes for granted, by a part of the block.
    """
    names: dict[str, Any] = {"__name__": "__main__"}
    used = set()
    for block in blocks(path):
        if block.language != "python":
            continue
        for part, give in given.items():
            if part in block.text:
                give(names)
                used.add(part)
        flags = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
        code = compile("\n" * (block.line - 1) + block.text, str(path), "exec", flags=flags)
        waiting = eval(code, names)
        if asyncio.iscoroutine(waiting):
            asyncio.run(waiting)
    assert used == set(given), "what a block took for granted is no longer in it"
    return names


@pytest.mark.e2e
@pytest.mark.slow
@pytest.mark.timeout(400)
def test_the_front_page(phee: Path) -> None:
    names = run(ROOT / "README.md", {})
    assert names["model"].statement.epsilon == pytest.approx(22, abs=0.1)
    assert (phee / "synthetic.parquet").exists()
    assert len(names["X_train"]) + len(names["X_test"]) == 120


@pytest.mark.e2e
@pytest.mark.slow
@pytest.mark.timeout(400)
def test_the_page_of_the_sdk(phee: Path) -> None:
    frame = Client().dataset("phee").as_pandas()

    def fresh(names: dict[str, Any]) -> None:
        names.update(base="murmura-base", X=frame.rename(columns={"context": "text"}))

    def divided(names: dict[str, Any]) -> None:
        fresh(names)
        names.update(X_train=names["X"].iloc[:80], X_test=names["X"].iloc[80:])

    given = {
        'messages_field="chat"': fresh,
        "X = X.rename(": lambda names: names.update(X=frame),
        "held_out=X_test": divided,
        "murmura.Canaries(": fresh,
        "AsyncClient()": lambda names: names.update(AsyncClient=AsyncClient),
    }
    names = run(ROOT / "clients/python/README.md", given)
    assert names["model"].audit.message.canaries == 200 and (phee / "report.html").exists()
    assert isinstance(names["LLM"], type) and names["LLM"] is LLM and names["murmura"] is murmura
    assert names["age"].statement.epsilon == pytest.approx(0.5, abs=0.01)
    assert re.search(r"trainingJobs/", names["job"].name) and names["job"].adapter
    adapter = Client(role="steward").adapter(names["model"].served_name())
    assert list(adapter.policy.users) == ["colleague@hospital.example"]
