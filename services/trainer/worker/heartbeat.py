"""Heartbeats: a thread that says, on a fixed clock, how many steps were last reported.

The clock is fixed and the steps move at fixed intervals, because the moment at which a step ends depends on how many
rows were drawn into it: a finer report would be a side channel.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import grpc

from murmura.api.trainer.v1 import trainer_service_pb2 as pb
from services.trainer.worker.wire import Token

PERIOD_S = 1.0
REPORTS = 50
# The job has ended without this worker, or another one has taken it over.
_OVER = (grpc.StatusCode.ABORTED, grpc.StatusCode.FAILED_PRECONDITION, grpc.StatusCode.NOT_FOUND)


def report_interval(steps: int) -> int:
    """Return after how many steps progress is reported."""
    return max(1, steps // REPORTS)


class Heartbeat:
    """Reports steps and listens for a wish to stop.

    Args:
        stub: the trainer's WorkerService.
        token: renewed here.
        job: `trainingJobs/<id>`.
        attempt: of this worker.
        steps: planned.

    Attributes:
        on_stop: called once, in the heartbeat's thread, when the job is told to stop.
    """

    def __init__(self, stub: Any, token: Token, job: str, attempt: int, steps: int) -> None:
        self._stub = stub
        self._token = token
        self._job = job
        self._attempt = attempt
        self._interval = report_interval(steps)
        self.reported_steps = 0
        self.on_stop: Callable[[], None] | None = None
        self._stop = threading.Event()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="heartbeat", daemon=True)
        self.completed_steps = 0

    def __enter__(self) -> Heartbeat:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join(timeout=10)

    def on_step(self, completed: int) -> bool:
        """Note a finished step; returns whether the job was told to stop."""
        self.completed_steps = completed
        if completed % self._interval == 0:
            self.reported_steps = completed
        return self.told

    @property
    def told(self) -> bool:
        """Whether the job was told to stop, as far as was heard."""
        return self._stop.is_set()

    def should_stop(self) -> bool:
        """Ask once more, now: a worker that is asked to leave wants to know whether its job is to end."""
        self._once()
        return self.told

    def _beat(self) -> None:
        while not self._ended.wait(PERIOD_S):
            self._once()

    def _once(self) -> None:
        request = pb.HeartbeatRequest(job=self._job, attempt=self._attempt, completed_steps=self.reported_steps)
        try:
            answer = self._stub.Heartbeat(request, timeout=10, metadata=self._token.metadata())
        except grpc.RpcError as error:
            status: Any = error
            if status.code() in _OVER:
                self._tell()
            elif status.code() == grpc.StatusCode.UNAUTHENTICATED:
                # The trainer was away for longer than a token lives; it leaves a new one.
                self._token.read_again()
            return
        self._token.text = answer.job_token
        if answer.stop:
            self._tell()

    def _tell(self) -> None:
        if not self.told:
            self._stop.set()
            if (on_stop := self.on_stop) is not None:
                on_stop()
