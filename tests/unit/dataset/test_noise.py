"""The noise: that it is as large as its price says, that it has the right shape, and what is refused."""

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from scipy.special import log_ndtr, ndtr

from services.dataset import noise
from services.dataset.statistics import BRANCHES, LEAVES, QUANTILE, Statistic

TRUNCATION = 1e-13
# A true hypothesis fails one run in a thousand million.
ALMOST_NEVER = 1e-9


@settings(max_examples=60, deadline=None)
@given(st.floats(0.15, 1e5), st.integers(1, 10**15), st.integers(1, 2000))
def test_the_noise_is_never_smaller_than_what_was_paid_for(multiplier, squared, entries):
    factor, scale = noise.lattice(squared, multiplier, TRUNCATION, entries)
    assert noise.LEAST_DEVIATION <= scale <= noise.MOST_DEVIATION
    needed = (Fraction(multiplier) * (1 + noise.EXTRA) * factor) ** 2 * squared
    assert Fraction(scale) ** 2 >= needed
    assert Fraction(scale) ** 2 <= needed * Fraction(1001, 1000)
    assert noise.deviation(multiplier, squared) == pytest.approx(scale / factor, rel=1e-6)


def test_the_noise_is_gaussian_of_the_stated_deviation():
    entries, squared, multiplier = 4000, 12, 3.0
    exact = np.arange(entries)
    drawn = noise.noised(exact, squared, multiplier, TRUNCATION) - exact
    deviation = noise.deviation(multiplier, squared)
    assert stats.kstest(drawn, "norm", args=(0, deviation)).pvalue > ALMOST_NEVER
    # Too little noise is what must not be missed: the variance has a law of its own.
    assert stats.chi2(entries).cdf((drawn**2).sum() / deviation**2) > ALMOST_NEVER
    # Entries are independent, so what hides one says nothing of its neighbour.
    assert stats.pearsonr(drawn[:-1], drawn[1:]).pvalue > ALMOST_NEVER


def test_two_draws_differ():
    zero = np.zeros(50, dtype=np.int64)
    one, other = (noise.noised(zero, 1, 1.0, TRUNCATION) for _ in range(2))
    assert len(set(one) | set(other)) == 100


def test_numbers_that_64_bits_cannot_hold_with_their_noise_come_out_right():
    large = np.array([2**62, -(2**62)])
    noisy = noise.noised(large, 1, 1.0, TRUNCATION)
    assert noisy == pytest.approx(large, abs=1e3)


@pytest.mark.parametrize(
    ("multiplier", "squared", "truncation"),
    [
        (1e5, 10**32, TRUNCATION),  # would not fit into OpenDP's integers
        (1e5, 1, 1e-22),  # the truncation does not reach as far as the tails do
    ],
)
def test_what_the_price_does_not_cover_is_refused(multiplier, squared, truncation):
    with pytest.raises(noise.Unsupported):
        noise.noised(np.zeros(1365, dtype=np.int64), squared, multiplier, truncation)


def profile(m, eps):
    """The privacy profile of the Gaussian mechanism of parameter m."""
    return ndtr(m / 2 - eps / m) - np.exp(eps + log_ndtr(-m / 2 - eps / m))


@pytest.mark.parametrize("multiplier", [0.2, 1.0, 7.0, 300.0])
def test_the_price_covers_the_discrete_noise_by_brute_force(multiplier):
    """On a lattice coarse enough to be summed up, the bound of the argument's second step holds for every epsilon."""
    sensitivity = 40
    scale = multiplier * sensitivity
    x = np.arange(-int(20 * scale) - 200, int(20 * scale) + 200)
    log_mass = -(x**2) / (2 * scale**2)
    log_mass = log_mass - np.logaddexp.reduce(log_mass)
    shifted = -((x - sensitivity) ** 2) / (2 * scale**2)
    shifted = shifted - np.logaddexp.reduce(shifted)
    m = 1 / multiplier
    a = 1 / (8 * scale**2)
    b = (noise.TAIL + m) ** 2 / (12 * scale**2)
    gap = 2 * math.exp(-(noise.TAIL**2) / 2) + 3 * a + b
    for eps in np.linspace(0, 8 * max(m, m**2), 200):
        discrete = np.maximum(np.exp(shifted) - np.exp(eps + log_mass), 0).sum()
        assert discrete <= profile(m, eps) + gap + 1e-12


@pytest.mark.parametrize("multiplier", [0.15, 0.5, 1.0, 7.1, 100.0, 1e4, 1e5])
@pytest.mark.parametrize("truncation", [TRUNCATION, 1e-9, 1e-5])
def test_the_extra_noise_makes_up_for_what_is_not_gaussian(multiplier, truncation):
    """The third step, epsilon by epsilon: larger noise and the gap stay under the price, or under the truncation."""
    entries, scale = 1365, float(noise.LEAST_DEVIATION)
    assert noise._covers(multiplier, truncation, entries, scale)
    m = 1 / multiplier
    smaller = m / float(1 + noise.EXTRA)
    gap = 2 * entries * math.exp(-(noise.TAIL**2) / 2)
    gap += 3 * entries / (8 * scale**2) + entries * (noise.TAIL + smaller) ** 2 / (12 * scale**2)
    for eps in np.linspace(0, 9 * m + m**2, 300):
        if profile(smaller, eps) > truncation - gap:
            # The difference as an integral: subtracting the profiles would lose it in rounding.
            t = np.linspace(smaller, m, 50)
            slope = np.exp(-((t / 2 - eps / t) ** 2) / 2) / math.sqrt(2 * math.pi)
            assert slope.min() * (m - smaller) >= gap


def test_consistency_makes_the_levels_of_a_tree_agree_and_better():
    statistic = Statistic(QUANTILE, 0.0, 1.0, 0.5)
    exact = statistic.added(np.random.default_rng().random(20_000))
    assert noise.leaves(exact.astype(float), BRANCHES).tolist() == pytest.approx(exact[-LEAVES:].tolist(), abs=1e-2)
    deviation = 40.0
    errors = []
    for _ in range(20):
        noisy = exact + np.random.default_rng().normal(0, deviation, len(exact))
        errors.append(noise.leaves(noisy, BRANCHES)[: LEAVES // 2].sum() - exact[-LEAVES : -LEAVES // 2].sum())
    # Adding up half of the leaves' own noise would give sqrt(512) deviations; the bound that plans state is four.
    assert math.sqrt(np.mean(np.square(errors))) < 4 * deviation * 2.2
