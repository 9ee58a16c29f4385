"""Defaults make sense for one unit and for ten million."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.trainer import defaults
from services.trainer.defaults import Public

UNITS = st.one_of(st.integers(1, 50), st.integers(1, 10**7))
EPSILONS = st.one_of(st.none(), st.floats(0.01, 1000))


@given(UNITS, st.integers(1, 20), EPSILONS)
def test_whatever_is_asked_settings_are_complete_and_sensible(units, rows, epsilon):
    public = Public(units, units * rows, epsilon)
    settings = defaults.fill(public, {}).settings
    assert set(settings) == {
        *("epochs", "batch_size", "learning_rate", "lora_rank", "lora_alpha"),
        *("max_length", "max_rows_per_unit", "clipping_norm"),
    }
    assert settings["batch_size"] == int(settings["batch_size"]) >= 1
    steps = defaults.steps(public, settings)
    if epsilon is not None:
        assert settings["batch_size"] <= min(units, defaults.LARGEST_BATCH)
        # Each unit takes part as often as the epochs say.
        assert 0 <= steps * settings["batch_size"] / units - settings["epochs"] <= settings["batch_size"] / units
    assert steps >= 1


@given(UNITS, EPSILONS, st.floats(0.1, 50), st.integers(1, 10**6), st.integers(1, 64))
def test_what_is_chosen_is_kept_and_not_explained(units, epsilon, epochs, batch, rank):
    chosen = {"epochs": epochs, "batch_size": batch, "lora_rank": rank, "learning_rate": 0.1}
    choice = defaults.fill(Public(units, units, epsilon), chosen)
    assert choice.settings["epochs"] == epochs
    assert choice.settings["batch_size"] == (batch if epsilon is None else min(batch, units))
    assert choice.settings["lora_alpha"] == 2 * rank
    assert choice.reasons == ()


@pytest.mark.parametrize(("less", "more"), [(1.0, 3.0), (3.0, 8.0), (8.0, 22.0)])
def test_less_budget_asks_for_larger_batches(less, more):
    settings = [defaults.fill(Public(2000, 2600, epsilon), {}).settings for epsilon in (less, more)]
    assert settings[0]["batch_size"] >= settings[1]["batch_size"]


def test_every_default_that_matters_is_explained():
    for epsilon in (None, 3.0):
        reasons = defaults.fill(Public(2000, 2600, epsilon), {}).reasons
        assert [reason.partition(" ")[0] for reason in reasons] == [
            "batch_size", "epochs", "learning_rate", "lora_rank"
        ]  # fmt: skip
