"""What scores of canaries prove: never too much, on mechanisms whose privacy is known, and enough."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import norm

from services.trainer.worker import auditing
from services.trainer.worker.auditing import epsilon_of, findings, mu_refuted

RUNS = 60


def gaussian(mu: float, seed: int, canaries: int = 400, others: int = 400) -> auditing.Findings:
    """Attack the Gaussian mechanism itself, each canary on its own: as strong as an attack on a mu-GDP run can be."""
    generator = np.random.default_rng(seed)
    part = generator.random(canaries) < 0.5
    scores = generator.standard_normal(canaries) + mu * part
    return findings(scores[part].tolist(), scores[~part].tolist(), generator.standard_normal(others).tolist())


@pytest.mark.parametrize("mu", [0.0, 0.3, 1.0, 2.0, 4.0])
def test_nothing_is_refuted_that_is_kept(mu: float) -> None:
    found = [gaussian(mu, seed) for seed in range(RUNS)]
    # Five in a hundred may; more than seven of sixty would happen in one of a hundred suites, were it just five.
    assert sum(one.refuted > mu for one in found) <= 7
    assert sum(one.estimated > mu for one in found) <= 7
    assert not any(one.certain > mu for one in found)


def test_what_is_broken_is_refuted() -> None:
    found = [gaussian(3.0, seed) for seed in range(10)]
    assert min(one.estimated for one in found) > 2.0
    assert min(one.certain for one in found) > 1.5
    assert min(one.refuted for one in found) > 1.0


def test_refuting_gets_harder_with_the_promise_and_easier_with_right_guesses() -> None:
    by_right = [mu_refuted(500, 500, right, 0.05) for right in (250, 300, 400, 500)]
    assert by_right[0] == 0.0
    assert by_right == sorted(by_right)
    by_care = [mu_refuted(500, 500, 500, significance) for significance in (0.1, 0.01, 1e-6)]
    assert by_care == sorted(by_care, reverse=True)
    # A handful of guesses among many canaries proves less than the same among themselves.
    assert mu_refuted(1000, 20, 20, 0.05) <= mu_refuted(20, 20, 20, 0.05)
    assert mu_refuted(500, 0, 0, 0.05) == 0.0


def test_no_probability_is_refuted_that_independent_canaries_reach() -> None:
    """For mu-GDP canaries that do not touch each other the chance of c right guesses is known: it must be allowed."""
    for mu, canaries in ((0.5, 100), (1.0, 200), (2.0, 50)):
        right = norm.cdf(mu / 2)
        for correct in range(canaries // 2, canaries + 1):
            chance = float(
                sum(
                    math.comb(canaries, k) * right**k * (1 - right) ** (canaries - k)
                    for k in range(correct, canaries + 1)
                )
            )
            if chance > 1e-12:
                assert mu_refuted(canaries, canaries, correct, chance) <= mu + 1e-3


@pytest.mark.parametrize("mu", [0.5, 1.0, 3.0, 6.0])
def test_epsilon_of_mu_solves_the_gaussian_profile(mu: float) -> None:
    found = epsilon_of(mu, 1e-5)
    delta = norm.cdf(-found / mu + mu / 2) - math.exp(found) * norm.cdf(-found / mu - mu / 2)
    assert delta == pytest.approx(1e-5, rel=1e-3)
    assert epsilon_of(0.0, 1e-5) == 0.0
    assert math.isfinite(epsilon_of(auditing.MOST_MU, 1e-9))


def test_roc_and_exposure_of_known_scores() -> None:
    found = findings([9.0, 8.0, 2.0, 2.0], [1.0, 0.0], [8.5, -1.0])
    assert found.roc == (
        (0.0, 0.0),
        (0.0, 0.25),
        (0.25, 0.25),
        (0.25, 0.5),
        (0.25, 1.0),
        (0.5, 1.0),
        (0.75, 1.0),
        (1.0, 1.0),
    )
    assert (found.true_positive_rate(0.0), found.true_positive_rate(0.3)) == (0.25, 1.0)
    assert found.exposure_limit == math.log2(5)
    assert found.exposures == (math.log2(5), *[math.log2(5) - 1] * 3)
    assert auditing.thinned(found.roc, 3) == [found.roc[0], found.roc[4], found.roc[-1]]


def test_equal_scores_prove_nothing() -> None:
    """Canaries of one text score alike, and the order in which they lie would otherwise tell the coins."""
    alike = findings([1.0] * 200, [1.0] * 200, [1.0] * 400)
    assert (alike.refuted, alike.estimated, alike.certain) == (0.0, 0.0, 0.0)
    halves = findings([2.0] * 100 + [1.0] * 100, [2.0] * 100 + [1.0] * 100, [])
    assert (halves.refuted, halves.estimated, halves.certain) == (0.0, 0.0, 0.0)
    assert set(halves.exposures) == {math.log2(201) - math.log2(101), math.log2(201) - math.log2(201)}


def test_an_audit_needs_both_sides() -> None:
    for planted, others in (([], [1.0]), ([1.0], [])):
        with pytest.raises(ValueError, match="both sides"):
            findings(planted, [], others)
