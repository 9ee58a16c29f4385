"""The trainer dies between any two steps, or what keeps its jobs does; what was begun is finished, and charged once."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest

from murmura.api.ledger.v1 import ledger_pb2, ledger_service_pb2
from services.common.errors import MurmuraError
from services.trainer import jobs
from services.trainer.control import Control
from services.trainer.launcher import Observation
from tests.support.databases import KINDS, Databases, Failing
from tests.support.lives import RESERVATION, Crash, Workers, World, crash, record


@pytest.fixture(params=KINDS)
def databases(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Databases]:
    made = Databases(request.param, tmp_path)
    yield made
    made.close()


def _commit_before(world: World, control: Control) -> None:
    world.ledger.before = crash


def _commit_after(world: World, control: Control) -> None:
    world.ledger.after = crash


def _artifact_before(world: World, control: Control) -> None:
    control._artifacts.publish = lambda staged, provenance: crash()  # type: ignore[method-assign]


def _artifact_half(world: World, control: Control) -> None:
    # The manifest is not signed yet, the directory not renamed.
    class Pen:
        def sign(self, data: bytes) -> bytes:
            raise Crash

    control._artifacts._key = Pen()  # type: ignore[assignment]


def _artifact_after(world: World, control: Control) -> None:
    control.store.update = lambda job: crash()  # type: ignore[method-assign]


def _succeeded_after(world: World, control: Control) -> None:
    control.checkpoints.remove = lambda job_id: crash()  # type: ignore[method-assign]


PUBLICATION = [
    _commit_before,
    _commit_after,
    _artifact_before,
    _artifact_half,
    _artifact_after,
    _succeeded_after,
]


@pytest.mark.parametrize("failpoint", PUBLICATION, ids=lambda f: f.__name__)
async def test_a_publication_survives_a_crash_anywhere(
    databases: Databases, tmp_path: Path, failpoint: Callable[[World, Control], None]
) -> None:
    world = World(tmp_path, databases)
    world.stage()
    control = world.life()
    control.store.add(record(world.running()))
    control.store.update(jobs.uploaded(world.running(), 1))
    failpoint(world, control)
    with pytest.raises(Crash):
        await control.reconcile("job")
    databases.crash()
    # Nobody sees an adapter that is not paid for.
    if world.ledger.state != ledger_pb2.RESERVATION_STATE_COMMITTED:
        assert not (tmp_path / "artifacts" / "job").exists()

    world.ledger.before = world.ledger.after = lambda: None
    world.workers = Workers(Observation(exists=True, alive=False))
    control = world.life()
    for _ in range(2):
        await control.reconcile("job")
    found = control.store.get("job")
    assert found is not None and found.job.state == jobs.SUCCEEDED
    assert world.ledger.kinds() == ["Commit"]
    request = ledger_service_pb2.CommitReservationRequest.FromString(world.ledger.events[0][1])
    assert not request.HasField("attested_steps"), "what has an adapter is charged in full"
    place = tmp_path / "artifacts" / "job"
    manifest = (place / "manifest.json").read_bytes()
    world.key.public_key().verify((place / "manifest.sig").read_bytes(), manifest)
    assert json.loads(manifest)["adapter"] == "adapters/job"
    assert [path.name for path in (tmp_path / "artifacts").iterdir()] == ["job"]
    assert not (tmp_path / "staging" / "job").exists()


@pytest.mark.parametrize("failpoint", [_commit_before, _commit_after, _artifact_after], ids=lambda f: f.__name__)
@pytest.mark.parametrize("started", [False, True])
async def test_a_settlement_survives_a_crash_anywhere(
    databases: Databases, tmp_path: Path, started: bool, failpoint: Callable[[World, Control], None]
) -> None:
    world = World(tmp_path, databases)
    control = world.life()
    reserved = jobs.reserved(jobs.Job("job", "analyst@local", 20), RESERVATION)
    job = jobs.begun(reserved, 1, 5.0) if started else reserved
    control.store.add(record(job))
    control.store.update(jobs.ending(jobs.cancelling(job), "STOPPED", 4))
    failpoint(world, control)
    with pytest.raises(Crash):
        await control.reconcile("job")
    databases.crash()

    world.ledger.before = world.ledger.after = lambda: None
    control = world.life()
    found = control.store.get("job")
    assert found is not None and found.job.state not in jobs.TERMINAL
    with pytest.raises(jobs.IllegalTransition):
        jobs.begun(found.job, 1, 6.0)
    for _ in range(2):
        await control.reconcile("job")
    found = control.store.get("job")
    assert found is not None and found.job.state == jobs.CANCELLED
    assert world.ledger.kinds() == ["Commit" if started else "Release"]


async def test_an_interrupted_creation_is_finished_and_reserved_once(databases: Databases, tmp_path: Path) -> None:
    world = World(tmp_path, databases)
    world.workers.seen = Observation(exists=False, alive=False)
    control = world.life()
    control.store.add(record(jobs.Job("job", "analyst@local", 20)))
    world.ledger.after = crash
    with pytest.raises(Crash):
        await control.reconcile("job")
    world.ledger.after = lambda: None
    databases.crash()
    control = world.life()
    await control.reconcile("job")
    assert world.workers.calls == []
    await control.reconcile("job")
    assert world.workers.calls == ["ensure"]
    assert world.ledger.kinds() == ["Create"]


def unavailable() -> None:
    raise MurmuraError(grpc.StatusCode.UNAVAILABLE, "DEPENDENCY_UNAVAILABLE", "Away.", {"service": "redis"})


@pytest.mark.parametrize("failure", [unavailable, crash])
@pytest.mark.parametrize("done", [False, True], ids=["undone", "done"])
@pytest.mark.parametrize("at", [1, 2, 3, 4], ids=["reserved", "cancelling", "ending", "ended"])
async def test_a_write_that_fails_is_made_up_for(
    databases: Databases, tmp_path: Path, at: int, done: bool, failure: Callable[[], None]
) -> None:
    """Nobody knows whether it was done; either way the job comes to its end and is settled once."""
    world = World(tmp_path, databases)
    world.workers.seen = Observation(exists=False, alive=False)
    world.life().store.add(record(jobs.Job("job", "analyst@local", 20)))
    failing = Failing(databases(), at, done, failure)
    world.open_database = lambda: failing  # type: ignore[assignment, return-value]
    control = world.life()
    left = tmp_path / "checkpoints" / "job.sealed"
    left.write_bytes(b"sealed")

    async def step() -> bool:
        found = control.store.get("job")
        assert found is not None
        if "ensure" in world.workers.calls and not found.job.cancel_requested:
            control.save(jobs.cancelling(found.job))
        else:
            await control.reconcile("job")
        return found.job.state in jobs.TERMINAL

    failed, over = 0, False
    while not over:
        try:
            over = await step()
        except MurmuraError:
            failed += 1
        except Crash:
            failed += 1
            databases.crash()
            world.open_database = databases
            control = world.life()
    assert failed == 1
    found = control.store.get("job")
    assert found is not None and found.job.state == jobs.CANCELLED
    assert world.ledger.kinds() == ["Create", "Release"]
    assert control.store.unfinished_ids() == []
    if failure is unavailable:
        assert not left.exists(), "what a job leaves is cleared away although its end was not known to be written"
