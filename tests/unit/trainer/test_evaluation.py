"""What one unit adds to a measurement, and what its noisy sums say."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.trainer.evaluation import UNIT_NORM, estimate, greatest_error, share


@given(st.one_of(st.none(), st.floats()), st.floats(1e-3, 100))
def test_a_unit_adds_at_most_what_is_charged_for(loss: float | None, bound: float) -> None:
    added = share(loss, bound)
    assert math.hypot(*added) <= UNIT_NORM
    # On a lattice: a sum of such numbers rounds nothing, whatever the others are.
    assert all(float(entry * (1 << 20)).is_integer() for entry in added)


@pytest.mark.parametrize("loss", [None, math.nan, math.inf, -math.inf])
def test_a_unit_without_a_loss_adds_nothing(loss: float | None) -> None:
    assert share(loss, 8.0) == (0.0, 0.0)


def test_losses_are_cut_at_the_bound_and_counted_from_the_middle() -> None:
    assert [share(loss, 8.0)[0] for loss in (0.0, 2.0, 4.0, 8.0, 100.0)] == [-1.0, -0.5, 0.0, 1.0, 1.0]


def test_sums_say_the_mean_and_how_far_noise_moves_it() -> None:
    generator = np.random.default_rng(5)
    losses = generator.uniform(2.0, 5.0, 400)
    exact = np.sum([share(float(loss), 8.0) for loss in losses], axis=0)
    assert estimate(*exact, 8.0, 0.0).mean_loss == pytest.approx(losses.mean(), abs=1e-5)
    assert estimate(*exact, 8.0, 0.0).perplexity == pytest.approx(math.exp(losses.mean()), rel=1e-5)

    noise = 7.1
    drawn = exact + noise * UNIT_NORM * generator.standard_normal((4000, 2))
    found = [estimate(*pair, 8.0, noise) for pair in drawn]
    spread = float(np.std([one.mean_loss for one in found]))
    assert np.mean([one.standard_error for one in found]) == pytest.approx(spread, rel=0.08)
    assert spread <= greatest_error(400, 8.0, noise)


def test_noise_alone_makes_no_nonsense() -> None:
    found = estimate(-9.0, -3.0, 8.0, 7.1)
    assert 0.0 <= found.mean_loss <= 8.0
    assert found.standard_error > 8.0, "it says that it knows nothing"
    assert found.units == -3.0
