"""Workers as processes: started once, found again by a trainer that has died in between."""

from __future__ import annotations

import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from services.trainer.launcher import WorkOrder
from services.trainer.local_launcher import LocalLauncher

ORDER = WorkOrder("trainingJobs/job", "job", 1, "a-token")


def launcher(directory: Path) -> LocalLauncher:
    # Nobody listens there, so the worker waits for its trainer: patiently, as it should.
    nowhere = {"MURMURA_TRAINER_ENDPOINT": "127.0.0.1:1", "MURMURA_DATASET_ENDPOINT": "127.0.0.1:1"}
    return LocalLauncher(directory, nowhere)


def workers(directory: Path) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        try:
            token_file = process.environ().get("MURMURA_JOB_TOKEN_FILE", "")
            if token_file.startswith(str(directory)) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.Error:
            continue
    return found


def only_one(directory: Path) -> bool:
    time.sleep(0.5)  # a process shows what it was started with a moment after it is there
    return len(workers(directory)) == 1


def wait(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path.resolve()
    for process in workers(tmp_path.resolve()):
        process.kill()


def test_starts_one_worker_however_often_it_is_asked(place: Path) -> None:
    first = launcher(place)
    assert not first.observe("job", 1).exists
    for _ in range(3):
        first.ensure(ORDER)
    assert only_one(place)
    assert first.observe("job", 1).alive
    assert not first.observe("job", 2).exists


def test_the_next_life_adopts_the_worker_and_can_stop_it(place: Path) -> None:
    launcher(place).ensure(ORDER)
    wait(lambda: len(workers(place)) == 1)
    second = launcher(place)
    assert second.observe("job", 1).alive
    second.ensure(ORDER)
    assert only_one(place)
    second.kill("job", 1)
    wait(lambda: not second.observe("job", 1).alive)
    assert second.observe("job", 1).exists


def test_a_worker_that_was_started_but_not_named_is_not_doubled(place: Path) -> None:
    """The trainer died between starting a worker and writing its process file."""
    launcher(place).ensure(ORDER)
    wait(lambda: len(workers(place)) == 1)
    (place / "job" / "process.json").unlink()
    second = launcher(place)
    second.ensure(ORDER)
    assert only_one(place)
    assert second.observe("job", 1).alive


def test_the_token_is_the_owners_alone_and_goes_with_the_job(place: Path) -> None:
    made = launcher(place)
    made.ensure(ORDER)
    token = place / "job" / "token"
    assert stat.S_IMODE(token.stat().st_mode) == 0o600
    made.renew("job", "another")
    assert token.read_text() == "another"
    assert stat.S_IMODE(token.stat().st_mode) == 0o600
    made.kill("job", 1)
    made.collect("job")
    assert not token.exists()
    assert (place / "job" / "worker.log").exists()


def test_a_worker_learns_nothing_of_the_trainers_own(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MURMURA_SIGNING_KEY_FILE", "/somewhere/trainer.pem")
    launcher(place).ensure(ORDER)
    wait(lambda: len(workers(place)) == 1)
    told = {name for name in workers(place)[0].environ() if name.startswith("MURMURA_")}
    assert told == {
        "MURMURA_JOB",
        "MURMURA_ATTEMPT",
        "MURMURA_JOB_TOKEN_FILE",
        "MURMURA_SUMMARY_FILE",
        "MURMURA_TRAINER_ENDPOINT",
        "MURMURA_DATASET_ENDPOINT",
    }
