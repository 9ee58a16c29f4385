"""The ledger's rules, as a pure state machine.

`decide` looks at the state and a command and answers with the events that would happen, or refuses; `fold` lets an
event happen. Neither knows of time, storage or networks, so that every interleaving can be tested and the state is
always what folding the journal gives. Amounts are integers; what is pending counts as spent.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
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
        kind: `open`, `grant`, `reserve`, `commit`, `release`, `propose_cap` or `change_cap`.
        account: the lineage's account name.
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
        unlimited_jobs: jobs without privacy that were committed.
    """

    name: str
    terms: Mapping[str, Any]
    capacity: Amount
    pending: Amount = Amount()
    spent: Amount = Amount()
    unlimited_jobs: int = 0
    time: float = 0.0

    @property
    def left(self) -> Amount:
        """What is neither spent nor pending."""
        return self.capacity - self.spent - self.pending


@dataclass(frozen=True)
class Grant:
    """A principal's share of an account."""

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


@dataclass
class State:
    """The fold of the journal."""

    accounts: dict[str, Account] = field(default_factory=dict)
    grants: dict[tuple[str, str], Grant] = field(default_factory=dict)
    reservations: dict[str, Reservation] = field(default_factory=dict)
    cap_changes: dict[str, dict[str, Any]] = field(default_factory=dict)
    requests: dict[str, tuple[str, str]] = field(default_factory=dict)


def decide(state: State, command: Event) -> Event | None:
    """Say what a command leads to.

    Args:
        state: where things stand.
        command: what is asked, in the form of the event that it would become.

    Returns:
        The event to be written, or None where the same request was served before.

    Raises:
        Refusal: with a reason of the error catalogue; nothing changes.
    """
    if command.request_id in state.requests:
        kind, body_hash = state.requests[command.request_id]
        if (kind, body_hash) != (command.kind, command.body_hash):
            raise Refusal("REQUEST_ID_REUSED", {"request_id": command.request_id})
        return None
    if command.kind == "open":
        return _decide_open(state, command)
    account = state.accounts.get(command.account)
    if account is None:
        raise Refusal("RESOURCE_NOT_FOUND", {"resource": command.account})
    rule = {
        "grant": _decide_grant,
        "reserve": _decide_reserve,
        "commit": _decide_commit,
        "release": _decide_release,
        "propose_cap": _decide_propose,
        "change_cap": _decide_change,
    }[command.kind]
    rule(state, account, command)
    return command


def fold(state: State, event: Event, time: float) -> None:
    """Let an event happen.

    Args:
        state: changed in place.
        event: was decided before, and is durable.
        time: when, in seconds since the epoch.
    """
    state.requests[event.request_id] = (event.kind, event.body_hash)
    data = event.data
    if event.kind == "open":
        capacity = _amount(data["capacity"])
        state.accounts[event.account] = Account(event.account, data["terms"], capacity, time=time)
        return
    account = state.accounts[event.account]
    if event.kind == "grant":
        key = (event.account, data["principal"])
        earlier = state.grants.get(key, Grant(Amount()))
        state.grants[key] = replace(earlier, share=_amount(data["share"]))
    elif event.kind == "reserve":
        price = _amount(data["price"])
        state.reservations[data["name"]] = Reservation(
            data["name"],
            event.account,
            data["principal"],
            data["job"],
            data["unlimited"],
            data["mechanism"],
            price,
            time=time,
        )
        state.accounts[event.account] = replace(account, pending=account.pending + price)
        _charge(state, event.account, data["principal"], price)
    elif event.kind in ("commit", "release"):
        _resolve(state, account, event, time)
    elif event.kind == "propose_cap":
        state.cap_changes[data["name"]] = {
            **data,
            "account": event.account,
            "proposer": event.principal,
            "approver": "",
        }
    elif event.kind == "change_cap":
        state.cap_changes[data["name"]]["approver"] = event.principal
        terms = {**account.terms, "epsilon": data["epsilon"]}
        state.accounts[event.account] = replace(account, terms=terms, capacity=_amount(data["capacity"]))


def _decide_open(state: State, command: Event) -> Event | None:
    existing = state.accounts.get(command.account)
    if existing is None:
        _positive(command.data["capacity"])
        return command
    if dict(existing.terms) != dict(command.data["terms"]):
        raise Refusal("RESOURCE_EXISTS", {"resource": command.account})
    return None


