"""Gaussian noise that is as private as the ledger's price says, drawn by OpenDP's exact sampler.

The ledger prices the continuous Gaussian mechanism P: f + N(0, s^2 I) with s = z D, where z is the noise multiplier and
D the L2 sensitivity. A computer cannot draw from it (Mironov, CCS 2012); OpenDP draws, exactly, from the discrete
Gaussian Q on the integers (Canonne, Kamath and Steinke, 2020). It is not quite P, so this is what is done, and why P's
price covers Q. The integers of f are first multiplied by 2^k, so that s >= LEAST_DEVIATION lattice steps, and the noise
is larger than what is paid for by EXTRA: s = (1 + EXTRA) z D. Let d be the number of entries, and m = 1 / z.

1. Let R be P with this s, rounded to the lattice: post-processing, so no more revealing than the Gaussian mechanism of
   parameter m' = D / s = m / (1 + EXTRA). Compare one entry of Q and R at a distance x from the centre:
   R(x) = (s sqrt(2 pi))^-1 e^(-x^2 / 2 s^2) I, I = int_{-1/2}^{1/2} e^(-(2 x u + u^2) / 2 s^2) du, and
   Q(x) = Z^-1 e^(-x^2 / 2 s^2), where s sqrt(2 pi) <= Z <= s sqrt(2 pi) (1 + 3 e^(-2 pi^2 s^2)) by Poisson summation.
   Since I >= e^(-1 / 8 s^2) (cosh >= 1), Q <= e^a R everywhere, with a = d / 8 s^2. With y = x / 2 s^2,
   I <= sinh(y) / y <= e^(y^2 / 6), so R <= e^b Q wherever every |x| <= T s, with b = d T^2 / 12 s^2 (twice what is
   needed: the rest is for Z).
2. For neighbours 0 and 1, let G be where every entry is within T s of centre 0, with T = TAIL + m'. Q_1 leaves G with
   probability at most c = 2 d e^(-TAIL^2 / 2). For every set S and every eps >= 0,
   Q_1(S) - e^eps Q_0(S) <= c + e^a R_1(S and G) - e^(eps - b) R_0(S and G) <= c + e^a delta_R(eps - a - b)
   <= c + (e^a - 1) + a + b + delta_R(eps), for a privacy profile falls by at most 1 per unit of eps.
   So delta_Q(eps) <= delta_m'(eps) + g with g = c + 3 a + b, which is below 10^-20.
3. The price guarantees delta_m(eps) <= t + (1 - t) delta_U(eps), where t is the truncation and U the units charged. The
   same must hold of Q. Where delta_m'(eps) <= t - g it does. Elsewhere EXTRA makes up for g: the derivative of
   delta_m(eps) by m is phi(m / 2 - eps / m), and Phi(m' / 2 - eps / m') > t - g > t / 2, so it is at least
   phi(max(A, m / 2)) with Phi(-A) = t / 2, and delta_m - delta_m' >= (m - m') phi(max(A, m / 2)). `_covers` checks
   that this is at least g, with a factor of two to spare for its own rounding; where it is not, the query is refused.

Which of two neighbours is 0 makes no difference to any step, and nothing here depends on how rows were chosen.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from functools import cache
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

EXTRA = Fraction(1, 1024)
LEAST_DEVIATION = 1 << 44
# OpenDP takes the deviation as a double and answers in 64 bits. 64 deviations fit into those: what it has to cut off
# lies outside of G.
MOST_DEVIATION = 1 << 57
TAIL = 14.0
# Parts of a row that a noisy count keeps on its way through the tree; post-processing.
_PARTS = 1 << 10


class Unsupported(ValueError):
    """Noise for which the argument above does not hold."""


def deviation(noise_multiplier: float, sensitivity_squared: int) -> float:
    """Return the standard deviation of the noise, in the vector's own integers."""
    return float(1 + EXTRA) * noise_multiplier * math.sqrt(sensitivity_squared)


