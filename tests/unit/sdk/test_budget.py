"""A budget is read right at a glance: the parts of its bar, its figures, and nothing that a name could smuggle in."""

import io
import json
from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from murmura import Client, display
from murmura.api.common.v1.privacy_pb2 import Price
from murmura.api.ledger.v1 import ledger_pb2
from murmura.api.ledger.v1 import ledger_service_pb2 as messages
from murmura.budget import Budget
from murmura.cli.amounts import MOST_ASKED, Amounts
from murmura.dataset import RemoteDataset
from murmura.errors import InvalidInput, NotAllowed
from murmura.narration import Narrator


def account(cap=1000, spent=0, pending=0, name="accounts/notes", pool=0):
    found = ledger_pb2.Account(name=name, epsilon=8, delta=1e-5, spent_epsilon=3.25, left_epsilon=5.5)
    found.capacity.CopyFrom(Price(units=cap, truncation_delta_e18=10))
    found.spent.CopyFrom(Price(units=spent, truncation_delta_e18=pool))
    found.pending.units = pending
    found.spent_risk.true_positive_rate_at_0_1_percent = 0.0042
    found.spent_risk.true_positive_rate_at_1_percent = 0.031
    found.unit.noise_multiplier, found.unit.sampling_probability = 1000, 1
    return found


def test_the_figures_are_the_ledgers():
    budget = Budget(account(spent=300, pending=100))
    assert (budget.epsilon, budget.delta, budget.spent_epsilon, budget.left_epsilon) == (8, 1e-5, 3.25, 5.5)
    assert budget.units == (1000, 300, 100, 600)
    assert budget.message == account(spent=300, pending=100)
    with pytest.raises(AttributeError):
        budget.message = None


def test_nothing_is_left_when_the_pool_is_used_up():
    assert Budget(account(pool=9)).left_epsilon == 5.5
    assert Budget(account(pool=10)).left_epsilon == 0


@given(
    cap=st.integers(1, 10**12), spent=st.integers(0, 10**12), pending=st.integers(0, 10**12), width=st.integers(3, 80)
)
def test_a_bar_shows_each_part_that_is_there_and_no_other(cap, spent, pending, width):
    budget = Budget(account(cap, spent, pending))
    parts = budget.parts(width)
    assert sum(parts) == width
    assert [count > 0 for count in parts] == [spent > 0, pending > 0, spent + pending < cap]


def test_a_bar_is_in_proportion():
    assert Budget(account(spent=250, pending=500)).parts(40) == (10, 20, 10)
    assert Budget(account(spent=1000)).parts(40) == (40, 0, 0)
    assert Budget(account()).parts(40) == (0, 0, 40)
    assert display.bar(Budget(account(spent=250, pending=500)), 8).plain == "██▒▒▒▒░░"


def test_plain_text_and_notebook_say_the_same():
    budget = Budget(account(spent=300, pending=100))
    for text in (repr(budget), budget._repr_html_()):
        for figure in ("accounts/notes", "30 % spent", "10 % pending", "60 % left", "5.5", "3.25", "1e-05"):
            assert figure in text
    assert "██" in repr(budget)
    assert "0.4 % of members" in budget._repr_html_()
    assert "width:30.00%" in budget._repr_html_()


def test_the_notebook_is_self_contained_and_escapes_names():
    seen = []

    class Reader(HTMLParser):
        def handle_starttag(self, tag, attrs):
            seen.append((tag, dict(attrs)))

    text = Budget(account(name="accounts/<script>alert(1)</script><img src=x onerror=y>"))._repr_html_()
    Reader().feed(text)
    assert {tag for tag, _ in seen} == {"div", "b", "small", "span", "table", "tr", "td"}
    assert {key for _, attributes in seen for key in attributes} == {"style"}
    # Text takes the notebook's own colour, light or dark.
    assert "color:" not in text.replace("background-color:", "")


def test_a_dataset_shows_its_budget():
    class Asker:
        def budget(self, name):
            assert name == "accounts/notes"
            return Budget(account(spent=300))

    from murmura.api.dataset.v1 import dataset_pb2

    dataset = RemoteDataset(Asker(), dataset_pb2.Dataset(name="datasets/notes", account="accounts/notes"))
    assert (dataset.epsilon, dataset.max_epsilon) == (5.5, 8)
    assert "30 % spent" in dataset._repr_html_()


def test_the_account_fits_the_terminal(monkeypatch):
    out = io.StringIO()
    monkeypatch.setattr(display, "console", Console(file=out, width=80))
    display.show_account(account(cap=10**12, spent=10**11, pending=10**11, pool=10), "spent 5, pending 7")
    text = out.getvalue()
    assert max(map(len, text.splitlines())) <= 80
    assert "spent 5, pending 7" in text
    assert "used up: no more jobs" in text


