"""While a worker prepares, a wish that it leave is heeded at once; from its first step on it is only noted."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from murmura.api.trainer.v1 import trainer_service_pb2 as pb
from services.trainer.worker.heartbeat import Heartbeat
from services.trainer.worker.preparing import preparing
from services.trainer.worker.saving import Evicted, Stopped
from services.trainer.worker.wire import Token


class Trainer:
    """Answers heartbeats."""

    stop = False

    def Heartbeat(self, request: Any, **_: Any) -> pb.HeartbeatResponse:
        return pb.HeartbeatResponse(stop=self.stop, job_token="t")


@pytest.fixture
def noted() -> Iterator[list[int]]:
    """The signals that went to whoever listened before."""
    found: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, _: found.append(number))
    yield found
    signal.signal(signal.SIGTERM, before)


@pytest.fixture
def trainer() -> Trainer:
    return Trainer()


@pytest.fixture
def heartbeat(trainer: Trainer) -> Heartbeat:
    return Heartbeat(trainer, Token("t", str), "trainingJobs/one", 1, 10)


def terminate() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def load_with_a_library_that_takes_every_failure_for_its_own() -> None:
    try:
        terminate()
        time.sleep(0.1)
    except Exception:
        pytest.fail("swallowed")


@pytest.mark.parametrize(("stop", "expected"), [(False, Evicted), (True, Stopped)])
def test_who_is_asked_to_leave_goes_at_once(
    heartbeat: Heartbeat, trainer: Trainer, noted: list[int], stop: bool, expected: type[Exception]
) -> None:
    trainer.stop = stop
    evicted = threading.Event()
    with pytest.raises(expected), preparing(heartbeat, evicted, True):
        load_with_a_library_that_takes_every_failure_for_its_own()
        pytest.fail("stayed")
    assert evicted.is_set() and not noted
    terminate()
    assert noted == [signal.SIGTERM], "whoever listened before does so again"


@pytest.mark.parametrize("alone", [True, False])
def test_a_job_that_is_told_to_stop_breaks_a_long_wait_off(
    heartbeat: Heartbeat, trainer: Trainer, noted: list[int], alone: bool
) -> None:
    since = time.monotonic()
    with heartbeat, pytest.raises(Stopped), preparing(heartbeat, threading.Event(), alone):
        trainer.stop = True
        threading.Event().wait(30)
    assert time.monotonic() - since < 15
    assert not noted


def test_what_was_said_before_anybody_listened_counts(heartbeat: Heartbeat, trainer: Trainer, noted: list[int]) -> None:
    evicted = threading.Event()
    evicted.set()
    with pytest.raises(Evicted), preparing(heartbeat, evicted, True):
        pytest.fail("began")
    trainer.stop = True
    assert heartbeat.should_stop()
    with pytest.raises(Stopped), preparing(heartbeat, threading.Event(), True):
        pytest.fail("began")


def test_from_the_first_step_on_it_is_only_noted(heartbeat: Heartbeat, trainer: Trainer, noted: list[int]) -> None:
    evicted = threading.Event()
    with preparing(heartbeat, evicted, True) as begin:
        begin()
        terminate()
        trainer.stop = True
        assert heartbeat.should_stop()
    assert noted == [signal.SIGTERM] and not evicted.is_set()


def test_one_of_several_leaves_with_the_others_only(heartbeat: Heartbeat, noted: list[int]) -> None:
    with preparing(heartbeat, threading.Event(), False):
        terminate()
    assert noted == [signal.SIGTERM]


def test_a_wish_that_comes_as_the_first_step_begins_ends_nothing(heartbeat: Heartbeat, noted: list[int]) -> None:
    with preparing(heartbeat, threading.Event(), True) as begin:
        interrupt = heartbeat.on_stop
        begin()
        assert interrupt is not None
        interrupt()
        time.sleep(0.1)
    assert not noted
