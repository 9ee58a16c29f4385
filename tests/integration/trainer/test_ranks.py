"""Two processes under torchrun take the same steps as one."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from services.trainer.worker.ranks import Ranks
from tests.support.private_run import updates

Run = Callable[..., list[torch.Tensor]]


@pytest.fixture
def two(tmp_path: Path) -> Run:
    """Train on two ranks; returns what each saw."""

    def run(**changes: Any) -> list[torch.Tensor]:
        out = tmp_path / "updates"
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
        subprocess.run(
            [*command, "-m", "tests.support.private_run", str(out), json.dumps(changes)],
            check=True,
            capture_output=True,
            timeout=120,
        )
        return [torch.load(f"{out}.{rank}") for rank in range(2)]

    return run


def test_two_ranks_take_the_steps_of_one(two: Run) -> None:
    """Same sample, same noise, once: the sums differ in rounding, and the lattice takes that away."""
    one, (first, second) = updates(Ranks()), two()
    assert torch.equal(first, second)
    torch.testing.assert_close(first, one, rtol=1e-6, atol=1e-9)
    quiet, (first, second) = updates(Ranks(), noise_multiplier=0.0), two(noise_multiplier=0.0)
    assert torch.equal(first, second)
    assert (quiet.norm(dim=1) > 0).any()
    torch.testing.assert_close(first, quiet, rtol=1e-9, atol=1e-12)


def test_ranks_without_units_take_their_steps_with_noise_of_the_right_scale(two: Run) -> None:
    """Nobody is ever drawn: no rank waits for another, and what is left is one draw of noise a step, not two."""
    first, second = two(sampling_probability=1e-12, noise_multiplier=2.0, clipping_norm=3.0, steps=40)
    assert torch.equal(first, second)
    assert first.shape[0] == 40
    count = first.numel()
    assert float(first.std()) == pytest.approx(2.0 * 3.0 / 2.0, rel=5 / (2 * count) ** 0.5)
    assert abs(float(first.mean())) < 5 * 3.0 / count**0.5
    assert len({float(step[0]) for step in first}) == 40


@pytest.mark.parametrize("count", [1, 2, 3])
def test_every_slot_is_one_ranks(count: int) -> None:
    for slot in range(12):
        assert sum(Ranks(index, count).owns(slot) for index in range(count)) == 1


def test_a_rank_beyond_the_last_is_refused() -> None:
    with pytest.raises(ValueError, match="no rank 2 of 2"):
        Ranks(2, 2)
