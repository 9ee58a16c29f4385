"""Memory is divided by what tokens take, which is measured on public ones."""

from __future__ import annotations

import pytest
import torch

from services.trainer.worker import execution
from services.trainer.worker.execution import Checkpointing, Execution, bytes_per_token, fitted


def test_a_token_takes_what_autograd_keeps(make_model):
    small, large = make_model(dtype=torch.float32), make_model(dtype=torch.float64)
    assert bytes_per_token(large) > 1.3 * bytes_per_token(small)
    # Two layers of width 16 with a feed-forward of 24 keep at least their inputs, and 61 logits three times.
    assert bytes_per_token(small) > 2 * (16 + 24) * 4 + 3 * 61 * 4
    assert bytes_per_token(small, Checkpointing.NON_REENTRANT) <= bytes_per_token(small)


@pytest.mark.parametrize("share", [1.0, 0.1, 1e-4, 1e-9])
def test_sizes_follow_the_memory_that_is_left(make_model, monkeypatch, share):
    model = make_model(dtype=torch.float32)
    free = int(share * 2e7)
    monkeypatch.setattr(execution, "free_bytes", lambda device: free)
    found = fitted(model, 64)
    # Where a row of 64 tokens does not fit, activations are computed again.
    fits = bytes_per_token(model) * 64 <= 0.4 * free
    assert found.checkpointing is (Checkpointing.NONE if fits else Checkpointing.NON_REENTRANT)
    assert 1 <= found.micro_batch_tokens <= 2048
    assert (
        found.micro_batch_tokens == 1
        or found.micro_batch_tokens * bytes_per_token(model, found.checkpointing) <= 0.5 * free
    )
    assert found.gradient_bytes <= max(1, 0.5 * free)


def test_a_wish_is_kept(make_model):
    found = fitted(make_model(), 64, Execution(packed=False, checkpointing="reentrant"))
    assert (found.packed, found.checkpointing) == (False, Checkpointing.REENTRANT)


@pytest.mark.parametrize("wrong", [{"micro_batch_tokens": 0}, {"gradient_bytes": 0}, {"rectangle_tokens": -1}])
def test_senseless_sizes_are_refused(wrong):
    with pytest.raises(ValueError):
        Execution(**wrong)
