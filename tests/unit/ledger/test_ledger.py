"""The ledger's rules, one by one; `test_interleavings.py` mixes them."""

import pytest

from services.ledger.journal import Entry, Head, JournalBroken, digest, link, replay
from services.ledger.ledger import decide, fold
from services.ledger.state import Amount, Event, Refusal, State

TERMS = {"unlimited_allowed": True, "unlimited_principals": ["ann"], "epsilon": 1.0}
ACCOUNT = "accounts/a"


def command(kind, request_id, data, principal="ann", body="b"):
    return Event(kind, ACCOUNT, request_id, body, principal, data)


def opened(capacity=(100, 10), terms=TERMS):
    return command("open", "open", {"terms": terms, "capacity": list(capacity)})


def reserve(request_id, units, principal="ann", unlimited=False, body="b"):
    price = [0, 0] if unlimited else [units, 1]
    data = {"name": f"r/{request_id}", "principal": principal, "job": "j", "unlimited": unlimited}
    return command("reserve", request_id, {**data, "mechanism": {}, "price": price}, principal, body)


def commit(request_id, name, units):
    return command("commit", request_id, {"name": name, "committed": [units, min(units, 1)]})


class Ledger:
    """The real machine with its journal."""

    def __init__(self):
        self.state, self.head, self.entries = State(), Head(), []

    def do(self, event):
        decided = decide(self.state, event)
        if decided is not None:
            entry = link(self.head, decided, 1.0)
            fold(self.state, decided, 1.0)
            self.entries.append(entry)
            self.head = Head(entry.sequence, entry.hash)


def ready(**changes):
    ledger = Ledger()
    ledger.do(opened(**changes))
    return ledger


def refused(ledger, event):
    before = (len(ledger.entries), ledger.state.accounts.get(ACCOUNT))
    with pytest.raises(Refusal) as caught:
        ledger.do(event)
    assert (len(ledger.entries), ledger.state.accounts.get(ACCOUNT)) == before
    return caught.value.reason


def test_pending_counts_as_spent():
    ledger = ready()
    ledger.do(reserve("1", 60))
    assert refused(ledger, reserve("2", 41)) == "BUDGET_EXHAUSTED"
    ledger.do(reserve("3", 40))


def test_the_truncation_pool_is_a_budget_too():
    ledger = ready(capacity=(100, 2))
    for request_id in ("1", "2"):
        ledger.do(reserve(request_id, 1))
    assert refused(ledger, reserve("3", 1)) == "BUDGET_EXHAUSTED"


def test_the_same_id_with_another_body_is_refused():
    ledger = ready()
    ledger.do(reserve("1", 10))
    assert refused(ledger, reserve("1", 10, body="other")) == "REQUEST_ID_REUSED"
    assert refused(ledger, command("release", "1", {"name": "r/1"})) == "REQUEST_ID_REUSED"


def test_reopening_on_other_terms_gives_no_fresh_budget():
    ledger = ready()
    ledger.do(reserve("1", 90))
    again = Event("open", ACCOUNT, "open-2", "b", "ann", {"terms": TERMS, "capacity": [100, 10]})
    ledger.do(again)
    assert ledger.state.accounts[ACCOUNT].pending == Amount(90, 1)
    other = Event("open", ACCOUNT, "open-3", "b", "ann", {"terms": {**TERMS, "epsilon": 9.0}, "capacity": [999, 10]})
    assert refused(ledger, other) == "RESOURCE_EXISTS"


def test_unlimited_needs_consent_and_is_recorded():
    ledger = ready()
    assert refused(ledger, reserve("1", 0, "bob", unlimited=True)) == "UNLIMITED_NOT_ALLOWED"
    ledger.do(reserve("2", 0, "ann", unlimited=True))
    ledger.do(commit("3", "r/2", 0))
    assert ledger.state.accounts[ACCOUNT].unlimited_jobs == 1
    closed = ready(terms={**TERMS, "unlimited_allowed": False})
    assert refused(closed, reserve("4", 0, "ann", unlimited=True)) == "UNLIMITED_NOT_ALLOWED"


