"""Budgets for Prometheus, read from the ledger's state when someone asks."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from services.ledger.accounting import epsilon_of
from services.ledger.messages import cap_of
from services.ledger.writer import Writer


class LedgerCollector(Collector):
    """Gauges of each account and of the journal.

    Args:
        writer: whose state is read; always what is durable.
    """

    def __init__(self, writer: Writer) -> None:
        self._writer = writer
        self._epsilon = lru_cache(4096)(epsilon_of)

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Yield the gauges. Runs on the metrics server's thread while the ledger goes on."""
        state, head = self._writer.state, self._writer.head
        cap = _gauge("cap_units", "Capacity of an account, in its units.")
        spent = _gauge("spent_units", "Committed, in the account's units.")
        pending = _gauge("pending_units", "Reserved and not resolved, in the account's units; counts as spent.")
        cap_epsilon = _gauge("cap_epsilon", "The cap as an epsilon, at the account's delta.")
        used_epsilon = _gauge(
            "used_epsilon", "Epsilon of what is spent and pending; only for accounts whose unit is not subsampled."
        )
        # One call makes the list, so that accounts may be opened meanwhile; what is in it never changes.
        for account in list(state.accounts.values()):
            label, terms = [account.name], cap_of(account)
            cap.add_metric(label, account.capacity.units)
            spent.add_metric(label, account.spent.units)
            pending.add_metric(label, account.pending.units)
            cap_epsilon.add_metric(label, terms.epsilon)
            if terms.unit.gaussian:
                # A closed form; other units take a composition, which is no work for a scrape.
                used_epsilon.add_metric(label, self._epsilon(terms, account.spent.units + account.pending.units))
        yield from (cap, spent, pending, cap_epsilon, used_epsilon)
        yield GaugeMetricFamily("murmura_ledger_entries", "Entries of the journal.", head.sequence)
        yield GaugeMetricFamily(
            "murmura_ledger_stopped",
            "1 while nothing is spent, since the ledger was restored from an older backup.",
            int(state.rollback is not None),
        )


def _gauge(name: str, help_text: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"murmura_ledger_{name}", help_text, labels=["account"])
