"""The ledger's rules beside a naive model that only keeps lists and sums, over thousands of interleavings.

Every command's verdict is predicted, reason included; after every step the books must be what the lists add up to.
"""

import json

import hypothesis.strategies as st
from hypothesis import settings
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, multiple, rule

from services.ledger import snapshots
from services.ledger.drafts import Draft
from services.ledger.journal import Entry, Head, link, replay
from services.ledger.ledger import decide, fold
from services.ledger.state import Amount, Event, Refusal, State

ACCOUNTS = st.sampled_from(["accounts/a", "accounts/b"])
PEOPLE = st.sampled_from(["ann", "bob", "eve"])
UNITS = st.integers(-1, 60)
POOL = 8
FOUND = {"head_hash": "f" * 64, "ledger_sequence": 1, "ledger_time": 1.0}


class Naive:
    """What happened, as lists; every question is answered by adding up."""

    def __init__(self):
        self.caps, self.terms, self.shares, self.jobs, self.proposals = {}, {}, {}, {}, {}
        self.extra, self.debts, self.served = {}, {}, {}
        self.stopped, self.epoch = None, 0

    def used(self, account, who=None):
        units, pool = (0, 0) if who else self.extra.get(account, (0, 0))
        for job in self.jobs.values():
            if job["account"] == account and who in (None, job["who"]):
                part = {"PENDING": job["price"], "COMMITTED": job["charged"], "RELEASED": (0, 0)}[job["state"]]
                units, pool = units + part[0], pool + part[1]
        return units, pool

    def verdict(self, kind, account, request_id, body, who, data):
        """Return the reason of a refusal, "again" for a request that was served, or nothing."""
        if request_id in self.served:
            return "again" if self.served[request_id] == (kind, body) else "REQUEST_ID_REUSED"
        if kind == "rolled_back":
            further = self.stopped is None or (data["epoch"], data["sequence"]) > self.stopped[:2]
            return "" if further else "again"
        if kind == "resolve_rollback":
            place = (data["epoch"], data["sequence"])
            return "" if self.stopped == place else "RESOURCE_NOT_FOUND"
        if self.stopped:
            return "LEDGER_BEHIND_WITNESS"
        if kind == "open":
            if account not in self.caps:
                return ""
            return "again" if self.terms[account] == data["terms"] else "RESOURCE_EXISTS"
        if account not in self.caps:
            return "RESOURCE_NOT_FOUND"
        return getattr(self, f"_{kind}")(account, who, data)

    def _grant(self, account, who, data):
        if data["share"][0] <= 0:
            return "TARGET_UNREACHABLE"
        if not within(data["share"], self.caps[account]):
            return "BUDGET_EXHAUSTED"
        return "" if within(self.used(account, data["principal"]), data["share"]) else "GRANT_EXHAUSTED"

    def _reserve(self, account, who, data):
        terms, price = self.terms[account], data["price"]
        if data["unlimited"]:
            allowed = terms["unlimited_allowed"] and data["principal"] in terms["unlimited_principals"]
            return "" if allowed else "UNLIMITED_NOT_ALLOWED"
        if price[0] <= 0:
            return "TARGET_UNREACHABLE"
        if not within(plus(self.used(account), price), self.caps[account]):
            return "BUDGET_EXHAUSTED"
        if any(name == account for name, _ in self.shares):
            share = self.shares.get((account, data["principal"]))
            if share is None or not within(plus(self.used(account, data["principal"]), price), share):
                return "GRANT_EXHAUSTED"
        return ""

    def _commit(self, account, who, data):
        if missing := self._release(account, who, data):
            return missing
        fits = within(data["committed"], self.jobs[data["name"]]["price"])
        return "" if fits and min(data["committed"]) >= 0 else "COMMIT_EXCEEDS_RESERVATION"

    def _release(self, account, who, data):
        if data["name"] not in self.jobs:
            return "RESOURCE_NOT_FOUND"
        return "" if self.jobs[data["name"]]["state"] == "PENDING" else "RESERVATION_RESOLVED"

    def _propose_cap(self, account, who, data):
        return "" if data["capacity"][0] > 0 else "TARGET_UNREACHABLE"

    def _change_cap(self, account, who, data):
        proposal = self.proposals.get(data["name"])
        if proposal is None or proposal["account"] != account:
            return "RESOURCE_NOT_FOUND"
        if proposal["approved"]:
            return "RESOURCE_EXISTS"
        return "SECOND_PRINCIPAL_NEEDED" if proposal["by"] == who else ""

    def happen(self, kind, account, request_id, body, who, data):
        """Write down what was allowed."""
        self.served[request_id] = (kind, body)
        if kind == "open":
            self.caps[account], self.terms[account] = data["capacity"], data["terms"]
            self.extra[account] = self.debts.pop(account, (0, 0))
        elif kind == "grant":
            self.shares[account, data["principal"]] = data["share"]
        elif kind == "reserve":
            job = {"account": account, "who": data["principal"], "price": data["price"], "unlimited": data["unlimited"]}
            self.jobs[data["name"]] = {**job, "state": "PENDING", "charged": (0, 0)}
        elif kind == "commit":
            self.jobs[data["name"]] |= {"state": "COMMITTED", "charged": data["committed"]}
        elif kind == "release":
            self.jobs[data["name"]]["state"] = "RELEASED"
        elif kind == "propose_cap":
            self.proposals[data["name"]] = {"account": account, "by": who, "approved": False}
        elif kind == "change_cap":
            self.proposals[data["name"]]["approved"] = True
            self.caps[account] = data["capacity"]
            self.terms[account] = {**self.terms[account], "epsilon": data["epsilon"]}
        elif kind == "rolled_back":
            self.stopped = (data["epoch"], data["sequence"])
        else:
            for name, cap in self.caps.items():
                left = tuple(max(0, a - b) for a, b in zip(cap, self.used(name), strict=True))
                self.extra[name] = plus(self.extra[name], data["charges"].get(name, left))
            for name, charge in data["charges"].items():
                if name not in self.caps:
                    self.debts[name] = plus(self.debts.get(name, (0, 0)), charge)
            self.stopped, self.epoch = None, self.epoch + 1


