"""One job, from its assignment to its adapter: the only module in which the engine meets the network.

A worker may be several processes. Each reads the assignment and the rows and takes its share of every step; the first
one alone reports, saves, measures, uploads and gives up.
"""

from __future__ import annotations

import signal
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch

from murmura.api.dataset.v1 import expressions_pb2
from murmura.api.trainer.v1 import trainer_pb2, trainer_service_pb2_grpc
from murmura.api.trainer.v1 import trainer_service_pb2 as pb
from services.trainer.artifacts import HEADROOM_BYTES, MOST_BYTES
from services.trainer.launcher import EVICTED, FAILED
from services.trainer.worker import assignments
from services.trainer.worker.attack import Planting
from services.trainer.worker.checkpoint import binding
from services.trainer.worker.data import Row, Unit, group_units
from services.trainer.worker.engine import PrivateRun
from services.trainer.worker.execution import fitted
from services.trainer.worker.heartbeat import Heartbeat
from services.trainer.worker.held_out import noisy_sums
from services.trainer.worker.lora import UnsupportedModelError
from services.trainer.worker.model import (
    BaseModelError,
    LoraSettings,
    SettingError,
    add_adapter,
    check_length,
    check_size,
    load_base,
    save_adapter,
)
from services.trainer.worker.plain import PlainRun
from services.trainer.worker.preparing import preparing
from services.trainer.worker.ranks import RankLost, Ranks
from services.trainer.worker.rows import Received, RowsUnavailable, read_call, read_rows
from services.trainer.worker.runs import Run
from services.trainer.worker.saving import INTERVAL_S, Evicted, Origin, Saver, Stopped
from services.trainer.worker.streams import NormalLanes, RunKey
from services.trainer.worker.summary import Summary
from services.trainer.worker.text import Encoder, TextFormatError, encoder
from services.trainer.worker.wire import Token, connect, patiently

# What was measured of rows, with noise, and what was found out about canaries.
_Measured = tuple[pb.NoisySums | None, trainer_pb2.Audit | None]
CHUNK_BYTES = 1 << 19
CALL_TIMEOUT_S = 30.0
UPLOAD_TIMEOUT_S = 600.0


