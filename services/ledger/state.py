"""What the ledger knows: the types of its commands, and the state that folding the journal gives.

Amounts are integers; what is pending counts as spent.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Amount:
    """A price or a share.

    Attributes:
        units: number of the account's unit mechanisms.
        truncation_e18: truncation probability in units of 10^-18.
    """

    units: int = 0
    truncation_e18: int = 0

    def __add__(self, other: Amount) -> Amount:
        return Amount(self.units + other.units, self.truncation_e18 + other.truncation_e18)

    def __sub__(self, other: Amount) -> Amount:
        return Amount(self.units - other.units, self.truncation_e18 - other.truncation_e18)

    def fits(self, other: Amount) -> bool:
        """Say whether this is at most `other`, in both parts."""
        return self.units <= other.units and self.truncation_e18 <= other.truncation_e18


class Refusal(Exception):
    """A command that may not happen.

    Args:
        reason: a name of the error catalogue.
        metadata: what the catalogue documents for it; amounts as `Amount`.
    """

    def __init__(self, reason: str, metadata: Mapping[str, Any] | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.metadata = metadata or {}


@dataclass(frozen=True)
class Event:
    """Something that happened; becomes one journal entry.

    Attributes:
        kind: `open`, `grant`, `reserve`, `commit`, `release`, `propose_cap`, `change_cap`; or, of the whole ledger,
            `rolled_back` and `resolve_rollback`.
        account: the lineage's account name; empty for what concerns the whole ledger.
        request_id: the request that caused it.
        body_hash: digest of that request's body.
        principal: who caused it.
        data: what the kind needs; JSON values only.
    """

    kind: str
    account: str
    request_id: str
    body_hash: str
    principal: str
    data: Mapping[str, Any]


@dataclass(frozen=True)
class Account:
    """A budget.

    Attributes:
        terms: what was agreed at opening (epsilon, delta_e18, sigma, unlimited …).
        capacity: the cap.
        pending: reserved and not resolved.
        spent: committed.
        shared: whether any share was given; who has none may then spend nothing.
        unlimited_jobs: jobs without privacy that were committed.
    """

    name: str
    terms: Mapping[str, Any]
    capacity: Amount
    pending: Amount = Amount()
    spent: Amount = Amount()
    shared: bool = False
    unlimited_jobs: int = 0
    time: float = 0.0

    @property
    def left(self) -> Amount:
        """What is neither spent nor pending."""
        return self.capacity - self.spent - self.pending


@dataclass(frozen=True)
class Grant:
    """A principal's share of an account.

    Attributes:
        share: how much.
        charged: what the principal has reserved or spent, ever.
    """

    share: Amount
    charged: Amount = Amount()


@dataclass(frozen=True)
class Reservation:
    """Budget set aside for one job; resolves at most once."""

    name: str
    account: str
    principal: str
    job: str
    unlimited: bool
    mechanism: Mapping[str, Any]
    price: Amount
    committed: Amount = Amount()
    state: str = "PENDING"
    time: float = 0.0
    resolve_time: float = 0.0


@dataclass(frozen=True)
class Rollback:
    """A receipt that this ledger gave and whose entry it lacks: it was restored from an older backup.

    Attributes:
        sequence, head_hash, epoch: the receipt.
        ledger_sequence: the newest entry that could still be the right one when this was found.
        ledger_time: when that entry was made; what was recorded later may be missing.
        time: when it was found.
    """

    sequence: int
    head_hash: str
    epoch: int
    ledger_sequence: int
    ledger_time: float
    time: float


@dataclass
class State:
    """The fold of the journal.

    Attributes:
        accounts: by name.
        grants: by account and principal.
        reservations: by name.
        cap_changes: proposals by name.
        requests: request id to the kind and the body's digest.
        rollback: what stops all spending, or None.
        lost: of each rollback that was resolved, in order, the newest entry that was known to be lost.
        debts: what lost entries had charged to accounts that were lost with them; falls due when they open again.
    """

    accounts: dict[str, Account] = field(default_factory=dict)
    grants: dict[tuple[str, str], Grant] = field(default_factory=dict)
    reservations: dict[str, Reservation] = field(default_factory=dict)
    cap_changes: dict[str, dict[str, Any]] = field(default_factory=dict)
    requests: dict[str, tuple[str, str]] = field(default_factory=dict)
    rollback: Rollback | None = None
    lost: list[int] = field(default_factory=list)
    debts: dict[str, Amount] = field(default_factory=dict)

    @property
    def epoch(self) -> int:
        """How many rollbacks were resolved; receipts carry it, so that one of an abandoned history is told apart."""
        return len(self.lost)
