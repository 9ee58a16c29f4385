"""What a journal entry says, in words."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Protocol

from murmura.counts import counted

if TYPE_CHECKING:
    from murmura.api.ledger.v1 import ledger_pb2


class Wording(Protocol):
    """Puts amounts of one account into words."""

    def full(self, units: int) -> str:
        """Return an amount in words."""


class Narrator:
    """Tells the entries of one account, oldest first: what resolves a reservation is told with what was reserved.

    Args:
        account: `accounts/…`.
        amounts: puts units into words.
        short: whether to cut the ids of jobs, so that they fit.
    """

    def __init__(self, account: str, amounts: Wording, *, short: bool = False) -> None:
        self._account = account
        self._amounts = amounts
        self._short = short
        self._reserved: dict[str, dict[str, Any]] = {}

    def tell(self, entry: ledger_pb2.Entry) -> str:
        """Return what happened."""
        teller = getattr(self, f"_{entry.kind}", None)
        try:
            words = teller(data_of(entry), entry.principal) if teller else f"by {entry.principal}"
        except (KeyError, TypeError, ValueError, IndexError):
            # A newer ledger may say things differently; --json shows them as they are.
            words = f"by {entry.principal}"
        return plain(f"{entry.kind.replace('_', ' ')}  {words}")

    def _full(self, pair: Any) -> str:
        return self._amounts.full(int(pair[0]))

    def _open(self, data: Any, who: str) -> str:
        terms = data["terms"]
        without = "allowed" if terms["unlimited_allowed"] else "not allowed"
        return (
            f"cap ε {terms['epsilon']:g} at δ {terms['delta_e18'] / 1e18:.2g}, {_units(data['capacity'])}; "
            f"jobs without privacy {without}, by {who}"
        )

    def _grant(self, data: Any, who: str) -> str:
        return f"a share of {self._full(data['share'])} for {data['principal']}, by {who}"

    def _reserve(self, data: Any, who: str) -> str:
        data = {**data, "job": short_job(data["job"])} if self._short else data
        self._reserved[data["name"]] = data
        price = "no budget, without privacy," if data["unlimited"] else self._full(data["price"])
        return f"{price} for {data['job']} by {data['principal']}"

    def _commit(self, data: Any, who: str) -> str:
        reserved = self._reserved[data["name"]]
        if reserved["unlimited"]:
            return f"{reserved['job']} ran without privacy, by {reserved['principal']}"
        back = int(reserved["price"][0]) - int(data["committed"][0])
        rest = f"; {self._amounts.full(back)} given back" if back else ""
        return f"{self._full(data['committed'])} for {reserved['job']} by {reserved['principal']}{rest}"

    def _release(self, data: Any, who: str) -> str:
        reserved = self._reserved[data["name"]]
        return f"{self._full(reserved['price'])} given back: {reserved['job']} by {reserved['principal']} never ran"

    def _propose_cap(self, data: Any, who: str) -> str:
        return f"ε {data['epsilon']:g}, {_units(data['capacity'])}, by {who}: {data['justification']}"

    def _change_cap(self, data: Any, who: str) -> str:
        return f"to ε {data['epsilon']:g}, {_units(data['capacity'])}, approved by {who}"

    def _rolled_back(self, data: Any, who: str) -> str:
        if not data:
            return "the ledger was restored from an older backup; nothing is spent until a steward decides"
        return (
            f"the ledger was seen at entry {data['sequence']}, but entries after {data['ledger_sequence']} are "
            "missing; nothing is spent until a steward decides"
        )

    def _resolve_rollback(self, data: Any, who: str) -> str:
        charged = data.get("charges", {}).get(self._account)
        what = f"{self._full(charged)} charged for what was lost" if charged else "what was lost was given up"
        return f"{what}, by {who}" + (f": {data['justification']}" if data else "")


def data_of(entry: ledger_pb2.Entry) -> Any:
    """Return what an entry says; nothing where readers of one account are not shown it."""
    return json.loads(entry.payload).get("data", {}) if entry.payload else {}


def _units(pair: Any) -> str:
    # Its epsilon stands beside it already.
    return counted(int(pair[0]), "unit")


def short_job(job: str) -> str:
    """Return a job's name with a long id cut."""
    collection, slash, identity = job.rpartition("/")
    return job if len(identity) <= 12 else f"{collection}{slash}{identity[:8]}…"


def plain(text: str) -> str:
    """Return text that people wrote without what could move a terminal's cursor or make up a line."""
    return "".join(letter if letter.isprintable() else " " for letter in text)
