"""One job, from its assignment to its adapter: the only module in which the engine meets the network."""

from __future__ import annotations

import signal
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pyarrow as pa
import torch

from murmura.api.dataset.v1 import dataset_service_pb2, dataset_service_pb2_grpc
from murmura.api.trainer.v1 import trainer_pb2, trainer_service_pb2_grpc
from murmura.api.trainer.v1 import trainer_service_pb2 as pb
from services.trainer.worker.checkpoint import binding
from services.trainer.worker.clipping import Clipping
from services.trainer.worker.data import group_units
from services.trainer.worker.engine import PrivateRun, Run, TrainingSettings
from services.trainer.worker.execution import fitted
from services.trainer.worker.heartbeat import Heartbeat, Stopped
from services.trainer.worker.lora import UnsupportedModelError
from services.trainer.worker.model import (
    BaseModelError,
    LoraSettings,
    add_adapter,
    load_base,
    save_adapter,
)
from services.trainer.worker.plain import PlainRun, PlainSettings
from services.trainer.worker.saving import INTERVAL_S, Evicted, Origin, Saver
from services.trainer.worker.streams import RunKey
from services.trainer.worker.text import TextFormat, TextFormatError, encoder
from services.trainer.worker.wire import Token, connect, patiently

CHUNK_BYTES = 1 << 19
CALL_TIMEOUT_S = 30.0
UPLOAD_TIMEOUT_S = 600.0
FAILED = 1
# EX_TEMPFAIL, for whoever started the worker: another one is to go on from the checkpoint.
EVICTED = 75


class RowsUnavailable(Exception):
    """The dataset service does not give the rows."""


