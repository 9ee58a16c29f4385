"""What a statistic adds up, how far one privacy unit can move it, and what is made of it once noise was added. Pure.

Every statistic is a vector of integers to which each row of the frame adds a small vector of its own, so that sums are
exact and sensitivities hold to the last digit: no floating-point sum is ever noised. Neighbouring datasets differ in
that one unit's rows are emptied, and an empty row adds nothing. Which slots a unit owns is public, so if it owns at
most m of the frame's slots and no row's vector is longer than c, then by the triangle inequality the vector moves by at
most m c in L2, whatever the rows hold. Rows are not clipped per unit: m is in the price, and in the statement.

What follows the noise is post-processing and costs nothing. Tree and consistency: Hay, Rastogi, Miklau and Suciu,
"Boosting the accuracy of differentially private histograms through consistency" (VLDB 2010).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

COUNT, MEAN, HISTOGRAM, QUANTILE = "COUNT", "MEAN", "HISTOGRAM", "QUANTILE"
MOST_BINS = 1_000
# A value of a mean is one of 2 LATTICE + 1 places between the bounds: it moves by a millionth of their distance.
LATTICE = 1 << 20
# The ranges of a quantile: each level of the tree cuts the ranges of the last one in BRANCHES, LEVELS times.
BRANCHES, LEVELS = 4, 5
LEAVES: int = BRANCHES**LEVELS
_NODES = (BRANCHES * LEAVES - 1) // (BRANCHES - 1)

Integers = NDArray[np.int64]
Numbers = NDArray[np.float64]


@dataclass(frozen=True)
class Statistic:
    """A statistic of one column.

    Attributes:
        kind: COUNT, MEAN, HISTOGRAM or QUANTILE.
        lower: the least value; smaller ones count as this one. Not used by a count.
        upper: the greatest value, above `lower`.
        parameter: number of bins, or the quantile in [0, 1]; 0 for the others.
    """

    kind: str
    lower: float = 0.0
    upper: float = 1.0
    parameter: float = 0.0

    @property
    def scale(self) -> int:
        """How many integers make one row: what is added up is divided by it to be read in rows."""
        return LATTICE if self.kind == MEAN else 1

    @property
    def size(self) -> int:
        """The length of the vector."""
        return {
            COUNT: 1,
            MEAN: 2,
            HISTOGRAM: int(self.parameter),
            QUANTILE: _NODES,
        }[self.kind]

    @property
    def row_norm_squared(self) -> int:
        """The square of the greatest L2 norm of what one row adds, in the vector's integers.

        A count and a histogram add one 1. A mean adds the value's place, at most LATTICE from the middle, and LATTICE
        for the row itself. A quantile adds one 1 in each level of the tree, its root included.
        """
        return {COUNT: 1, MEAN: 2 * LATTICE**2, HISTOGRAM: 1, QUANTILE: LEVELS + 1}[self.kind]

    def sensitivity_squared(self, most_rows: int) -> int:
        """Return the square of the L2 sensitivity, in the vector's integers.

        Args:
            most_rows: the greatest number of the frame's slots that one unit owns. All of its rows can fall into the
                same bin, so their vectors add up in length, not in square.
        """
        return most_rows**2 * self.row_norm_squared

    def zero(self) -> Integers:
        """Return the vector of no rows."""
        return np.zeros(self.size, dtype=np.int64)

    def added(self, values: Numbers) -> Integers:
        """Return what some rows add.

        Args:
            values: of the rows that are not empty; shape (rows,). A value that is no number adds nothing.

        Returns:
            Shape (size,).
        """
        known = values[~np.isnan(values)]
        if self.kind == COUNT:
            return np.array([len(known)], dtype=np.int64)
        places = self._places(known)
        if self.kind == MEAN:
            shifted = np.rint((2 * places - 1) * LATTICE).astype(np.int64)
            return np.array([np.clip(shifted, -LATTICE, LATTICE).sum(), len(places) * LATTICE], dtype=np.int64)
        bins = int(self.parameter) if self.kind == HISTOGRAM else LEAVES
        numbers = np.clip((places * bins).astype(np.int64), 0, bins - 1)
        counts = np.bincount(numbers, minlength=bins).astype(np.int64)
        return counts if self.kind == HISTOGRAM else _tree(counts)

    def edges(self) -> list[float]:
        """Return the edges of a histogram's bins, from the lower to the upper bound; public."""
        bins = int(self.parameter)
        share = np.arange(bins + 1) / bins
        return [float(edge) for edge in self.lower * (1 - share) + self.upper * share]

    def resolution(self) -> float:
        """Return the width of the ranges that a quantile can tell apart."""
        return (self.upper - self.lower) / LEAVES if self.kind == QUANTILE else 0.0

    def expected_error(self, deviation: float, slots: int) -> float:
        """Bound the standard error of the answer, from public facts alone.

        A mean is S / C in half-ranges from the middle; to the first order its error is that of S, and of C times the
        mean, over C: at most sqrt(2) deviations of half a range. The rank of a quantile is a sum of at most
        BRANCHES - 1 noisy counts in each level, and of the total; least squares only lowers its variance.

        Args:
            deviation: of the noise on each number, in rows.
            slots: of the frame; as if no row were empty.

        Returns:
            In rows for a count and a histogram, in the column's unit for a mean, as a share of the rows for a quantile.
        """
        if self.kind == MEAN:
            half = self.upper / 2 - self.lower / 2
            return min(half * math.sqrt(2) * deviation / slots, 2 * half)
        if self.kind == QUANTILE:
            return min(math.sqrt((BRANCHES - 1) * LEVELS + 1) * deviation / slots, 1.0)
        return deviation

    def answer(self, noisy: Numbers) -> list[float]:
        """Make the answer of the noised vector; sees nothing else.

        Args:
            noisy: in rows; shape (size,), for a quantile (LEAVES,): the leaves of the tree, made consistent.
        """
        if self.kind == MEAN:
            # Fewer than one row: as one, so that the quotient stays what noise can explain.
            ratio = min(max(float(noisy[0]) / max(float(noisy[1]), 1.0), -1.0), 1.0)
            return [self._between((ratio + 1) / 2)]
        if self.kind == QUANTILE:
            return [self._between(_quantile(noisy, self.parameter))]
        return [float(count) for count in noisy]

    def _places(self, values: Numbers) -> Numbers:
        """Return where values lie between the bounds, from 0 to 1."""
        # Halved, so that bounds that are far apart do not overflow.
        width = self.upper / 2 - self.lower / 2
        return (np.clip(values, self.lower, self.upper) / 2 - self.lower / 2) / width

    def _between(self, place: float) -> float:
        return min(max(self.lower * (1 - place) + self.upper * place, self.lower), self.upper)


