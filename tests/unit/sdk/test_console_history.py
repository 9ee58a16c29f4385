"""The console's fold of the journal is the ledger's own, whatever happened; what waits for a decision is found."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import settings

from murmura.api.ledger.v1 import ledger_pb2
from murmura.budget import Budget
from murmura.console import drawing
from murmura.console.activity import of_budget
from murmura.console.history import Journals, Shares, Standing, proposals, standings, stopped
from murmura.errors import InvalidInput
from services.ledger.messages import entry_message
from tests.unit.ledger.test_interleavings import Interleavings

ACCOUNT = "accounts/a"
BEGIN = datetime(2026, 1, 1, tzinfo=UTC)


class Console(Interleavings):
    """After whatever the ledger was asked, the console says what the ledger says."""

    def teardown(self) -> None:
        entries = [entry_message(entry) for entry in self.entries]
        for name, account in self.state.accounts.items():
            own = [entry for entry in entries if entry.account in ("", name)]
            last = standings(own, name)[-1]
            found = (last.capacity, last.spent, last.pending)
            assert found == (account.capacity.units, account.spent.units, account.pending.units)
            waiting = {
                key: change["epsilon"]
                for key, change in self.state.cap_changes.items()
                if change["account"] == name and not change["approver"]
            }
            assert {item.name: item.epsilon for item in proposals(own)} == waiting
            assert stopped(own) == (self.state.rollback is not None)
            assert len(of_budget(own, name, "datasets/d")) == len(own)


Console.TestCase.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
TestConsole = Console.TestCase


def entry(sequence: int, kind: str, account: str = ACCOUNT, /, **data: object) -> ledger_pb2.Entry:
    payload = json.dumps({"data": data})
    made = ledger_pb2.Entry(sequence=sequence, kind=kind, account=account, payload=payload, hash=f"{sequence:064x}")
    made.create_time.FromDatetime(BEGIN + timedelta(hours=sequence))
    return made


class Ledger:
    """A ledger that counts what it sends, and shows everything to stewards alone."""

    def __init__(self, entries: list[ledger_pb2.Entry], steward: bool = True) -> None:
        self.entries, self.steward, self.sent = entries, steward, 0

    def all(self, call, field):
        if not (call.request.account or self.steward):
            raise InvalidInput("account: must be set")
        wanted = [one for one in self.entries if one.sequence > call.request.after_sequence]
        found = [one for one in wanted if call.request.account in ("", one.account)]
        self.sent += len(found)
        return found


@pytest.mark.parametrize("steward", [True, False])
def test_an_entry_is_asked_for_once(steward: bool) -> None:
    ledger = Ledger([entry(number, "open", capacity=[9, 1]) for number in range(1, 6)], steward)
    journals = Journals(ledger)
    assert len(journals.of(ACCOUNT)) == 5
    ledger.entries.append(entry(6, "open", capacity=[9, 1]))
    assert [one.sequence for one in journals.of(ACCOUNT)] == [1, 2, 3, 4, 5, 6]
    # The newest that was known comes again, to see that it is still the same.
    assert ledger.sent == 5 + 2
    assert journals.of("accounts/other") == []


def test_a_page_asks_once_for_all_budgets() -> None:
    ledger = Ledger([entry(1, "open", capacity=[9, 1]), entry(2, "open", "accounts/b", capacity=[9, 1])])
    look = Journals(ledger).look()
    assert [one.sequence for name in (ACCOUNT, "accounts/b", ACCOUNT) for one in look(name)] == [1, 2, 1]
    assert ledger.sent == 2


def test_a_ledger_that_was_restored_is_read_anew() -> None:
    ledger = Ledger([entry(number, "open", capacity=[9, 1]) for number in range(1, 6)])
    journals = Journals(ledger)
    journals.of(ACCOUNT)
    other = entry(3, "open", capacity=[7, 1])
    other.hash = "f" * 64
    ledger.entries = [*ledger.entries[:2], other]
    assert journals.of(ACCOUNT) == ledger.entries
    ledger.entries = ledger.entries[:1]
    assert journals.of(ACCOUNT) == ledger.entries


def test_amounts_are_shares_of_the_cap() -> None:
    assert Shares(200).full(50) == "25 % of the cap"
    assert Shares(0).full(1234) == "1 234 units"


def test_deeds_name_their_place_in_the_journal() -> None:
    opened = entry(1, "open", terms={"epsilon": 2, "delta_e18": 10**12, "unlimited_allowed": False}, capacity=[100, 1])
    reserved = entry(
        2, "reserve", name="r", principal="ann\x1b[2J", job="trainingJobs/j", unlimited=False, price=[25, 1]
    )
    deeds = of_budget([opened, reserved], ACCOUNT, "datasets/d")
    assert [deed.proof for deed in deeds] == ["1:" + "0" * 12, "2:" + "0" * 12]
    assert deeds[1].words == "25 % of the cap for trainingJobs/j by ann [2J"


def test_the_figure_falls_and_says_so() -> None:
    steps = [
        Standing(BEGIN, 100),
        Standing(BEGIN + timedelta(days=1), 100, 0, 40),
        Standing(BEGIN + timedelta(days=2), 100, 30),
    ]
    figure = drawing.burn_down(steps, BEGIN + timedelta(days=4))
    assert "Left of the cap over time: 100 % at first, 70 % now." in figure
    points = figure.partition('class="left-line" points="')[2].partition('"')[0].split()
    heights = [float(point.partition(",")[2]) for point in points]
    assert len(points) == 6 and heights == sorted(heights[:4]) + heights[4:] and heights[4] < heights[3]
    assert "2026-01-05" in figure
    assert drawing.burn_down([], BEGIN) == ""


def test_a_budget_that_was_just_opened_has_a_figure() -> None:
    assert "100 % now" in drawing.burn_down([Standing(BEGIN, 100)], BEGIN)


def test_a_bar_says_in_words_what_it_draws() -> None:
    account = ledger_pb2.Account(name="accounts/a")
    account.capacity.units, account.spent.units, account.pending.units = 100, 20, 5
    drawn = drawing.bar(Budget(account))
    assert 'aria-label="20 % spent, 5 % pending, 75 % left"' in drawn
    assert 'class="spent" width="20"' in drawn and 'x="20" width="5"' in drawn
