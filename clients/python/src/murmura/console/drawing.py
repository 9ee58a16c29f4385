"""The console's pictures, as SVG: a budget as a bar, and how it went down over time.

Colours come from the page's style sheet, and every part is told apart by its pattern or its words as well.
"""

from __future__ import annotations

import html
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from murmura.counts import percent

if TYPE_CHECKING:
    from collections.abc import Sequence

    from murmura.budget import Budget
    from murmura.console.history import Standing

_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 720, 220, 56, 12, 12, 34
_BAR_CELLS = 100
_TICKS = 4
# Diagonal lines: pending is told from spent without seeing colours.
_HATCH = (
    '<defs><pattern id="{name}" width="6" height="6" patternUnits="userSpaceOnUse" patternTransform="rotate(45)">'
    '<rect width="6" height="6" class="pending-ground"/><path d="M0 0V6" class="pending-line"/></pattern></defs>'
)


def bar(budget: Budget) -> str:
    """Return a budget as a bar: spent, pending, left."""
    spent, pending, _ = budget.parts(_BAR_CELLS)
    # Ids are unlike any other on the page: datasets of one budget have the same bar, which is no harm.
    hatch = f"hatch-{html.escape(budget.account.replace('/', '-'), quote=True)}"
    return (
        f'<svg class="bar" viewBox="0 0 {_BAR_CELLS} 6" preserveAspectRatio="none" role="img" '
        f'aria-label="{html.escape(budget.shares(), quote=True)}">{_HATCH.format(name=hatch)}'
        f'<rect class="left" width="{_BAR_CELLS}" height="6"/><rect class="spent" width="{spent}" height="6"/>'
        f'<rect x="{spent}" width="{pending}" height="6" fill="url(#{hatch})"/></svg>'
    )


def burn_down(standings: Sequence[Standing], now: datetime) -> str:
    """Return what was left of a budget over time, as a figure.

    Args:
        standings: oldest first; the last is how it stands.
        now: where the figure ends.
    """
    if not standings or not standings[-1].capacity:
        return ""
    begin = standings[0].time
    # A budget that was just opened has a width as well.
    span = max(now - begin, timedelta(minutes=1))
    highest = max(standing.capacity for standing in standings)

    def x(time: datetime) -> float:
        return _LEFT + (_WIDTH - _LEFT - _RIGHT) * min(max((time - begin) / span, 0.0), 1.0)

    def y(units: int) -> float:
        return _TOP + (_HEIGHT - _TOP - _BOTTOM) * (1 - min(max(units / highest, 0.0), 1.0))

    ends = [*(standing.time for standing in standings[1:]), begin + span]
    stairs = list(zip(standings, ends, strict=True))
    left = [(s.time, end, s.capacity - s.spent - s.pending) for s, end in stairs]
    unspent = [(s.time, end, s.capacity - s.spent) for s, end in stairs]
    caps = [(s.time, end, s.capacity) for s, end in stairs]

    def line(steps: Sequence[tuple[datetime, datetime, int]]) -> str:
        return " ".join(f"{x(at):.1f},{y(units):.1f}" for start, end, units in steps for at in (start, end))

    floor = f"{x(begin + span):.1f},{y(0):.1f} {_LEFT},{y(0):.1f}"
    back = " ".join(reversed(line(left).split()))
    shapes = [
        _HATCH.format(name="hatch-over-time"),
        f'<polygon points="{line(unspent)} {back}" fill="url(#hatch-over-time)"/>',
        f'<polygon class="left" points="{line(left)} {floor}"/>',
        f'<polyline class="left-line" points="{line(left)}"/>',
        f'<polyline class="cap-line" points="{line(caps)}"/>',
        _axes(begin, span, highest, standings[-1].capacity),
    ]
    first, last = percent(left[0][2], caps[0][2]), percent(left[-1][2], caps[-1][2])
    told = f"Left of the cap over time: {first} at first, {last} now."
    return (
        f'<figure><svg class="burn-down" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" '
        f'aria-label="{html.escape(told, quote=True)}">{"".join(shapes)}</svg>'
        "<figcaption>What is left of the cap over time, in the ledger's units. Striped: held by running jobs; what "
        "they do not use comes back. Dashed: the cap.</figcaption></figure>"
    )


def _axes(begin: datetime, span: timedelta, highest: int, capacity: int) -> str:
    floor, right = _HEIGHT - _BOTTOM, _WIDTH - _RIGHT
    parts = [f'<path class="axis" d="M{_LEFT} {_TOP}V{floor}H{right}"/>']
    for share in (0.0, 0.5, 1.0):
        height = _TOP + (floor - _TOP) * (1 - share * capacity / highest)
        parts.append(f'<text x="{_LEFT - 8}" y="{height + 4:.1f}" text-anchor="end">{100 * share:g} %</text>')
    form = "%H:%M:%S" if span < timedelta(minutes=10) else "%H:%M" if span < timedelta(days=2) else "%Y-%m-%d"
    for tick in range(_TICKS + 1):
        place = _LEFT + (right - _LEFT) * tick / _TICKS
        anchor = "start" if tick == 0 else "end" if tick == _TICKS else "middle"
        when = f"{begin + span * tick / _TICKS:{form}}"
        parts.append(f'<text x="{place:.1f}" y="{floor + 20}" text-anchor="{anchor}">{when}</text>')
    return "".join(parts)
