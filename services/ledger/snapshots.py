"""Snapshots: the state as it was at some entry, so that a start need not fold the whole journal.

A snapshot only saves time. It counts if it was made from the very journal that is there, and `VerifyJournal` still
folds everything and compares.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

from services.ledger.journal import Head, Store, replay
from services.ledger.state import Account, Amount, Grant, Reservation, Rollback, State

FORMAT = 1


def load(store: Store) -> tuple[State, Head]:
    """Return the state and head of a journal.

    Raises:
        services.ledger.journal.JournalBroken: if the chain does not hold.
    """
    text = store.snapshot()
    found = parse(text) if text else None
    if found is not None:
        state, head = found
        newest = list(store.read(head.sequence - 1, 1))
        if newest and Head.of(newest[0]) == head:
            return replay(store.read(head.sequence), state, head)
    return replay(store.read())


def dump(state: State, head: Head) -> str:
    """Return a snapshot as text: a digest, a line break, JSON."""
    facts = {
        "format": FORMAT,
        "head": vars(head),
        "accounts": [vars(account) for account in state.accounts.values()],
        "grants": [[*key, vars(grant)] for key, grant in state.grants.items()],
        "reservations": [vars(reservation) for reservation in state.reservations.values()],
        "cap_changes": state.cap_changes,
        "requests": state.requests,
        "rollback": vars(state.rollback) if state.rollback else None,
        "lost": state.lost,
        "debts": state.debts,
    }
    # What the encoder does not know are amounts.
    body = json.dumps(facts, ensure_ascii=False, allow_nan=False, default=vars)
    return f"{_digest(body)}\n{body}"


def parse(text: str) -> tuple[State, Head] | None:
    """Return what a snapshot holds, or None if it is damaged or of another format."""
    digest, _, body = text.partition("\n")
    if digest != _digest(body):
        return None
    facts = json.loads(body)
    if facts["format"] != FORMAT:
        return None
    accounts = [Account(**_with_amounts(item, "capacity", "pending", "spent")) for item in facts["accounts"]]
    reservations = [Reservation(**_with_amounts(item, "price", "committed")) for item in facts["reservations"]]
    state = State(
        accounts={account.name: account for account in accounts},
        grants={(name, who): Grant(**_with_amounts(item, "share", "charged")) for name, who, item in facts["grants"]},
        reservations={reservation.name: reservation for reservation in reservations},
        cap_changes=facts["cap_changes"],
        requests={request_id: (kind, body_hash) for request_id, (kind, body_hash) in facts["requests"].items()},
        rollback=Rollback(**facts["rollback"]) if facts["rollback"] else None,
        lost=facts["lost"],
        debts={name: Amount(**amount) for name, amount in facts["debts"].items()},
    )
    return state, Head(**facts["head"])


def _with_amounts(item: dict[str, Any], *names: str) -> dict[str, Any]:
    return {**item, **{name: Amount(**item[name]) for name in names}}


def _digest(body: str) -> str:
    return hashlib.sha256(body.encode()).hexdigest()
