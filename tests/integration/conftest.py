"""A real deployment for integration tests: every service a process of its own, a tiny random base model, real keys.

`cluster` lives as long as a module and its tests share it; each registers rows of its own, and with them gets a ledger
account of its own.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from services.common.tokens import load_signing_key
from tests.support import deployment, inference_process, random_models
from tests.support.deployment import BASE_MODEL, Cluster
from tests.support.every_call import World


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


@pytest.fixture(scope="module")
def world(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """All four services, with a dataset, a job of it, and everyone's tokens; `MURMURA_TEST_ENGINE` serves."""
    rows = [{"patient": f"p{unit:02d}", "text": f"note {unit} {row}"} for unit in range(40) for row in range(2)]
    dataset = cluster.register(rows)
    job = cluster.create(cluster.spec(dataset, epochs=2.0))
    key = load_signing_key(cluster.directory / "keys" / "trainer.pem")
    inference = inference_process.deploy(
        tmp_path_factory.mktemp("inference"),
        os.environ.get("MURMURA_TEST_ENGINE", "transformers"),
        random_models.make_base(tmp_path_factory.mktemp("base")),
        key,
        OMP_NUM_THREADS="1",
    )
    try:
        yield World(cluster, inference, dataset, job)
    finally:
        inference.process.kill()
        inference.process.wait()


@pytest.fixture
def notes() -> list[dict[str, Any]]:
    """Forty patients with two rows each, new ones in every test: a ledger account of its own."""
    salt = uuid.uuid4().hex[:6]
    return [
        {"patient": f"p{unit:02d}", "text": f"xylophone {salt} {unit} {row}"} for unit in range(40) for row in range(2)
    ]
