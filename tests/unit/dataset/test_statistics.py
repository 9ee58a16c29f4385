"""Sensitivities, checked against what a unit can really do; and what is made of noisy numbers."""

import math

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from services.dataset.statistics import (
    BRANCHES,
    COUNT,
    HISTOGRAM,
    LATTICE,
    LEAVES,
    LEVELS,
    MEAN,
    QUANTILE,
    Statistic,
)

values = st.one_of(
    st.floats(allow_nan=True, allow_infinity=True), st.floats(-10, 10), st.sampled_from([math.nan, 0.0, -5.0, 5.0])
)
statistics = st.one_of(
    st.just(Statistic(COUNT)),
    st.just(Statistic(MEAN, -5.0, 5.0)),
    st.just(Statistic(MEAN, -1e300, 1e300)),
    st.builds(lambda bins: Statistic(HISTOGRAM, -5.0, 5.0, bins), st.integers(1, 40)),
    st.builds(lambda share: Statistic(QUANTILE, -5.0, 5.0, share), st.floats(0, 1)),
)
units = st.lists(st.lists(values, min_size=1, max_size=6), min_size=1, max_size=6)


def norm_squared(vector):
    return sum(int(entry) ** 2 for entry in vector)


@settings(max_examples=300, deadline=None)
@given(statistics, units)
@example(Statistic(MEAN, -5.0, 5.0), [[1e308, math.inf]])
@example(Statistic(MEAN, -5.0, 5.0), [[math.nan, 1.0]])
@example(Statistic(QUANTILE, -5.0, 5.0, 0.5), [[-math.inf] * 6])
def test_a_unit_moves_the_exact_vector_by_no_more_than_is_claimed(statistic, rows_of_units):
    most_rows = max(len(rows) for rows in rows_of_units)
    everybody = statistic.added(np.array([row for rows in rows_of_units for row in rows]))
    for absent in range(len(rows_of_units)):
        others = [row for unit, rows in enumerate(rows_of_units) if unit != absent for row in rows]
        # The unit's rows are emptied: they no longer count as rows at all.
        moved = everybody - statistic.added(np.array(others, dtype=float))
        assert norm_squared(moved) <= statistic.sensitivity_squared(most_rows)


@pytest.mark.parametrize(
    "statistic",
    [
        Statistic(COUNT),
        Statistic(MEAN, 0.0, 120.0),
        Statistic(HISTOGRAM, 0.0, 120.0, 7),
        Statistic(QUANTILE, 0.0, 120.0, 0.5),
    ],
)
def test_the_claim_is_reached(statistic):
    """A claim that is too large would waste budget: all rows of the largest unit at a bound move as much as it says."""
    moved = statistic.added(np.full(3, 120.0))
    assert norm_squared(moved) == statistic.sensitivity_squared(3)
    assert len(moved) == statistic.size


def test_what_is_no_number_adds_nothing():
    for statistic in (
        Statistic(COUNT),
        Statistic(MEAN, 0, 1),
        Statistic(HISTOGRAM, 0, 1, 3),
        Statistic(QUANTILE, 0, 1),
    ):
        assert not statistic.added(np.array([math.nan, math.nan])).any()
        assert not statistic.added(np.array([])).any()


@pytest.mark.parametrize(("value", "bound"), [(math.inf, 7.0), (-math.inf, -3.0), (1e308, 7.0), (-1e308, -3.0)])
def test_what_lies_beyond_a_bound_counts_as_the_bound(value, bound):
    for kind, parameter in ((MEAN, 0), (HISTOGRAM, 5), (QUANTILE, 0.5)):
        statistic = Statistic(kind, -3.0, 7.0, parameter)
        assert (statistic.added(np.array([value])) == statistic.added(np.array([bound]))).all()


def test_sums_do_not_depend_on_the_order_of_rows():
    statistic, rows = Statistic(MEAN, 0.0, 1.0), np.random.default_rng().random(5000)
    assert (statistic.added(rows) == statistic.added(np.sort(rows))).all()
    assert (statistic.added(rows) == statistic.added(rows[:999]) + statistic.added(rows[999:])).all()


@settings(deadline=None)
@given(st.lists(st.floats(-50, 150), min_size=1, max_size=200))
def test_without_noise_the_mean_is_that_of_clamped_values(rows):
    statistic = Statistic(MEAN, 0.0, 100.0)
    (mean,) = statistic.answer(statistic.added(np.array(rows)) / LATTICE)
    assert mean == pytest.approx(np.clip(rows, 0, 100).mean(), abs=100 / LATTICE)


@settings(deadline=None)
@given(st.lists(st.floats(0, 100), min_size=1, max_size=200), st.floats(0, 1))
def test_without_noise_a_quantile_is_off_by_a_range_at_most(rows, share):
    statistic = Statistic(QUANTILE, 0.0, 100.0, share)
    (found,) = statistic.answer(statistic.added(np.array(rows))[-LEAVES:].astype(float))
    step = statistic.resolution()
    ordered = np.sort(rows)
    below, above = (
        np.searchsorted(ordered, found - step) / len(rows),
        np.searchsorted(ordered, found + step) / len(rows),
    )
    assert below - 1e-9 <= share <= above + 1e-9


def test_a_histogram_counts_what_numpy_counts():
    rows = np.random.default_rng().normal(50, 20, 1000)
    statistic = Statistic(HISTOGRAM, 0.0, 100.0, 7)
    edges = statistic.edges()
    assert (edges[0], edges[-1], len(edges)) == (0.0, 100.0, 8)
    assert statistic.added(rows).tolist() == np.histogram(np.clip(rows, 0, 100), bins=edges)[0].tolist()


def test_a_tree_counts_each_row_once_in_each_level():
    vector, start = Statistic(QUANTILE, 0.0, 1.0, 0.5).added(np.random.default_rng().random(77)), 0
    for level in range(LEVELS + 1):
        assert vector[start : start + BRANCHES**level].sum() == 77
        start += BRANCHES**level
    assert start == len(vector)


@settings(deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(-100, 100), st.floats(0, 100), st.floats(0, 1))
@example(0, 0.0, 0.0, 0.5)
@example(0, -1.0, 0.0, 1.0)
def test_whatever_the_noise_a_quantile_lies_within_the_bounds(seed, middle, deviation, share):
    leaves = np.random.default_rng(seed).normal(middle, deviation, LEAVES)
    (found,) = Statistic(QUANTILE, -3.0, 7.0, share).answer(leaves)
    assert -3.0 <= found <= 7.0


@given(st.floats(-1e9, 1e9), st.floats(-1e9, 1e9))
def test_whatever_the_noise_a_mean_lies_within_the_bounds(total, rows):
    (found,) = Statistic(MEAN, -3.0, 7.0).answer(np.array([total, rows]))
    assert -3.0 <= found <= 7.0
