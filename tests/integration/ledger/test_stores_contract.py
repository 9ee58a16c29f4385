"""What every store promises, asked of each: SQLite, and Redis in each version that is there."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from services.ledger.journal import GENESIS, Head, HeadMoved, JournalBroken, replay
from services.ledger.redis_store import RedisStore
from services.ledger.sqlite_store import SqliteStore
from tests.support.journal import chain
from tests.support.redis_server import BINARIES, RedisServer


@pytest.fixture(params=["sqlite", *BINARIES])
def opens(request, tmp_path):
    """Opens the same journal anew at each call; `.crash()` ends what keeps it as a power cut would."""
    stores, server = [], None
    if request.param != "sqlite":
        server = RedisServer(BINARIES[request.param], tmp_path / "redis")

    def open_store():
        stores.append(RedisStore(server.url) if server else SqliteStore(tmp_path / "journal.sqlite3"))
        return stores[-1]

    def crash():
        if server:
            server.kill()
            server.start()

    def spoil(sequence):
        """Put something that is no entry in an entry's place, past the store."""
        if server:
            server.client().lset("murmura:ledger:journal", sequence - 1, "nonsense")
        else:
            connection = stores[-1]._connection
            connection.execute("DROP TRIGGER no_update")
            connection.execute("UPDATE journal SET payload = 'nonsense' WHERE sequence = ?", (sequence,))

    open_store.crash, open_store.spoil = crash, spoil
    yield open_store
    for store in stores:
        store.close()
    if server:
        server.kill()


def test_a_new_journal_is_empty(opens):
    store = opens()
    assert list(store.read()) == []
    assert store.snapshot() is None


def test_what_was_appended_is_read_in_order_and_by_others(opens):
    store, entries = opens(), chain(5)
    store.append(Head(), entries[:2])
    store.append(Head.of(entries[1]), entries[2:])
    for reader in (store, opens()):
        assert list(reader.read()) == entries
        assert list(reader.read(3)) == entries[3:]
        assert list(reader.read(1, 2)) == entries[1:3]
        assert list(reader.read(5)) == list(reader.read(99)) == []
    replay(store.read())


def test_large_appends_and_long_journals(opens):
    store, entries = opens(), chain(2300, text="x" * 300)
    for first in range(0, len(entries), 256):
        store.append(Head.of(entries[first - 1]) if first else Head(), entries[first : first + 256])
    assert list(store.read()) == entries
    assert list(store.read(1, 2100)) == entries[1:2101]


@pytest.mark.parametrize(
    "wrong",
    [
        pytest.param(lambda entries: Head(), id="the beginning"),
        pytest.param(lambda entries: Head.of(entries[0]), id="an older entry"),
        pytest.param(lambda entries: Head(2, "f" * 64), id="another entry"),
        pytest.param(lambda entries: Head(3, entries[1].hash), id="a later entry"),
        pytest.param(lambda entries: Head(2, GENESIS), id="no hash"),
    ],
)
def test_an_append_after_another_head_writes_nothing(opens, wrong):
    store, entries = opens(), chain(4)
    store.append(Head(), entries[:2])
    with pytest.raises(HeadMoved):
        store.append(wrong(entries), entries[2:])
    assert list(store.read()) == entries[:2]
    store.append(Head.of(entries[1]), entries[2:])
    assert list(store.read()) == entries


def test_an_empty_journal_has_one_head(opens):
    with pytest.raises(HeadMoved):
        opens().append(Head(1, "f" * 64), chain(1))
    assert list(opens().read()) == []


def test_of_many_who_append_at_once_one_wins(opens):
    stores, entries = [opens() for _ in range(4)], chain(1)
    stores[0].append(Head(), entries)
    head = Head.of(entries[0])
    for turn in range(12):
        rivals = [chain(1, head, f"{turn}/{number}") for number in range(4)]

        def attempt(number, head=head, rivals=rivals):
            try:
                stores[number].append(head, rivals[number])
            except HeadMoved:
                return None
            return rivals[number]

        with ThreadPoolExecutor(4) as threads:
            won = [rival for rival in threads.map(attempt, range(4)) if rival]
        assert len(won) == 1
        entries += won[0]
        head = Head.of(entries[-1])
    assert list(stores[1].read()) == entries


def test_what_was_appended_survives_a_crash(opens):
    store, entries = opens(), chain(6)
    store.append(Head(), entries[:3])
    store.save_snapshot("a snapshot")
    opens.crash()
    again = opens()
    assert list(again.read()) == entries[:3]
    assert again.snapshot() == "a snapshot"
    store.append(Head.of(entries[2]), entries[3:])
    assert list(again.read()) == entries


def test_a_snapshot_takes_the_place_of_the_one_before(opens):
    store = opens()
    for text in ("one", "zwei\nü"):
        store.save_snapshot(text)
    assert opens().snapshot() == "zwei\nü"
    assert list(store.read()) == []


def test_what_is_no_entry_breaks_the_chain_there(opens):
    store = opens()
    store.append(Head(), chain(4))
    opens.spoil(3)
    with pytest.raises(JournalBroken) as caught:
        replay(store.read())
    assert caught.value.sequence == 3
