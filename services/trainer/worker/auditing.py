"""What planted canaries say about how private a model is: scores in, findings out.

A coin decided of each canary whether the model was trained on it, and an attacker guesses how it fell. Two numbers come
of how often he is right, with a known confidence each:

* **refuted** assumes nothing about the model, the attack, or how canaries influence each other. It grows with the
  logarithm of how many canaries there are, so it stays small even where everything leaks.
* **estimated** takes canaries for independent of each other, as most published audits do, and grows as far as leaks do.

Both test the promise as what it is, the trade-off curve of a Gaussian mechanism. After one run: Steinke, Nasr and
Jagielski, *Privacy auditing with one (1) training run* (arXiv 2305.08846); for trade-off curves Mahloujifar, Melis and
Chaudhuri, *Auditing f-differential privacy in one run* (arXiv 2410.22235); for the estimate Nasr et al., *Tight
auditing of differentially private machine learning* (arXiv 2302.07956).

**Why what is refuted is.** Let there be m canaries, of which r are guessed, and let p(i) be the probability that
exactly i guesses are right. Turn one coin over and nothing else: for the mechanism to be μ-GDP, the event "this guess
is right, and i are in all" has at most the probability B(x) = Φ(Φ⁻¹(x) + μ), where x is that of "this guess is wrong,
and i - 1 are right in all". Averaged over the m canaries, since B is concave, that is (i/m) p(i) ≤ B(((r - i + 1)/m)
p(i - 1)), and the same for sums over i. If c or more guesses are right with probability τ, these inequalities, taken
from the top down, force ever more probability onto fewer right guesses; where the sum exceeds one, τ is impossible.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

# The standard library's normal distribution knows no tail below 1e-16.
from scipy.special import betaincinv, log_ndtr, ndtr, ndtri

CONFIDENCE = 0.95
# The chance that a sound run is accused. An accused adapter is not published.
FALSE_ALARM = 1e-6
# Which shares of the canaries are guessed; each is a test of its own, and the confidence is divided among them.
SHARES = (0.05, 0.1, 0.25, 0.5, 1.0)
# How many are called members, of as many as there are; for the estimate, with the same care.
CALLED = (0.1, 0.25, 0.5, 0.75, 0.9, 1.0, 1.1, 1.5)
# A promise beyond this is none.
MOST_MU = 40.0


@dataclass(frozen=True)
class Findings:
    """What an attacker got out of a model about its canaries.

    Attributes:
        guesses, correct: of the share of guesses that refutes most.
        refuted: the greatest μ that they refute, at `CONFIDENCE`.
        estimated: what μ is at least, at `CONFIDENCE`, if canaries are independent of each other.
        certain: the greater of the two, but for a chance of `FALSE_ALARM`.
        roc: (false-positive rate, true-positive rate) of whoever calls every canary beyond a threshold a member.
        exposures: of each planted canary, in bits, highest first.
        exposure_limit: the highest that could be seen.
    """

    guesses: int
    correct: int
    refuted: float
    estimated: float
    certain: float
    roc: tuple[tuple[float, float], ...]
    exposures: tuple[float, ...]
    exposure_limit: float

    def true_positive_rate(self, false_positive_rate: float) -> float:
        """Return the best rate of members found at no more false alarms than that."""
        return max(hit for alarm, hit in self.roc if alarm <= false_positive_rate)

    @property
    def median_exposure(self) -> float:
        """The median exposure, in bits; about 1 where nothing leaks."""
        return float(median(self.exposures))


def findings(planted: Sequence[float], left_out: Sequence[float], others: Sequence[float]) -> Findings:
    """Attack a model by its scores.

    Args:
        planted: scores of the canaries that it was trained on; higher ones look more like members.
        left_out: of those on which the coin fell otherwise.
        others: of canaries made alike that no coin was thrown for; they count for nothing that is refuted.

    Raises:
        ValueError: if there are no planted canaries, or no other ones.
    """
    if not planted or not (left_out or others):
        raise ValueError("an audit needs canaries on both sides")
    counted = [_guessed(planted, left_out, share) for share in SHARES]
    strangers = sorted([*left_out, *others])
    roc, canaries, tests = _roc(planted, strangers), len(planted) + len(left_out), len(SHARES)
    mus = [mu_refuted(canaries, *one, (1 - CONFIDENCE) / tests) for one in counted]
    certain = max(mu_refuted(canaries, *one, FALSE_ALARM / tests) for one in counted)
    best = max(range(tests), key=lambda index: mus[index])
    return Findings(
        *counted[best],
        refuted=mus[best],
        estimated=mu_estimated(planted, strangers, 1 - CONFIDENCE),
        certain=max(certain, mu_estimated(planted, strangers, FALSE_ALARM)),
        roc=roc,
        exposures=tuple(sorted((_exposure(score, strangers) for score in planted), reverse=True)),
        exposure_limit=math.log2(len(strangers) + 1),
    )


def mu_estimated(planted: Sequence[float], strangers: Sequence[float], significance: float) -> float:
    """Return what μ is at least if canaries are independent of each other.

    The limits of Clopper and Pearson for both error rates of an attack, at a few thresholds.

    Args:
        planted: scores of canaries that the model was trained on.
        strangers: of those that it was not.
        significance: probability of returning too much.
    """
    each, found = significance / (2 * len(CALLED)), 0.0
    ranked = _ranked(planted, strangers)
    for share in CALLED:
        called = ranked[: max(1, round(share * len(planted)))]
        hits = sum(member for _, member in called)
        alarms, missed = len(called) - hits, len(planted) - hits
        alarm_rate, miss_rate = _at_most(alarms, len(strangers), each), _at_most(missed, len(planted), each)
        if alarm_rate + miss_rate < 1:
            found = max(found, -float(ndtri(miss_rate)) - float(ndtri(alarm_rate)))
    return found


def _at_most(count: int, of: int, significance: float) -> float:
    """Return what a rate is at most, of which so many cases were seen (Clopper and Pearson, 1934)."""
    return 1.0 if count >= of else float(betaincinv(count + 1, of - count, 1 - significance))


def mu_refuted(canaries: int, guesses: int, correct: int, significance: float) -> float:
    """Return the greatest mu of a Gaussian promise that so many right guesses refute; 0 where they refute none.

    Args:
        canaries: for which a coin was thrown.
        guesses: made about them; chosen without knowing the coins.
        correct: of those.
        significance: probability of refuting a promise that is kept.
    """
    if not guesses or not _refuted(0.0, canaries, guesses, correct, significance):
        return 0.0
    low, high = 0.0, MOST_MU
    while high - low > 1e-3:
        middle = (low + high) / 2
        low, high = (middle, high) if _refuted(middle, canaries, guesses, correct, significance) else (low, middle)
    return low


def _refuted(mu: float, canaries: int, guesses: int, correct: int, significance: float) -> bool:
    """Say whether a mu-GDP mechanism lets so many guesses be right with less probability than that."""
    # Sums over i or more right guesses of (share right) p(i) and (share wrong) p(i), the shares of all canaries.
    right, wrong = significance * correct / canaries, significance * (guesses - correct) / canaries
    for number in range(correct - 1, -1, -1):
        forced = max(wrong, _inverse(right, mu))
        if forced == wrong:
            break  # nothing is forced from here on either
        right += number / (guesses - number) * (forced - wrong)
        wrong = forced
        if right + wrong > guesses / canaries:
            return True
    return right + wrong > guesses / canaries


def _inverse(probability: float, mu: float) -> float:
    """Return the least x with Φ(Φ⁻¹(x) + mu) ≥ probability."""
    if probability >= 1.0:
        return 1.0
    return float(ndtr(ndtri(probability) - mu))


def epsilon_of(mu: float, delta: float) -> float:
    """Return the epsilon at which a mu-GDP mechanism has this delta (Dong, Roth and Su, arXiv 1905.02383)."""
    if mu <= 0 or _delta_of(mu, 0.0) <= delta:
        return 0.0
    low, high = 0.0, mu * mu / 2 + mu * 40.0
    while high - low > 1e-6 * max(1.0, high):
        middle = (low + high) / 2
        low, high = (middle, high) if _delta_of(mu, middle) > delta else (low, middle)
    return low


def _delta_of(mu: float, epsilon: float) -> float:
    # The second term is a small tail times a great exponential: in logarithms, where floats would not do.
    return float(ndtr(-epsilon / mu + mu / 2)) - math.exp(epsilon + float(log_ndtr(-epsilon / mu - mu / 2)))


def _guessed(planted: Sequence[float], left_out: Sequence[float], share: float) -> tuple[int, int]:
    """Guess the highest scores to be members and the lowest not to be; returns how many were guessed, and rightly."""
    each = int((len(planted) + len(left_out)) * share / 2)
    found = sum(member for _, member in _ranked(planted, left_out)[:each])
    cleared = sum(
        stranger for _, stranger in _ranked([-score for score in left_out], [-score for score in planted])[:each]
    )
    return 2 * each, found + cleared


def _ranked(wanted: Sequence[float], rest: Sequence[float]) -> list[tuple[float, bool]]:
    """Return scores with whether they are of the wanted, the highest first.

    Of equal scores (canaries of one text have them) the wanted come last: whoever guesses cannot tell them apart, and
    no order in which they happen to lie may help him.
    """
    scores = [(score, True) for score in wanted] + [(score, False) for score in rest]
    return sorted(scores, key=lambda one: (-one[0], one[1]))


def _roc(planted: Sequence[float], strangers: Sequence[float]) -> tuple[tuple[float, float], ...]:
    """Return the corners of the ROC, from (0, …) to (1, 1)."""
    ranked = _ranked(planted, strangers)
    corners, alarms, hits = [(0.0, 0.0)], 0, 0
    for position, (score, member) in enumerate(ranked):
        alarms, hits = alarms + (not member), hits + member
        # Scores that are equal are called alike.
        if position + 1 == len(ranked) or ranked[position + 1][0] != score:
            corners.append((alarms / len(strangers), hits / len(planted)))
    return tuple(corners)


def thinned(roc: Sequence[tuple[float, float]], most: int) -> list[tuple[float, float]]:
    """Return at most so many corners of a ROC, evenly along it, with the ends; what lies between is drawn straight."""
    if len(roc) <= most:
        return list(roc)
    return [roc[round(index * (len(roc) - 1) / (most - 1))] for index in range(most)]


def _exposure(score: float, strangers: Sequence[float]) -> float:
    """Return the exposure of a canary (Carlini et al., arXiv 1802.08232): how early a search would come upon it.

    Args:
        score: of it.
        strangers: of canaries that the model was not trained on, lowest first.
    """
    rank = 1 + len(strangers) - bisect_left(strangers, score)
    return math.log2(len(strangers) + 1) - math.log2(rank)
