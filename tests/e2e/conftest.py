"""What the stories share: a tiny base model, and a whole Murmura on this machine."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from murmura.local import deployment
from murmura.local.layout import Layout
from tests.support import deployment as support


@pytest.fixture(scope="session")
def tiny_base_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama of a few thousand weights, with a tokenizer of bytes."""
    return support.tiny_base_model(tmp_path_factory.mktemp("tiny-base-model"))


@contextmanager
def a_murmura_of(base_model: Path, directory: Path) -> Iterator[Callable[[str], Layout]]:
    """Start the four services, with a base model under a name; they end with the block."""
    started: list[Layout] = []

    def start(name: str) -> Layout:
        layout = Layout(directory.resolve() / "state", {name: str(base_model)}, "transformers")
        started.append(layout)
        deployment.up(layout, base_port=0)
        return layout

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setenv("HF_HUB_OFFLINE", "1")
        try:
            yield start
        finally:
            for layout in started:
                deployment.down(layout)


@pytest.fixture
def murmura_up(tmp_path: Path, tiny_base_model: Path) -> Iterator[Callable[[str], Layout]]:
    """Start the four services, with the tiny base model under a name."""
    with a_murmura_of(tiny_base_model, tmp_path) as start:
        yield start


@pytest.fixture(scope="module")
def murmura_for_all(
    tmp_path_factory: pytest.TempPathFactory, tiny_base_model: Path
) -> Iterator[Callable[[str], Layout]]:
    """The same, for all tests of a module."""
    with a_murmura_of(tiny_base_model, tmp_path_factory.mktemp("murmura")) as start:
        yield start
