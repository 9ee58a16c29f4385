"""The currency: tight, and never on the wrong side."""

import functools
import itertools

import numpy as np
import pytest
from dp_accounting.pld import pld_pmf
from dp_accounting.pld import privacy_loss_distribution as pld
from dp_accounting.pld.privacy_loss_mechanism import GaussianPrivacyLoss
from hypothesis import Phase, example, given, settings
from hypothesis import strategies as st
from scipy.stats import norm

from services.ledger import accounting, discretisation, profiles
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


HOUSE = Unit(0.6, 0.004)
GRID = np.linspace(0, 12, 400)
MECHANISMS = st.builds(
    Mechanism,
    st.floats(0.5, 4.0).map(lambda x: round(x, 3)),
    st.floats(0.01, 1.0).map(lambda x: round(x, 4)),
    st.integers(1, 300),
)


@functools.cache
def exact_directions(mechanism):
    """Both directions' profiles by dp-accounting, at a finer interval than ours; `remove` first."""
    found = []
    for direction in profiles.DIRECTIONS:
        exact = GaussianPrivacyLoss(
            mechanism.noise_multiplier,
            sampling_prob=mechanism.sampling_probability,
            adjacency_type=direction,
            log_mass_truncation_bound=-45,
        )
        interval = min(1e-3, mechanism.sampling_probability / 20)
        bounds = exact.connect_dots_bounds()
        lowest, highest = int(bounds.epsilon_lower // interval), int(-(-bounds.epsilon_upper // interval))
        deltas = exact.get_delta_for_epsilon(np.arange(lowest, highest + 1) * interval)
        pmf = pld_pmf.create_pmf_pessimistic_connect_dots_fixed_gap(interval, lowest, highest, deltas)
        found.append(pmf.to_dense_pmf().self_compose(mechanism.steps).get_delta_for_epsilon(GRID))
    return np.stack(found)


@given(MECHANISMS)
@example(Mechanism(0.5, 0.1287, 207))  # reaches zero within its outermost cell
@settings(max_examples=15, deadline=None, phases=[Phase.explicit, Phase.reuse, Phase.generate])
def test_the_bounds_enclose_the_profile_in_both_directions(mechanism):
    upper, lower = profiles.upper_deltas(mechanism, GRID), profiles.lower_deltas(mechanism, GRID)
    exact = exact_directions(mechanism)  # connects its own dots, hence the tolerances
    assert np.all(lower <= exact + 1e-13)
    assert np.all(upper >= exact * 0.95 - 1e-7)
    assert np.all(lower <= upper)
    assert np.all(lower >= exact * 0.9 - 1e-4), "so loose a bound is of no use"


@pytest.mark.parametrize("epsilon", [0.5, 2.0])
def test_one_step_is_bounded_between_the_dots_too(epsilon):
    """A lower bound is only one if it lies under the exact profile between the lattice's points."""
    mechanism = Mechanism(0.6, 0.004, 1)
    for row, direction in enumerate(profiles.DIRECTIONS):
        between = np.random.default_rng(2).uniform(0, 0.02 * epsilon, 4000)
        between.sort()
        exact = GaussianPrivacyLoss(0.6, sampling_prob=0.004, adjacency_type=direction)
        deltas = np.asarray(exact.get_delta_for_epsilon(between))
        assert np.all(profiles.lower_deltas(mechanism, between)[row] <= deltas)
        assert np.all(profiles.upper_deltas(mechanism, between)[row] >= deltas - 1e-16)


def test_dots_that_are_not_lowered_are_found_out(monkeypatch):
    monkeypatch.setattr(discretisation, "_sunk", lambda gains, overshoot: gains)
    profiles.forget()
    with pytest.raises(Unpriceable, match="no lower bound"):
        profiles.lower_deltas(Mechanism(0.61, 0.004, 1), GRID)


@given(st.floats(0.3, 5).map(lambda x: round(x, 3)), st.floats(0.001, 0.5), st.integers(1, 10**6))
@settings(max_examples=30, deadline=None)
def test_a_job_in_the_accounts_own_unit_costs_exactly_its_steps(sigma, probability, steps):
    assert accounting.price(Mechanism(sigma, probability, steps), Unit(sigma, probability), 1e-9) == steps


def test_a_weaker_job_never_costs_more_than_its_steps():
    for sigma, probability in ((0.6, 0.003), (0.7, 0.004), (0.9, 0.002)):
        assert accounting.price(Mechanism(sigma, probability, 300), HOUSE, 1e-7) <= 300


@pytest.mark.parametrize(
    ("mechanism", "unit"),
    [
        (Mechanism(0.6, 0.004, 750), Unit(0.8, 0.002)),
        (Mechanism(0.8, 0.02, 100), Unit(0.7, 0.01)),
        (Mechanism(1.0, 0.05, 100), Unit(1.2, 0.05)),
    ],
)
def test_a_price_in_subsampled_units_dominates_in_both_directions(mechanism, unit):
    truncation = 1e-6
    units = accounting.price(mechanism, unit, truncation)
    job, spent = exact_directions(mechanism), exact_directions(unit.compose(units))
    # The reference bounds both from above, the units' by little; hence the percent.
    assert np.all(job <= truncation + spent * 1.01)
    fewer = exact_directions(unit.compose(int(units * 0.97)))
    assert np.any(job > truncation + fewer), "three percent less would do: the price wastes budget"


def test_ten_adaptive_jobs_of_the_house_compose_like_one():
    account = Cap(8.0, 10**13, 10**12, HOUSE)
    spent = sum(accounting.price(Mechanism(0.6, 0.004, 750), HOUSE, 1e-7) for _ in range(10))
    exact = pld.from_gaussian_mechanism(0.6, sampling_prob=0.004).self_compose(7500).get_epsilon_for_delta(1e-5)
    assert exact <= accounting.epsilon_of(account, spent) <= 1.01 * exact


def test_capacity_calibration_and_statement_agree_in_subsampled_units():
    account = Cap(4.0, 10**13, 10**12, HOUSE)
    units = accounting.capacity(account)
    assert accounting.epsilon_of(account, units) <= 4.0 < accounting.epsilon_of(account, units + 1) * (1 + 1e-9)
    limit = accounting.units_at(account, 3.0)
    mechanism, cost = accounting.calibrate(account, 3.0, 0.004, limit, 1e-7)
    assert cost <= limit
    # So many steps of the unit's own kind are what fits.
    assert 0.59 < mechanism.noise_multiplier <= 0.601
    assert exact_delta(mechanism, 3.0) <= 1e-5
    affordable = accounting.affordable_epsilon(account, 1000)
    assert accounting.units_at(account, affordable) <= 1000
    stated = accounting.statement(account, units, 0.0)
    assert 0.01 < stated.tpr_at_1_percent < 1 and stated.tpr_at_0_1_percent < stated.tpr_at_1_percent
    assert stated.advantage == pytest.approx(float(HOUSE.upper(units, np.zeros(1))[0]))


def test_the_general_attackers_bound_is_the_gaussian_one_for_gaussians():
    """At q = 1 both ways of computing must agree: the closed form and the envelope of (epsilon, delta) lines."""
    closed = Unit(5.0)
    for rate, units in itertools.product((0.001, 0.01), (4, 25, 100)):
        exact = accounting._true_positives(closed, units, rate)
        almost = accounting._true_positives(Unit(5.0, 1 - 1e-12), units, rate)
        assert exact <= almost * (1 + 1e-9) <= exact * 1.02


@pytest.mark.parametrize("unit", [UNIT, Unit(1.0, 0.05)], ids=["gaussian", "subsampled"])
@given(base=MECHANISMS.filter(lambda m: m.noise_multiplier > 0.7 and m.sampling_probability < 0.2))
@settings(max_examples=6, deadline=None, phases=[Phase.explicit, Phase.reuse, Phase.generate])
def test_prices_are_monotone(unit, base):
    cost = accounting.price(base, unit, 1e-6)
    sigma, probability, steps = base.noise_multiplier, base.sampling_probability, base.steps
    # A finer grid moves a price by less than the percent by which these change it.
    assert accounting.price(Mechanism(sigma * 0.95, probability, steps), unit, 1e-6) >= cost
    assert accounting.price(Mechanism(sigma, probability * 1.05, steps), unit, 1e-6) >= cost
    assert accounting.price(Mechanism(sigma, probability, steps + 1 + steps // 20), unit, 1e-6) >= cost
    assert accounting.price(base, unit, 1e-8) >= cost
