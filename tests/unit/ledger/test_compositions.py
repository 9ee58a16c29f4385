"""Compositions: as exact as the library's, above the truth at any number of steps, and quick whatever is asked."""

import asyncio
import contextlib
import math
import threading
import time

import numpy as np
import pytest
from dp_accounting.pld import common
from dp_accounting.pld.privacy_loss_mechanism import GaussianPrivacyLoss

from services.common import auth
from services.common.tokens import Principal
from services.ledger import accounting, profiles
from services.ledger.accounting import Cap, Mechanism, Unit, Unpriceable
from services.ledger.core import COMPOSITIONS, Core
from services.ledger.discretisation import MOST_CELLS, step_delta

# What one composition, and the search for the noise of one job, may take at most here; a hundred times what they do.
COMPOSITION_S, SEARCH_S = 10.0, 60.0
# Rounding of doubles, of numbers up to 1.
ROUNDING = 1e-15


@pytest.mark.parametrize("probability", [1e-9, 1e-5, 1e-3, 0.05, 0.5, 0.999, 1.0])
@pytest.mark.parametrize("sigma", [0.05, 0.15, 0.3, 0.7, 1.0, 3.0, 30.0, 1000.0])
@pytest.mark.parametrize("direction", profiles.DIRECTIONS)
def test_a_step_has_the_library_s_profile(sigma, probability, direction):
    loss = GaussianPrivacyLoss(
        sigma, sampling_prob=probability, adjacency_type=direction, log_mass_truncation_bound=-40.0
    )
    most = max(loss.connect_dots_bounds().epsilon_upper, 1e-6)
    epsilons = np.concatenate([[0.0], np.geomspace(1e-9 * most, most, 200), np.linspace(0, most, 200)])
    with np.errstate(all="ignore"):
        expected = loss.get_delta_for_epsilon(epsilons)
    np.testing.assert_allclose(step_delta(sigma, probability, direction, epsilons), expected, rtol=0, atol=ROUNDING)


@pytest.mark.parametrize("steps", [10**2, 10**4, 10**6, 10**7, 10**8])
@pytest.mark.parametrize("mu", [1.0, 5.0])
def test_however_many_steps_an_upper_bound_is_one(steps, mu):
    """A composed Gaussian has a closed form. Rounding of the transform alone would come out below it."""
    epsilons = np.linspace(0, mu * mu / 2 + 7 * mu, 300)
    mechanism = Mechanism(math.sqrt(steps) / mu, 1.0, steps)
    begun = time.monotonic()
    found = profiles.upper_deltas(mechanism, epsilons).max(axis=0)
    assert time.monotonic() - begun < COMPOSITION_S
    exact = accounting.gaussian_delta(mu, epsilons)
    assert np.all(found >= exact)
    assert np.all(found <= exact + 0.02)


@pytest.mark.parametrize(
    "mechanism", [Mechanism(0.6, 0.003, 300), Mechanism(1.0, 0.05, 400), Mechanism(0.6, 0.004, 7500)]
)
def test_a_composition_leaves_out_no_more_than_it_says(mechanism):
    """Few large losses, many small ones: beside the library's composition with its own, wider bounds."""
    sigma, probability = mechanism.noise_multiplier, mechanism.sampling_probability
    losses = profiles._one_step(sigma, probability, profiles.DIRECTIONS[0], profiles._interval(mechanism))
    offset, masses = common.self_convolve(losses.masses, mechanism.steps, 1e-15)
    ours = losses.compose(mechanism.steps)
    first = ours.lowest - losses.lowest * mechanism.steps
    inside = np.asarray(masses)[first - offset : first - offset + len(ours.masses)]
    np.testing.assert_allclose(ours.masses, np.maximum(inside, 0), rtol=0, atol=1e-14)
    # What rounding leaves in each of many empty cells adds up to more than what is left out.
    assert abs(np.sum(masses) - np.sum(inside)) < 1e-12
    assert len(ours.masses) <= len(masses)


@pytest.mark.parametrize(
    ("epsilon", "probability", "steps"),
    [(588.0, 1e-5, 3), (8.0, 1e-5, 3), (8.0, 1e-12, 1), (1e-3, 1.0, 10**8), (8.0, 0.5, 10**8), (1000.0, 1e-9, 10**8)],
)
def test_no_question_takes_the_ledger_away_from_everyone(epsilon, probability, steps):
    """An analyst may ask for any plan; the first of these took more than eight minutes."""
    profiles.forget()
    begun = time.monotonic()
    with contextlib.suppress(Unpriceable):
        accounting.calibrate(Cap(10.0, 10**15, 10**14, Unit()), epsilon, probability, steps, 1e-6)
    assert time.monotonic() - begun < SEARCH_S


@pytest.mark.parametrize("mechanism", [Mechanism(1e-3, 1.0, 1), Mechanism(1e-9, 0.5, 10), Mechanism(0.15, 1.0, 10**8)])
def test_what_would_need_too_much_memory_is_refused_at_once(mechanism):
    profiles.forget()
    begun = time.monotonic()
    with pytest.raises(Unpriceable, match="raise the noise multiplier"):
        accounting.price(mechanism, Unit(), 1e-6)
    assert time.monotonic() - begun < COMPOSITION_S


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(("sigma", "probability"), [(5e-324, 5e-324), (5e-324, 0.5), (1.0, 5e-324), (1.0, 1e-13)])
def test_what_doubles_cannot_tell_from_nothing_is_refused(sigma, probability):
    with pytest.raises(Unpriceable, match="raise the"):
        accounting.price(Mechanism(sigma, probability, 7), Unit(), 1e-6)
    with pytest.raises(Unpriceable, match="raise the"):
        accounting.capacity(Cap(8.0, 10**13, 10**12, Unit(sigma, probability)))


def test_a_composition_has_no_more_cells_than_are_allowed():
    losses = profiles._one_step(1.0, 1.0, profiles.DIRECTIONS[0], 1e-4)
    assert len(losses.compose(20).masses) <= MOST_CELLS
    with pytest.raises(Unpriceable):
        losses.compose(1000)


async def asked(core, subject, function, *roles):
    """Compute as someone."""
    auth._principal.set(Principal(subject, frozenset(roles or ("analyst",))))
    return await core.compute(function, subject)


def test_plans_do_not_keep_others_from_threads():
    """However many compositions wait, the journal can be read."""
    go = threading.Event()

    async def run():
        core = Core(None, None)
        waiting = [asyncio.create_task(asked(core, f"a{n}", lambda who: go.wait(30) and who)) for n in range(100)]
        await asyncio.sleep(0.05)
        other = await asyncio.wait_for(asyncio.to_thread(lambda: "read"), 10)
        go.set()
        assert await asyncio.gather(*waiting) == [f"a{n}" for n in range(100)]
        return other

    assert asyncio.run(run()) == "read"
    assert COMPOSITIONS < 6


def test_nobody_waits_for_all_that_another_asks():
    go = threading.Event()

    async def run():
        core = Core(None, None)
        flood = [asyncio.create_task(asked(core, "greedy", lambda who, n=n: go.wait(30) and n)) for n in range(50)]
        await asyncio.sleep(0.05)
        assert await asyncio.wait_for(asked(core, "other", lambda who: f"for {who}"), 10) == "for other"
        go.set()
        assert await asyncio.gather(*flood) == list(range(50))

    asyncio.run(run())
