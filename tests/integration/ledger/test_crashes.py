"""Rounds of `kill -9` under load: what was acknowledged is there, nothing is there twice, nothing is overspent.

`MURMURA_CRASH_ROUNDS` says how many rounds each store gets.
"""

from __future__ import annotations

import collections
import os
import random
import threading
import time
import uuid

import grpc
import pytest

from murmura.api.ledger.v1 import ledger_pb2, ledger_service_pb2
from services.ledger.journal import replay
from services.ledger.redis_store import RedisStore
from services.ledger.sqlite_store import SqliteStore
from tests.support.launchers import until

ROUNDS = int(os.environ.get("MURMURA_CRASH_ROUNDS", "6"))
CLIENTS = 4
SMALL = 40 + 2 * ROUNDS
PATIENCE_S = 60.0
_LATER = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)


class Load:
    """Clients that reserve and commit without pause, and repeat with the same request id until they are answered.

    Attributes:
        acknowledged: request id to what was answered: kind, reservation, units.
        refused: how often the small account was found empty.
        retries: how often a request was sent again.
        problems: what should not have happened.
    """

    def __init__(self, ledger):
        self._ledger = ledger
        self._metadata = ledger.who("service")
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._witness = None
        self.acknowledged, self.refused, self.retries, self.problems = {}, 0, 0, []
        options = [("grpc.initial_reconnect_backoff_ms", 50), ("grpc.max_reconnect_backoff_ms", 200)]
        self._channel = grpc.insecure_channel(
            ledger.endpoint, options=[*options, ("grpc.min_reconnect_backoff_ms", 50)]
        )
        self.stub = ledger.Stub(self._channel)
        self._threads = [threading.Thread(target=self._run, args=(number,)) for number in range(CLIENTS)]

    def start(self):
        for name, pool in (("large", 10**12), ("small", SMALL)):
            request = ledger_service_pb2.OpenAccountRequest(
                request_id=str(uuid.uuid4()), lineage=name, epsilon=100, delta=1e-5, truncation_pool_e18=pool
            )
            self.send(self.stub.OpenAccount, request)
        for thread in self._threads:
            thread.start()

    def stop(self):
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def close(self):
        self._stop.set()
        self._channel.close()

    def send(self, method, request):
        """Send until there is an answer."""
        deadline = time.monotonic() + PATIENCE_S
        while True:
            if hasattr(request, "witness") and self._witness is not None:
                # The newest receipt that anyone saw: a ledger that ran ahead of its store would now be caught.
                request.witness.CopyFrom(self._witness)
            try:
                answer = method(request, metadata=self._metadata, timeout=5)
            except grpc.RpcError as error:
                if error.code() not in _LATER or time.monotonic() > deadline:
                    raise
                with self._lock:
                    self.retries += 1
                time.sleep(0.03)
                continue
            with self._lock:
                if self._witness is None or answer.receipt.sequence > self._witness.sequence:
                    self._witness = answer.receipt
            return answer

    def _run(self, number):
        chance = random.Random(number)
        try:
            while not self._stop.is_set():
                self._one_job(chance)
                time.sleep(0.003)
        except Exception as problem:
            self.problems.append(problem)

    def _one_job(self, chance):
        request = ledger_service_pb2.CreateReservationRequest(
            request_id=str(uuid.uuid4()),
            account=f"accounts/{'small' if chance.random() < 0.2 else 'large'}",
            principal="ann",
            job="trainingJobs/one",
            kind=ledger_pb2.RESERVATION_KIND_PRIVATE,
            truncation_delta_e18=1,
        )
        # The unit itself, so that pricing takes no time.
        request.mechanism.noise_multiplier, request.mechanism.sampling_probability, request.mechanism.steps = 1000, 1, 1
        try:
            reservation = self.send(self.stub.CreateReservation, request).reservation
        except grpc.RpcError as error:
            if error.code() != grpc.StatusCode.FAILED_PRECONDITION or "truncation pool" not in error.details():
                raise
            self.refused += 1
            return
        self._note(request, ("reserve", reservation.name, 1))
        if chance.random() < 0.2:
            again = self.send(self.stub.CreateReservation, request).reservation
            assert again.name == reservation.name
        if chance.random() < 0.8:
            request = ledger_service_pb2.CommitReservationRequest(request_id=str(uuid.uuid4()), name=reservation.name)
            committed = self.send(self.stub.CommitReservation, request).reservation
            assert committed.committed.units == 1
            self._note(request, ("commit", reservation.name, 1))

    def _note(self, request, what):
        with self._lock:
            self.acknowledged[request.request_id] = what

    def until_served(self):
        """Do one job more; return how long it took."""
        started = time.monotonic()
        self._one_job(random.Random(0))
        assert not self.problems, self.problems
        return time.monotonic() - started