def within(one, other):
    return one[0] <= other[0] and one[1] <= other[1]


def plus(one, other):
    return one[0] + other[0], one[1] + other[1]


class Interleavings(RuleBasedStateMachine):
    jobs, proposals, requests = Bundle("jobs"), Bundle("proposals"), Bundle("requests")

    def __init__(self):
        super().__init__()
        self.naive, self.state, self.head, self.entries, self.count = Naive(), State(), Head(), [], 0
        self.ask("open", "accounts/a", "eve", {"terms": terms(1.0), "capacity": [100, POOL]})

    def ask(self, kind, account, who, data, request_id=None, body="body"):
        """Let both decide; returns the request, to be sent again."""
        self.count += 1
        request = (kind, account, request_id or f"q{self.count}", body, who, data)
        expected = self.naive.verdict(*request)
        draft = Draft(self.state)
        try:
            event = decide(draft.state, Event(*request))
        except Refusal as refusal:
            assert refusal.reason == expected
            return request
        assert expected == ("again" if event is None else "")
        if event is not None:
            entry = link(self.head, event, float(self.count))
            fold(draft.state, event, float(self.count))
            draft.adopt()
            self.head = Head.of(entry)
            self.entries.append(entry)
            self.naive.happen(*request)
        return request

    @rule(target=requests, account=ACCOUNTS, epsilon=st.sampled_from([1.0, 2.0]))
    def open(self, account, epsilon):
        return self.ask("open", account, "eve", {"terms": terms(epsilon), "capacity": [100, POOL]})

    @rule(target=requests, account=ACCOUNTS, who=PEOPLE, units=st.integers(-1, 120), pool=st.integers(0, POOL))
    def grant(self, account, who, units, pool):
        return self.ask("grant", account, "eve", {"principal": who, "share": [units, pool]})

    @rule(target=jobs, account=ACCOUNTS, who=PEOPLE, units=UNITS, pool=st.integers(0, 2), unlimited=st.booleans())
    def reserve(self, account, who, units, pool, unlimited):
        name = f"{account}/reservations/{self.count}"
        price = [0, 0] if unlimited else [units, pool]
        data = {"name": name, "principal": who, "job": "j", "unlimited": unlimited, "mechanism": {}, "price": price}
        self.ask("reserve", account, who, data)
        return name

    @rule(target=requests, name=jobs, units=st.integers(-1, 70), pool=st.integers(-1, 3))
    def commit(self, name, units, pool):
        return self.ask("commit", account_of(name), "service", {"name": name, "committed": [units, pool]})

    @rule(target=requests, name=jobs)
    def expire_after_a_start(self, name):
        price = self.naive.jobs.get(name, {"price": [1, 1]})["price"]
        return self.ask("commit", account_of(name), "service", {"name": name, "committed": list(price)})

    @rule(target=requests, name=jobs)
    def release(self, name):
        return self.ask("release", account_of(name), "service", {"name": name})

    @rule(target=proposals, account=ACCOUNTS, who=PEOPLE, units=st.integers(-1, 200))
    def propose(self, account, who, units):
        name = f"{account}/capChanges/{self.count}"
        data = {"name": name, "epsilon": 2.0, "capacity": [units, POOL], "justification": "why"}
        self.ask("propose_cap", account, who, data)
        return name, units

    @rule(target=requests, proposal=proposals, account=ACCOUNTS, who=PEOPLE)
    def approve(self, proposal, account, who):
        name, units = proposal
        data = {"name": name, "epsilon": 2.0, "capacity": [units, POOL]}
        return self.ask("change_cap", account, who, data)

    @rule(target=requests, sequence=st.integers(1, 9), ahead=st.integers(0, 1))
    def find_a_rollback(self, sequence, ahead):
        data = {**FOUND, "sequence": sequence, "epoch": self.naive.epoch + ahead}
        return self.ask("rolled_back", "", "trainer", data)

    @rule(
        target=requests,
        sequence=st.integers(0, 9),
        charges=st.dictionaries(ACCOUNTS, st.tuples(st.integers(0, 50), st.integers(0, 3)).map(list)),
    )
    def resolve_a_rollback(self, sequence, charges):
        # 0 stands for what was found, so that most decisions are about that.
        epoch, found = self.naive.stopped or (self.naive.epoch, sequence)
        data = {"head_hash": "f" * 64, "sequence": sequence or found, "epoch": epoch}
        return self.ask("resolve_rollback", "", "eve", {**data, "charges": charges, "justification": "why"})

    @rule(target=requests, request=requests, body=st.sampled_from(["body", "body", "other"]))
    def send_again(self, request, body):
        kind, account, request_id, _, who, data = request
        self.ask(kind, account, who, data, request_id, body)
        return multiple()

    @rule(request=requests)
    def append_that_is_lost(self, request):
        """What was decided and never written leaves no trace."""
        before = snapshots.dump(self.state, self.head)
        draft = Draft(self.state)
        try:
            event = decide(draft.state, Event(request[0], request[1], "lost", *request[3:]))
        except Refusal:
            event = None
        if event is not None:
            fold(draft.state, event, 1.0)
        assert snapshots.dump(self.state, self.head) == before

    @rule(from_snapshot=st.booleans(), cut=st.integers(0, 100))
    def crash_and_replay(self, from_snapshot, cut):
        stored = [Entry(**json.loads(json.dumps(vars(entry)))) for entry in self.entries]
        state, head = replay(stored[:cut])
        if from_snapshot:
            found = snapshots.parse(snapshots.dump(state, head))
            assert found is not None
            state, head = found
        state, head = replay(stored[cut:], state, head)
        assert (state, head) == (self.state, self.head)
        self.state = state

    @invariant()
    def books_are_what_the_lists_add_up_to(self):
        assert set(self.state.accounts) == set(self.naive.caps)
        for name, account in self.state.accounts.items():
            used = self.naive.used(name)
            assert (account.capacity, account.spent + account.pending) == (
                Amount(*self.naive.caps[name]),
                Amount(*used),
            )
            waiting = [
                job["price"] for job in self.naive.jobs.values() if (job["account"], job["state"]) == (name, "PENDING")
            ]
            assert account.pending == Amount(sum(price[0] for price in waiting), sum(price[1] for price in waiting))
            ran = [job for job in self.naive.jobs.values() if job["account"] == name and job["state"] == "COMMITTED"]
            assert account.unlimited_jobs == sum(job["unlimited"] for job in ran)
            assert min(account.pending.units, account.spent.units) >= 0
        for (name, who), share in self.naive.shares.items():
            grant = self.state.grants[name, who]
            assert (grant.share, grant.charged) == (Amount(*share), Amount(*self.naive.used(name, who)))
            assert grant.charged.fits(grant.share)
        assert len(self.state.grants) == len(self.naive.shares)
        states = {name: reservation.state for name, reservation in self.state.reservations.items()}
        assert states == {name: job["state"] for name, job in self.naive.jobs.items()}
        stopped = (self.state.rollback.epoch, self.state.rollback.sequence) if self.state.rollback else None
        assert (stopped, self.state.epoch) == (self.naive.stopped, self.naive.epoch)

    @invariant()
    def no_account_is_overspent_by_its_jobs(self):
        # Only a lower cap, or what was lost and charged afterwards, can leave less than nothing.
        lowered = any(proposal["approved"] for proposal in self.naive.proposals.values())
        for account in self.state.accounts.values():
            assert lowered or self.naive.epoch or account.left.units >= 0 <= account.left.truncation_e18


def terms(epsilon):
    return {"unlimited_allowed": True, "unlimited_principals": ["ann"], "epsilon": epsilon}


def account_of(name):
    return "/".join(name.split("/")[:2])


Interleavings.TestCase.settings = settings(max_examples=300, stateful_step_count=40, deadline=None)
TestInterleavings = Interleavings.TestCase
