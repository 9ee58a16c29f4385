"""What a store must do, and what SQLite does when its process is killed."""

import asyncio
import os
import signal
import sqlite3
import subprocess
import sys
import time

import grpc
import pytest

from services.common.errors import MurmuraError
from services.ledger.journal import Head, HeadMoved, link, replay
from services.ledger.sqlite_store import SqliteStore
from services.ledger.state import Event, Refusal
from services.ledger.writer import Writer

TERMS = {"unlimited_allowed": False, "unlimited_principals": [], "epsilon": 1.0}


def opening(capacity=1000):
    return Event("open", "accounts/a", "open", "b", "s", {"terms": TERMS, "capacity": [capacity, capacity]})


def reserving(request_id, units=1):
    data = {"name": f"r/{request_id}", "principal": "ann", "job": "j", "unlimited": False, "mechanism": {}}
    return Event("reserve", "accounts/a", request_id, "b", "ann", {**data, "price": [units, 1]})


def test_append_and_read(tmp_path):
    store = SqliteStore(tmp_path / "j.sqlite3")
    first = link(Head(), opening(), 1.0)
    second = link(Head(1, first.hash), reserving("1"), 2.0)
    store.append(Head(), [first, second])
    assert list(store.read()) == [first, second]
    assert list(store.read(after=1)) == [second]


def test_an_append_that_expects_another_head_writes_nothing(tmp_path):
    store = SqliteStore(tmp_path / "j.sqlite3")
    first = link(Head(), opening(), 1.0)
    store.append(Head(), [first])
    with pytest.raises(HeadMoved):
        store.append(Head(), [link(Head(), reserving("1"), 2.0)])
    assert list(store.read()) == [first]


def test_the_file_refuses_changes(tmp_path):
    store = SqliteStore(tmp_path / "j.sqlite3")
    store.append(Head(), [link(Head(), opening(), 1.0)])
    other = sqlite3.connect(tmp_path / "j.sqlite3")
    for statement in ("UPDATE journal SET payload = ''", "DELETE FROM journal"):
        with pytest.raises(sqlite3.IntegrityError):
            other.execute(statement)
    assert other.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    assert (tmp_path / "j.sqlite3").stat().st_mode & 0o077 == 0


async def test_concurrent_commands_share_appends_and_never_overspend(tmp_path):
    store = SqliteStore(tmp_path / "j.sqlite3")
    appends = []
    original = store.append
    store.append = lambda head, entries: (appends.append(len(entries)), original(head, entries))[1]
    writer = Writer(store)
    await writer.start()
    await writer.submit(opening(capacity=50))
    results = await asyncio.gather(*(writer.submit(reserving(str(i))) for i in range(200)), return_exceptions=True)
    assert sum(isinstance(result, Head) for result in results) == 50
    assert sum(isinstance(result, Refusal) for result in results) == 150
    assert len(appends) < 30
    await writer.stop()
    state, head = replay(store.read())
    assert (state, head) == (writer.state, writer.head)
    assert state.accounts["accounts/a"].pending.units == 50


class Failing:
    """A store whose next append fails, before or after it wrote."""

    def __init__(self, store, *, wrote):
        self._store, self._wrote, self.broken = store, wrote, False

    def append(self, expected, entries):
        if self.broken and self._wrote:
            self._store.append(expected, entries)
        if self.broken:
            self.broken = False
            raise OSError("disk full")
        self._store.append(expected, entries)

    def __getattr__(self, name):
        return getattr(self._store, name)


async def test_an_append_that_failed_is_answered_and_leaves_nothing(tmp_path):
    store = Failing(SqliteStore(tmp_path / "j.sqlite3"), wrote=False)
    writer = Writer(store)
    await writer.start()
    await writer.submit(opening())
    store.broken = True
    with pytest.raises(MurmuraError) as caught:
        await writer.submit(reserving("1", 600))
    assert (caught.value.code, caught.value.reason) == (grpc.StatusCode.UNAVAILABLE, "DEPENDENCY_UNAVAILABLE")
    assert "disk full" not in str(caught.value)
    assert writer.state.accounts["accounts/a"].pending.units == 0
    await writer.submit(reserving("2", 600))
    assert writer.state.accounts["accounts/a"].pending.units == 600
    await writer.stop()


async def test_an_append_whose_answer_was_lost_happened_once(tmp_path):
    store = Failing(SqliteStore(tmp_path / "j.sqlite3"), wrote=True)
    writer = Writer(store)
    await writer.start()
    await writer.submit(opening())
    store.broken = True
    head = await writer.submit(reserving("1", 600))
    assert head.sequence == 2
    assert await writer.submit(reserving("1", 600)) == head
    assert writer.state.accounts["accounts/a"].pending.units == 600
    await writer.stop()


async def test_a_store_that_lost_entries_stops_everything(tmp_path):
    full, old = SqliteStore(tmp_path / "full.sqlite3"), SqliteStore(tmp_path / "old.sqlite3")
    writer = Writer(full)
    await writer.start()
    await writer.submit(opening())
    old.append(Head(), list(full.read()))
    await writer.submit(reserving("1", 600))
    writer._store = old
    for request_id in ("2", "3"):
        with pytest.raises(MurmuraError) as caught:
            await writer.submit(reserving(request_id, 100))
        assert (caught.value.code, caught.value.reason) == (grpc.StatusCode.DATA_LOSS, "JOURNAL_BROKEN")
    assert len(list(old.read())) == 1
    await writer.stop()


def test_what_was_acknowledged_survives_kill_9(tmp_path):
    """A process that acknowledges on its standard output is killed again and again at some moment."""
    program = (
        "import asyncio, sys\n"
        "from pathlib import Path\n"
        "from services.ledger.state import Event\n"
        "from services.ledger.sqlite_store import SqliteStore\n"
        "from services.ledger.writer import Writer\n"
        "async def main():\n"
        "    writer = Writer(SqliteStore(Path(sys.argv[1]))); await writer.start()\n"
        "    n = len(writer.state.requests)\n"
        "    terms = {'unlimited_allowed': False, 'unlimited_principals': [], 'epsilon': 1.0}\n"
        "    if n == 0:\n"
        "        await writer.submit(Event('open', 'accounts/a', 'open', 'b', 's', "
        "{'terms': terms, 'capacity': [10**9, 10**9]}))\n"
        "    while True:\n"
        "        n += 1\n"
        "        data = {'name': f'r/{n}', 'principal': 'ann', 'job': 'j', 'unlimited': False, 'mechanism': {}}\n"
        "        await writer.submit(Event('reserve', 'accounts/a', str(n), 'b', 'ann', {**data, 'price': [1, 1]}))\n"
        "        print(n, flush=True)\n"
        "asyncio.run(main())\n"
    )
    path, acknowledged = tmp_path / "j.sqlite3", set()
    for round_number in range(5):
        child = subprocess.Popen([sys.executable, "-c", program, str(path)], stdout=subprocess.PIPE, text=True)
        for _ in range(20):
            acknowledged.add(child.stdout.readline().strip())
        time.sleep(0.003 * round_number)
        os.kill(child.pid, signal.SIGKILL)
        acknowledged |= set(child.stdout.read().split("\n")[:-1])
        child.wait()
    state, _ = replay(SqliteStore(path).read())
    assert acknowledged <= set(state.requests)
    assert state.accounts["accounts/a"].pending.units == len(state.reservations)
