"""Training jobs that lose what runs them: workers that die or are believed dead, a trainer that is killed."""

from __future__ import annotations

import signal
import time
from typing import Any

import grpc

from murmura.api.common.v1 import privacy_pb2
from murmura.api.trainer.v1 import trainer_pb2, trainer_service_pb2, trainer_service_pb2_grpc
from services.common.config import ServiceSettings
from tests.support.training_jobs import LONG, cancel, refusal, stepped

# Calls that are under way when a trainer is told to stop have so long.
GRACE_S: float = ServiceSettings.model_fields["stop_grace_s"].default


def kill(cluster: Any, name: str, attempt: int, how: signal.Signals) -> None:
    """End the worker of an attempt once it has begun."""

    def at_work() -> bool:
        job = cluster.job(name)
        return bool(job.attempt == attempt and job.stage == "training" and cluster.workers(name))

    cluster.wait(at_work, f"the worker of attempt {attempt} is at work")
    for worker in cluster.workers(name):
        worker.send_signal(how)


def test_a_job_outlives_its_workers_and_is_charged_once(cluster: Any, notes: list[dict[str, Any]]) -> None:
    dataset = cluster.register(notes)
    name = cluster.create(cluster.spec(dataset, epochs=250.0)).name
    cluster.wait(lambda: stepped(cluster, name), "the worker takes steps")
    kill(cluster, name, 1, signal.SIGTERM)
    cluster.wait(lambda: cluster.job(name).attempt == 2, "another worker takes over")
    sealed = list((cluster.state("trainer") / "checkpoints").glob("*.sealed"))
    assert [path.stem for path in sealed] == [name.removeprefix("trainingJobs/")]
    assert b"xylophone" not in sealed[0].read_bytes()
    kill(cluster, name, 2, signal.SIGKILL)
    job = cluster.ended(name)
    assert job.state == trainer_pb2.JOB_STATE_SUCCEEDED, job
    assert job.attempt == 3
    assert cluster.account(dataset.account).spent == job.plan.statement.price
    assert cluster.account(dataset.account).pending == privacy_pb2.Price()
    assert not sealed[0].exists()


def test_a_worker_believed_dead_can_write_nothing(cluster: Any, notes: list[dict[str, Any]]) -> None:
    dataset = cluster.register(notes)
    name = cluster.create(cluster.spec(dataset, **LONG)).name
    cluster.wait(lambda: stepped(cluster, name), "the worker takes steps")
    folder = cluster.state("trainer") / "workers" / name.removeprefix("trainingJobs/")
    old = (("authorization", f"Bearer {(folder / 'token').read_text()}"),)
    kill(cluster, name, 1, signal.SIGKILL)
    cluster.wait(lambda: cluster.job(name).attempt == 2, "another worker takes over")
    new = (("authorization", f"Bearer {(folder / 'token').read_text()}"),)
    workers = trainer_service_pb2_grpc.WorkerServiceStub(grpc.insecure_channel(cluster.endpoints["trainer"]))
    job = {"job": name, "attempt": 1}
    calls = {
        "Heartbeat": trainer_service_pb2.HeartbeatRequest(**job, completed_steps=5),
        "SaveCheckpoint": iter([trainer_service_pb2.SaveCheckpointRequest(**job, completed_steps=5, data=b"old")]),
        "UploadAdapter": iter(
            [trainer_service_pb2.UploadAdapterRequest(**job, completed_steps=cluster.job(name).plan.steps)]
        ),
        "ReportFailure": trainer_service_pb2.ReportFailureRequest(
            **job, attested_steps=1, cause=trainer_service_pb2.FAILURE_CAUSE_STOPPED
        ),
        "GetAssignment": trainer_service_pb2.GetAssignmentRequest(job=name),
    }
    for method, request in calls.items():
        found, _ = refusal(lambda m=method, r=request: getattr(workers, m)(r, metadata=old, timeout=20))
        assert found == "WORKER_FENCED", method
    # Nor with the token that the launcher left for its successor.
    saving = iter([trainer_service_pb2.SaveCheckpointRequest(**job, completed_steps=5, data=b"old")])
    assert refusal(lambda: workers.SaveCheckpoint(saving, metadata=new, timeout=20))[0] == "WORKER_FENCED"
    cancel(cluster, name)
    assert cluster.ended(name).state == trainer_pb2.JOB_STATE_CANCELLED


def test_a_job_whose_workers_keep_dying_fails_and_is_charged_in_full(cluster: Any, notes: list[dict[str, Any]]) -> None:
    dataset = cluster.register(notes)
    name = cluster.create(cluster.spec(dataset, **LONG)).name
    for attempt in (1, 2, 3):
        kill(cluster, name, attempt, signal.SIGKILL)
    job = cluster.ended(name)
    assert job.state == trainer_pb2.JOB_STATE_FAILED
    assert job.error.message
    assert not job.adapter
    assert cluster.reservation(job.reservation).committed == job.plan.statement.price


def test_killed_trainer_finds_its_worker_again(cluster: Any, notes: list[dict[str, Any]]) -> None:
    dataset = cluster.register(notes)
    name = cluster.create(cluster.spec(dataset, epochs=250.0)).name
    cluster.wait(lambda: stepped(cluster, name), "the worker takes steps")
    (worker,) = cluster.workers(name)
    cluster.kill("trainer")
    cluster.start("trainer")
    assert worker.is_running()
    job = cluster.ended(name)
    assert job.state == trainer_pb2.JOB_STATE_SUCCEEDED, job
    assert job.attempt == 1
    account = cluster.account(dataset.account)
    assert account.spent == job.plan.statement.price
    assert account.pending == privacy_pb2.Price()


def test_a_trainer_that_is_told_to_stop_does_not_wait_for_whoever_watches(
    cluster: Any, notes: list[dict[str, Any]]
) -> None:
    """A watch lasts as long as its job: a trainer that waited for its end would be away for all of its grace."""
    name = cluster.create(cluster.spec(cluster.register(notes), **LONG)).name
    cluster.wait(lambda: stepped(cluster, name), "the worker takes steps")
    request = trainer_service_pb2.WatchTrainingJobRequest(name=name)
    watching = cluster.trainer.WatchTrainingJob(request, metadata=cluster.who(), timeout=60)
    next(watching)
    asked = time.monotonic()
    cluster.processes["trainer"].terminate()
    assert refusal(lambda: list(watching))[0] == "DEPENDENCY_UNAVAILABLE"
    assert cluster.processes["trainer"].wait(30) == 0
    assert time.monotonic() - asked < GRACE_S / 2
    cluster.start("trainer")
    cancel(cluster, name)
    assert cluster.ended(name).state == trainer_pb2.JOB_STATE_CANCELLED
