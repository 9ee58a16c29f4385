"""Counts read well, also where there is one, and never say that little is nothing."""

import pytest

from murmura.counts import counted, extent, grouped, percent


def test_percentages_do_not_round_to_nothing_or_all():
    assert [percent(part, 1000) for part in (0, 1, 500, 999, 1000)] == [
        "0 %",
        "under 1 %",
        "50 %",
        "over 99 %",
        "100 %",
    ]
    assert percent(0, 0) == "0 %"


def test_thousands_stand_apart():
    assert grouped(1234567) == "1 234 567"


@pytest.mark.parametrize(("count", "words"), [(0, "0 rows"), (1, "1 row"), (2, "2 rows"), (1000, "1 000 rows")])
def test_one_is_not_many(count, words):
    assert counted(count, "row") == words


def test_a_dataset_of_one_person_reads_as_one():
    assert extent(630, 1) == "630 rows of 1 privacy unit"
    assert extent(1, 2, "slot") == "1 slot of 2 privacy units"
