"""The notebook of the story, run as a person would, against a Murmura of its own on a tiny model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

import murmura
from deploy.local.demo import records
from murmura import Client
from murmura.local.layout import Layout

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(300)]

NOTEBOOK = Path(__file__).parents[2] / "clients" / "python" / "examples" / "patient_notes.ipynb"
POLICY = "dataset: phee\nepsilon: 25\ndelta: 1e-4\nunlimited: {allowed: true}\n"


def test_the_notebook_is_committed_without_outputs() -> None:
    cells = [cell for cell in nbformat.read(NOTEBOOK, as_version=4).cells if cell.cell_type == "code"]
    assert cells
    assert all(not cell.outputs and cell.execution_count is None for cell in cells)


def test_the_notebook_tells_the_story(
    murmura_up: Callable[[str], Layout], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    layout = murmura_up("murmura-base")
    source, policy = tmp_path / "notes.jsonl", tmp_path / "phee.policy.yaml"
    records.write(source, rows=60, training_rows=90)
    policy.write_text(POLICY)
    steward = Client(profile=layout.profile, role="steward")
    registered = steward.register("phee", source, privacy_unit="patient", policy=policy).resource
    assert (registered.policy.epsilon, registered.policy.unlimited_allowed) == (25, True)
    monkeypatch.setenv("MURMURA_PROFILE", str(layout.profile))

    notebook = nbformat.read(NOTEBOOK, as_version=4)
    NotebookClient(notebook, timeout=240, kernel_name="python3").execute(cwd=str(tmp_path))

    told = ["".join(_texts(cell)) for cell in notebook.cells if cell.cell_type == "code"]
    assert "90 rows" in told[0]
    assert "mock" in told[1]
    assert "(80, 10)" in told[2]
    assert "Plan (nothing is spent yet)" in told[3] and "adapters/" in told[3]
    assert told[5].startswith("ε = ") and "<svg" not in told[5]
    assert "outcome: DP (ε" in told[6] and "count" in told[6]
    assert "nothing was spent" in told[7]
    assert not any(records.DIAGNOSIS in text for text in told)
    account = steward.account("phee")
    assert 0 < account.spent_epsilon <= 25 and account.unlimited_jobs == 0
    assert murmura.Client(profile=layout.profile).jobs()[0].owner == "analyst@local"


def _texts(cell: nbformat.NotebookNode) -> list[str]:
    """Return what a cell printed or showed."""
    return [str(output.get("text", "")) + str(output.get("data", {}).get("text/plain", "")) for output in cell.outputs]
