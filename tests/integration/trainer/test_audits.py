"""A real worker attacks what it has trained: a leak is found, a kept promise is not accused, and a broken one is."""

from __future__ import annotations

from pathlib import Path

import pytest

from murmura.api.trainer.v1 import trainer_pb2
from murmura.api.trainer.v1 import trainer_service_pb2 as pb
from services.trainer.worker.canaries import OTHERS
from tests.support.recorder import ROWS, SECRET, Recorder, assigned, run

TEMPLATE = "{name} {number} suffers from |{word} {word} {word}"
DELTA = 1e-5


@pytest.fixture(scope="module")
def bundled() -> Path:
    """The bundled base model: random weights learn nothing by heart."""
    return Path(__file__).parents[3] / "deploy/local/base_model/weights"


def audited(
    folder: Path, base_model: Path, noise_multiplier: float, count: int = 100, steps: int = 300, **settings: float
) -> trainer_pb2.Audit:
    """Train on a few rows and canaries; returns what the worker found out about those."""
    assignment = assigned(base_model)
    assignment.canaries.CopyFrom(trainer_pb2.CanarySpec(template=TEMPLATE, count=count, rows=2))
    assignment.audit_delta = DELTA
    assignment.settings.max_length, assignment.settings.lora_rank, assignment.settings.learning_rate = 48, 8, 1e-2
    for name, value in settings.items():
        setattr(assignment.settings, name, value)
    assignment.mechanism.sampling_probability = 0.1
    assignment.mechanism.steps, assignment.mechanism.noise_multiplier = steps, noise_multiplier
    if noise_multiplier < 0:
        assignment.ClearField("mechanism")
        assignment.unlimited_steps = steps
    recorder = Recorder(assignment, ROWS)
    assert run(recorder, folder) == (0, "")
    first, *rest = recorder.of(pb.UploadAdapterRequest)
    assert not any(message.HasField("audit") for message in rest)
    assert SECRET.encode() not in first.SerializeToString()
    found: trainer_pb2.Audit = first.audit
    return found


def test_an_audit_of_a_model_without_privacy_finds_the_leak(bundled: Path, tmp_path: Path) -> None:
    audit = audited(tmp_path, bundled, noise_multiplier=-1.0, steps=130, batch_size=16)
    assert (audit.canaries, audit.others) == (100, OTHERS)
    assert 30 < audit.planted < 70
    assert audit.guesses > 25
    # As many are guessed to take part as not to; where the coins fell otherwise, so many guesses have to be wrong.
    assert audit.guesses - audit.correct_guesses <= abs(audit.planted - audit.canaries / 2)
    assert audit.true_positive_rate_at_1_percent > 0.5
    assert audit.median_exposure > 8
    assert audit.estimated_epsilon > 10
    assert audit.extracted_greedily > 3


def test_an_engine_whose_noise_is_switched_off_is_caught(bundled: Path, tmp_path: Path) -> None:
    audit = audited(tmp_path, bundled, noise_multiplier=0.0, steps=50)
    assert audit.certain_epsilon > 4.0
