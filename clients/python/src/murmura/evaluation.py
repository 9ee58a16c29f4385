"""`murmura.eval`: plan, pay, compute; and say what the outcome is.

The plan is shown before anything is spent. The request id is derived from who asks and what is asked, so running a
notebook cell again finds the job or the answer that already exists, and charges nothing. Ctrl-C lets go of a job, not
stops it. Every outcome is said to be one of those in `outcomes.py`; what cannot be had is refused, with the next step.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, overload

from murmura import bars, display, outcomes
from murmura.calls import datasets, jobs, models
from murmura.dataset import RemoteDataset
from murmura.errors import InvalidInput, NotAllowed, Unreachable
from murmura.frame import RemoteFrame
from murmura.llm import Model
from murmura.outcomes import MockRows, PublicDict, PublicInt, PublicList, PublicTuple
from murmura.series import RemoteSeries
from murmura.statistics import RemoteStatistic, column_of

if TYPE_CHECKING:
    from murmura.api.trainer.v1 import trainer_pb2
    from murmura.audit import Canaries
    from murmura.client import Client

_PUBLIC = (PublicTuple, PublicList, PublicDict, PublicInt, RemoteDataset)
_TAKES = (
    "a model (LLM(…).fit(X)), a statistic (X['age'].mean(lower=0, upper=120), X.count()), a remote frame or column, or "
    "what is public of one (X.shape, X.columns, X.units, a dataset)"
)


@overload
def eval(
    obj: Model,
    target_epsilon: float | str | None = None,
    *,
    held_out: RemoteFrame | None = None,
    evaluation_epsilon: float | None = None,
    canaries: Canaries | None = None,
    again: bool = False,
) -> Model: ...
@overload
def eval(
    obj: RemoteStatistic, target_epsilon: float | str | None = None, *, again: bool = False
) -> RemoteStatistic: ...
@overload
def eval(obj: RemoteFrame | RemoteSeries, target_epsilon: None = None) -> MockRows: ...
@overload
def eval(
    obj: Any,
    target_epsilon: float | str | None = None,
    *,
    held_out: RemoteFrame | None = None,
    evaluation_epsilon: float | None = None,
    canaries: Canaries | None = None,
    again: bool = False,
) -> Any: ...
def eval(
    obj: Any,
    target_epsilon: float | str | None = None,
    *,
    held_out: RemoteFrame | None = None,
    evaluation_epsilon: float | None = None,
    canaries: Canaries | None = None,
    again: bool = False,
) -> Any:
    """Evaluate a remote object and say what the outcome is: public, mock, DP (ε, δ), or unlimited (by policy …).

    A model is trained, a statistic is computed: the plan is shown, then the budget is charged. Of a frame or a column
    there are mock rows only, and what is public comes as it is; both are free.

    Args:
        obj: what `LLM(…).fit(X)` or `X['age'].mean(…)` returned, a remote frame or column, or what is public of one.
        target_epsilon: the epsilon that this may reach at the dataset's delta; for a model also "unlimited": an
            ordinary fine-tune, where the dataset's policy allows one.
        held_out: rows of the same dataset on which a trained model is measured once (`model.evaluation`).
        evaluation_epsilon: the epsilon that this measurement may reach; it is paid for beside the job.
        canaries: made-up texts to plant, and to attack the trained model for (`model.audit`); they cost nothing.
        again: train or compute (and pay) once more although the same was done before.

    Returns:
        The model, ready to sample; the statistic, with its answer; mock rows; or what is public, as it is.

    Raises:
        murmura.errors.BudgetExhausted: if the budget does not cover it; nothing was spent.
        murmura.errors.NotAllowed: if the policy does not allow it without privacy.
        murmura.errors.JobFailed: if a job ends without an adapter.
        murmura.errors.InvalidInput: if it cannot be had this way; the text says how.
    """
    if isinstance(obj, Model):
        if target_epsilon is None:
            raise InvalidInput(
                "Training reads private rows: pass target_epsilon=…, what it may cost, or target_epsilon='unlimited' "
                "where the policy allows a model without privacy."
            )
        return train(obj, obj.spec(target_epsilon, held_out, evaluation_epsilon, canaries), again)
    if held_out is not None or evaluation_epsilon is not None or canaries is not None:
        raise InvalidInput("held_out, evaluation_epsilon and canaries are for models.")
    if isinstance(obj, RemoteStatistic):
        return _ask(obj, target_epsilon, again)
    if isinstance(obj, RemoteFrame | RemoteSeries):
        return _mock(obj, target_epsilon)
    if isinstance(obj, _PUBLIC):
        if target_epsilon is not None:
            raise InvalidInput("This is public and costs nothing: leave target_epsilon out.")
        outcomes.say(outcomes.public(repr(obj)))
        return obj
    raise InvalidInput(f"eval takes {_TAKES}, not a {type(obj).__name__}.")


def train(
    model: Model,
    spec: trainer_pb2.JobSpec,
    again: bool = False,
    agreed: Callable[[], None] = lambda: None,
) -> Model:
    """Train a model: show the plan, reserve the budget, run, publish.

    Args:
        model: becomes the trained one.
        spec: what it is to be.
        again: train (and pay) once more although the same was done before.
        agreed: called when the plan has been shown and nothing is spent yet; what it raises ends it there.
    """
    client = model.client
    earlier, request_id = jobs.earlier_job(client.jobs(), spec, client.subject, again)
    if earlier is None:
        plan = client.run(jobs.plan_job(spec)).plan
        display.show_plan(plan, spec)
        jobs.require_affordable(plan, spec)
        agreed()
        job = client.run(jobs.create_job(spec, request_id)).training_job
    else:
        job = earlier
        display.say(f"{job.name} was asked for before: nothing more is spent (again=True trains anew).")
    model.job = follow(client, job)
    load(client, model.job.adapter)
    display.show_result(model.job)
    outcomes.say(outcomes.released(model.job.statement, spec.frame.dataset))
    return model


def _ask(statistic: RemoteStatistic, target_epsilon: float | str | None, again: bool) -> RemoteStatistic:
    """Compute a statistic: show the plan, have it charged, keep the answer."""
    if target_epsilon == "unlimited":
        raise NotAllowed(
            f"No policy can allow an exact {statistic.label} of {statistic.dataset}: statistics are noisy, always. "
            "Pass target_epsilon=0.5; a larger epsilon means less noise."
        )
    if not isinstance(target_epsilon, int | float) or isinstance(target_epsilon, bool):
        raise InvalidInput(
            f"The {statistic.label} is computed from private rows: pass target_epsilon=…, what it may cost, such as "
            "murmura.eval(statistic, target_epsilon=0.5). The plan is shown first."
        )
    client, request = statistic.client, statistic.request(float(target_epsilon))
    request.request_id = client.request_id(request, salt=uuid.uuid4().hex if again else "")
    planned = client.run(datasets.query_statistic(request, validate_only=True))
    if planned.plan.paid:
        display.say(f"The {statistic.label} was asked for before: nothing more is spent (again=True asks anew).")
    else:
        outcomes.show_plan(statistic, planned)
        datasets.require_affordable(planned, request)
    statistic.fill(client.run(datasets.query_statistic(request, validate_only=False)))
    display.console.print(f"{statistic.label}: {statistic.described()}", markup=False)
    outcomes.say(outcomes.released(statistic.statement, statistic.dataset))
    return statistic


def _mock(obj: RemoteFrame | RemoteSeries, target_epsilon: float | str | None) -> MockRows:
    """Return made-up rows; private ones are not to be had at any price."""
    from murmura.api.dataset.v1 import expressions_pb2

    if isinstance(obj, RemoteSeries):
        frame, column = column_of(obj._owner, obj.frame, obj.expression)
        frame.operations.append(expressions_pb2.Operation(select=expressions_pb2.Select(columns=[column])))
        obj = RemoteFrame(obj._owner.client, frame)
    dataset = obj.proto.dataset
    if target_epsilon == "unlimited":
        raise NotAllowed(
            f"Rows of {dataset} stay where they are: no policy can allow them to leave. Without target_epsilon, "
            "murmura.eval gives mock rows."
        )
    if target_epsilon is not None:
        raise InvalidInput(
            f"Rows of {dataset} cannot be released at any epsilon. Pay for a statistic (X.count(), X['age'].mean(…)) "
            "or for a model (LLM(…).fit(X)), or leave target_epsilon out to get mock rows."
        )
    rows = obj.mock_rows()
    outcomes.say(outcomes.mock(f"{len(rows)} rows made up from the schema of {dataset}; nothing in them is real"))
    return rows


def follow(client: Client, job: trainer_pb2.TrainingJob) -> trainer_pb2.TrainingJob:
    """Watch a job to its end with one progress bar.

    Raises:
        JobFailed: if it ends without an adapter.
    """
    with bars.JobBar(job) as bar:
        bar.update(job)
        while not jobs.ended(job):
            try:
                for answer in client.follow(jobs.watch_job(job.name)):
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
    jobs.require_adapter(job)
    return job


def load(client: Client, adapter: str) -> Any:
    """Have the inference service verify and serve an adapter."""
    return client.run(models.load_adapter(adapter)).adapter


def _refresh(client: Client, job: trainer_pb2.TrainingJob) -> trainer_pb2.TrainingJob:
    time.sleep(0.2)
    fresh: trainer_pb2.TrainingJob = client.run(jobs.get_job(job.name)).training_job
    return fresh