def noised(
    vector: NDArray[np.int64], sensitivity_squared: int, noise_multiplier: float, truncation: float
) -> NDArray[np.float64]:
    """Add noise to a vector: the mechanism that (noise_multiplier, 1 step, truncation) pays for.

    Args:
        vector: exact; shape (d,).
        sensitivity_squared: the square of its L2 sensitivity, in its own integers.
        noise_multiplier: that was priced.
        truncation: the probability mass that the price sets aside.

    Returns:
        In the vector's own integers; shape (d,).

    Raises:
        Unsupported: if the price would not cover it.
    """
    factor, scale = lattice(sensitivity_squared, noise_multiplier, truncation, len(vector))
    # The noise is drawn apart and added in integers of any length: no entry can overflow, whatever the rows hold.
    drawn = _measurement(scale)([0] * len(vector))
    return np.array([Fraction(int(v) * factor + n, factor) for v, n in zip(vector, drawn, strict=True)], dtype=float)


def lattice(sensitivity_squared: int, noise_multiplier: float, truncation: float, entries: int) -> tuple[int, float]:
    """Return into how many steps each integer is cut, and the noise's standard deviation in steps.

    Args:
        sensitivity_squared: the square of the L2 sensitivity, in whole integers.
        noise_multiplier: that is priced.
        truncation: that is priced.
        entries: length of the vector.

    Raises:
        Unsupported: if the price would not cover it.
    """
    exact = Fraction(noise_multiplier) * (1 + EXTRA)
    factor = 1
    while factor * factor * sensitivity_squared * exact * exact < LEAST_DEVIATION**2:
        factor *= 2
    # The root is rounded up, and so is the double that OpenDP takes.
    sensitivity = math.isqrt(factor * factor * sensitivity_squared - 1) + 1
    least = math.ceil(exact * sensitivity)
    scale = float(least)
    if scale < least:
        scale = math.nextafter(scale, math.inf)
    if scale > MOST_DEVIATION:
        raise Unsupported("one unit owns too many rows of this frame for this epsilon")
    if not _covers(noise_multiplier, truncation, entries, scale):
        raise Unsupported("the noise that can be drawn is not covered by the price of this epsilon")
    # OpenDP's own account of what it draws must agree: rho = (sensitivity / deviation)^2 / 2.
    if _measurement(scale).map(sensitivity) > 1 / (2 * noise_multiplier**2):
        raise Unsupported("OpenDP finds this noise less private than its price")
    return factor, scale


def leaves(tree: NDArray[np.float64], branches: int) -> NDArray[np.float64]:
    """Return the leaves of a noisy tree of counts after least squares has made its levels agree.

    Args:
        tree: level after level from the root; in rows.
        branches: of each node.
    """
    from opendp.core import function_eval

    parts = [round(count * _PARTS) for count in tree]
    return np.array(function_eval(_consistent(branches), parts, TI="Vec<i64>")) / _PARTS


def _covers(noise_multiplier: float, truncation: float, entries: int, scale: float) -> bool:
    """Say whether step 3 of the argument holds."""
    paid = 1 / noise_multiplier
    drawn = paid / float(1 + EXTRA)
    a = entries / (8 * scale**2)
    b = entries * (TAIL + drawn) ** 2 / (12 * scale**2)
    gap = 2 * entries * math.exp(-(TAIL**2) / 2) + 3 * a + b
    if truncation < 4 * gap:
        return False
    normal = NormalDist()
    tail = max(-normal.inv_cdf(truncation / 2), paid / 2)
    return (paid - drawn) * normal.pdf(tail) >= 2 * gap


@cache
def _consistent(branches: int) -> Any:
    return _opendp().t.make_consistent_b_ary_tree(branches, TIA="i64", TOA="f64")


def _measurement(scale: float) -> Any:
    dp = _opendp()
    space: Sequence[Any] = dp.vector_domain(dp.atom_domain(T="i64")), dp.l2_distance(T="i64")
    return dp.m.make_gaussian(*space, scale=scale)


@cache
def _opendp() -> Any:
    import opendp.prelude as dp

    dp.enable_features("contrib")
    return dp