def is_out_of_memory(error: Exception) -> bool:
    """Say whether an error means that memory ran out; torch has no type of its own for that on a CPU."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)


def _nothing() -> None:
    """Do nothing."""


class Session:
    """A worker's work.

    Args:
        job: `trainingJobs/<id>`.
        attempt: of this worker.
        token_file: the job token, as the launcher leaves it; or the pod's own, to be exchanged for it.
        is_pods: whether it is the pod's.
        trainer_endpoint: `host:port`.
        dataset_endpoint: `host:port`.
        checkpoint_interval_s: see `saving.Saver`.
        ranks: the processes of this worker.
    """

    def __init__(
        self,
        job: str,
        attempt: int,
        token_file: Path,
        is_pods: bool,
        trainer_endpoint: str,
        dataset_endpoint: str,
        checkpoint_interval_s: float = INTERVAL_S,
        ranks: Ranks | None = None,
    ) -> None:
        self._job = job
        self._attempt = attempt
        self._checkpoint_interval_s = checkpoint_interval_s
        self._ranks = ranks or Ranks()
        self._evicted = threading.Event()
        self._summary = Summary()
        # The generated types describe the asynchronous stubs; these channels are synchronous.
        trainer: Any = connect(trainer_endpoint, "trainer")
        dataset: Any = connect(dataset_endpoint, "dataset")
        self._trainer: Any = trainer_service_pb2_grpc.WorkerServiceStub(trainer)
        self._read = read_call(dataset)
        self._token = Token.exchanged(token_file, job, self._trainer) if is_pods else Token.read(token_file)

    def run(self) -> int:
        """Do the job, and leave a summary; returns the exit code, as `Summary` has it."""
        try:
            self._summary.exit_code = self._run()
            return self._summary.exit_code
        finally:
            self._summary.leave()

    def _run(self) -> int:
        """Do the job.

        A failure is reported as one of a few fixed causes: an exception's own words could quote a row. What all ranks
        run into alike, the first one reports; the others leave in silence, lest it is ended before it has.
        """
        # Ranks agree on when to leave; until then each only notes that it was asked.
        signal.signal(signal.SIGTERM, lambda *_: self._evicted.set())
        assignment = self._assignment()
        steps = assignment.mechanism.steps or assignment.unlimited_steps
        first = self._ranks.first
        beats = Heartbeat(self._trainer, self._token, self._job, self._attempt, steps) if first else None
        cause = pb.FAILURE_CAUSE_INTERNAL
        with beats or nullcontext():
            try:
                alone = self._ranks.count == 1
                phase = preparing(beats, self._evicted, alone) if beats else nullcontext(_nothing)
                with tempfile.TemporaryDirectory() as folder, phase as begin:
                    measured = self._train(assignment, beats, Path(folder), begin)
                    if first:
                        self._upload(Path(folder), steps, *measured)
                self._summary.reported_steps = steps
                return 0
            except Evicted:
                if beats is None:
                    return 0
                self._summary.reported_steps = beats.reported_steps
                return EVICTED
            except RankLost:
                # Why, the lost one knows. The trainer learns from how this worker ends, and may make another attempt.
                return FAILED
            except Stopped:
                cause = pb.FAILURE_CAUSE_STOPPED
            except (BaseModelError, UnsupportedModelError):
                cause = pb.FAILURE_CAUSE_BASE_MODEL
            except SettingError as refused:
                cause = pb.FailureCause.Value(f"FAILURE_CAUSE_{refused.cause}")
            except TextFormatError:
                cause = pb.FAILURE_CAUSE_TEXT_FORMAT
            except RowsUnavailable:
                cause = pb.FAILURE_CAUSE_ROWS_UNAVAILABLE
            except Exception as error:
                if beats is None:
                    raise
                # The step that broke off has touched rows as well.
                attested = min(beats.completed_steps + 1, steps)
                if is_out_of_memory(error):
                    self._give_up(pb.FAILURE_CAUSE_OUT_OF_MEMORY, attested, beats.reported_steps)
                    return FAILED
                self._give_up(cause, attested, beats.reported_steps)
                raise
            if beats is None:
                return 0
            self._give_up(cause, beats.completed_steps, beats.reported_steps)
        return FAILED

    def _train(
        self, assignment: trainer_pb2.Assignment, beats: Heartbeat | None, out: Path, begin: Callable[[], None]
    ) -> _Measured:
        """Train, save the adapter to `out`, and measure and attack it if that is asked for."""
        chosen, ranks = assignment.settings, self._ranks
        private = assignment.HasField("mechanism")
        if not private:
            if not ranks.first:
                return None, None  # an ordinary fine-tune has no shares
            ranks = ranks.left()
        base = load_base(assignment.base_model_location)
        check_length(base, chosen.max_length)
        model = add_adapter(base, LoraSettings(chosen.lora_rank, chosen.lora_alpha))
        check_size(model, MOST_BYTES - HEADROOM_BYTES)
        # Before the rows are there: what fits must not depend on them.
        execution = fitted(model, chosen.max_length)
        encode = encoder(base.tokenizer, assignments.FORMATS[assignment.text_format], chosen.max_length)
        received, rows = self._rows(assignment, assignment.frame, encode)
        # Also what is needed only at the end: better to fail before a step than after the last.
        wanted = assignment.evaluation if assignment.HasField("evaluation") and ranks.first else None
        held_out = self._rows(assignment, wanted.frame, encode) if wanted else None
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
        origin = (Origin.of(found) if found else Origin(RunKey.generate(), execution)).shared(ranks)

        def grouped(found: tuple[Received, list[Row]], count: int, purpose: str) -> list[Unit]:
            units, stream = found[0].units, origin.key.stream(purpose)
            return group_units(found[1], units, count, chosen.max_rows_per_unit, stream)

        planting = None
        if assignment.HasField("canaries"):
            text_format = assignments.FORMATS[assignment.text_format]
            planting = Planting(
                assignment.canaries, encode, text_format, chosen.max_rows_per_unit, origin.key, base.tokenizer
            )
        run: Run
        if private:
            units = grouped((received, rows), assignment.unit_count, "rows") + (planting.units if planting else [])
            run = PrivateRun(model, units, assignments.private(assignment), origin.key, origin.execution, ranks)
        else:
            run = PlainRun(model, rows + (planting.rows if planting else []), assignments.plain(assignment))
        if found:
            run.load_state_dict(found["run"])
        begin()
        saver.finish(run, origin, ranks, beats, self._evicted)
        ranks.leave()
        if not ranks.first:
            return None, None
        alone = ranks.left()
        save_adapter(model, out, assignment.base_model.removeprefix("baseModels/"))

        def pause() -> None:
            saver.heed(run, origin, alone, beats, self._evicted)

        # After it was saved: what is attacked is what will be published.
        audit = planting.audit(model, assignment.audit_delta, pause) if planting else None
        if wanted is None or held_out is None:
            return None, audit
        loss, count = noisy_sums(
            model,
            grouped(held_out, wanted.unit_count, "held-out rows"),
            wanted.loss_bound,
            wanted.noise_multiplier,
            NormalLanes(origin.key, "evaluation"),
            origin.execution.micro_batch_tokens,
            pause,
        )
        return pb.NoisySums(loss=loss, units=count), audit

    def _assignment(self) -> trainer_pb2.Assignment:
        request = pb.GetAssignmentRequest(job=self._job)
        answer = patiently(
            lambda: self._trainer.GetAssignment(request, timeout=CALL_TIMEOUT_S, metadata=self._token.metadata())
        )
        assignment: trainer_pb2.Assignment = answer.assignment
        return assignment

    def _rows(
        self, assignment: trainer_pb2.Assignment, frame: expressions_pb2.Frame, encode: Encoder
    ) -> tuple[Received, list[Row]]:
        received = read_rows(self._read, self._token, frame, assignment)
        return received, encode(received.texts, received.completions)

    def _upload(self, folder: Path, steps: int, measured: pb.NoisySums | None, audit: trainer_pb2.Audit | None) -> None:
        patiently(
            lambda: self._trainer.UploadAdapter(
                self._pieces(folder, steps, measured, audit),
                timeout=UPLOAD_TIMEOUT_S,
                metadata=self._token.metadata(),
            )
        )

    def _pieces(
        self, folder: Path, steps: int, measured: pb.NoisySums | None, audit: trainer_pb2.Audit | None
    ) -> Iterator[pb.UploadAdapterRequest]:
        yield pb.UploadAdapterRequest(
            job=self._job, attempt=self._attempt, completed_steps=steps, evaluation=measured, audit=audit
        )
        for path in sorted(folder.iterdir()):
            with path.open("rb") as file:
                name = path.name
                while data := file.read(CHUNK_BYTES):
                    yield pb.UploadAdapterRequest(file_name=name, data=data)
                    name = ""

    def _give_up(self, cause: Any, steps: int, reported: int) -> None:
        self._summary.cause = pb.FailureCause.Name(cause).removeprefix("FAILURE_CAUSE_")
        self._summary.reported_steps = reported
        request = pb.ReportFailureRequest(job=self._job, attempt=self._attempt, attested_steps=steps, cause=cause)
        patiently(lambda: self._trainer.ReportFailure(request, timeout=CALL_TIMEOUT_S, metadata=self._token.metadata()))
