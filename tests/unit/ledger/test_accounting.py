"""The currency: tight, and never on the wrong side."""

import functools

import numpy as np
import pytest
from dp_accounting.pld import privacy_loss_distribution as pld
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm

from services.ledger import accounting
from services.ledger.accounting import E18, Cap, Mechanism, Unit, Unpriceable

UNIT = Unit()
DELTA = 10**14  # 1e-4


def cap(epsilon, delta_e18=DELTA):
    return Cap(epsilon, delta_e18, delta_e18 // 10, UNIT)


@functools.cache
def exact_delta(mechanism, epsilon):
    """dp-accounting's own answer, at a finer interval than ours."""
    single = pld.from_gaussian_mechanism(
        mechanism.noise_multiplier,
        sampling_prob=mechanism.sampling_probability,
        value_discretization_interval=5e-4,
    )
    return single.self_compose(mechanism.steps).get_delta_for_epsilon(epsilon)


def test_the_gaussian_profile_is_the_textbook_one():
    grid = np.linspace(0, 8, 30)
    for mu in (0.1, 1.0, 3.0):
        expected = norm.cdf(-grid / mu + mu / 2) - np.exp(grid) * norm.cdf(-grid / mu - mu / 2)
        np.testing.assert_allclose(accounting.gaussian_delta(mu, grid), expected, atol=1e-13)


@given(st.floats(0.05, 50), st.sampled_from([10**12, 10**13, DELTA]))
@settings(max_examples=40, deadline=None)
def test_capacity_is_the_largest_number_that_fits(epsilon, delta_e18):
    account = cap(epsilon, delta_e18)
    units = accounting.capacity(account)
    assert accounting.gaussian_delta(UNIT.mu(units), epsilon) <= account.profile_delta
    assert accounting.gaussian_delta(UNIT.mu(units + 1), epsilon) > account.profile_delta


@given(st.integers(1, 10**7))
@settings(max_examples=40, deadline=None)
def test_epsilons_round_up_and_what_is_affordable_is_affordable(units):
    account = cap(30.0)
    assert accounting.gaussian_delta(UNIT.mu(units), accounting.epsilon_of(account, units)) <= account.profile_delta
    affordable = accounting.affordable_epsilon(account, units)
    assert affordable <= accounting.epsilon_of(account, units)
    assert accounting.units_at(account, affordable) <= units


@pytest.mark.parametrize(
    ("sigma", "probability", "steps"),
    [(0.6, 0.004, 750), (1.0, 0.1, 50), (0.55, 0.13, 77), (2.0, 0.05, 200), (5.0, 1.0, 10)],
)
def test_a_price_dominates_the_mechanism_everywhere(sigma, probability, steps):
    """At every epsilon, also between the points that were compared; (0.6, 0.004, 750) breaks the CLT formula."""
    mechanism, truncation = Mechanism(sigma, probability, steps), 1e-6
    units = accounting.price(mechanism, UNIT, truncation)
    for epsilon in np.random.default_rng(0).uniform(0, 30, 25):
        bound = truncation + (1 - truncation) * accounting.gaussian_delta(UNIT.mu(units), epsilon)
        assert exact_delta(mechanism, float(epsilon)) <= bound * (1 + 1e-6)


def test_a_gaussian_job_costs_what_it_is():
    """Sampling everyone in each of T steps is exactly T/sigma^2: the price may round up by the grid, not more."""
    units = accounting.price(Mechanism(10.0, 1.0, 4), UNIT, 1e-6)
    exact = 4 * (UNIT.noise_multiplier / 10.0) ** 2
    assert exact * 0.98 <= units <= exact * 1.02


def test_prices_rise_with_what_reveals_more():
    base = accounting.price(Mechanism(1.0, 0.1, 40), UNIT, 1e-6)
    assert accounting.price(Mechanism(0.9, 0.1, 40), UNIT, 1e-6) > base
    assert accounting.price(Mechanism(1.0, 0.12, 40), UNIT, 1e-6) > base
    assert accounting.price(Mechanism(1.0, 0.1, 50), UNIT, 1e-6) > base
    assert accounting.price(Mechanism(1.0, 0.1, 40), UNIT, 1e-7) >= base


def test_two_halves_never_cost_less_than_the_whole():
    whole = accounting.price(Mechanism(1.0, 0.1, 60), UNIT, 2e-6)
    half = accounting.price(Mechanism(1.0, 0.1, 30), UNIT, 1e-6)
    assert 2 * half >= whole


@pytest.mark.parametrize(("epsilon", "probability", "steps"), [(22.0, 0.13, 77), (8.0, 0.1, 150), (1.0, 0.01, 200)])
def test_calibration_keeps_its_promise_and_is_tight(epsilon, probability, steps):
    account, truncation = cap(epsilon), 1e-5
    mechanism, units = accounting.calibrate(account, epsilon, probability, steps, truncation)
    assert exact_delta(mechanism, epsilon) <= account.delta_e18 / E18
    assert accounting.epsilon_of(account, units) <= epsilon
    assert units <= accounting.capacity(account)
    # 5 % less noise would break the promise: the currency wastes less than that.
    looser = Mechanism(mechanism.noise_multiplier * 0.95, probability, steps)
    assert exact_delta(looser, epsilon) > account.delta_e18 / E18


def test_what_cannot_be_promised_is_refused():
    with pytest.raises(Unpriceable):
        accounting.calibrate(cap(1.0), 1e-7, 0.1, 100, 1e-5)
    with pytest.raises(Unpriceable):
        accounting.price(Mechanism(0.01, 1.0, 1000), UNIT, 1e-6)


def test_the_statement_bounds_a_simulated_attacker():
    """The likelihood-ratio attacker on Gaussian data reaches the stated rate, and not more."""
    account = cap(10.0)
    units = accounting.capacity(account)
    stated = accounting.statement(account, units, 0.0)
    draws = np.random.default_rng(1).standard_normal(400_000)
    threshold = np.quantile(draws, 0.99)
    reached = float(np.mean(draws + stated.mu > threshold))
    assert reached == pytest.approx(stated.tpr_at_1_percent, abs=0.01)
