"""Amounts of budget in words: units, and the epsilon that the ledger says they are."""

from __future__ import annotations

from typing import TYPE_CHECKING

from murmura.counts import counted
from murmura.errors import MurmuraError
from murmura.narration import data_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from murmura.api.ledger.v1 import ledger_pb2
    from murmura.client import Client

# Each takes a question to the ledger, up to half a second long.
MOST_ASKED = 100


class Amounts:
    """Puts amounts of one account into words.

    What so many units are as an epsilon, only the ledger computes: it is asked for the price of so many steps of the
    account's own unit, which are so many units, and says what they promise.

    Args:
        asker: asks the ledger.
        account: whose units.
    """

    def __init__(self, asker: Client, account: ledger_pb2.Account) -> None:
        self._asker = asker
        self._account = account
        self._known: dict[int, float | None] = {0: 0.0}

    def epsilon(self, units: int) -> float | None:
        """Return the epsilon of so many units at the account's delta; None if the ledger does not say."""
        from murmura.api.ledger.v1 import ledger_service_pb2 as messages

        if units in self._known or len(self._known) > MOST_ASKED:
            return self._known.get(units)
        request = messages.PriceMechanismRequest(account=self._account.name, truncation_delta_e18=1)
        unit = self._account.unit
        request.mechanism.noise_multiplier = unit.noise_multiplier
        request.mechanism.sampling_probability = unit.sampling_probability
        request.mechanism.steps = units
        try:
            answer = self._asker.stub("ledger").call("PriceMechanism", request)
            self._known[units] = answer.statement.epsilon
        except MurmuraError:
            # More steps than a mechanism may have; the units still say all.
            self._known[units] = None
        return self._known[units]

    def learn(self, entries: Sequence[ledger_pb2.Entry]) -> None:
        """Look up the amounts of entries, the newest first: not all of a long history are asked for."""
        for entry in reversed(entries):
            data = data_of(entry)
            pairs = [data.get(name) for name in ("share", "price", "committed")]
            for pair in (*pairs, data.get("charges", {}).get(self._account.name)):
                if pair:
                    self.epsilon(int(pair[0]))

    def short(self, units: int) -> str:
        """Return an amount as an epsilon, or in units where that is not known."""
        epsilon = self.epsilon(units)
        return counted(units, "unit") if epsilon is None else f"ε {epsilon:.3g}"

    def full(self, units: int) -> str:
        """Return an amount in units, and as an epsilon."""
        epsilon = self.epsilon(units)
        words = counted(units, "unit")
        return words if epsilon is None or not units else f"{words} (ε {epsilon:.3g})"
