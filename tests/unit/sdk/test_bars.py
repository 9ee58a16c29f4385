"""What is seen of a job while it goes on: steps, and what is waited for while there are none."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from murmura import bars
from murmura.api.trainer.v1 import trainer_pb2

PROVISIONING, RUNNING = trainer_pb2.JOB_STATE_PROVISIONING, trainer_pb2.JOB_STATE_RUNNING
NOWHERE = "0/3 nodes are available"


def job(state: trainer_pb2.JobState, stage: str, done: int = 0) -> trainer_pb2.TrainingJob:
    return trainer_pb2.TrainingJob(state=state, stage=stage, completed_steps=done, plan=trainer_pb2.Plan(steps=20))


def lines(*seen: trainer_pb2.TrainingJob, capsys: pytest.CaptureFixture[str]) -> list[str]:
    with bars.JobBar(seen[0]) as bar:
        for one in seen:
            bar.update(one)
    return capsys.readouterr().out.splitlines()


def test_a_log_says_what_is_waited_for(capsys: pytest.CaptureFixture[str]) -> None:
    found = lines(
        job(PROVISIONING, "starting a worker"),
        job(PROVISIONING, f"waiting for a GPU node since 0 s: {NOWHERE}"),
        job(PROVISIONING, f"waiting for a GPU node since 10 s: {NOWHERE}"),
        job(PROVISIONING, "waiting for its container since 0 s"),
        job(RUNNING, "training"),
        job(RUNNING, "training", 1),
        job(RUNNING, "training", 2),
        # The node is lost, and there is no other.
        job(RUNNING, "resuming from step 2, attempt 2", 2),
        job(RUNNING, f"waiting for a GPU node since 0 s: {NOWHERE}", 2),
        job(RUNNING, "training", 4),
        job(trainer_pb2.JOB_STATE_PUBLISHING, "publishing the adapter", 20),
        capsys=capsys,
    )
    assert found == [
        "provisioning: starting a worker",
        f"provisioning: waiting for a GPU node since 0 s: {NOWHERE}",
        "provisioning: waiting for its container since 0 s",
        "running: 0 of 20 steps",
        "running: 2 of 20 steps",
        "running: resuming from step 2, attempt 2",
        f"running: waiting for a GPU node since 0 s: {NOWHERE}",
        "running: 4 of 20 steps",
        "publishing: 20 of 20 steps",
    ]


def test_a_log_says_now_and_then_for_how_long(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bars, "_SAID_AGAIN_S", 0.0)
    waits = [job(PROVISIONING, f"waiting for a GPU node since {minutes} min") for minutes in (1, 2)]
    assert lines(*waits, capsys=capsys) == [
        "provisioning: waiting for a GPU node since 1 min",
        "provisioning: waiting for a GPU node since 2 min",
    ]


def test_a_terminal_shows_it_under_the_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Console(file=io.StringIO(), force_terminal=True, width=80, highlight=False, _environ={"TERM": "xterm"})
    monkeypatch.setattr(bars, "console", terminal)
    bar = bars.JobBar(job(PROVISIONING, ""))

    def shown() -> str:
        with terminal.capture() as capture:
            terminal.print(bar._bar.get_renderable())
        return capture.get()

    bar.update(job(PROVISIONING, f"waiting for a GPU node since 2 min: {NOWHERE}"))
    first, second = shown().splitlines()
    assert "provisioning" in first and "0/20" in first
    assert f"waiting for a GPU node since 2 min: {NOWHERE}" in second
    bar.update(job(RUNNING, "training", 3))
    [only] = shown().splitlines()
    assert "running" in only and "3/20" in only
