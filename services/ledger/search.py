"""The search behind capacities and prices: how far something holds that holds up to a point and then no more. Pure."""

from __future__ import annotations

from collections.abc import Callable

from services.ledger.discretisation import Unpriceable

MOST = 10**12


def last(holds: Callable[[int], bool], guess: int, hopeless: str) -> int:
    """Return the last non-negative integer at which a predicate holds, that holds up to some point and then never.

    Args:
        holds: the predicate; asked as rarely as it can be, for an answer takes long.
        guess: near which the point is likely.
        hopeless: what to say if there is no such point.

    Raises:
        Unpriceable: saying `hopeless`, if it holds up to `MOST`.
    """
    low, high, step = 0, guess, max(1, guess // 20)
    if holds(guess):
        while holds(high):
            if high > MOST:
                raise Unpriceable(hopeless)
            low, high, step = high, high + step, 2 * step
    else:
        while (lower := max(0, high - step)) and not holds(lower):
            high, step = lower, 2 * step
        low = lower
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low
