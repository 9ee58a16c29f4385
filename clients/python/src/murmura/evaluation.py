"""`murmura.eval`: plan, pay, train, watch.

The plan is shown before anything is spent. The request id is derived from who asks and what is asked, so running a
notebook cell again finds the job that already exists, and charges nothing. Ctrl-C lets go of the job, not stops it.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from murmura import display
from murmura.errors import BudgetExhausted, JobFailed, Unreachable
from murmura.llm import Model

if TYPE_CHECKING:
    from murmura.api.trainer.v1 import trainer_pb2
    from murmura.client import Client
    from murmura.frame import RemoteFrame

_ENDED_BADLY = ("JOB_STATE_FAILED", "JOB_STATE_CANCELLED")


def eval(
    model: Model,
    target_epsilon: float | str,
    *,
    held_out: RemoteFrame | None = None,
    evaluation_epsilon: float | None = None,
    again: bool = False,
) -> Model:
    """Train a model: show the plan, reserve the budget, run, publish.

    Args:
        model: what `LLM(…).fit(X)` returned.
        target_epsilon: the epsilon that this job may reach at the dataset's delta, or "unlimited" for an ordinary
            fine-tune, where the dataset's policy allows one.
        held_out: rows of the same dataset on which the trained model is measured once (`model.evaluation`).
        evaluation_epsilon: the epsilon that this measurement may reach; it is paid for beside the job.
        again: train (and pay) once more although the same job has succeeded before.

    Returns:
        The model, ready to sample.

    Raises:
        murmura.errors.BudgetExhausted: if the budget does not cover it; nothing was spent.
        murmura.errors.NotAllowed: if the policy does not allow an unlimited job.
        murmura.errors.JobFailed: if the job ends without an adapter.
    """
    from murmura.api.trainer.v1 import trainer_service_pb2 as messages

    client, spec = model.client, model.spec(target_epsilon, held_out, evaluation_epsilon)
    earlier, request_id = _find(client, spec, again)
    if earlier is None:
        plan = (
            client.stub("trainer")
            .call("PlanTrainingJob", messages.PlanTrainingJobRequest(spec=spec), timeout_s=120)
            .plan
        )
        display.show_plan(plan, spec)
        if not plan.affordable:
            raise BudgetExhausted(
                f"ε = {target_epsilon} was asked for{_measured(spec)}, and ε = {plan.left_epsilon:.2f} is left on "
                f"{spec.frame.dataset}; "
                f"nothing was spent. Lower target_epsilon to at most {plan.left_epsilon:.2f}, or ask a steward for "
                f"a higher cap. `murmura budget show {spec.frame.dataset}` shows what was spent on what.",
                "BUDGET_EXHAUSTED",
                {"account": plan.account, "left_epsilon": f"{plan.left_epsilon:.4f}"},
            )
        request = messages.CreateTrainingJobRequest(request_id=request_id, spec=spec)
        job = client.stub("trainer").call("CreateTrainingJob", request, timeout_s=120).training_job
    else:
        job = earlier
        display.say(f"{job.name} was asked for before: nothing more is spent (again=True trains anew).")
    model.job = follow(client, job)
    load(client, model.job.adapter)
    display.show_result(model.job)
    return model


def _measured(spec: trainer_pb2.JobSpec) -> str:
    if not spec.HasField("evaluation"):
        return ""
    return f", with ε = {spec.evaluation.target_epsilon:g} for the measurement beside it"


def _find(client: Client, spec: trainer_pb2.JobSpec, again: bool) -> tuple[trainer_pb2.TrainingJob | None, str]:
    """Find the job that this spec already has, and the request id of a new one.

    The id counts the earlier attempts, so that a failed job can be tried again and a lost answer cannot pay twice.
    """
    same = [job for job in client.jobs() if job.spec == spec and job.owner == client.subject]
    alive = [job for job in same if _state(job) not in _ENDED_BADLY]
    request_id = client.request_id(spec, salt=str(len(same)))
    return (alive[0] if alive and not again else None), request_id


def follow(client: Client, job: trainer_pb2.TrainingJob) -> trainer_pb2.TrainingJob:
    """Watch a job to its end with one progress bar.

    Raises:
        JobFailed: if it ends without an adapter.
    """
    from murmura.api.trainer.v1 import trainer_service_pb2 as messages

    request = messages.WatchTrainingJobRequest(name=job.name)
    with display.progress(job) as bar:
        bar.update(job)
        while not _ended(job):
            try:
                for answer in client.stub("trainer").stream("WatchTrainingJob", request):
                    job = answer.training_job
                    bar.update(job)
            except Unreachable:
                job = _refresh(client, job)
            except KeyboardInterrupt:
                bar.close()
                display.say(f"Let go of {job.name}; it goes on. Come back with `murmura jobs watch {job.name}`.")
                raise
            else:
                job = _refresh(client, job)
    if _state(job) in _ENDED_BADLY:
        raise JobFailed(
            job.error.message or f"{job.name} ended as {display.state_name(job)}.",
            metadata={"job": job.name},
        )
    return job


def load(client: Client, adapter: str) -> Any:
    """Have the inference service verify and serve an adapter."""
    from murmura.api.inference.v1 import inference_service_pb2 as messages

    request = messages.LoadAdapterRequest(name=adapter)
    return client.stub("inference", "AdapterService").call("LoadAdapter", request, timeout_s=300).adapter


def _refresh(client: Client, job: trainer_pb2.TrainingJob) -> trainer_pb2.TrainingJob:
    from murmura.api.trainer.v1 import trainer_service_pb2 as messages

    time.sleep(0.2)
    request = messages.GetTrainingJobRequest(name=job.name)
    fresh: trainer_pb2.TrainingJob = client.stub("trainer").call("GetTrainingJob", request).training_job
    return fresh


def _state(job: trainer_pb2.TrainingJob) -> str:
    from murmura.api.trainer.v1 import trainer_pb2

    return trainer_pb2.JobState.Name(job.state)


def _ended(job: trainer_pb2.TrainingJob) -> bool:
    return _state(job) in ("JOB_STATE_SUCCEEDED", *_ENDED_BADLY)
