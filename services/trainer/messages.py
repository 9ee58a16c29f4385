"""Between the trainer's jobs and the contracts' messages."""

from __future__ import annotations

import base64
import time

from google.protobuf.timestamp_pb2 import Timestamp

from murmura.api.common.v1 import errors_pb2
from murmura.api.trainer.v1 import trainer_pb2
from services.trainer import evaluation, jobs, settlement
from services.trainer.prices import Prices
from services.trainer.store import Record

# What an analyst reads of a failure. Fixed sentences: a worker's own words could carry a row.
CAUSES = {
    "STOPPED": "The job was stopped.",
    "BASE_MODEL": "The base model could not be loaded, or has no layer that can be adapted. Choose another one.",
    "TEXT_FORMAT": "The base model's tokenizer has no chat template, or no end of text. Choose another base model, or "
    "write the conversations out as text: X['text'] = X['messages'].apply(trace(…)).",
    "MAX_LENGTH": "max_length is more tokens than the base model reads at once. Choose a smaller one.",
    "ADAPTER_SIZE": "The adapter would be larger than is kept and served. Choose a smaller lora_rank.",
    "OUT_OF_MEMORY": "Memory ran out. Choose a smaller max_length or lora_rank, or a larger machine.",
    "ROWS_UNAVAILABLE": "The dataset service did not give the rows. Try again; if it persists, ask the operator.",
    "INTERNAL": "The worker ended without saying why. Try again; the operator finds its log.",
    "WAITED_TOO_LONG": "No worker began within the waiting limit. Try again when the machine is less busy.",
    "IMAGE_UNAVAILABLE": "The worker's image could not be pulled. Tell the operator.",
    "REFUSED_BY_CLUSTER": "The cluster does not take the worker. Tell the operator.",
    "EVICTED_TOO_OFTEN": "The worker was evicted too often. Try again when the cluster is less busy.",
    jobs.PROMISE_BROKEN: "The audit proves that this adapter gives away more than was promised, so it is not "
    "published. Train on no private data with this installation, and tell whoever runs it.",
    "RAN_TOO_LONG": "The job ran into the running limit. Choose fewer epochs, or ask the operator for a longer one.",
}


# Those of them about which whoever runs workers may have said more.
_EXPLAINED = ("WAITED_TOO_LONG", "IMAGE_UNAVAILABLE", "REFUSED_BY_CLUSTER", "EVICTED_TOO_OFTEN")


def job_message(record: Record, prices: Prices | None = None) -> trainer_pb2.TrainingJob:
    """Return a job as a message.

    Args:
        record: the job.
        prices: of machines; None where nobody says them.
    """
    job = record.job
    message = trainer_pb2.TrainingJob(
        name=job.name,
        spec=record.spec,
        plan=record.plan,
        state=trainer_pb2.JobState.Value(f"JOB_STATE_{job.state}"),
        stage=_stage(job),
        completed_steps=job.completed_steps,
        reservation=job.reservation,
        evaluation_reservation=job.evaluation_reservation,
        owner=job.owner,
        attempt=job.attempt,
        node_seconds=job.node_seconds + job.attempt_seconds,
        create_time=_timestamp(job.created),
    )
    if prices is not None:
        message.cost.CopyFrom(prices.of_seconds(message.node_seconds))
    if job.started:
        message.start_time.CopyFrom(_timestamp(job.started))
    if job.ended:
        message.end_time.CopyFrom(_timestamp(job.ended))
    proves = job.ending is not None and job.ending.cause == jobs.PROMISE_BROKEN
    if job.audit and (job.state == jobs.SUCCEEDED or (proves and job.state in jobs.TERMINAL)):
        message.audit.CopyFrom(audit_of(job.audit))
    if job.state == jobs.SUCCEEDED:
        message.adapter = job.adapter
        message.statement.CopyFrom(record.plan.statement)
        if job.measured is not None:
            message.evaluation.CopyFrom(_evaluation(job.measured, record.plan.evaluation))
    elif job.ending is not None and job.state in jobs.TERMINAL:
        message.error.CopyFrom(
            errors_pb2.ItemError(
                code=10,  # ABORTED
                reason=errors_pb2.ERROR_REASON_JOB_STATE,
                message=f"{_why(job.ending)} {_charged(record)}",
                metadata={"job": job.name, "state": job.state},
            )
        )
    return message


