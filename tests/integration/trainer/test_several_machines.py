"""A private run on several machines: each is a worker process here, and they meet over a real port."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
import safetensors.torch
import torch

from murmura.api.trainer.v1 import trainer_pb2
from murmura.api.trainer.v1 import trainer_service_pb2 as pb
from services.trainer.launching import launching
from tests.support import warm
from tests.support.launchers import until
from tests.support.ports import free_port
from tests.support.recorder import ROWS, SECRET, Recorder, assigned, run, serving, worker

PATIENCE_S = 90.0
Machines = Callable[..., list[warm.Process]]


@pytest.fixture
def assignment(tiny_base_model: Path) -> trainer_pb2.Assignment:
    return assigned(tiny_base_model)


@pytest.fixture
def machines(tmp_path: Path) -> Iterator[Machines]:
    """Start so many of two machines, of one process each."""
    started: list[warm.Process] = []
    served = []

    def start(recorder: Recorder, count: int = 2, port: int | None = None) -> list[warm.Process]:
        serve = serving(recorder)
        served.append(serve)
        endpoint, port = serve.__enter__(), port or free_port()
        for rank in range(count):
            told = {"MURMURA_NODES": "2", "MURMURA_NODE_RANK": str(rank), "GLOO_SOCKET_IFNAME": "lo"}
            told |= {"MURMURA_MASTER_ADDR": "localhost", "MURMURA_MASTER_PORT": str(port)}
            told |= {"MURMURA_SUMMARY_FILE": str(tmp_path / f"summary-{rank}")}
            started.append(worker(endpoint, tmp_path / str(rank), **told))
        return started

    yield start
    for process in started:
        for child in psutil.Process(process.pid).children() if process.poll() is None else []:
            child.kill()
        process.kill()
        process.wait()
    for serve in served:
        serve.__exit__(None, None, None)


def ended(processes: list[warm.Process], folder: Path) -> list[int]:
    codes = [process.wait(120) for process in processes]
    for rank in range(len(processes)):
        assert SECRET not in (folder / str(rank) / "worker.log").read_text()
    return codes


def takes_calls(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("localhost", port), 1):
        return True
    return False


def be_called(port: int) -> None:
    with socket.create_server(("127.0.0.1", port)) as first:
        first.settimeout(PATIENCE_S)
        first.accept()[0].close()


def long_run(assignment: trainer_pb2.Assignment, machines: Machines) -> tuple[Recorder, list[warm.Process]]:
    """Let two machines begin a run that nobody waits for, and take some of its steps."""
    assignment.mechanism.steps = 8_000
    recorder = Recorder(assignment, ROWS)
    both = machines(recorder, 2)
    until(lambda: any(beat.completed_steps for beat in recorder.of(pb.HeartbeatRequest)), PATIENCE_S)
    return recorder, both


def test_two_machines_make_the_adapter_of_one(
    assignment: trainer_pb2.Assignment, tmp_path: Path, machines: Machines
) -> None:
    whole = Recorder(assignment, ROWS)
    assert run(whole, tmp_path, MURMURA_CHECKPOINT_SECONDS="0") == (0, "")
    two = Recorder(assignment, ROWS)
    two.resume_from = whole.checkpoints[0][1]
    assert ended(machines(two, 2), tmp_path) == [0, 0]
    expected, found = (
        safetensors.torch.load(recorder.files()["adapter_model.safetensors"]) for recorder in (whole, two)
    )
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
    assert len([first for first in two.of(pb.UploadAdapterRequest) if first.job]) == 1
    assert [(tmp_path / f"summary-{rank}").exists() for rank in range(2)] == [True, False]


def test_one_that_is_done_does_not_wait_for_the_other_to_say_so(
    assignment: trainer_pb2.Assignment, tmp_path: Path, machines: Machines
) -> None:
    """The Job is deleted as soon as the adapter is there; whoever was told to leave by then says no more."""
    assignment.mechanism.steps = 20
    recorder = Recorder(assignment, ROWS)
    both = machines(recorder, 2)
    until(lambda: recorder.of(pb.UploadAdapterRequest), PATIENCE_S)
    both[1].kill()
    assert both[0].wait(20) in (0, 1)
    assert set(recorder.files()) == {"adapter_config.json", "adapter_model.safetensors"}


def test_when_the_other_is_asked_to_leave_both_do_and_the_first_leaves_a_checkpoint(
    assignment: trainer_pb2.Assignment, tmp_path: Path, machines: Machines
) -> None:
    recorder, both = long_run(assignment, machines)
    both[1].terminate()
    assert ended(both, tmp_path) == [75, 0]
    ((steps, sealed),) = recorder.checkpoints
    assert steps > 0
    assert SECRET.encode() not in sealed
    assert not recorder.of(pb.ReportFailureRequest)


def test_when_the_other_is_lost_the_first_ends_and_leaves_what_follows_to_the_trainer(
    assignment: trainer_pb2.Assignment, tmp_path: Path, machines: Machines
) -> None:
    recorder, both = long_run(assignment, machines)
    for process in (*psutil.Process(both[1].pid).children(), both[1]):
        process.kill()
    assert ended(both, tmp_path) == [1, -9]
    # A job whose machine was lost goes on from its checkpoint; a reported failure would end it.
    assert not recorder.of(pb.ReportFailureRequest)


@pytest.mark.parametrize("rank", [0, 1])
def test_one_that_waits_for_the_other_leaves_at_once(
    assignment: trainer_pb2.Assignment, machines: Machines, rank: int
) -> None:
    recorder, port = Recorder(assignment, ROWS), free_port()
    both = machines(recorder, 2, port)
    waiting, other = both[rank], both[1 - rank]
    other.kill()
    other.wait()
    if rank == 0:
        until(lambda: takes_calls(port), PATIENCE_S)
    else:
        be_called(port)
    assert waiting.poll() is None
    waiting.terminate()
    assert waiting.wait(10) == 75
    assert not recorder.messages


def test_machines_meet_only_where_nobody_listens_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for kind, missing in (("local", "MURMURA_LAUNCHER=kubernetes"), ("kubernetes", "NETWORK_ENCRYPTED=true")):
        monkeypatch.setenv("MURMURA_CLUSTER_IMAGE", "worker")
        with pytest.raises(SystemExit):
            launching(kind, tmp_path, {}, 60.0, nodes=2)
        said = capsys.readouterr().err
        assert said.startswith("MURMURA_WORKER_NODES: ") and missing in said
