"""While a rollback stands, no rule lets anything through; a decision charges, and says for which history."""

import pytest

from services.ledger.journal import Head, link
from services.ledger.ledger import decide, fold
from services.ledger.state import Amount, Event, Refusal, State

ACCOUNT = "accounts/a"
TERMS = {"unlimited_allowed": True, "unlimited_principals": [], "epsilon": 1.0}
FOUND = {"sequence": 9, "head_hash": "f" * 64, "epoch": 0, "ledger_sequence": 2, "ledger_time": 1.0}
CHANGE = {"name": "c/1", "epsilon": 2.0, "capacity": [200, 10], "justification": "more"}
PRICE = {"principal": "ann", "job": "j", "unlimited": False, "mechanism": {}, "price": [10, 1]}


def event(kind, data, request_id="q", account=ACCOUNT, principal="ann"):
    return Event(kind, account, request_id, "body", principal, data)


def happen(state, *events):
    for number, command in enumerate(events):
        decided = decide(state, Event(**{**vars(command), "request_id": f"{command.kind}/{len(state.requests)}"}))
        if decided is not None:
            link(Head(), decided, 1.0)
            fold(state, decided, float(number))
    return state


@pytest.fixture
def stopped():
    return happen(
        State(),
        event("open", {"terms": TERMS, "capacity": [100, 10]}),
        event("reserve", {**PRICE, "name": "r/1"}),
        event("propose_cap", CHANGE, principal="bob"),
        event("rolled_back", FOUND, account=""),
    )


@pytest.mark.parametrize(
    "command",
    [
        event("open", {"terms": TERMS, "capacity": [100, 10]}, account="accounts/b"),
        event("grant", {"principal": "ann", "share": [30, 5]}),
        event("reserve", {**PRICE, "name": "r/2"}),
        event("reserve", {**PRICE, "name": "r/3", "unlimited": True, "price": [0, 0]}),
        event("commit", {"name": "r/1", "committed": [10, 1]}),
        event("release", {"name": "r/1"}),
        event("propose_cap", {**CHANGE, "name": "c/2"}),
        event("change_cap", CHANGE),
    ],
    ids=lambda command: command.kind,
)
def test_nothing_is_let_through(stopped, command):
    with pytest.raises(Refusal) as caught:
        decide(stopped, command)
    assert (caught.value.reason, caught.value.metadata["rollback"]) == ("LEDGER_BEHIND_WITNESS", stopped.rollback)
    happen(stopped, event("resolve_rollback", {**FOUND, "charges": {ACCOUNT: [5, 1]}, "justification": "gone"}))
    decide(stopped, command)


def test_a_request_that_was_served_is_answered_as_before(stopped):
    served = event("reserve", {**PRICE, "name": "r/1"}, request_id="reserve/1")
    assert decide(stopped, served) is None


def test_only_a_receipt_from_further_ahead_is_written_down_again(stopped):
    assert decide(stopped, event("rolled_back", {**FOUND, "sequence": 8}, request_id="x")) is None
    happen(stopped, event("rolled_back", {**FOUND, "sequence": 12}))
    assert stopped.rollback.sequence == 12
    happen(stopped, event("rolled_back", {**FOUND, "sequence": 3, "epoch": 1}))
    assert (stopped.rollback.epoch, stopped.rollback.sequence) == (1, 3)


def test_a_decision_charges_what_is_stated_and_else_all_that_is_left(stopped):
    decided = decide(stopped, event("resolve_rollback", {**FOUND, "charges": {}, "justification": "gone"}))
    assert decided.data["charges"] == {ACCOUNT: [90, 9]}
    happen(stopped, event("resolve_rollback", {**FOUND, "charges": {ACCOUNT: [0, 0]}, "justification": "gone"}))
    assert stopped.accounts[ACCOUNT].spent == Amount()
    assert (stopped.rollback, stopped.epoch, stopped.lost) == (None, 1, [9])


@pytest.mark.parametrize("change", [{"sequence": 8}, {"head_hash": "e" * 64}, {"epoch": 1}], ids=str)
def test_a_decision_about_another_receipt_is_none(stopped, change):
    data = {**FOUND, **change, "charges": {}, "justification": "gone"}
    with pytest.raises(Refusal) as caught:
        decide(stopped, event("resolve_rollback", data))
    assert caught.value.reason == "RESOURCE_NOT_FOUND"


@pytest.mark.parametrize("pair", [[-1, 0], [0, -1]], ids=str)
def test_a_negative_charge_refills_nothing(stopped, pair):
    data = {**FOUND, "charges": {ACCOUNT: pair}, "justification": "gone"}
    with pytest.raises(Refusal):
        decide(stopped, event("resolve_rollback", data))


def test_a_charge_beyond_the_cap_leaves_less_than_nothing(stopped):
    happen(stopped, event("resolve_rollback", {**FOUND, "charges": {ACCOUNT: [500, 0]}, "justification": "gone"}))
    assert stopped.accounts[ACCOUNT].left.units == -410
    with pytest.raises(Refusal) as caught:
        decide(stopped, event("reserve", {**PRICE, "name": "r/2", "price": [1, 1]}))
    assert caught.value.reason == "BUDGET_EXHAUSTED"
