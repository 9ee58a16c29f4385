"""What is asked about training jobs, and what both clients conclude from the answers."""

from __future__ import annotations

from collections.abc import Iterable

from murmura import calls
from murmura.api.trainer.v1 import trainer_pb2
from murmura.api.trainer.v1 import trainer_service_pb2 as messages
from murmura.calls import PAGE_SIZE, Call, qualified
from murmura.errors import InvalidInput, JobFailed, exhausted

PLANNING_S = 120.0
_ENDED_BADLY = ("JOB_STATE_FAILED", "JOB_STATE_CANCELLED")


def list_base_models() -> Call:
    """List what can be fine-tuned."""
    return Call("trainer", "ListBaseModels", messages.ListBaseModelsRequest(page_size=PAGE_SIZE))


def list_jobs() -> Call:
    """List jobs."""
    return Call("trainer", "ListTrainingJobs", messages.ListTrainingJobsRequest(page_size=PAGE_SIZE))


def get_job(name: str) -> Call:
    """Read a job."""
    return Call("trainer", "GetTrainingJob", messages.GetTrainingJobRequest(name=qualified("trainingJobs", name)))


def get_job_of(adapter: str) -> Call:
    """Read the job that made an adapter."""
    return get_job(qualified("adapters", adapter).removeprefix("adapters/"))


def watch_job(name: str) -> Call:
    """Watch a job; a stream."""
    request = messages.WatchTrainingJobRequest(name=qualified("trainingJobs", name))
    return Call("trainer", "WatchTrainingJob", request, timeout_s=None)


def plan_job(spec: trainer_pb2.JobSpec) -> Call:
    """Plan a job; spends nothing."""
    return Call("trainer", "PlanTrainingJob", messages.PlanTrainingJobRequest(spec=spec), timeout_s=PLANNING_S)


def create_job(spec: trainer_pb2.JobSpec, request_id: str) -> Call:
    """Create a job; spends."""
    request = messages.CreateTrainingJobRequest(request_id=request_id, spec=spec)
    return Call("trainer", "CreateTrainingJob", request, timeout_s=PLANNING_S)


def cancel_job(name: str, subject: str) -> Call:
    """Stop a job."""
    request = messages.CancelTrainingJobRequest(name=qualified("trainingJobs", name))
    request.request_id = calls.request_id(subject, request)
    return Call("trainer", "CancelTrainingJob", request)


def ask_for(spec: trainer_pb2.JobSpec, target_epsilon: float | str) -> None:
    """Write into a spec what the job may cost.

    Args:
        spec: is changed.
        target_epsilon: the epsilon that it may reach at the dataset's delta, or "unlimited".

    Raises:
        InvalidInput: if it is neither.
    """
    if target_epsilon == "unlimited":
        spec.unlimited = True
    elif isinstance(target_epsilon, int | float) and not isinstance(target_epsilon, bool):
        spec.target_epsilon = float(target_epsilon)
    else:
        raise InvalidInput(f"target_epsilon is {target_epsilon!r}; give a positive number or 'unlimited'.")


def earlier_job(
    jobs: Iterable[trainer_pb2.TrainingJob], spec: trainer_pb2.JobSpec, subject: str, again: bool
) -> tuple[trainer_pb2.TrainingJob | None, str]:
    """Find the job that a spec already has, and the request id of a new one.

    The id counts the earlier attempts, so that a failed job can be tried again and a lost answer cannot pay twice.

    Args:
        jobs: those that there are, newest first.
        spec: what is wished for.
        subject: who wishes it.
        again: whether to train anew although there is one.
    """
    same = [job for job in jobs if job.spec == spec and job.owner == subject]
    alive = [job for job in same if job_state(job) not in _ENDED_BADLY]
    return (alive[0] if alive and not again else None), calls.request_id(subject, spec, salt=str(len(same)))


def require_affordable(plan: trainer_pb2.Plan, spec: trainer_pb2.JobSpec) -> None:
    """Refuse what the budget does not cover, before it is asked for.

    Raises:
        BudgetExhausted: nothing was spent.
    """
    if not plan.affordable:
        asked = "unlimited" if spec.unlimited else f"{spec.target_epsilon:g}"
        beside = f", with ε = {spec.evaluation.target_epsilon:g} for the measurement beside it"
        beside = beside if spec.HasField("evaluation") else ""
        raise exhausted(asked, beside, plan.left_epsilon, spec.frame.dataset, plan.account)


def require_adapter(job: trainer_pb2.TrainingJob) -> None:
    """Refuse a job that is over without an adapter.

    Raises:
        JobFailed: with what its service says.
    """
    if job_state(job) in _ENDED_BADLY:
        state = job_state(job).removeprefix("JOB_STATE_").lower()
        raise JobFailed(job.error.message or f"{job.name} ended as {state}.", metadata={"job": job.name})


def job_state(job: trainer_pb2.TrainingJob) -> str:
    """Return the name of a job's state."""
    return trainer_pb2.JobState.Name(job.state)


def ended(job: trainer_pb2.TrainingJob) -> bool:
    """Say whether a job is over."""
    return job_state(job) in ("JOB_STATE_SUCCEEDED", *_ENDED_BADLY)
