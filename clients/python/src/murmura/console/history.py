"""What the ledger's journal says of a budget: how it went down over time, and in which steps.

The journal only grows, so what was read is kept and only what is new is asked for. Units add up and epsilons do not:
all that is drawn or told here is a share of the cap.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cache
from typing import TYPE_CHECKING, Any

from murmura.calls import budgets
from murmura.counts import counted, percent
from murmura.errors import InvalidInput
from murmura.narration import data_of, plain

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from murmura.api.ledger.v1 import ledger_pb2
    from murmura.client import Client


@dataclass(frozen=True)
class Standing:
    """How a budget stood from a moment on, in units.

    Attributes:
        time: the moment.
        capacity: the cap.
        spent: what finished jobs were charged.
        pending: what running jobs hold.
    """

    time: datetime
    capacity: int = 0
    spent: int = 0
    pending: int = 0


def standings(entries: Sequence[ledger_pb2.Entry], account: str) -> list[Standing]:
    """Return how a budget stood after each entry that moved it, oldest first.

    Args:
        entries: of the account, oldest first.
        account: `accounts/…`.
    """
    found: list[Standing] = []
    held: dict[str, int] = {}
    for entry in entries:
        now = found[-1] if found else Standing(moment(entry))
        moved = _moved(now, entry.kind, data_of(entry), account, held)
        if moved != now or not found:
            found.append(replace(moved, time=moment(entry)))
    return found


def _moved(now: Standing, kind: str, data: Any, account: str, held: dict[str, int]) -> Standing:
    """Return how it stands after one entry.

    Args:
        now: how it stood before; an account that was lost and opened again begins with what it owes.
        kind: of the entry.
        data: of the entry.
        account: `accounts/…`.
        held: what each open reservation holds; kept up to date.
    """
    if kind in ("open", "change_cap"):
        return replace(now, capacity=_units(data["capacity"]))
    if kind == "reserve":
        held[data["name"]] = _units(data["price"])
        return replace(now, pending=now.pending + held[data["name"]])
    if kind in ("commit", "release"):
        charged = _units(data["committed"]) if kind == "commit" else 0
        return replace(now, pending=now.pending - held.pop(data["name"], 0), spent=now.spent + charged)
    if kind == "resolve_rollback":
        return replace(now, spent=now.spent + _units(data.get("charges", {}).get(account, [0])))
    return now


@dataclass(frozen=True)
class Proposal:
    """A change of the cap that waits for a second steward.

    Attributes:
        name: to approve it by.
        epsilon: the new cap.
        proposer: who proposed it, and may not approve it.
        why: as they wrote it.
    """

    name: str
    epsilon: float
    proposer: str
    why: str


def proposals(entries: Sequence[ledger_pb2.Entry]) -> list[Proposal]:
    """Return the changes of the cap that nobody has approved yet."""
    waiting: dict[str, Proposal] = {}
    for entry in entries:
        if entry.kind in ("propose_cap", "change_cap") and entry.payload:
            data = data_of(entry)
            if entry.kind == "propose_cap":
                why = plain(data["justification"])
                waiting[data["name"]] = Proposal(data["name"], data["epsilon"], plain(entry.principal), why)
            else:
                waiting.pop(data["name"], None)
    return list(waiting.values())


def stopped(entries: Sequence[ledger_pb2.Entry]) -> bool:
    """Say whether the ledger spends nothing, since it was restored from an older backup and nobody has decided."""
    decisive = [entry.kind for entry in entries if entry.kind in ("rolled_back", "resolve_rollback")]
    return decisive[-1:] == ["rolled_back"]


def moment(entry: ledger_pb2.Entry) -> datetime:
    """Return when an entry was made."""
    return entry.create_time.ToDatetime(UTC)


class Shares:
    """Puts amounts of a budget into words: as a share of its cap, which needs no question to the ledger.

    Args:
        capacity: the cap, in units.
    """

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity

    def full(self, units: int) -> str:
        """Return an amount as a share of the cap."""
        return f"{percent(units, self._capacity)} of the cap" if self._capacity else counted(units, "unit")


class Journals:
    """The journal as far as the person may read it, each entry asked for once.

    Args:
        client: who asks.
    """

    def __init__(self, client: Client) -> None:
        self._client = client
        self._entries: dict[str, list[ledger_pb2.Entry]] = {}

    def of(self, account: str) -> list[ledger_pb2.Entry]:
        """Return the entries that concern a budget, oldest first."""
        return self.look()(account)

    def look(self) -> Callable[[str], list[ledger_pb2.Entry]]:
        """Return what gives the entries of budgets as of one look: the journal is asked once for all of them."""
        read = cache(self._read)

        def of(account: str) -> list[ledger_pb2.Entry]:
            try:
                return [entry for entry in read("") if entry.account in ("", account)]
            except InvalidInput:
                # Only stewards and operators read all of it, with what it says of the ledger as a whole.
                return read(account)

        return of

    def _read(self, account: str) -> list[ledger_pb2.Entry]:
        known = self._entries.get(account, [])
        after = known[-1].sequence - 1 if known else 0
        new = self._client.all(budgets.list_entries(account, after), "entries")
        if known and (not new or new[0].hash != known[-1].hash):
            # The ledger was restored from an older backup: what was read is not what it says now.
            known, new = [], self._client.all(budgets.list_entries(account), "entries")
        # A new list: another request may be reading the old one.
        self._entries[account] = [*known[:-1], *new]
        return self._entries[account]


def _units(pair: Any) -> int:
    return int(pair[0])
