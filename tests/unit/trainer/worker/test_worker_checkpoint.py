"""A checkpoint opens for its own run, whole, or not at all."""

from __future__ import annotations

import pytest
import torch

from murmura.api.trainer.v1 import trainer_pb2
from services.trainer.worker import checkpoint
from services.trainer.worker.checkpoint import CheckpointError, binding, seal, unseal
from services.trainer.worker.engine import PrivateRun
from services.trainer.worker.streams import RunKey

KEY, BOUND = bytes(range(32)), bytes(32)


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch):
    monkeypatch.setattr(checkpoint, "PIECE_BYTES", 512)


def sealed(state=None) -> list[bytes]:
    return list(seal(state or {"values": torch.arange(500), "name": "x"}, KEY, BOUND))


def test_what_was_sealed_is_opened():
    pieces = sealed()
    assert len(pieces) > 5
    state = unseal(b"".join(pieces), KEY, BOUND)
    assert torch.equal(state["values"], torch.arange(500)) and state["name"] == "x"
    assert sealed() != pieces


def test_a_run_goes_on_from_a_sealed_state(make_model, make_units, make_settings, key):
    settings = make_settings(steps=5, sampling_probability=0.5, noise_multiplier=0.5)
    units = make_units([[5, 9], [12], [7]])
    run = PrivateRun(make_model(), units, settings, key)
    run.step()
    kept = b"".join(seal(run.state_dict(), KEY, BOUND))
    run.step()
    again = PrivateRun(make_model(fresh=True), units, settings, RunKey.generate())
    again.load_state_dict(unseal(kept, KEY, BOUND))
    again.step()
    for one, other in zip(run.state_dict()["parameters"], again.state_dict()["parameters"], strict=True):
        assert torch.equal(one, other)
    assert key.secret not in kept


def test_whatever_is_changed_it_does_not_open():
    pieces = sealed()
    whole = b"".join(pieces)
    for position in range(0, len(whole), 97):
        changed = bytearray(whole)
        changed[position] ^= 1
        with pytest.raises(CheckpointError):
            unseal(bytes(changed), KEY, BOUND)
    cut = [pieces[:-1], pieces[:1], [], pieces[:1] + pieces[2:], [*pieces[:1], pieces[2], pieces[1], *pieces[3:]]]
    other = sealed()
    cut += [pieces[:2] + other[2:], [other[0], *pieces[1:]], [*pieces, pieces[-1]]]
    for wrong in cut:
        with pytest.raises(CheckpointError):
            unseal(b"".join(wrong), KEY, BOUND)
    for key, bound in ((bytes(32), BOUND), (KEY, KEY)):
        with pytest.raises(CheckpointError):
            unseal(whole, key, bound)
    with pytest.raises(ValueError, match="32 bytes"):
        unseal(whole, b"", BOUND)


def test_a_checkpoint_is_bound_to_everything_but_the_worker():
    one = trainer_pb2.Assignment(job="trainingJobs/a", attempt=1, unit_count=9, base_model_location="here")
    same = trainer_pb2.Assignment(job="trainingJobs/a", attempt=2, unit_count=9, base_model_location="there")
    assert binding(one) == binding(same)
    for change in ({"job": "trainingJobs/b"}, {"unit_count": 8}, {"text_column": "t"}):
        other = trainer_pb2.Assignment()
        other.CopyFrom(one)
        for name, value in change.items():
            setattr(other, name, value)
        assert binding(other) != binding(one)
    other = trainer_pb2.Assignment()
    other.CopyFrom(one)
    other.mechanism.noise_multiplier = 1.0
    assert binding(other) != binding(one)


def test_an_adapter_of_another_shape_is_not_restored(make_model, make_units, make_settings, key):
    run = PrivateRun(make_model(r=3), make_units([[5]]), make_settings(), key)
    other = PrivateRun(make_model(r=4), make_units([[5]]), make_settings(), key)
    with pytest.raises(ValueError, match="not of this model"):
        other.load_state_dict(run.state_dict())


def test_loading_runs_no_code():
    class Evil:
        def __reduce__(self):
            return (print, ("run",))

    with pytest.raises(Exception, match=r"[Ww]eights.only"):
        unseal(b"".join(sealed({"evil": Evil()})), KEY, BOUND)