def test_a_job_without_privacy_has_no_price():
    event = reserve("1", 0, "ann", unlimited=True)
    event = command("reserve", "1", {**event.data, "price": [5, 1]})
    assert refused(ready(), event) == "COMMIT_EXCEEDS_RESERVATION"


@pytest.mark.parametrize("capacity", [(0, 10), (-1, 10), (100, -1)])
def test_an_account_opens_with_a_budget_or_not_at_all(capacity):
    assert refused(Ledger(), opened(capacity=capacity)) == "TARGET_UNREACHABLE"


def test_a_cap_changes_by_two_people_only():
    ledger = ready()
    change = {"name": "c/1", "epsilon": 2.0, "capacity": [200, 10], "justification": "a new study"}
    ledger.do(command("propose_cap", "1", change, "ann"))
    assert refused(ledger, command("change_cap", "2", change, "ann")) == "SECOND_PRINCIPAL_NEEDED"
    ledger.do(command("change_cap", "3", change, "bob"))
    assert ledger.state.accounts[ACCOUNT].capacity == Amount(200, 10)
    assert refused(ledger, command("change_cap", "4", change, "bob")) == "RESOURCE_EXISTS"


def test_a_share_bounds_its_owner_and_shuts_out_the_rest():
    ledger = ready()
    ledger.do(command("grant", "1", {"principal": "ann", "share": [30, 5]}))
    assert refused(ledger, reserve("2", 31)) == "GRANT_EXHAUSTED"
    ledger.do(reserve("3", 30))
    assert refused(ledger, reserve("4", 1, "bob")) == "GRANT_EXHAUSTED"
    ledger.do(commit("5", "r/3", 10))
    with pytest.raises(Refusal) as caught:
        ledger.do(reserve("6", 21))
    assert caught.value.metadata["left"] == Amount(20, 4)
    ledger.do(reserve("7", 20))


@pytest.mark.parametrize("field", ["payload", "previous_hash", "hash", "sequence"])
def test_a_changed_entry_breaks_the_chain(field):
    ledger = ready()
    for request_id in "123":
        ledger.do(reserve(request_id, 5))
    values = vars(ledger.entries[1]).copy()
    values[field] = values[field].replace("5", "6") if field == "payload" else {"sequence": 7}.get(field, "0" * 64)
    with pytest.raises(JournalBroken) as caught:
        replay([ledger.entries[0], Entry(**values), *ledger.entries[2:]])
    assert caught.value.sequence == 2


def test_a_forged_entry_with_a_fresh_hash_breaks_the_next_link():
    ledger = ready()
    for request_id in "123":
        ledger.do(reserve(request_id, 5))
    victim = ledger.entries[1]
    payload = victim.payload.replace('"price":[5,1]', '"price":[1,1]')
    assert payload != victim.payload
    forged = Entry(2, victim.previous_hash, payload, digest(2, victim.previous_hash, payload))
    with pytest.raises(JournalBroken) as caught:
        replay([ledger.entries[0], forged, *ledger.entries[2:]])
    assert caught.value.sequence == 3


def test_a_missing_entry_breaks_the_chain():
    ledger = ready()
    for request_id in "123":
        ledger.do(reserve(request_id, 5))
    with pytest.raises(JournalBroken):
        replay([ledger.entries[0], *ledger.entries[2:]])


def test_a_share_counts_what_its_owner_had_before():
    ledger = ready()
    ledger.do(reserve("1", 20))
    ledger.do(reserve("2", 15))
    ledger.do(commit("3", "r/2", 10))
    assert refused(ledger, command("grant", "4", {"principal": "ann", "share": [29, 5]})) == "GRANT_EXHAUSTED"
    ledger.do(command("grant", "5", {"principal": "ann", "share": [40, 5]}))
    assert refused(ledger, reserve("6", 11)) == "GRANT_EXHAUSTED"
    ledger.do(command("release", "7", {"name": "r/1"}))
    assert ledger.state.grants[ACCOUNT, "ann"].charged == Amount(10, 1)
    assert refused(ledger, reserve("8", 31)) == "GRANT_EXHAUSTED"
    ledger.do(reserve("9", 30))
