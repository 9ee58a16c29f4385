"""The ledger's rules, as a pure state machine.

`decide` looks at the state and a command and answers with the event that would happen, or refuses; `fold` lets an
event happen. Neither knows of time, storage or networks, so that every interleaving can be tested and the state is
always what folding the journal gives.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from services.common.rights import may_train_unlimited
from services.ledger.state import Account, Amount, Event, Grant, Refusal, Reservation, Rollback, State


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
    if command.kind == "rolled_back":
        return _decide_rolled_back(state, command)
    if command.kind == "resolve_rollback":
        return _decide_resolve_rollback(state, command)
    if state.rollback is not None:
        raise Refusal("LEDGER_BEHIND_WITNESS", {"rollback": state.rollback})
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
        capacity, debt = _amount(data["capacity"]), state.debts.pop(event.account, Amount())
        state.accounts[event.account] = Account(event.account, data["terms"], capacity, spent=debt, time=time)
        return
    if event.kind == "rolled_back":
        state.rollback = Rollback(**data, time=time)
        return
    if event.kind == "resolve_rollback":
        _resolve_rollback(state, data)
        return
    account = state.accounts[event.account]
    if event.kind == "grant":
        principal = data["principal"]
        state.grants[event.account, principal] = Grant(_amount(data["share"]), _charged(state, account, principal))
        state.accounts[event.account] = replace(account, shared=True)
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
        state.cap_changes[data["name"]] = {**state.cap_changes[data["name"]], "approver": event.principal}
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
    charged = _charged(state, account, command.data["principal"])
    if not charged.fits(share):
        metadata = {"account": account.name, "principal": command.data["principal"], "asked": charged, "left": share}
        raise Refusal("GRANT_EXHAUSTED", metadata)


def _decide_reserve(state: State, account: Account, command: Event) -> None:
    data = command.data
    if data["unlimited"]:
        terms = account.terms
        if not may_train_unlimited(terms["unlimited_allowed"], terms["unlimited_principals"], data["principal"]):
            raise Refusal("UNLIMITED_NOT_ALLOWED", {"account": account.name})
        if _amount(data["price"]) != Amount():
            raise Refusal("COMMIT_EXCEEDS_RESERVATION", {"reservation": data["name"]})
        return
    price = _positive(data["price"])
    if not price.fits(account.left):
        raise Refusal("BUDGET_EXHAUSTED", {"account": account.name, "asked": price, "left": account.left})
    if account.shared:
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


def _decide_rolled_back(state: State, command: Event) -> Event | None:
    known = state.rollback
    place = (command.data["epoch"], command.data["sequence"])
    # Only a receipt from further ahead says more than the one that is known.
    return None if known and place <= (known.epoch, known.sequence) else command


def _decide_resolve_rollback(state: State, command: Event) -> Event:
    known, data = state.rollback, command.data
    if known is None or (known.epoch, known.sequence, known.head_hash) != tuple(
        data[part] for part in ("epoch", "sequence", "head_hash")
    ):
        raise Refusal("RESOURCE_NOT_FOUND", {"resource": f"rollback {data['sequence']}:{data['head_hash'][:12]}"})
    return replace(command, data={**data, "charges": _charges(state, data["charges"])})


def _charges(state: State, stated: Mapping[str, Any]) -> dict[str, list[int]]:
    """Return what a resolution charges: what was stated, and where nothing was, all that an account has left."""
    charges = {}
    for name, account in state.accounts.items():
        if name not in stated:
            charges[name] = [max(0, account.left.units), max(0, account.left.truncation_e18)]
    for name, pair in stated.items():
        if min(int(pair[0]), int(pair[1])) < 0:
            raise Refusal("TARGET_UNREACHABLE", {})
        charges[name] = [int(pair[0]), int(pair[1])]
    return charges


def _resolve_rollback(state: State, data: Mapping[str, Any]) -> None:
    for name, pair in data["charges"].items():
        account = state.accounts.get(name)
        if account is None:
            state.debts[name] = state.debts.get(name, Amount()) + _amount(pair)
        else:
            state.accounts[name] = replace(account, spent=account.spent + _amount(pair))
    state.lost.append(data["sequence"])
    state.rollback = None


def _charged(state: State, account: Account, principal: str) -> Amount:
    """Return what a principal has reserved or spent of an account."""
    grant = state.grants.get((account.name, principal))
    if grant is not None:
        return grant.charged
    total = Amount()
    for reservation in state.reservations.values():
        if (reservation.account, reservation.principal) == (account.name, principal):
            total += reservation.price if reservation.state == "PENDING" else reservation.committed
    return total


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
