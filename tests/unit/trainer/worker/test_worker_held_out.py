"""The measurement on held-out rows: exact without noise, bounded in each unit, with noise of the right scale."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from services.trainer.evaluation import UNIT_NORM, share
from services.trainer.worker.data import Row, Unit
from services.trainer.worker.held_out import noisy_sums, unit_loss
from services.trainer.worker.loss import IGNORED
from services.trainer.worker.streams import NormalLanes, RunKey

LENGTHS = [[5, 9, 2], [12], [], [7, 7], [30, 3, 4]]
BOUND = 6.0


def normals(number: int = 0) -> NormalLanes:
    return NormalLanes(RunKey(bytes([number] * 32)), "evaluation")


def reference(model: Any, unit: Unit) -> float | None:
    """One row at a time, no padding."""
    nats: list[torch.Tensor] = []
    for row in unit.rows:
        ids = torch.from_numpy(row.ids)[None]
        with torch.no_grad():
            logits = model(input_ids=ids, use_cache=False).logits[0, :-1]
        losses = torch.nn.functional.cross_entropy(logits, torch.from_numpy(row.labels)[1:], reduction="none")
        nats.append(losses[torch.from_numpy(row.labels)[1:] != IGNORED])
    return float(torch.cat(nats).mean()) if nats else None


def test_sums_without_noise_are_those_of_a_loop(make_model: Callable[..., Any], make_units: Any) -> None:
    model, units = make_model(), make_units(LENGTHS)
    prompt = np.arange(10, 20)
    labels = prompt.copy()
    labels[:7] = IGNORED
    units.append(Unit((Row(prompt, labels),)))  # only its completion counts
    for unit in units:
        expected = reference(model, unit)
        assert unit_loss(model, unit) == (None if expected is None else pytest.approx(expected, rel=1e-9))
    losses, count = noisy_sums(model, units, BOUND, 0.0, normals())
    assert count == 5
    assert losses == pytest.approx(sum(share(reference(model, unit), BOUND)[0] for unit in units), abs=1e-5)


def test_leaving_a_unit_out_changes_exactly_what_it_adds(make_model: Callable[..., Any], make_units: Any) -> None:
    """Bit for bit, also where a unit's loss is no number: others neither see it nor are counted out with it."""
    model, units = make_model(dtype=torch.float32), make_units(LENGTHS)
    embedding = model.get_input_embeddings()
    with torch.no_grad():
        embedding.weight[3] = torch.nan
        embedding.weight[4] = 1e30
    units += [Unit((Row.of([11, 3, 12, 13]),)), Unit((Row.of([11, 4, 12, 13]), Row.of([20, 21, 22])))]
    whole = np.array(noisy_sums(model, units, BOUND, 2.0, normals()))
    assert np.isfinite(whole).all()
    for index in range(len(units)):
        without = [*units[:index], Unit(()), *units[index + 1 :]]
        change = whole - np.array(noisy_sums(model, without, BOUND, 2.0, normals()))
        added = share(unit_loss(model, units[index]), BOUND)
        assert np.linalg.norm(added) <= UNIT_NORM
        # Both results lie on the noise's lattice, 2^-16 of its standard deviation or finer.
        np.testing.assert_allclose(change, added, atol=2.0 * UNIT_NORM * 2**-16)


def test_noise_is_gaussian_of_the_right_scale_and_drawn_once_for_each_sum(make_model: Callable[..., Any]) -> None:
    model, nobody = make_model(), [Unit(()) for _ in range(3)]
    draws, noise = normals(1), 3.0
    found = np.array([noisy_sums(model, nobody, BOUND, noise, draws) for _ in range(3000)])
    scale = noise * UNIT_NORM
    assert found.std(axis=0) == pytest.approx([scale, scale], rel=5 / np.sqrt(2 * 3000))
    assert np.abs(found.mean(axis=0)).max() < 5 * scale / np.sqrt(3000)
    assert abs(np.corrcoef(found.T)[0, 1]) < 5 / np.sqrt(3000)
    assert (np.abs(found) < 1.96 * scale).mean() == pytest.approx(0.95, abs=0.015)


def test_a_pause_may_end_it(make_model: Callable[..., Any], make_units: Any) -> None:
    def pause() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        noisy_sums(make_model(), make_units(LENGTHS), BOUND, 1.0, normals(), pause=pause)