def is_out_of_memory(error: Exception) -> bool:
    """Say whether an error means that memory ran out; torch has no type of its own for that on a CPU."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)


class Session:
    """A worker's work.

    Args:
        job: `trainingJobs/<id>`.
        attempt: of this worker.
        token: its job token.
        trainer_endpoint: `host:port`.
        dataset_endpoint: `host:port`.
        checkpoint_interval_s: see `saving.Saver`.
    """

    def __init__(
        self,
        job: str,
        attempt: int,
        token: Token,
        trainer_endpoint: str,
        dataset_endpoint: str,
        checkpoint_interval_s: float = INTERVAL_S,
    ) -> None:
        self._job = job
        self._attempt = attempt
        self._checkpoint_interval_s = checkpoint_interval_s
        self._evicted = threading.Event()
        self._token = token
        # The generated types describe the asynchronous stubs; these channels are synchronous.
        trainer: Any = connect(trainer_endpoint)
        dataset: Any = connect(dataset_endpoint)
        self._trainer: Any = trainer_service_pb2_grpc.WorkerServiceStub(trainer)
        self._dataset: Any = dataset_service_pb2_grpc.DatasetServiceStub(dataset)

    def run(self) -> int:
        """Do the job; returns the exit code: 0 when its adapter was published, 75 when another worker is to go on.

        A failure is reported as one of a few fixed causes: an exception's own words could quote a row.
        """
        signal.signal(signal.SIGTERM, lambda *_: self._evicted.set())
        assignment = self._assignment()
        steps = assignment.mechanism.steps or assignment.unlimited_steps
        cause = pb.FAILURE_CAUSE_INTERNAL
        with Heartbeat(self._trainer, self._token, self._job, self._attempt, steps) as heartbeat:
            try:
                with tempfile.TemporaryDirectory() as folder:
                    self._train(assignment, heartbeat, Path(folder))
                    self._upload(Path(folder), steps)
                return 0
            except Evicted:
                return EVICTED
            except Stopped:
                cause = pb.FAILURE_CAUSE_STOPPED
            except (BaseModelError, UnsupportedModelError):
                cause = pb.FAILURE_CAUSE_BASE_MODEL
            except TextFormatError:
                cause = pb.FAILURE_CAUSE_TEXT_FORMAT
            except RowsUnavailable:
                cause = pb.FAILURE_CAUSE_ROWS_UNAVAILABLE
            except Exception as error:
                # The step that broke off has touched rows as well.
                attested = min(heartbeat.completed_steps + 1, steps)
                if is_out_of_memory(error):
                    self._give_up(pb.FAILURE_CAUSE_OUT_OF_MEMORY, attested)
                    return FAILED
                self._give_up(cause, attested)
                raise
            self._give_up(cause, heartbeat.completed_steps)
        return FAILED

    def _train(self, assignment: trainer_pb2.Assignment, heartbeat: Heartbeat, out: Path) -> None:
        chosen = assignment.settings
        base = load_base(assignment.base_model_location)
        model = add_adapter(base, LoraSettings(chosen.lora_rank, chosen.lora_alpha))
        # Before the rows are there: what fits must not depend on them.
        execution = fitted(model, chosen.max_length)
        encode = encoder(base.tokenizer, _FORMATS[assignment.text_format], chosen.max_length)
        received = self._rows(assignment)
        rows = encode(received.texts, received.completions)
        saver = Saver(
            self._trainer,
            self._token,
            self._job,
            self._attempt,
            received.checkpoint_key,
            binding(assignment),
            self._checkpoint_interval_s,
        )
        # Also a first attempt asks: after the trainer's own death it may not be the first.
        found = saver.load()
        origin = Origin.of(found) if found else Origin(RunKey.generate(), execution)
        run: Run
        if assignment.HasField("mechanism"):
            grouped = group_units(
                rows, received.units, assignment.unit_count, chosen.max_rows_per_unit, origin.key.stream("rows")
            )
            run = PrivateRun(model, grouped, _private(assignment), origin.key, origin.execution)
        else:
            run = PlainRun(
                model,
                rows,
                PlainSettings(
                    steps=assignment.unlimited_steps,
                    batch_rows=chosen.batch_size,
                    learning_rate=chosen.learning_rate,
                    max_length=chosen.max_length,
                ),
            )
        if found:
            run.load_state_dict(found["run"])
        saver.finish(run, origin, heartbeat, self._evicted)
        save_adapter(model, out, assignment.base_model.removeprefix("baseModels/"))

    def _assignment(self) -> trainer_pb2.Assignment:
        request = pb.GetAssignmentRequest(job=self._job)
        answer = patiently(
            lambda: self._trainer.GetAssignment(request, timeout=CALL_TIMEOUT_S, metadata=self._token.metadata())
        )
        assignment: trainer_pb2.Assignment = answer.assignment
        return assignment

    def _rows(self, assignment: trainer_pb2.Assignment) -> _Received:
        """Read all rows of the frame."""
        request = dataset_service_pb2.ReadRowsRequest(
            frame=assignment.frame,
            text_column=assignment.text_column,
            completion_column=assignment.completion_column,
        )

        def read() -> _Received:
            units: list[np.ndarray[Any, Any]] = []
            texts: list[str] = []
            completions: list[str] = []
            key = b""
            for message in self._dataset.ReadRows(request, metadata=self._token.metadata()):
                key = key or message.checkpoint_key
                if message.arrow_ipc:
                    table = pa.ipc.open_stream(message.arrow_ipc).read_all()
                    units.append(table["unit"].to_numpy())
                    texts.extend(table["text"].to_pylist())
                    if assignment.completion_column:
                        completions.extend(table["completion"].to_pylist())
            return _Received([int(unit) for part in units for unit in part], texts, completions, key)

        try:
            return patiently(read)
        except grpc.RpcError:
            raise RowsUnavailable from None

    def _upload(self, folder: Path, steps: int) -> None:
        patiently(
            lambda: self._trainer.UploadAdapter(
                self._pieces(folder, steps),
                timeout=UPLOAD_TIMEOUT_S,
                metadata=self._token.metadata(),
            )
        )

    def _pieces(self, folder: Path, steps: int) -> Iterator[pb.UploadAdapterRequest]:
        yield pb.UploadAdapterRequest(job=self._job, attempt=self._attempt, completed_steps=steps)
        for path in sorted(folder.iterdir()):
            with path.open("rb") as file:
                name = path.name
                while data := file.read(CHUNK_BYTES):
                    yield pb.UploadAdapterRequest(file_name=name, data=data)
                    name = ""

    def _give_up(self, cause: Any, steps: int) -> None:
        request = pb.ReportFailureRequest(job=self._job, attempt=self._attempt, attested_steps=steps, cause=cause)
        patiently(lambda: self._trainer.ReportFailure(request, timeout=CALL_TIMEOUT_S, metadata=self._token.metadata()))


@dataclass(frozen=True)
class _Received:
    """The rows, in the order in which they came. Kept out of `repr`."""

    units: list[int] = field(repr=False)
    texts: list[str] = field(repr=False)
    completions: list[str] = field(repr=False)
    checkpoint_key: bytes = field(repr=False)


def _private(assignment: trainer_pb2.Assignment) -> TrainingSettings:
    """Return the private run that an assignment asks for."""
    chosen, mechanism = assignment.settings, assignment.mechanism
    return TrainingSettings(
        steps=mechanism.steps,
        expected_batch_units=mechanism.sampling_probability * assignment.unit_count,
        sampling_probability=mechanism.sampling_probability,
        noise_multiplier=mechanism.noise_multiplier,
        clipping_norm=chosen.clipping_norm,
        clipping=_CLIPPING[chosen.clipping],
        learning_rate=chosen.learning_rate,
        max_rows_per_unit=chosen.max_rows_per_unit,
        max_length=chosen.max_length,
    )


_FORMATS = {
    trainer_pb2.TEXT_FORMAT_UNSPECIFIED: TextFormat.PLAIN,
    trainer_pb2.TEXT_FORMAT_PLAIN: TextFormat.PLAIN,
    trainer_pb2.TEXT_FORMAT_COMPLETION: TextFormat.COMPLETION,
    trainer_pb2.TEXT_FORMAT_CHAT: TextFormat.CHAT,
}
_CLIPPING = {
    trainer_pb2.CLIPPING_FLAT: Clipping.FLAT,
    trainer_pb2.CLIPPING_NORMALISED: Clipping.NORMALISED,
}
