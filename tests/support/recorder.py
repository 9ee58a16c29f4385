"""A trainer and a dataset service that write down every message of a worker, and real worker processes."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from concurrent import futures
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pyarrow as pa

from murmura.api.dataset.v1 import dataset_service_pb2, dataset_service_pb2_grpc
from murmura.api.trainer.v1 import trainer_pb2, trainer_service_pb2, trainer_service_pb2_grpc
from tests.support import warm

JOB = "trainingJobs/job"
STEPS = 200
INTERVAL = STEPS // 50
SECRET = "quicksilver"  # stands in every row
UNITS = 30
# For a worker on a busy machine: an audit alone takes most of a minute.
PATIENCE_S = 240
# How long rows are held back at most, where they are.
ROWS_WAIT_S = 40


def _response(rows: list[tuple[int, str]]) -> dataset_service_pb2.ReadRowsResponse:
    table = pa.table({"note": [text for _, text in rows]})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    units = [unit for unit, _ in rows]
    return dataset_service_pb2.ReadRowsResponse(arrow_ipc=bytes(sink.getvalue()), units=units)


class Recorder(trainer_service_pb2_grpc.WorkerServiceServicer, dataset_service_pb2_grpc.DatasetServiceServicer):
    """Trainer and dataset service in one, as a worker sees them."""

    def __init__(self, assignment: trainer_pb2.Assignment, payload: list[dataset_service_pb2.ReadRowsResponse]) -> None:
        self.assignment = assignment
        self.payload = payload
        self.messages: list[Any] = []
        self.tokens: list[str] = []
        self.away = 0
        self.stop_after = 1 << 40
        self.checkpoints: list[tuple[int, bytes]] = []
        self.resume_from = b""
        self.rows_wait: threading.Event | None = None

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

    def SaveCheckpoint(self, request_iterator: Iterator[Any], context: Any) -> Any:
        steps, pieces = 0, []
        for message in request_iterator:
            self._note(message, context)
            steps = steps or message.completed_steps
            pieces.append(message.data)
        self.checkpoints.append((steps, b"".join(pieces)))
        return trainer_service_pb2.SaveCheckpointResponse()

    def LoadCheckpoint(self, request: Any, context: Any) -> Iterator[Any]:
        self._note(request, context)
        for start in range(0, len(self.resume_from), 100_000):
            yield trainer_service_pb2.LoadCheckpointResponse(data=self.resume_from[start : start + 100_000])

    def files(self) -> dict[str, bytes]:
        """The files that were uploaded."""
        files: dict[str, bytes] = {}
        name = ""
        for message in self.of(trainer_service_pb2.UploadAdapterRequest)[1:]:
            name = message.file_name or name
            files[name] = files.get(name, b"") + message.data
        return files

    def ReportFailure(self, request: Any, context: Any) -> Any:
        self._note(request, context)
        return trainer_service_pb2.ReportFailureResponse()

    def ReadRows(self, request: Any, context: Any) -> Iterator[Any]:
        self._note(request, context)
        if self.rows_wait is not None:
            self.rows_wait.wait(ROWS_WAIT_S)
        yield dataset_service_pb2.ReadRowsResponse(unit_count=UNITS, checkpoint_key=bytes(range(32)), text_field="note")
        yield from self.payload

    def of(self, kind: Any) -> list[Any]:
        """The messages of one type."""
        return [message for message in self.messages if isinstance(message, kind)]


def assigned(base_model: Path) -> trainer_pb2.Assignment:
    """A private run of a few hundred steps."""
    made = trainer_pb2.Assignment(
        job=JOB,
        attempt=1,
        base_model="baseModels/tiny",
        base_model_location=str(base_model),
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
ROWS = [_response([(unit, f"{SECRET} {unit} {row}") for unit in range(20) for row in range(3)])]


@contextmanager
def serving(recorder: Recorder) -> Iterator[str]:
    """Serve it; yields its endpoint."""
    server = grpc.server(futures.ThreadPoolExecutor(8))
    trainer_service_pb2_grpc.add_WorkerServiceServicer_to_server(recorder, server)
    dataset_service_pb2_grpc.add_DatasetServiceServicer_to_server(recorder, server)
    endpoint = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    try:
        yield endpoint
    finally:
        server.stop(None)


def worker(endpoint: str, folder: Path, **extra: str) -> warm.Process:
    """Start a worker; its log is `worker.log` in the folder."""
    folder.mkdir(exist_ok=True)
    token_file = folder / "token"
    token_file.write_text("first")
    environment = os.environ | {
        "MURMURA_JOB": JOB,
        "MURMURA_ATTEMPT": "1",
        "MURMURA_JOB_TOKEN_FILE": str(token_file),
        "MURMURA_TRAINER_ENDPOINT": endpoint,
        "MURMURA_DATASET_ENDPOINT": endpoint,
        "OMP_NUM_THREADS": "1",
        **extra,
    }
    log = folder / "worker.log"
    log.unlink(missing_ok=True)
    return warm.start("services.trainer.worker", environment, log)


def run(
    recorder: Recorder, folder: Path, meanwhile: Callable[[Any], None] | None = None, **extra: str
) -> tuple[int, str]:
    """Run a worker to its end; returns its exit code and its log."""
    with serving(recorder) as endpoint:
        process = worker(endpoint, folder, **extra)
        try:
            if meanwhile:
                meanwhile(process)
            return process.wait(PATIENCE_S), (folder / "worker.log").read_text()
        finally:
            process.kill()