class Ledger:
    """Prices a million-th of an epsilon for each unit, and counts how often it is asked."""

    def __init__(self):
        self.asked = []

    def stub(self, service):
        return self

    def call(self, method, request):
        assert method == "PriceMechanism"
        assert (request.mechanism.noise_multiplier, request.mechanism.sampling_probability) == (1000, 1)
        self.asked.append(request.mechanism.steps)
        if request.mechanism.steps > 10**8:
            raise InvalidInput("too many steps")
        answer = messages.PriceMechanismResponse()
        answer.statement.epsilon = request.mechanism.steps / 1e6
        return answer


def test_amounts_are_asked_for_once_and_not_without_end():
    ledger = Ledger()
    amounts = Amounts(ledger, account())
    assert amounts.full(1_500_000) == amounts.full(1_500_000) == "1 500 000 units (ε 1.5)"
    assert (amounts.short(1_500_000), amounts.short(10**9)) == ("ε 1.5", "1 000 000 000 units")
    assert (amounts.full(1), amounts.full(0)) == ("1 unit (ε 1e-06)", "0 units")
    for units in range(2, 500):
        amounts.full(units)
    assert len(ledger.asked) == len(set(ledger.asked)) == MOST_ASKED
    assert amounts.full(499) == "499 units"


def entry(kind, data, principal="ann"):
    payload = json.dumps({"kind": kind, "data": data}) if data is not None else ""
    return ledger_pb2.Entry(kind=kind, principal=principal, payload=payload, account="accounts/notes")


RESERVED = {
    "name": "r/1",
    "principal": "ann",
    "job": "trainingJobs/0123456789abcdef",
    "unlimited": False,
    "price": [2_000_000, 1],
}


def tell(*entries, short=False):
    narrator = Narrator("accounts/notes", Amounts(Ledger(), account()), short=short)
    return [narrator.tell(item) for item in entries]


def test_a_history_is_told_with_amounts_jobs_and_people():
    unlimited = {**RESERVED, "name": "r/2", "unlimited": True, "price": [0, 0]}
    assert tell(
        entry("reserve", RESERVED),
        entry("commit", {"name": "r/1", "committed": [500_000, 1]}),
        entry("release", {"name": "r/1"}),
        entry("reserve", unlimited),
        entry("commit", {"name": "r/2", "committed": [0, 0]}),
        entry("grant", {"principal": "bob", "share": [3_000_000, 1]}, "sara"),
        entry("change_cap", {"epsilon": 9.0, "capacity": [1234, 1]}, "otto"),
    ) == [
        "reserve  2 000 000 units (ε 2) for trainingJobs/0123456789abcdef by ann",
        "commit  500 000 units (ε 0.5) for trainingJobs/0123456789abcdef by ann; 1 500 000 units (ε 1.5) given back",
        "release  2 000 000 units (ε 2) given back: trainingJobs/0123456789abcdef by ann never ran",
        "reserve  no budget, without privacy, for trainingJobs/0123456789abcdef by ann",
        "commit  trainingJobs/0123456789abcdef ran without privacy, by ann",
        "grant  a share of 3 000 000 units (ε 3) for bob, by sara",
        "change cap  to ε 9, 1 234 units, approved by otto",
    ]
    assert "trainingJobs/01234567… by" in tell(entry("reserve", RESERVED), short=True)[0]


def test_a_rollback_is_told_to_those_who_may_know_and_to_others():
    charged = {"charges": {"accounts/notes": [2_000_000, 0]}, "justification": "the disk burned"}
    assert tell(entry("resolve_rollback", charged, "sara"), entry("resolve_rollback", None, "sara")) == [
        "resolve rollback  2 000 000 units (ε 2) charged for what was lost, by sara: the disk burned",
        "resolve rollback  what was lost was given up, by sara",
    ]
    assert "restored from an older backup" in tell(entry("rolled_back", None))[0]


def test_what_people_wrote_moves_no_cursor_and_makes_up_no_line():
    sly = {**RESERVED, "job": "x\x1b[2K\n 99  release  all"}
    (told,) = tell(entry("reserve", sly))
    assert told.isprintable()
    assert "\x1b" not in told


@pytest.mark.parametrize("data", [{}, {"name": "unseen"}, {"price": 5}])
@pytest.mark.parametrize("kind", ["reserve", "commit", "release", "open", "grant", "sold"])
def test_what_a_newer_ledger_says_is_at_least_listed(kind, data):
    assert tell(entry(kind, data)) == [f"{kind}  by ann"]


def test_an_analyst_sees_the_accounts_of_the_datasets_once():
    class Asker(Client):
        def __init__(self):
            pass

        def run(self, call):
            assert call.method == "ListAccounts"
            raise NotAllowed("no", "ROLE_DENIED")

        def datasets(self):
            from murmura.api.dataset.v1 import dataset_pb2

            return [RemoteDataset(self, dataset_pb2.Dataset(account=f"accounts/{name}")) for name in ("b", "a", "b")]

        def account(self, name):
            return account(name=name)

    assert [found.name for found in Asker().accounts()] == ["accounts/a", "accounts/b"]
