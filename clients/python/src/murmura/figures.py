"""The pictures of a report, as SVG that needs nothing: no script, no font, no network."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import NormalDist
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from murmura.api.common.v1 import privacy_pb2
    from murmura.audit import Audit

_NORMAL = NormalDist()
_WIDTH, _HEIGHT, _LEFT, _BOTTOM, _TOP, _RIGHT = 640, 370, 64, 52, 36, 28
# The least false-positive rate that is drawn.
_LEAST = 1e-3
# Told apart by their dashes as well, for whoever sees no colours.
_LINES = (("var(--own, #1f5fbf)", ""), ("var(--bad, #b3261e)", "9 3"), ("var(--good, #1b7f4b)", "3 3"))


@dataclass(frozen=True)
class Bound:
    """What a promise lets the best attacker do.

    Attributes:
        epsilon, delta, mu: of the promise; mu is 0 where it is not Gaussian.
    """

    epsilon: float
    delta: float
    mu: float

    @classmethod
    def of(cls, statement: privacy_pb2.PrivacyStatement) -> Bound:
        """Return that of a statement."""
        return cls(statement.epsilon, statement.delta, statement.mu)

    def true_positive_rate(self, false_positive_rate: float) -> float:
        """Return the greatest rate of members found at a rate of false alarms."""
        alarm = min(max(false_positive_rate, 1e-12), 1 - 1e-12)
        if self.mu:
            return _NORMAL.cdf(_NORMAL.inv_cdf(alarm) + self.mu)
        high = math.exp(min(self.epsilon, 700.0)) * alarm + self.delta
        return min(1.0, high, 1 - math.exp(-self.epsilon) * (1 - self.delta - alarm))


def roc_figure(audits: Mapping[str, Audit], bound: Bound | None = None) -> str:
    """Return ROC curves as a figure; the rate of false alarms on a logarithmic axis, for low ones are what matters.

    Args:
        audits: by the name that is written beside each.
        bound: of the promise, drawn as an area that the curves must stay in; None where there is none.
    """
    shapes = [_frame()]
    if bound is not None:
        rates = [10 ** (-3 + 3 * step / 120) for step in range(121)]
        line = [(rate, bound.true_positive_rate(rate)) for rate in rates]
        area = [*line, (1.0, 0.0), (_LEAST, 0.0)]
        shapes.append(f'<polygon points="{_points(area)}" fill="var(--good, #1b7f4b)" fill-opacity="0.12"/>')
        shapes.append(
            f'<polyline points="{_points(line)}" fill="none" stroke="var(--good, #1b7f4b)" stroke-width="1.5"/>'
        )
    chance = [(10 ** (-3 + 3 * step / 60), 10 ** (-3 + 3 * step / 60)) for step in range(61)]
    shapes.append(
        f'<polyline points="{_points(chance)}" fill="none" stroke="currentColor" stroke-opacity="0.5" '
        'stroke-dasharray="2 4"/>'
    )
    legend, told = [], []
    for (name, audit), (colour, dashes) in zip(audits.items(), _LINES, strict=False):
        corners = [(point.false_positive_rate, point.true_positive_rate) for point in audit.message.roc]
        shapes.append(
            f'<polyline points="{_points(_stairs(corners))}" fill="none" stroke="{colour}" stroke-width="2.5" '
            f'stroke-dasharray="{dashes}"/>'
        )
        legend.append((name, colour, dashes))
        told.append(
            f"{name}: {audit.message.true_positive_rate_at_0_1_percent:.1%} at 0.1 %, "
            f"{audit.message.true_positive_rate_at_1_percent:.1%} at 1 %"
        )
    if bound is not None:
        legend.append((f"what ε = {bound.epsilon:.3g} allows", "var(--good, #1b7f4b)", ""))
    legend.append(("guessing", "currentColor", "2 4"))
    left = float(_LEFT)
    for entry in legend:
        shapes.append(_entry(left, *entry))
        left += 60 + 7.5 * len(entry[0])
    label = "Members found against false alarms. " + "; ".join(told)
    caption = "How many of the planted canaries an attacker finds (upwards), if so many others are called planted."
    return _figure(shapes, label, caption)


def exposure_figure(audit: Audit) -> str:
    """Return how exposed canaries are, as bars: one for each bit."""
    counts = list(audit.message.exposure_histogram)
    most = max([*counts, 1])
    shapes = []
    step = (_WIDTH - _LEFT - _RIGHT) / max(1, len(counts))
    floor = _HEIGHT - _BOTTOM
    for bits, count in enumerate(counts):
        height = (floor - _TOP - 16) * count / most
        left = _LEFT + bits * step
        shapes.append(
            f'<rect x="{left + 3:.1f}" y="{floor - height:.1f}" width="{step - 6:.1f}" height="{height:.1f}" '
            'fill="var(--own, #1f5fbf)"/>'
        )
        middle = left + step / 2
        shapes.append(_text(middle, floor - height - 4, str(count), "middle"))
        shapes.append(_text(middle, floor + 18, f"{bits}-{bits + 1}", "middle"))
    shapes.append(_text((_LEFT + _WIDTH - _RIGHT) / 2, _HEIGHT - 8, "exposure in bits", "middle"))
    told = ", ".join(f"{count} of {bits} to {bits + 1} bits" for bits, count in enumerate(counts) if count)
    caption = "How exposed the planted canaries are. Where nothing leaks, half of them have less than one bit."
    return _figure(shapes, f"Planted canaries by exposure: {told}", caption)


def _figure(shapes: list[str], label: str, caption: str) -> str:
    return (
        f'<figure><svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" '
        f'aria-label="{html.escape(label, quote=True)}" font-family="system-ui, sans-serif" font-size="13" '
        f'fill="currentColor">{"".join(shapes)}</svg><figcaption>{html.escape(caption)}</figcaption></figure>'
    )


def _frame() -> str:
    """Return the axes of a ROC."""
    left, right, top, floor = _LEFT, _WIDTH - _RIGHT, _TOP, _HEIGHT - _BOTTOM
    parts = [f'<path d="M{left} {top}V{floor}H{right}" fill="none" stroke="currentColor"/>']
    for power in range(4):
        rate = 10.0 ** (power - 3)
        x, _ = _place(rate, 0.0)
        parts.append(_text(x, floor + 18, f"{100 * rate:g} %", "middle"))
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        _, y = _place(1.0, share)
        parts.append(_text(left - 8, y + 4, f"{100 * share:g} %", "end"))
        parts.append(f'<path d="M{left} {y:.1f}H{right}" stroke="currentColor" stroke-opacity="0.15"/>')
    parts.append(_text((left + right) / 2, _HEIGHT - 8, "false alarms", "middle"))
    return "".join(parts)


def _entry(left: float, name: str, colour: str, dashes: str) -> str:
    line = f'<path d="M{left:.1f} 12h28" stroke="{colour}" stroke-width="2.5" stroke-dasharray="{dashes}"/>'
    return line + _text(left + 36, 16, name, "start")


def _text(x: float, y: float, words: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{html.escape(words)}</text>'


def _stairs(corners: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return a ROC's corners from the least rate that is drawn: what is found before it is found there."""
    before = [hit for alarm, hit in corners if alarm <= _LEAST]
    return [(_LEAST, max(before, default=0.0)), *[corner for corner in corners if corner[0] > _LEAST]]


def _points(line: list[tuple[float, float]]) -> str:
    return " ".join("{:.1f},{:.1f}".format(*_place(*point)) for point in line)


def _place(alarm: float, hit: float) -> tuple[float, float]:
    share = (math.log10(max(alarm, _LEAST)) + 3) / 3
    width, height = _WIDTH - _LEFT - _RIGHT, _HEIGHT - _BOTTOM - _TOP
    return _LEFT + share * width, _HEIGHT - _BOTTOM - hit * height
