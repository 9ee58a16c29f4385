"""A real deployment for integration tests: every service a process of its own, a tiny random base model, real keys.

`cluster` lives as long as a module and its tests share it; each registers rows of its own, and with them gets a ledger
account of its own.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support import deployment
from tests.support.deployment import BASE_MODEL, Cluster


@pytest.fixture(scope="session")
def tiny_base_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama of a few thousand weights, with a tokenizer of bytes."""
    return deployment.tiny_base_model(tmp_path_factory.mktemp("tiny-base-model"))


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory, tiny_base_model: Path) -> Iterator[Cluster]:
    """Ledger, dataset service and trainer, shared by the tests of a module."""
    # A path that nothing renames: workers of this cluster are known by it.
    directory = tmp_path_factory.mktemp("cluster").resolve()
    with Cluster(directory, {BASE_MODEL: str(tiny_base_model)}) as made:
        yield made


@pytest.fixture
def notes() -> list[dict[str, Any]]:
    """Forty patients with two rows each, new ones in every test: a ledger account of its own."""
    salt = uuid.uuid4().hex[:6]
    return [
        {"patient": f"p{unit:02d}", "text": f"xylophone {salt} {unit} {row}"} for unit in range(40) for row in range(2)
    ]
