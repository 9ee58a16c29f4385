"""Counts as a person reads them."""

from __future__ import annotations


def grouped(count: int) -> str:
    """Return a whole number with its thousands apart."""
    return f"{count:,}".replace(",", " ")


def percent(part: int, whole: int) -> str:
    """Return a part of a whole in percent; only what is nothing is 0 %, and only what is all is 100 %."""
    if part <= 0 or whole <= 0:
        return "0 %"
    share = 100 * part / whole
    if share < 1:
        return "under 1 %"
    return "over 99 %" if share > 99 and part < whole else f"{share:.0f} %"


def counted(count: int, noun: str) -> str:
    """Return how many there are of what a noun names: 0 rows, 1 row, 1 000 rows."""
    return f"{grouped(count)} {noun}{'' if count == 1 else 's'}"


def extent(rows: int, units: int, noun: str = "row") -> str:
    """Return the size of a dataset, a frame or a plan: 630 rows of 1 privacy unit."""
    return f"{counted(rows, noun)} of {counted(units, 'privacy unit')}"