def check(load, entries):
    """Compare what clients were told with what is in the journal."""
    state, head = replay(entries)
    events = [entry.event()[0] for entry in entries]
    assert max(collections.Counter(event.request_id for event in events).values()) == 1
    written = {event.request_id: (event.kind, event.data.get("name")) for event in events}
    assert {request_id: what[:2] for request_id, what in load.acknowledged.items()}.items() <= written.items()
    resolved = collections.Counter(event.data["name"] for event in events if event.kind == "commit")
    assert max(resolved.values()) == 1
    for name, account in state.accounts.items():
        own = [reservation for reservation in state.reservations.values() if reservation.account == name]
        assert account.spent.units == sum(reservation.state == "COMMITTED" for reservation in own)
        assert account.pending.units == sum(reservation.state == "PENDING" for reservation in own)
        assert account.left.units >= 0
        assert account.left.truncation_e18 >= 0
    assert state.accounts["accounts/small"].left.truncation_e18 == 0
    assert load.refused > 0
    return state, head


@pytest.mark.slow
@pytest.mark.timeout(120 + 10 * ROUNDS)
def test_rounds_of_kill_9_over_sqlite(ledger, request):
    process = ledger()
    load = Load(process)
    request.addfinalizer(load.close)
    journal = process.directory / "state" / "journal.sqlite3"
    go_through_rounds(process, load, lambda: SqliteStore(journal))


@pytest.mark.slow
@pytest.mark.timeout(120 + 10 * ROUNDS)
def test_rounds_of_kill_9_over_redis(ledger, redis_server, request):
    server = redis_server()
    process = ledger(STORE="redis", REDIS_URL=server.url, REDIS_TIMEOUT_S="2")
    load = Load(process)
    request.addfinalizer(load.close)
    go_through_rounds(process, load, lambda: RedisStore(server.url), server)


def go_through_rounds(process, load, open_store, server=None):
    """Kill the ledger at random moments; where there is a server, kill that every other time."""
    process.launch()
    load.start()
    chance, away = random.Random(0), {"ledger": [], "redis": []}
    for number in range(ROUNDS):
        load.until_served()
        time.sleep(chance.uniform(0.0, 0.4))
        if server and number % 2:
            server.kill()
            time.sleep(chance.uniform(0.0, 0.2))
            server.start()
            away["redis"].append(load.until_served())
        else:
            process.kill()
            process.launch()
            away["ledger"].append(load.until_served())
    # However busy the machine: what is shown is that a pool is spent to its end and no further.
    until(lambda: load.refused or load.problems, PATIENCE_S)
    load.stop()
    assert not load.problems, load.problems
    verified = load.send(load.stub.VerifyJournal, ledger_service_pb2.VerifyJournalRequest())
    shown = [
        load.send(load.stub.GetAccount, ledger_service_pb2.GetAccountRequest(name=f"accounts/{lineage}")).account
        for lineage in ("large", "small")
    ]
    process.kill()
    store = open_store()
    entries = list(store.read())
    store.close()
    state, head = check(load, entries)
    assert (verified.entries, verified.receipt.head_hash) == (head.sequence, head.hash)
    for account in shown:
        durable = state.accounts[account.name]
        assert (account.pending.units, account.spent.units) == (durable.pending.units, durable.spent.units)
    for victim, times in away.items():
        if times:
            print(f"\n{victim} killed {len(times)} times; next answer after {sum(times) / len(times):.2f} s on average")
    print(
        f"{len(entries)} entries, {len(load.acknowledged)} acknowledged, {load.retries} sent again, "
        f"{load.refused} refused for lack of budget"
    )
