"""All that leaves a worker: a real worker process against services that write down every message and answer."""

from __future__ import annotations

import math
from pathlib import Path

import psutil
import pyarrow as pa
import pytest
import safetensors.torch
import torch

from murmura.api.dataset.v1 import dataset_service_pb2
from murmura.api.trainer.v1 import trainer_pb2, trainer_service_pb2
from tests.support import warm
from tests.support.launchers import until
from tests.support.recorder import INTERVAL, JOB, ROWS, SECRET, STEPS, UNITS, Recorder, assigned, run


@pytest.fixture
def assignment(tiny_base_model: Path) -> trainer_pb2.Assignment:
    return assigned(tiny_base_model)


def held_out(assignment: trainer_pb2.Assignment) -> trainer_pb2.Assignment:
    """The same, with a measurement at the end."""
    wanted = assignment.evaluation
    wanted.frame.dataset, wanted.unit_count = "datasets/notes", UNITS
    wanted.frame.operations.add().slice.start = 10
    wanted.noise_multiplier, wanted.loss_bound = 7.0, 8.0
    return assignment


@pytest.fixture(scope="module")
def whole(tiny_base_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Recorder:
    """One worker's run from its beginning to its end, with a measurement and a checkpoint wherever there may be one."""
    recorder = Recorder(held_out(assigned(tiny_base_model)), ROWS)
    assert run(recorder, tmp_path_factory.mktemp("whole"), MURMURA_CHECKPOINT_SECONDS="0") == (0, "")
    return recorder


def test_nothing_of_the_rows_or_of_how_training_went_leaves_a_worker(
    assignment: trainer_pb2.Assignment, tmp_path: Path, whole: Recorder
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
    files = recorder.files()
    assert sorted(files) == ["adapter_config.json", "adapter_model.safetensors"]
    assert str(assignment.base_model_location).encode() not in files["adapter_config.json"]
    # Every kind of message, and every field of it that is set, is on this list.
    seen = {(type(message).__name__, field.name) for message in recorder.messages for field, _ in message.ListFields()}
    assert seen <= {
        ("GetAssignmentRequest", "job"),
        ("ReadRowsRequest", "frame"),
        ("ReadRowsRequest", "text_column"),
        ("LoadCheckpointRequest", "job"),
        *(("HeartbeatRequest", field) for field in ("job", "attempt", "completed_steps")),
        *(("UploadAdapterRequest", field) for field in ("job", "attempt", "completed_steps", "file_name", "data")),
    }
    everything = b"".join(message.SerializeToString() for message in recorder.messages)
    for word in (SECRET, "loss", "grad", "perplexity"):
        assert word.encode() not in everything
    # The renewed token took the place of the first.
    assert recorder.tokens[0] == "Bearer first"
    assert recorder.tokens[-1] == "Bearer renewed"
    assert files != whole.files(), "another run has another key"


def test_a_measurement_leaves_as_two_noisy_sums_and_nothing_else(whole: Recorder) -> None:
    first, *rest = whole.of(trainer_service_pb2.UploadAdapterRequest)
    spacing = 2.0 ** (math.frexp(7.0 * 2**0.5)[1] - 1 - 16)
    for value in (first.evaluation.loss, first.evaluation.units):
        assert value and float(value / spacing).is_integer(), "on the noise's lattice"
    assert not any(message.HasField("evaluation") for message in rest)
    frames = [request.frame for request in whole.of(dataset_service_pb2.ReadRowsRequest)]
    assert frames == [whole.assignment.frame, whole.assignment.evaluation.frame]
    seen = {(type(message).__name__, field.name) for message in whole.messages for field, _ in message.ListFields()}
    assert {name for kind, name in seen if kind == "UploadAdapterRequest"} == {
        "job",
        "attempt",
        "completed_steps",
        "file_name",
        "data",
        "evaluation",
    }
    assert SECRET.encode() not in b"".join(message.SerializeToString() for message in whole.messages)


def test_two_processes_take_over_from_one_and_end_with_the_same_adapter_and_measurement(
    tmp_path: Path, whole: Recorder
) -> None:
    """Same sample and same noise, however many share the work; and once more with a checkpoint of the two."""
    two = Recorder(whole.assignment, ROWS)
    two.resume_from = whole.checkpoints[0][1]
    assert run(two, tmp_path, MURMURA_PROCESSES="2", MURMURA_CHECKPOINT_SECONDS="0") == (0, "")
    assert [steps for steps, _ in two.checkpoints] == sorted({steps for steps, _ in two.checkpoints})
    one = Recorder(whole.assignment, ROWS)
    one.resume_from = two.checkpoints[len(two.checkpoints) // 2][1]
    assert run(one, tmp_path) == (0, "")
    expected = safetensors.torch.load(whole.files()["adapter_model.safetensors"])
    for later in (two, one):
        found = safetensors.torch.load(later.files()["adapter_model.safetensors"])
        # The halves of a sum are added in another order; the noise's lattice takes most of that away.
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
        sums = [recorder.of(trainer_service_pb2.UploadAdapterRequest)[0].evaluation for recorder in (later, whole)]
        assert sums[0].units == sums[1].units
        assert sums[0].loss == pytest.approx(sums[1].loss, abs=1e-2)
        assert len(later.of(trainer_service_pb2.UploadAdapterRequest)) == len(
            whole.of(trainer_service_pb2.UploadAdapterRequest)
        ), "one of them uploads"


def test_a_worker_that_is_told_to_stop_attests_its_steps(assignment: trainer_pb2.Assignment, tmp_path: Path) -> None:
    assignment.mechanism.steps = 8_000
    recorder = Recorder(assignment, ROWS)
    recorder.stop_after = 1
    code, log = run(recorder, tmp_path)
    assert (code, log) == (1, "")
    (failure,) = recorder.of(trainer_service_pb2.ReportFailureRequest)
    assert failure.cause == trainer_service_pb2.FAILURE_CAUSE_STOPPED
    reported = max(b.completed_steps for b in recorder.of(trainer_service_pb2.HeartbeatRequest))
    assert 0 < reported <= failure.attested_steps < 8_000
    assert not recorder.of(trainer_service_pb2.UploadAdapterRequest)


@pytest.mark.parametrize("stop", [False, True])
@pytest.mark.parametrize(("processes", "asked"), [(1, "worker"), (2, "worker"), (2, "second rank")])
def test_sigterm_leaves_a_checkpoint_unless_the_job_is_to_stop(
    assignment: trainer_pb2.Assignment, tmp_path: Path, stop: bool, processes: int, asked: str
) -> None:
    assignment.mechanism.steps = 8_000
    recorder = Recorder(assignment, ROWS)

    def terminate(worker: warm.Process) -> None:
        until(lambda: any(beat.completed_steps for beat in recorder.of(trainer_service_pb2.HeartbeatRequest)), 60)
        # Sums without noise go from one to the other, so they listen to nobody but this machine.
        ranks = psutil.Process(worker.pid).children()
        heard = {c.laddr.ip for rank in ranks for c in rank.net_connections() if c.status == psutil.CONN_LISTEN}
        assert (len(ranks), heard) == ((processes, {"127.0.0.1"}) if processes > 1 else (0, set()))
        recorder.stop_after = 0 if stop else recorder.stop_after
        # Each rank is asked on its own, and which of them hears of it before a step ends is left to chance.
        (worker if asked == "worker" else max(ranks, key=lambda rank: int(rank.environ()["RANK"]))).terminate()

    code, log = run(recorder, tmp_path, terminate, MURMURA_PROCESSES=str(processes))
    failures = recorder.of(trainer_service_pb2.ReportFailureRequest)
    if stop:
        assert (code, log) == (1, "")
        assert [failure.cause for failure in failures] == [trainer_service_pb2.FAILURE_CAUSE_STOPPED]
        assert failures[0].attested_steps > 0
        assert not recorder.checkpoints
    else:
        assert (code, log) == (75, "")
        assert not failures
        ((steps, sealed),) = recorder.checkpoints
        assert steps > 0
        assert SECRET.encode() not in sealed


def takes_over(whole: Recorder, folder: Path) -> None:
    """Let a second worker take over from the first and the last checkpoint."""
    assert len(whole.checkpoints) > 3
    assert [steps for steps, _ in whole.checkpoints] == sorted({steps for steps, _ in whole.checkpoints})
    assert all(steps % INTERVAL == 0 for steps, _ in whole.checkpoints)
    for steps, sealed in (whole.checkpoints[0], whole.checkpoints[-1]):
        again = trainer_pb2.Assignment()
        again.CopyFrom(whole.assignment)
        again.attempt = 2
        later = Recorder(again, ROWS)
        later.resume_from = sealed
        assert run(later, folder, MURMURA_ATTEMPT="2") == (0, "")
        assert later.files() == whole.files(), f"taken over after step {steps}"


def test_a_worker_that_takes_over_makes_the_same_adapter(tmp_path: Path, whole: Recorder) -> None:
    """Bit for bit, from any checkpoint of the first worker: sampling, noise, row choice and optimizer go on."""
    takes_over(whole, tmp_path)


def test_so_it_does_without_privacy(assignment: trainer_pb2.Assignment, tmp_path: Path) -> None:
    assignment.ClearField("mechanism")
    assignment.unlimited_steps = STEPS
    first = Recorder(assignment, ROWS)
    assert run(first, tmp_path, MURMURA_CHECKPOINT_SECONDS="0") == (0, "")
    takes_over(first, tmp_path)
    another = Recorder(assignment, ROWS)
    assert run(another, tmp_path) == (0, "")
    assert another.files() == first.files(), "there is no key that could be another"


def test_a_checkpoint_of_another_run_is_no_fresh_start(tmp_path: Path, whole: Recorder) -> None:
    other = trainer_pb2.Assignment()
    other.CopyFrom(whole.assignment)
    other.settings.learning_rate *= 2
    recorder = Recorder(other, ROWS)
    recorder.resume_from = whole.checkpoints[0][1]
    code, log = run(recorder, tmp_path)
    assert code == 1
    assert log.startswith("the worker failed: CheckpointError at ")
    (failure,) = recorder.of(trainer_service_pb2.ReportFailureRequest)
    assert failure.cause == trainer_service_pb2.FAILURE_CAUSE_INTERNAL
    assert not recorder.files()


def test_an_error_that_quotes_a_row_is_told_by_its_place_only(
    assignment: trainer_pb2.Assignment, tmp_path: Path
) -> None:
    # A row that is no text, and that no object of Python's can hold: what fails on it quotes it.
    row = 1_073_741_824
    sink = pa.BufferOutputStream()
    table = pa.table({"note": pa.array([row], pa.date32())})
    with pytest.raises(OverflowError, match=str(row)):
        table["note"].to_pylist()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    message = dataset_service_pb2.ReadRowsResponse(arrow_ipc=bytes(sink.getvalue()), units=[0])
    recorder = Recorder(assignment, [message])
    code, log = run(recorder, tmp_path)
    assert code == 1
    assert str(row) not in log
    assert log.startswith("the worker failed: OverflowError at trainer/worker/__main__.py:")
    assert log.count("\n") == 1
    (failure,) = recorder.of(trainer_service_pb2.ReportFailureRequest)
    assert failure.cause == trainer_service_pb2.FAILURE_CAUSE_INTERNAL


def refused_before_a_row(assignment: trainer_pb2.Assignment, tmp_path: Path) -> int:
    """Run a worker that gives up without a step, a word or a row; return the cause that it reports."""
    recorder = Recorder(assignment, ROWS)
    code, log = run(recorder, tmp_path)
    assert (code, log) == (1, "")
    (failure,) = recorder.of(trainer_service_pb2.ReportFailureRequest)
    assert failure.attested_steps == 0
    assert not recorder.of(dataset_service_pb2.ReadRowsRequest), "rows are fetched when all else stands"
    return int(failure.cause)


def test_rows_longer_than_the_base_model_reads_are_refused_whether_or_not_there_are_any(
    assignment: trainer_pb2.Assignment, tmp_path: Path
) -> None:
    """Else the job of a model with learned positions would end at the first step that draws such a row, and tell so."""
    assignment.settings.max_length = 257
    assert refused_before_a_row(assignment, tmp_path) == trainer_service_pb2.FAILURE_CAUSE_MAX_LENGTH


def test_a_base_model_that_cannot_be_loaded_is_said_so(assignment: trainer_pb2.Assignment, tmp_path: Path) -> None:
    assignment.base_model_location = str(tmp_path)
    assert refused_before_a_row(assignment, tmp_path) == trainer_service_pb2.FAILURE_CAUSE_BASE_MODEL
