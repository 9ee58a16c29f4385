"""A budget as a person looks at it: one small object for notebooks, scripts and the command line.

Units add up and epsilons do not, so every share and every bar here counts units.
"""

from __future__ import annotations

import html
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from murmura.counts import percent

if TYPE_CHECKING:
    from murmura.api.common.v1 import privacy_pb2
    from murmura.api.ledger.v1 import ledger_pb2

BAR_WIDTH = 40
# Readable on white and on black.
_COLOURS = {"spent": "#c9372c", "pending": "#d98e04", "left": "#2e8b57"}


class Units(NamedTuple):
    """A budget in its own currency; whole numbers.

    Attributes:
        cap: all of it.
        spent: what finished jobs were charged.
        pending: what running jobs hold; counts as spent.
        left: what neither has.
    """

    cap: int
    spent: int
    pending: int
    left: int


@dataclass(frozen=True)
class Budget:
    """What a dataset may give away, and what it has; as it stood when it was asked for.

    Attributes:
        message: all that the ledger says.
    """

    message: ledger_pb2.Account

    @property
    def account(self) -> str:
        """`accounts/…`."""
        return self.message.name

    @property
    def epsilon(self) -> float:
        """The cap: what all jobs together may reach at `delta`."""
        return self.message.epsilon

    @property
    def delta(self) -> float:
        """The delta of the cap."""
        return self.message.delta

    @property
    def spent_epsilon(self) -> float:
        """The epsilon of what is spent and pending together: pending counts as spent."""
        return self.message.spent_epsilon

    @property
    def left_epsilon(self) -> float:
        """The greatest target epsilon that one more job could be given."""
        return 0.0 if self.pool_used >= 1 else self.message.left_epsilon

    @property
    def units(self) -> Units:
        """Cap, spent, pending and left, in units."""
        cap, spent, pending = (part.units for part in (self.message.capacity, self.message.spent, self.message.pending))
        return Units(cap, spent, pending, max(0, cap - spent - pending))

    @property
    def pool_used(self) -> float:
        """Which part is used of the pool from which each job takes a little delta, from 0 to 1."""
        m = self.message
        used = m.spent.truncation_delta_e18 + m.pending.truncation_delta_e18
        return min(1.0, used / m.capacity.truncation_delta_e18) if m.capacity.truncation_delta_e18 else 1.0

    @property
    def risk(self) -> privacy_pb2.AttackerRisk:
        """What the best attacker could do with what is spent and pending."""
        return self.message.spent_risk

    def parts(self, width: int = BAR_WIDTH) -> tuple[int, int, int]:
        """Return how many of `width` cells of a bar are spent, pending and left.

        A part that is not empty has a cell, so that a bar looks untouched, or used up, only if it is.
        """
        cap, spent, pending, _ = self.units
        if cap <= 0:
            return 0, 0, 0
        least = (spent > 0) + (pending > 0)
        used = min(width, max(round(width * (spent + pending) / cap), least))
        if used == width and spent + pending < cap:
            used = max(least, width - 1)
        of_spent = round(used * spent / (spent + pending)) if spent + pending else 0
        of_spent = min(max(of_spent, int(spent > 0)), used - int(pending > 0))
        return of_spent, used - of_spent, width - used

    def shares(self) -> str:
        """Return the parts of the cap as a phrase."""
        cap, spent, pending, left = self.units
        names = (("spent", spent), ("pending", pending), ("left", left))
        return ", ".join(f"{percent(count, cap)} {name}" for name, count in names)

    def attacker(self) -> str:
        """Return what the best attacker could do, as a phrase."""
        return attacker(self.risk)

    def __repr__(self) -> str:
        spent, pending, left = self.parts()
        return (
            f"<{self.account}: {'█' * spent}{'▒' * pending}{'░' * left} {self.shares()}; "
            f"ε = {self.spent_epsilon:.3g} of {self.epsilon:g} used at δ = {self.delta:.2g}, "
            f"ε = {self.left_epsilon:.4g} left for one job>"
        )

    def _repr_html_(self) -> str:
        units = self.units
        counts = {"spent": units.spent, "pending": units.pending, "left": units.left}
        bar = "".join(
            f"<div style='width:{100 * count / max(1, units.cap):.2f}%;background:{_COLOURS[name]}'></div>"
            for name, count in counts.items()
        )
        cells = [
            ("cap", f"ε = {self.epsilon:g} at δ = {self.delta:.2g}"),
            ("spent and pending", f"ε = {self.spent_epsilon:.4g}"),
            ("left for one more job", f"ε = {self.left_epsilon:.4g}"),
            ("attacker", self.attacker()),
        ]
        table = "".join(
            f"<tr><td style='text-align:left'>{html.escape(name)}</td>"
            f"<td style='text-align:left'>{html.escape(value)}</td></tr>"
            for name, value in cells
        )
        legend = " ".join(
            f"<span style='border-left:.8em solid {_COLOURS[name]};padding-left:.3em;margin-right:1em'>"
            f"{percent(count, units.cap)} {name}</span>"
            for name, count in counts.items()
        )
        return (
            f"<div><b>{html.escape(self.account)}</b>"
            f"<div style='display:flex;width:24em;height:.9em;border:1px solid #888'>{bar}</div>"
            f"<small>{legend}</small><table>{table}</table></div>"
        )


def attacker(risk: privacy_pb2.AttackerRisk) -> str:
    """Return what the best attacker could do at a risk, as a phrase."""
    rates = (risk.true_positive_rate_at_0_1_percent, risk.true_positive_rate_at_1_percent)
    few, more = (f"{100 * rate:.1f} %" for rate in rates)
    return f"finds at most {few} of members at 0.1 % false alarms, {more} at 1 %"