def _decide_grant(state: State, account: Account, command: Event) -> None:
    share = _positive(command.data["share"])
    if not share.fits(account.capacity):
        raise Refusal("BUDGET_EXHAUSTED", {"account": account.name, "asked": share, "left": account.capacity})
    existing = state.grants.get((account.name, command.data["principal"]))
    if existing and not existing.charged.fits(share):
        raise Refusal("GRANT_EXHAUSTED", {"account": account.name, "asked": share, "left": existing.charged})


def _decide_reserve(state: State, account: Account, command: Event) -> None:
    data = command.data
    if data["unlimited"]:
        allowed, principals = (
            account.terms["unlimited_allowed"],
            account.terms["unlimited_principals"],
        )
        if not allowed or (principals and data["principal"] not in principals):
            raise Refusal("UNLIMITED_NOT_ALLOWED", {"account": account.name})
        if _amount(data["price"]) != Amount():
            raise Refusal("COMMIT_EXCEEDS_RESERVATION", {"reservation": data["name"]})
        return
    price = _positive(data["price"])
    if not price.fits(account.left):
        raise Refusal("BUDGET_EXHAUSTED", {"account": account.name, "asked": price, "left": account.left})
    if any(name == account.name for name, _ in state.grants):
        # Once an account is shared out, who has no share may spend nothing.
        grant = state.grants.get((account.name, data["principal"]), Grant(Amount()))
        if not price.fits(grant.share - grant.charged):
            left = grant.share - grant.charged
            metadata = {
                "account": account.name,
                "principal": data["principal"],
                "asked": price,
                "left": left,
            }
            raise Refusal("GRANT_EXHAUSTED", metadata)


def _decide_commit(state: State, account: Account, command: Event) -> None:
    reservation = _pending(state, command.data["name"])
    committed = _amount(command.data["committed"])
    if not committed.fits(reservation.price) or committed.units < 0 or committed.truncation_e18 < 0:
        raise Refusal("COMMIT_EXCEEDS_RESERVATION", {"reservation": reservation.name})


def _decide_release(state: State, account: Account, command: Event) -> None:
    _pending(state, command.data["name"])


def _decide_propose(state: State, account: Account, command: Event) -> None:
    _positive(command.data["capacity"])


def _decide_change(state: State, account: Account, command: Event) -> None:
    proposal = state.cap_changes.get(command.data["name"])
    if proposal is None or proposal["account"] != account.name:
        raise Refusal("RESOURCE_NOT_FOUND", {"resource": command.data["name"]})
    if proposal["approver"]:
        raise Refusal("RESOURCE_EXISTS", {"resource": command.data["name"]})
    if proposal["proposer"] == command.principal:
        raise Refusal("SECOND_PRINCIPAL_NEEDED", {"proposal": command.data["name"]})


def _resolve(state: State, account: Account, event: Event, time: float) -> None:
    reservation = state.reservations[event.data["name"]]
    committed = _amount(event.data["committed"]) if event.kind == "commit" else Amount()
    word = "COMMITTED" if event.kind == "commit" else "RELEASED"
    state.reservations[reservation.name] = replace(reservation, state=word, committed=committed, resolve_time=time)
    count = account.unlimited_jobs + int(reservation.unlimited and event.kind == "commit")
    state.accounts[account.name] = replace(
        account,
        pending=account.pending - reservation.price,
        spent=account.spent + committed,
        unlimited_jobs=count,
    )
    _charge(state, account.name, reservation.principal, committed - reservation.price)


def _charge(state: State, account: str, principal: str, amount: Amount) -> None:
    grant = state.grants.get((account, principal))
    if grant is not None:
        state.grants[(account, principal)] = replace(grant, charged=grant.charged + amount)


def _pending(state: State, name: str) -> Reservation:
    reservation = state.reservations.get(name)
    if reservation is None:
        raise Refusal("RESOURCE_NOT_FOUND", {"resource": name})
    if reservation.state != "PENDING":
        raise Refusal("RESERVATION_RESOLVED", {"reservation": name, "state": reservation.state})
    return reservation


def _amount(pair: Any) -> Amount:
    return Amount(int(pair[0]), int(pair[1]))


def _positive(pair: Any) -> Amount:
    amount = _amount(pair)
    if amount.units <= 0 or amount.truncation_e18 < 0:
        raise Refusal("TARGET_UNREACHABLE", {})
    return amount
