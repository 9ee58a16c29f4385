"""Audits of real private runs of a small model: what is kept is never refuted, what is broken is."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from dp_accounting.pld import privacy_loss_distribution as pld
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

from services.trainer.worker import auditing
from services.trainer.worker.attack import _scores
from services.trainer.worker.canaries import coins, planted
from services.trainer.worker.data import Row, Unit
from services.trainer.worker.engine import PrivateRun, TrainingSettings
from services.trainer.worker.streams import RunKey

CANARIES, OTHERS, LENGTH = 100, 400, 8
DELTA = 1e-5
STEPS, PROBABILITY, NOISE = 100, 0.25, 3.0


def model() -> Any:
    """Return a small Llama that can learn a hundred rows by heart."""
    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=61,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        tie_word_embeddings=False,
        initializer_range=0.1,
    )
    base = LlamaForCausalLM(config).requires_grad_(False)
    return get_peft_model(base, LoraConfig(task_type="CAUSAL_LM", r=16, lora_alpha=32, target_modules="all-linear"))


def audited(seed: int, noise_multiplier: float) -> auditing.Findings:
    """Train on canaries and a few units; returns what comes of an attack."""
    generator = np.random.default_rng(seed)
    rows = [Row.of(generator.integers(10, 61, LENGTH)) for _ in range(CANARIES + OTHERS)]
    key = RunKey(hashlib.sha256(str(seed).encode()).digest())
    part = coins(CANARIES, key.stream("coins of canaries"))
    units = [Unit((Row.of(generator.integers(10, 61, 8)),)) for _ in range(10)]
    settings = TrainingSettings(STEPS, 0.1 * CANARIES, PROBABILITY, noise_multiplier, learning_rate=0.01)
    trained = model()
    run = PrivateRun(trained, units + planted(rows[:CANARIES], part, 1), settings, key)
    while run.completed_steps < STEPS:
        run.step()
    own, others = (_scores(trained, some, lambda: None) for some in (rows[:CANARIES], rows[CANARIES:]))
    sides = ([score for score, member in zip(own, part, strict=True) if member is side] for side in (True, False))
    return auditing.findings(*sides, others)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """More would only wait for each other, at this size."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def proven() -> float:
    """The epsilon of these runs, by the accountant."""
    step = pld.from_gaussian_mechanism(NOISE, sampling_prob=PROBABILITY, value_discretization_interval=1e-3)
    return float(step.self_compose(STEPS).get_epsilon_for_delta(DELTA))


def test_twenty_runs_never_exceed_what_is_proven(proven: float) -> None:
    found = [audited(seed, NOISE) for seed in range(20)]
    highest = max(auditing.epsilon_of(max(one.refuted, one.estimated), DELTA) for one in found)
    assert highest <= proven
    # An attack that finds nothing would pass as well: this one does find something.
    assert np.mean([one.median_exposure for one in found]) > 1.2


def test_a_run_whose_noise_is_switched_off_is_caught(proven: float) -> None:
    found = audited(0, 0.0)
    assert auditing.epsilon_of(found.certain, DELTA) > proven
