"""Fixtures of the inference tests: a tiny random base model, three adapters for it, a trainer's key."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from tests.support.random_models import make_adapter, make_base

ENGINES = [
    "transformers",
    pytest.param(
        "vllm",
        marks=[
            pytest.mark.slow,
            pytest.mark.skipif(
                not importlib.util.find_spec("vllm"),
                reason="vLLM is not installed here; the transformers engine is tested alone",
            ),
        ],
    ),
]


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="session")
def tiny_adapters(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    root = tmp_path_factory.mktemp("adapters")
    return [make_adapter(tiny_base, root / str(seed), seed) for seed in (1, 2, 3)]


@pytest.fixture(scope="session")
def trainer_key() -> Ed25519PrivateKey:
    return Ed25519PrivateKey.generate()
