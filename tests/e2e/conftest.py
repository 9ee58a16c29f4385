"""What the stories share: a tiny base model, and a whole Murmura on this machine."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from murmura.local import deployment
from murmura.local.layout import Layout
from tests.support import deployment as support


@pytest.fixture(scope="session")
def tiny_base_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama of a few thousand weights, with a tokenizer of bytes."""
    return support.tiny_base_model(tmp_path_factory.mktemp("tiny-base-model"))


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
