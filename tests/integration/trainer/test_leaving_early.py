"""A worker that is to go before its first step goes at once, and says that nothing ran: a job that is cancelled while a
large model is loaded must not pay for steps."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from murmura.api.dataset.v1 import dataset_service_pb2
from murmura.api.trainer.v1 import trainer_service_pb2
from tests.support import warm
from tests.support.launchers import until
from tests.support.recorder import ROWS, ROWS_WAIT_S, Recorder, assigned, run


@pytest.mark.parametrize(
    ("asked_to_leave", "stop", "processes"), [(True, False, 1), (True, True, 1), (False, True, 1), (False, True, 2)]
)
def test_before_its_first_step_a_worker_goes_at_once(
    tiny_base_model: Path, tmp_path: Path, asked_to_leave: bool, stop: bool, processes: int
) -> None:
    recorder = Recorder(assigned(tiny_base_model), ROWS)
    held_back = recorder.rows_wait = threading.Event()

    def tell(worker: warm.Process) -> None:
        until(lambda: len(recorder.of(dataset_service_pb2.ReadRowsRequest)) == processes, 60)
        recorder.stop_after = 0 if stop else recorder.stop_after
        if asked_to_leave:
            worker.terminate()
        # Rows are still held back: what it says, it says without them.
        reports = trainer_service_pb2.ReportFailureRequest
        until(lambda: worker.poll() is not None or bool(recorder.of(reports)), ROWS_WAIT_S / 2)
        held_back.set()

    try:
        code, log = run(recorder, tmp_path, tell, MURMURA_PROCESSES=str(processes))
    finally:
        held_back.set()
    assert (code, log) == (1 if stop else 75, "")
    told = [
        (failure.cause, failure.attested_steps) for failure in recorder.of(trainer_service_pb2.ReportFailureRequest)
    ]
    assert told == ([(trainer_service_pb2.FAILURE_CAUSE_STOPPED, 0)] if stop else [])
    assert not recorder.checkpoints
