"""A start from a snapshot is the start from the whole journal, only quicker."""

import dataclasses

import pytest

from services.ledger import snapshots, writer
from services.ledger.journal import Head, JournalBroken, link, replay
from services.ledger.sqlite_store import SqliteStore
from services.ledger.state import Amount, Event, State

TERMS = {"unlimited_allowed": True, "unlimited_principals": ["ann"], "epsilon": 1.0}


def history():
    """Events that fill every part of the state."""

    def event(kind, request_id, data, account="accounts/a", principal="ann"):
        return Event(kind, account, request_id, f"body of {request_id}", principal, data)

    def reserve(name, units):
        data = {"name": name, "principal": "ann", "job": "j", "unlimited": units == 0}
        return event("reserve", name, {**data, "mechanism": {"steps": 3}, "price": [units, min(units, 1)]})

    rollback = {"sequence": 40, "head_hash": "f" * 64, "epoch": 0, "ledger_sequence": 6, "ledger_time": 6.5}
    charges = {"accounts/a": [1, 1], "accounts/gone": [7, 0]}
    cap = {"name": "c/1", "epsilon": 2.0, "capacity": [200, 20], "justification": "more"}
    yield event("open", "1", {"terms": TERMS, "capacity": [100, 10]})
    yield event("grant", "2", {"principal": "ann", "share": [60, 6]})
    yield reserve("r/1", 20)
    yield reserve("r/2", 5)
    yield reserve("r/3", 0)
    yield event("commit", "3", {"name": "r/1", "committed": [15, 1]})
    yield event("release", "4", {"name": "r/2"})
    yield event("propose_cap", "5", cap)
    yield event("change_cap", "6", cap, principal="bob")
    yield event("rolled_back", "7", rollback, account="")
    yield event("resolve_rollback", "8", {**rollback, "charges": charges, "justification": "burned"}, account="")
    yield event("rolled_back", "9", {**rollback, "epoch": 1}, account="")


@pytest.fixture
def store(tmp_path):
    store, head, entries = SqliteStore(tmp_path / "j.sqlite3"), Head(), []
    for number, event in enumerate(history()):
        entries.append(link(head, event, float(number)))
        head = Head.of(entries[-1])
    store.append(Head(), entries)
    return store


def test_every_part_of_the_state_comes_back(store):
    state, head = replay(store.read())
    for part in dataclasses.fields(State):
        assert getattr(state, part.name), f"{part.name} is empty, so this proves nothing of it"
    assert snapshots.parse(snapshots.dump(state, head)) == (state, head)


@pytest.mark.parametrize("place", range(1, 13))
def test_a_snapshot_and_the_rest_are_the_whole(store, place):
    whole = replay(store.read())
    store.save_snapshot(snapshots.dump(*replay(store.read(0, place))))
    read = []
    original = store.read
    store.read = lambda after=0, most=None: read.append(after) or original(after, most)
    assert snapshots.load(store) == whole
    assert read == [place - 1, place]


def test_a_damaged_snapshot_is_no_snapshot(store):
    whole = replay(store.read())
    text = snapshots.dump(*replay(store.read(0, 6)))
    for damaged in ("", "nothing", text[:-5], text.replace('"units": 15', '"units": 14'), text.replace("ann", "bob")):
        assert damaged != text
        store.save_snapshot(damaged)
        assert snapshots.load(store) == whole


def test_a_snapshot_of_another_journal_is_no_snapshot(store, tmp_path):
    other = SqliteStore(tmp_path / "other.sqlite3")
    other.append(Head(), [link(Head(), next(history()), 99.0)])
    store.save_snapshot(snapshots.dump(*replay(other.read())))
    assert snapshots.load(store) == replay(store.read())


def test_what_follows_a_snapshot_is_checked(store):
    store.save_snapshot(snapshots.dump(*replay(store.read(0, 5))))
    original = store.read
    store.read = lambda after=0, most=None: [
        dataclasses.replace(entry, payload=entry.payload.replace("[15,", "[14,")) for entry in original(after, most)
    ]
    with pytest.raises(JournalBroken) as caught:
        snapshots.load(store)
    assert caught.value.sequence == 6


async def test_the_writer_saves_one_now_and_then(tmp_path, monkeypatch):
    monkeypatch.setattr(writer, "ENTRIES_PER_SNAPSHOT", 4)
    store = SqliteStore(tmp_path / "j.sqlite3")
    first = writer.Writer(store)
    await first.start()
    for event in list(history())[:7]:
        await first.submit(event)
    await first.stop()
    found = snapshots.parse(store.snapshot())
    assert found is not None and found[1].sequence == 4
    second = writer.Writer(store)
    await second.start()
    assert (second.state, second.head) == (first.state, first.head)
    assert await second.hash_at(2) == next(iter(store.read(1, 1))).hash
    assert await second.hash_at(8) == ""
    await second.stop()


async def test_a_snapshot_that_cannot_be_saved_stops_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(writer, "ENTRIES_PER_SNAPSHOT", 1)
    store = SqliteStore(tmp_path / "j.sqlite3")
    store.save_snapshot = lambda text: 1 / 0
    made = writer.Writer(store)
    await made.start()
    for event in list(history())[:3]:
        await made.submit(event)
    assert made.state.accounts["accounts/a"].pending == Amount(20, 1)
    await made.stop()
