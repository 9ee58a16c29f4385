"""A unit's rows depend on that unit alone, and an empty unit is nothing."""

from __future__ import annotations

import numpy as np
import pytest

from services.trainer.worker.data import Row, Unit, encode_rows, group_units


class Letters:
    """A tokenizer of letters; ids from 3."""

    bos_token_id = 0
    eos_token_id = 1

    def __call__(self, texts, add_special_tokens):
        assert not add_special_tokens
        return {"input_ids": [[ord(c) - 94 for c in text] for text in texts]}


def test_rows_begin_and_end_and_are_cut():
    rows = encode_rows(Letters(), ["ab", "", "abcdefgh"], max_length=6)
    assert [row.ids.tolist() for row in rows] == [[0, 3, 4, 1], [], [0, 3, 4, 5, 6, 7]]


def test_a_tokenizer_without_a_beginning_uses_its_end():
    tokenizer = Letters()
    tokenizer.bos_token_id = None
    assert encode_rows(tokenizer, ["a"], 10)[0].ids.tolist() == [1, 3, 1]
    tokenizer.eos_token_id = None
    with pytest.raises(ValueError, match="no end-of-text"):
        encode_rows(tokenizer, ["a"], 10)


def test_many_rows_keep_their_order():
    texts = ["abcdef"[: 1 + i % 5] for i in range(1300)]
    assert [len(row) - 2 for row in encode_rows(Letters(), texts, 99)] == [len(t) for t in texts]


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
