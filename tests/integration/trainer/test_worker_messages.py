"""All that leaves a worker: a real worker process against services that write down every message and answer."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent import futures
from pathlib import Path
from typing import Any

import grpc
import pyarrow as pa
import pytest

from murmura.api.dataset.v1 import dataset_service_pb2, dataset_service_pb2_grpc
from murmura.api.trainer.v1 import trainer_pb2, trainer_service_pb2, trainer_service_pb2_grpc

JOB = "trainingJobs/job"
STEPS = 200
INTERVAL = STEPS // 50
SECRET = "quicksilver"  # stands in every row
UNITS = 30


def _arrow(rows: list[tuple[int, str]]) -> bytes:
    table = pa.table({"unit": [unit for unit, _ in rows], "text": [text for _, text in rows]})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return bytes(sink.getvalue())


class Recorder(trainer_service_pb2_grpc.WorkerServiceServicer, dataset_service_pb2_grpc.DatasetServiceServicer):
    """Trainer and dataset service in one, as a worker sees them."""

    def __init__(self, assignment: trainer_pb2.Assignment, payload: list[bytes]) -> None:
        self.assignment = assignment
        self.payload = payload
        self.messages: list[Any] = []
        self.tokens: list[str] = []
        self.away = 0
        self.stop_after = 1 << 40

    def _note(self, message: Any, context: Any) -> None:
        self.messages.append(message)
        self.tokens.append(str(dict(context.invocation_metadata())["authorization"]))

    def GetAssignment(self, request: Any, context: Any) -> Any:
        if self.away:
            self.away -= 1
            context.abort(grpc.StatusCode.UNAVAILABLE, "restarting")
        self._note(request, context)
        return trainer_service_pb2.GetAssignmentResponse(assignment=self.assignment)

    def Heartbeat(self, request: Any, context: Any) -> Any:
        self._note(request, context)
        stop = request.completed_steps >= self.stop_after
        return trainer_service_pb2.HeartbeatResponse(stop=stop, job_token="renewed")

    def UploadAdapter(self, request_iterator: Iterator[Any], context: Any) -> Any:
        for message in request_iterator:
            self._note(message, context)
        return trainer_service_pb2.UploadAdapterResponse(adapter="adapters/job")

    def ReportFailure(self, request: Any, context: Any) -> Any:
        self._note(request, context)
        return trainer_service_pb2.ReportFailureResponse()

    def ReadRows(self, request: Any, context: Any) -> Iterator[Any]:
        self._note(request, context)
        yield dataset_service_pb2.ReadRowsResponse(unit_count=UNITS)
        for chunk in self.payload:
            yield dataset_service_pb2.ReadRowsResponse(arrow_ipc=chunk)

    def of(self, kind: Any) -> list[Any]:
        """The messages of one type."""
        return [message for message in self.messages if isinstance(message, kind)]


@pytest.fixture
def assignment(tiny_base_model: Path) -> trainer_pb2.Assignment:
    made = trainer_pb2.Assignment(
        job=JOB,
        attempt=1,
        base_model="baseModels/tiny",
        base_model_location=str(tiny_base_model),
        text_column="text",
        unit_count=UNITS,
        settings=trainer_pb2.Settings(
            epochs=50,
            batch_size=8,
            learning_rate=1e-3,
            lora_rank=2,
            lora_alpha=4,
            max_length=32,
            max_rows_per_unit=2,
            clipping_norm=1.0,
            clipping=trainer_pb2.CLIPPING_NORMALISED,
        ),
    )
    made.frame.dataset = "datasets/notes"
    made.mechanism.steps = STEPS
    made.mechanism.noise_multiplier, made.mechanism.sampling_probability = 1.0, 8 / UNITS
    return made


# Units 20 to 29 have no row: they exist all the same.
ROWS = [_arrow([(unit, f"{SECRET} {unit} {row}") for unit in range(20) for row in range(3)])]


def run(recorder: Recorder, folder: Path, meanwhile: Callable[[Any], None] | None = None) -> tuple[int, str]:
    """Run a worker to its end; returns its exit code and its log."""
    server = grpc.server(futures.ThreadPoolExecutor(8))
    trainer_service_pb2_grpc.add_WorkerServiceServicer_to_server(recorder, server)
    dataset_service_pb2_grpc.add_DatasetServiceServicer_to_server(recorder, server)
    endpoint = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    token_file = folder / "token"
    token_file.write_text("first")
    environment = os.environ | {
        "MURMURA_JOB": JOB,
        "MURMURA_ATTEMPT": "1",
        "MURMURA_JOB_TOKEN_FILE": str(token_file),
        "MURMURA_TRAINER_ENDPOINT": endpoint,
        "MURMURA_DATASET_ENDPOINT": endpoint,
        "OMP_NUM_THREADS": "1",
    }
    log = folder / "worker.log"
    try:
        with log.open("wb") as out:
            worker = subprocess.Popen(
                [sys.executable, "-m", "services.trainer.worker"],
                env=environment,
                stdout=out,
                stderr=subprocess.STDOUT,
            )
        if meanwhile:
            meanwhile(worker)
        try:
            return worker.wait(120), log.read_text()
        finally:
            worker.kill()
    finally:
        server.stop(None)


def test_nothing_of_the_rows_or_of_how_training_went_leaves_a_worker(
    assignment: trainer_pb2.Assignment, tmp_path: Path
) -> None:
    recorder = Recorder(assignment, ROWS)
    recorder.away = 2
    code, log = run(recorder, tmp_path)
    assert (code, log) == (0, "")

    beats = recorder.of(trainer_service_pb2.HeartbeatRequest)
    for beat in beats:
        assert (beat.job, beat.attempt) == (JOB, 1)
        assert beat.completed_steps % INTERVAL == 0
    uploads = recorder.of(trainer_service_pb2.UploadAdapterRequest)
    assert uploads[0].completed_steps == STEPS
    files: dict[str, bytes] = {}
    name = ""
    for message in uploads[1:]:
        name = message.file_name or name
        files[name] = files.get(name, b"") + message.data
    assert sorted(files) == ["adapter_config.json", "adapter_model.safetensors"]
    assert str(assignment.base_model_location).encode() not in files["adapter_config.json"]
    # Every kind of message, and every field of it that is set, is on this list.
    seen = {(type(message).__name__, field.name) for message in recorder.messages for field, _ in message.ListFields()}
    assert seen <= {
        ("GetAssignmentRequest", "job"),
        ("ReadRowsRequest", "frame"),
        ("ReadRowsRequest", "text_column"),
        *(("HeartbeatRequest", field) for field in ("job", "attempt", "completed_steps")),
        *(("UploadAdapterRequest", field) for field in ("job", "attempt", "completed_steps", "file_name", "data")),
    }
    everything = b"".join(message.SerializeToString() for message in recorder.messages)
    for word in (SECRET, "loss", "grad", "perplexity"):
        assert word.encode() not in everything
    # The renewed token took the place of the first.
    assert recorder.tokens[0] == "Bearer first"
    assert recorder.tokens[-1] == "Bearer renewed"


def test_a_worker_that_is_told_to_stop_attests_its_steps(assignment: trainer_pb2.Assignment, tmp_path: Path) -> None:
    assignment.mechanism.steps = 50_000
    recorder = Recorder(assignment, ROWS)
    recorder.stop_after = 1
    code, log = run(recorder, tmp_path)
    assert (code, log) == (1, "")
    (failure,) = recorder.of(trainer_service_pb2.ReportFailureRequest)
    assert failure.cause == trainer_service_pb2.FAILURE_CAUSE_STOPPED
    reported = max(b.completed_steps for b in recorder.of(trainer_service_pb2.HeartbeatRequest))
    assert 0 < reported <= failure.attested_steps < 50_000
    assert not recorder.of(trainer_service_pb2.UploadAdapterRequest)


def test_sigterm_means_stop(assignment: trainer_pb2.Assignment, tmp_path: Path) -> None:
    assignment.mechanism.steps = 50_000
    recorder = Recorder(assignment, ROWS)

    def terminate(worker: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + 60
        beat = trainer_service_pb2.HeartbeatRequest
        while not any(message.completed_steps for message in recorder.of(beat)):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        worker.terminate()

    code, _ = run(recorder, tmp_path, terminate)
    assert code == 1
    (failure,) = recorder.of(trainer_service_pb2.ReportFailureRequest)
    assert failure.cause == trainer_service_pb2.FAILURE_CAUSE_STOPPED
    assert failure.attested_steps > 0


def test_an_error_that_quotes_a_row_is_told_by_its_place_only(
    assignment: trainer_pb2.Assignment, tmp_path: Path
) -> None:
    # A unit's number that is a text: what fails on it says so, with the text.
    sink = pa.BufferOutputStream()
    table = pa.table({"unit": [SECRET], "text": [SECRET]})
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    recorder = Recorder(assignment, [bytes(sink.getvalue())])
    code, log = run(recorder, tmp_path)
    assert code == 1
    assert SECRET not in log
    assert log.startswith("the worker failed: ValueError at trainer/worker/__main__.py:")
    assert log.count("\n") == 1
    (failure,) = recorder.of(trainer_service_pb2.ReportFailureRequest)
    assert failure.cause == trainer_service_pb2.FAILURE_CAUSE_INTERNAL


def test_a_base_model_that_cannot_be_loaded_is_said_so(assignment: trainer_pb2.Assignment, tmp_path: Path) -> None:
    assignment.base_model_location = str(tmp_path)
    recorder = Recorder(assignment, ROWS)
    code, log = run(recorder, tmp_path)
    assert (code, log) == (1, "")
    (failure,) = recorder.of(trainer_service_pb2.ReportFailureRequest)
    assert failure.cause == trainer_service_pb2.FAILURE_CAUSE_BASE_MODEL
    assert failure.attested_steps == 0
    assert not recorder.of(dataset_service_pb2.ReadRowsRequest), "rows are fetched when all else stands"