def audit_of(text: str) -> trainer_pb2.Audit:
    """Return the audit that a job keeps."""
    return trainer_pb2.Audit.FromString(base64.b64decode(text))


def audit_text(audit: trainer_pb2.Audit) -> str:
    """Return an audit as a job keeps it."""
    return base64.b64encode(audit.SerializeToString()).decode()


def _stage(job: jobs.Job) -> str:
    """Say what goes on; of a worker that is waited for, what for and since when."""
    if not job.waiting or job.state in jobs.TERMINAL or job.ending is not None or job.cancel_requested:
        return job.stage
    what, _, more = job.waiting.partition(": ")
    said = f"waiting for {what} since {_ago(time.time() - job.waiting_since)}"
    return f"{said}: {more}" if more else said


def _ago(seconds: float) -> str:
    """Return a time in words, coarse enough that it does not change all the time."""
    if seconds < 60:
        return f"{max(0, int(seconds // 10 * 10))} s"
    return f"{int(seconds // 60)} min" if seconds < 3600 else f"{seconds / 3600:.1f} h"


def _why(ending: jobs.Ending) -> str:
    said = CAUSES[ending.cause]
    if ending.words and ending.cause in _EXPLAINED:
        said += f" It says: {ending.words.rstrip('.')}."
    return said


def _evaluation(measured: tuple[float, float], plan: trainer_pb2.EvaluationPlan) -> trainer_pb2.Evaluation:
    found = evaluation.estimate(*measured, plan.loss_bound, plan.statement.mechanism.noise_multiplier)
    return trainer_pb2.Evaluation(
        mean_loss=found.mean_loss,
        perplexity=found.perplexity,
        standard_error=found.standard_error,
        unit_count=found.units,
        statement=plan.statement,
    )


def _charged(record: Record) -> str:
    """Say what a job without an adapter has cost."""
    settled = settlement.resolution(record.job)
    measured = record.plan.HasField("evaluation") and not settlement.evaluation_resolution(record.job).release
    if settled.release or settled.attested_steps == 0 or record.plan.statement.unlimited:
        said = "Nothing was charged for training." if measured else "Nothing was charged."
    elif settled.attested_steps is None:
        said = "Its plan was charged in full, because nobody can say which steps ran."
    else:
        said = f"The {settled.attested_steps} steps that ran were charged."
    return f"{said} The measurement was charged." if measured else said


def assignment(record: Record, location: str) -> trainer_pb2.Assignment:
    """Return what a worker must run."""
    plan = record.plan
    message = trainer_pb2.Assignment(
        job=record.job.name,
        attempt=record.job.attempt,
        base_model=record.spec.base_model,
        base_model_location=location,
        frame=record.spec.frame,
        text_column=record.spec.text_column or "text",
        completion_column=record.spec.completion_column,
        text_format=record.spec.text_format,
        settings=plan.settings,
        unit_count=plan.unit_count,
    )
    if plan.HasField("evaluation"):
        message.evaluation.frame.CopyFrom(record.spec.evaluation.frame)
        message.evaluation.unit_count = plan.evaluation.unit_count
        message.evaluation.noise_multiplier = plan.evaluation.statement.mechanism.noise_multiplier
        message.evaluation.loss_bound = plan.evaluation.loss_bound
    if plan.HasField("canaries"):
        message.canaries.CopyFrom(plan.canaries)
        message.audit_delta = plan.audit_delta
    if plan.statement.unlimited:
        message.unlimited_steps = plan.steps
    else:
        message.mechanism.CopyFrom(plan.statement.mechanism)
    return message


def _timestamp(seconds: float) -> Timestamp:
    stamp = Timestamp()
    stamp.FromNanoseconds(int(seconds * 1e9))
    return stamp
