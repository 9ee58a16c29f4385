"""What every database of jobs promises, and what a real Redis does when it is away or another trainer comes."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from services.common.errors import MurmuraError
from services.common.redis_checks import RedisUnusable
from services.trainer import jobs
from services.trainer.jobs import Job
from services.trainer.store import Database, JobExists, JobStore, Record
from tests.support.databases import KINDS, Databases
from tests.support.lives import record
from tests.support.redis_server import BINARIES, Proxy


@pytest.fixture(params=KINDS)
def databases(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Databases]:
    made = Databases(request.param, tmp_path)
    yield made
    made.close()


@pytest.fixture(params=BINARIES)
def on_redis(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Databases]:
    made = Databases(request.param, tmp_path)
    yield made
    made.close()


def new(job_id: str) -> Record:
    return record(Job(job_id, "analyst@local", 20, created=1.5))


def ids(records: list[Record]) -> list[str]:
    return [each.job.job_id for each in records]


def test_a_job_is_read_as_it_was_written_also_after_a_crash(databases: Databases) -> None:
    written = new("job")
    everything = dataclasses.replace(
        written.job,
        state=jobs.RUNNING,
        reservation="accounts/ä/reservations/r",
        measured=(0.1, -3.0),
        ending=jobs.Ending(jobs.FAILED, "INTERNAL", None, "so sagt der Cluster: ü"),
        attempt_seconds=1e-3,
    )
    database = databases()
    database.add(written)
    assert database.read("job") == written
    database.update(everything)
    databases.crash()
    for reader in (database, databases()):
        assert reader.read("job") == dataclasses.replace(written, job=everything)
        assert reader.read("other") is None


def test_jobs_come_in_the_order_in_which_they_were_made(databases: Databases) -> None:
    database = databases()
    for job_id in ("c", "a", "b", "d"):
        database.add(new(job_id))
    database.update(dataclasses.replace(new("a").job, state=jobs.SUCCEEDED))
    database.remove("b")
    database.remove("none")
    assert ids(database.unfinished()) == ["c", "d"]
    assert ids(database.newest_first()) == ["d", "a", "c"]
    database.add(new("b"))
    assert ids(database.newest_first()) == ["b", "d", "a", "c"]


def test_more_jobs_than_one_read_takes(databases: Databases) -> None:
    database = databases()
    for number in range(1100):
        database.add(new(str(number)))
    assert ids(database.unfinished()) == [str(number) for number in range(1100)]
    assert ids(database.newest_first()) == [str(number) for number in reversed(range(1100))]


def test_a_job_is_made_once(databases: Databases) -> None:
    database = databases()
    database.add(new("job"))
    with pytest.raises(JobExists):
        database.add(record(Job("job", "somebody@local", 20)))
    found = database.read("job")
    assert found is not None and found.job.owner == "analyst@local"


def test_a_job_that_is_none_stays_none(databases: Databases) -> None:
    database = databases()
    database.update(new("job").job)
    assert (database.read("job"), database.newest_first()) == (None, [])
    database.add(new("job"))
    assert database.unfinished() == [new("job")]


def test_the_first_body_of_a_request_counts_for_whoever_sent_it(databases: Databases) -> None:
    database = databases()
    assert database.first_body("ann", "1", "first") == "first"
    assert database.first_body("ann", "1", "second") == "first"
    assert database.first_body("ben", "1", "second") == "second"
    databases.crash()
    assert databases().first_body("ann", "1", "third") == "first"


def test_what_is_only_noted_is_not_written(databases: Databases) -> None:
    store = JobStore(databases())
    store.add(new("job"))
    store.note(dataclasses.replace(new("job").job, waiting="a GPU node"))
    seen, again = store.get("job"), JobStore(databases()).get("job")
    assert seen is not None and seen.job.waiting == "a GPU node"
    # Whoever lists jobs reads what whoever asks for this one reads.
    assert store.newest_first() == [seen]
    assert again is not None and again.job.waiting == ""


WRITES: dict[str, Callable[[Database], Any]] = {
    "add": lambda database: database.add(new("another")),
    "update": lambda database: database.update(dataclasses.replace(new("job").job, state=jobs.SUCCEEDED)),
    "remove": lambda database: database.remove("job"),
    "first_body": lambda database: database.first_body("ann", "1", "second"),
}


@pytest.mark.parametrize("write", WRITES)
def test_a_trainer_that_was_superseded_changes_nothing(on_redis: Databases, write: str) -> None:
    old = on_redis()
    old.add(new("job"))
    now = on_redis()
    now.first_body("ann", "1", "first")
    with pytest.raises(MurmuraError) as caught:
        WRITES[write](old)
    assert (caught.value.reason, on_redis.superseded) == ("DEPENDENCY_UNAVAILABLE", 1)
    assert now.unfinished() == [new("job")] == now.newest_first()
    assert now.first_body("ann", "1", "other") == "first"
    assert on_redis.superseded == 1


@pytest.mark.parametrize("write", WRITES)
def test_a_write_whose_answer_is_lost_is_done_once(on_redis: Databases, write: str) -> None:
    assert on_redis.server is not None
    between = Proxy(on_redis.server.port)
    try:
        database = on_redis.on_redis(between.port)
        database.add(new("job"))
        between.lose_reply_to = b"EVAL"
        WRITES[write](database)
        assert between.lost == 1
    finally:
        between.close()
    there = on_redis()
    if write == "add":
        assert ids(there.newest_first()) == ["another", "job"]
    elif write == "remove":
        assert there.newest_first() == []
    elif write == "update":
        assert (there.unfinished(), ids(there.newest_first())) == ([], ["job"])
    else:
        assert there.first_body("ann", "1", "other") == "second"


def test_a_write_that_nobody_answers_for_is_looked_up(on_redis: Databases) -> None:
    """A server that is slow takes one write after all and never sees the other; what is remembered follows it."""
    assert on_redis.server is not None
    database = on_redis.on_redis(timeout_s=0.2, quiet_s=0.0)
    store = JobStore(database)
    store.add(new("job"))
    changed = dataclasses.replace(new("job").job, reservation="accounts/a/reservations/r")
    on_redis.server.pause()
    with pytest.raises(MurmuraError):
        store.update(changed)
    with pytest.raises(MurmuraError):
        store.add(new("another"))
    with pytest.raises(MurmuraError):
        store.get("job")
    assert store.unfinished_ids() == ["job", "another"]
    on_redis.server.go_on()
    while b"reservations/r" not in on_redis.server.client().hget("murmura:trainer:job:job", "facts"):
        time.sleep(0.01)
    found = store.get("job")
    assert found is not None and found.job == changed
    assert store.get("another") is None, "its connection was a new one, which never got beyond questions"
    assert store.unfinished_ids() == ["job"]


def test_a_server_that_is_away_keeps_nobody_waiting_twice(on_redis: Databases) -> None:
    assert on_redis.server is not None
    database = on_redis.on_redis(timeout_s=0.3, quiet_s=60.0)
    on_redis.server.pause()
    begun = time.monotonic()
    for _ in range(50):
        with pytest.raises(MurmuraError) as caught:
            database.read("job")
        assert caught.value.retry_after_s
    assert time.monotonic() - begun < 3.0
    on_redis.server.go_on()


def test_jobs_of_another_deployment_are_not_seen_and_nothing_expires(on_redis: Databases) -> None:
    assert on_redis.server is not None
    one, two = on_redis.on_redis(prefix="one:trainer"), on_redis.on_redis(prefix="two:trainer")
    one.add(new("job"))
    one.first_body("ann", "1", "first")
    assert (two.read("job"), two.newest_first()) == (None, [])
    two.add(new("job"))
    client = on_redis.server.client()
    assert all(client.ttl(key) == -1 for key in client.keys("*"))


def test_nothing_is_written_to_a_server_that_has_lost_the_jobs(on_redis: Databases) -> None:
    """What one life remembers would otherwise be mixed with a server that begins anew."""
    assert on_redis.server is not None
    database = on_redis()
    database.add(new("job"))
    on_redis.server.client().flushall()
    with pytest.raises(MurmuraError):
        database.add(new("another"))
    assert on_redis.superseded == 1
    assert on_redis.server.client().keys("*") == []


def test_a_server_that_may_lose_jobs_is_refused(on_redis: Databases) -> None:
    assert on_redis.server is not None
    on_redis.server.client().config_set("appendfsync", "everysec")
    with pytest.raises(RedisUnusable, match=r"may not keep jobs\. appendfsync is everysec"):
        on_redis()
