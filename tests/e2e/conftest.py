"""What the stories share: a tiny base model, and a whole Murmura on this machine."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from murmura.local import deployment
from murmura.local.layout import Layout

INTEGRATION = Path(__file__).parents[1] / "integration" / "conftest.py"


def _borrow(name: str) -> Any:
    """Return a fixture of the integration tests."""
    found = importlib.util.spec_from_file_location("murmura_integration_conftest", INTEGRATION)
    assert found is not None and found.loader is not None
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return getattr(module, name)


tiny_base_model = _borrow("tiny_base_model")


@pytest.fixture
def murmura_up(
    tmp_path: Path, tiny_base_model: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[str], Layout]]:
    """Start the four services, with the tiny base model under a name."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    started: list[Layout] = []

    def start(base_model: str) -> Layout:
        layout = Layout(tmp_path.resolve() / "state", {base_model: str(tiny_base_model)}, "transformers")
        started.append(layout)
        deployment.up(layout, base_port=0)
        return layout

    try:
        yield start
    finally:
        for layout in started:
            deployment.down(layout)