def _tree(leaves: Integers) -> Integers:
    """Return the counts of all ranges, level after level from the root."""
    levels = [leaves]
    while len(levels[0]) > 1:
        levels.insert(0, levels[0].reshape(-1, BRANCHES).sum(axis=1))
    return np.concatenate(levels)


def _quantile(leaves: Numbers, share: float) -> float:
    """Return where a quantile lies, from 0 to 1: down the tree, at each range to the part that holds the rank.

    Parts that noise has made negative hold nothing; where no part holds anything, the middle is the answer.
    """
    place, width = 0.0, 1.0
    while len(leaves) > 1:
        parts = np.maximum(leaves.reshape(BRANCHES, -1).sum(axis=1), 0.0)
        total = float(parts.sum())
        if total <= 0:
            return place + width / 2
        ends = np.cumsum(parts)
        rank = share * total
        chosen = min(int(np.searchsorted(ends, rank)), BRANCHES - 1)
        # A rank of 0 lies before the first part that holds anything.
        while chosen < BRANCHES - 1 and not parts[chosen]:
            chosen += 1
        before = float(ends[chosen] - parts[chosen])
        share = min(max((rank - before) / float(parts[chosen]), 0.0), 1.0) if parts[chosen] else 1.0
        width /= BRANCHES
        place += chosen * width
        leaves = leaves.reshape(BRANCHES, -1)[chosen]
    return place + share * width
