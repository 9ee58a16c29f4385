"""A unit's rows depend on that unit alone, and an empty unit is nothing."""

from __future__ import annotations

import numpy as np
import pytest

from services.trainer.worker.data import Row, Unit, group_units


def rows_of(*lengths: int) -> list[Row]:
    return [Row.of(np.full(length, index)) for index, length in enumerate(lengths)]


def test_units_are_bounded_and_empty_slots_exist(key):
    rows = rows_of(3, 3, 0, 3, 3, 3, 0)
    units = group_units(rows, [4, 1, 1, 4, 4, 4, 2], 6, 2, key.stream("rows"))
    assert [len(unit.rows) for unit in units] == [0, 1, 0, 0, 2, 0]
    chosen = {int(row.ids[0]) for row in units[4].rows}
    assert len(chosen) == 2
    assert chosen <= {0, 3, 4, 5}


def test_every_row_of_a_large_unit_is_chosen_equally_often(key):
    stream = key.stream("rows")
    counts = np.zeros(5)
    for _ in range(2000):
        for row in group_units(rows_of(2, 2, 2, 2, 2), [0] * 5, 1, 2, stream)[0].rows:
            counts[row.ids[0]] += 1
    assert np.abs(counts - 800).max() < 5 * np.sqrt(800)


@pytest.mark.parametrize("unit", [-1, 2])
def test_a_row_of_an_unknown_unit_is_refused_without_its_text(key, unit):
    with pytest.raises(ValueError, match="a unit that the dataset does not have"):
        group_units(rows_of(3), [unit], 2, 1, key.stream("rows"))


def test_a_unit_never_shows_its_rows():
    assert repr(Unit((Row.of(range(5)),))) == "Unit()"
