"""When a run is saved, and where it is taken up again.

Saves happen at the steps at which progress is reported anyway, and not more often than once in an interval of
seconds: their times tell whoever sees the traffic between worker and trainer no more than heartbeats do to everybody.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from enum import IntEnum
from typing import Any

import grpc

from murmura.api.trainer.v1 import trainer_service_pb2 as pb
from services.trainer.worker.checkpoint import seal, unseal
from services.trainer.worker.execution import Execution
from services.trainer.worker.heartbeat import Heartbeat, report_interval
from services.trainer.worker.ranks import Ranks
from services.trainer.worker.runs import Run
from services.trainer.worker.streams import RunKey
from services.trainer.worker.wire import Token, patiently

CHUNK_BYTES = 1 << 19
INTERVAL_S = 60.0
TIMEOUT_S = 600.0


class Stopped(Exception):
    """The job was told to stop."""


class Evicted(Exception):
    """The worker was asked to leave, and the job goes on elsewhere."""


class Verdict(IntEnum):
    """What follows a step: the next one, or a checkpoint and the end of this worker, or the end of the job.

    Of what the ranks say the highest counts.
    """

    GO_ON = 0
    LEAVE = 1
    STOP = 2


@dataclass(frozen=True)
class Origin:
    """What a run was begun with, and has to be taken up again with.

    Attributes:
        key: of its randomness.
        execution: how it uses the machine. Where rows are cut into micro-batches decides the last bits of sums, so a
            run that goes on elsewhere keeps its cuts.
    """

    key: RunKey
    execution: Execution

    def state_dict(self) -> dict[str, Any]:
        """Return it in plain values (secret)."""
        plain = asdict(self.execution) | {"checkpointing": self.execution.checkpointing.value}
        return {"key": self.key.secret.hex(), "execution": plain}

    @classmethod
    def of(cls, state: dict[str, Any]) -> Origin:
        """Return what a checkpoint holds."""
        return cls(RunKey(bytes.fromhex(state["key"])), Execution(**state["execution"]))

    def shared(self, ranks: Ranks) -> Origin:
        """Return the first rank's."""
        return self.of(json.loads(ranks.shared(json.dumps(self.state_dict()).encode())))


class Saver:
    """Saves a run and takes it up again.

    Args:
        stub: the trainer's WorkerService.
        token: of the job.
        job: `trainingJobs/<id>`.
        attempt: of this worker.
        key: of the checkpoints (`ReadRowsResponse.checkpoint_key`).
        bound: digest of the assignment (`checkpoint.binding`).
        interval_s: at least so many seconds between two saves; 0 saves whenever progress is reported.
    """

    def __init__(
        self, stub: Any, token: Token, job: str, attempt: int, key: bytes, bound: bytes, interval_s: float = INTERVAL_S
    ) -> None:
        self._stub = stub
        self._token = token
        self._job = job
        self._attempt = attempt
        self._key = key
        self._bound = bound
        self._interval_s = interval_s
        self._last = time.monotonic()

    def load(self) -> dict[str, Any] | None:
        """Return the last checkpoint, or None if there is none.

        Raises:
            CheckpointError: if it does not open. A fresh start in its place would hide that something is wrong.
        """
        request = pb.LoadCheckpointRequest(job=self._job)

        def read() -> bytes:
            answers = self._stub.LoadCheckpoint(request, timeout=TIMEOUT_S, metadata=self._token.metadata())
            return b"".join(answer.data for answer in answers)

        sealed = patiently(read)
        return unseal(sealed, self._key, self._bound) if sealed else None

    def save(self, run: Run, origin: Origin) -> None:
        """Send a checkpoint; returns when it is safe.

        Raises:
            grpc.RpcError: if the trainer does not take it.
        """
        state = origin.state_dict() | {"run": run.state_dict()}
        first = pb.SaveCheckpointRequest(job=self._job, attempt=self._attempt, completed_steps=run.completed_steps)

        def messages() -> Iterator[pb.SaveCheckpointRequest]:
            yield first
            for piece in seal(state, self._key, self._bound):
                for start in range(0, len(piece), CHUNK_BYTES):
                    yield pb.SaveCheckpointRequest(data=piece[start : start + CHUNK_BYTES])

        self._stub.SaveCheckpoint(messages(), timeout=TIMEOUT_S, metadata=self._token.metadata())
        self._last = time.monotonic()

    def finish(
        self, run: Run, origin: Origin, ranks: Ranks, heartbeat: Heartbeat | None, evicted: threading.Event
    ) -> None:
        """Take the steps that are left, saving now and then.

        Args:
            run: in whatever state; on every rank in the same.
            origin: of the run.
            ranks: they agree, after each step, on what follows.
            heartbeat: on the first rank; None on the others.
            evicted: set when this process is asked to leave; then all do, for none can go on without it.

        Raises:
            Stopped: if the job was told to stop.
            Evicted: if the worker was, after a checkpoint.
            AdapterUnmovedError: at the end, if nothing was learned.
        """
        if heartbeat:
            heartbeat.completed_steps = run.completed_steps
        interval = report_interval(run.steps)
        while run.completed_steps < run.steps:
            run.step()
            self.heed(run, origin, ranks, heartbeat, evicted)
            due = ranks.first and time.monotonic() - self._last >= self._interval_s
            if due and run.completed_steps % interval == 0 and run.completed_steps < run.steps:
                self._try(run, origin)
        run.check()

    def heed(
        self, run: Run, origin: Origin, ranks: Ranks, heartbeat: Heartbeat | None, evicted: threading.Event
    ) -> None:
        """End here if the job or this worker is to; arguments and errors as for `finish`."""
        verdict = ranks.highest(_verdict(run.completed_steps, heartbeat, evicted))
        if verdict == Verdict.LEAVE:
            # Only now, for any rank may be the one that was asked: the first alone can find out whether the job ends.
            verdict = ranks.told(Verdict.STOP if heartbeat and heartbeat.should_stop() else Verdict.LEAVE)
        if verdict == Verdict.STOP:
            raise Stopped
        if verdict == Verdict.LEAVE:
            if ranks.first:
                patiently(lambda: self.save(run, origin))
            raise Evicted

    def _try(self, run: Run, origin: Origin) -> None:
        """Save; what fails is tried again after the next interval, since training itself is in no danger."""
        try:
            self.save(run, origin)
        except grpc.RpcError:
            self._last = time.monotonic()


def _verdict(completed: int, heartbeat: Heartbeat | None, evicted: threading.Event) -> Verdict:
    if heartbeat and heartbeat.on_step(completed):
        return Verdict.STOP
    return Verdict.LEAVE if evicted.is_set() else Verdict.GO_ON
