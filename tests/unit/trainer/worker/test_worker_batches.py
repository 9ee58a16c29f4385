"""Every row once, in a rectangle of its own length, with the weight that its unit gives it."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from services.trainer.worker.batches import arranged, micro_batches, rectangles
from services.trainer.worker.data import Row, Unit
from services.trainer.worker.loss import IGNORED

CPU = torch.device("cpu")
ROW_LENGTHS = st.lists(st.lists(st.integers(2, 40), max_size=4), max_size=12)


def some_units(lengths: list[list[int]]) -> list[Unit]:
    generator = np.random.default_rng(1)

    def row(length: int) -> Row:
        ids = generator.integers(1, 90, length)
        labels = np.where(generator.random(length) < 0.3, IGNORED, ids)
        labels[-1] = ids[-1]
        return Row(ids, labels)

    return [Unit(tuple(row(length) for length in rows)) for rows in lengths]


@settings(max_examples=150, deadline=None)
@given(ROW_LENGTHS, st.sampled_from([1, 16, 50, 10_000]), st.booleans(), st.sampled_from([0, 3, 50]))
def test_micro_batches_hold_every_prediction_once(lengths, budget, packed, cost):
    units = arranged(some_units(lengths))
    assert sum(len(unit.rows) for unit in units) == sum(map(len, lengths))
    found, seen, padding = [], 0, 0
    for batch in micro_batches(units, budget, CPU, packed, cost):
        layout = batch.layout
        assert batch.input_ids.shape == layout.shape
        assert layout.shape[0] == 1 or not packed
        rows = len(layout.unit_of_row)
        assert batch.input_ids.numel() <= budget or rows == 1 or cost
        flat = [part.flatten() for part in (batch.input_ids, batch.position_ids, batch.targets, batch.weights)]
        at = first = 0
        for place in layout.rectangles:
            assert (place.start, place.first) == (at, first)
            units_here = layout.units(place).tolist()
            # Units appear in their order, so that what is new here is a range.
            assert place.fresh == (seen, max(seen, *(1 + index for index in units_here)))
            seen = place.fresh[1]
            for number, index in enumerate(units_here):
                begin = place.start + number * place.length
                ids, positions, targets, weights = (part[begin : begin + place.length] for part in flat)
                assert positions.tolist() == list(range(place.length))
                at_most = [row for row in units[index].rows if len(row) <= place.length]
                length = next(
                    len(row)
                    for row in at_most
                    if row.ids.tolist() == ids[: len(row)].tolist() and not ids[len(row) :].any()
                )
                padding += place.length - length
                assert (targets[length - 1 :] == IGNORED).all()
                predicted = targets != IGNORED
                assert float(weights[predicted].sum()) == pytest.approx(1 / len(units[index].rows))
                found.append((index, ids[:length].tolist(), targets[: length - 1].tolist()))
            at += place.rows * place.length
            first += place.rows
        assert (at, first) == (batch.input_ids.numel(), rows)
    wanted = [
        (index, row.ids.tolist(), row.labels[1:].tolist()) for index, unit in enumerate(units) for row in unit.rows
    ]
    assert sorted(found) == sorted(wanted)
    assert padding == 0 or cost or not packed


def test_no_units_make_no_batch():
    assert arranged([Unit(()), Unit(())]) == []
    assert list(micro_batches([], 100, CPU)) == []


def test_units_out_of_order_are_refused():
    with pytest.raises(ValueError, match="arranged"):
        list(micro_batches(some_units([[3], [9]]), 100, CPU, packed=True))


@given(st.lists(st.integers(1, 30), min_size=1, max_size=9), st.integers(0, 40))
def test_rectangles_are_the_cheapest(lengths, cost):
    lengths.sort(reverse=True)

    def price(cuts: list[tuple[int, int]]) -> int:
        return sum(cost + rows * length for rows, length in cuts)

    found = rectangles(lengths, cost)
    assert sum(rows for rows, _ in found) == len(lengths)
    best = None
    for mask in range(1 << (len(lengths) - 1)):
        borders = [0, *(i + 1 for i in range(len(lengths) - 1) if mask >> i & 1), len(lengths)]
        cuts = [(b - a, lengths[a]) for a, b in pairwise(borders)]
        best = price(cuts) if best is None else min(best, price(cuts))
    assert price(found) == best
