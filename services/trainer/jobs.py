"""The life of a training job, as a pure state machine.

Every transition is a function from job to job that refuses what cannot be. What a job's end means for its reservation
is decided in `settlement.py`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

PROVISIONING, RUNNING, PUBLISHING = "PROVISIONING", "RUNNING", "PUBLISHING"
SUCCEEDED, FAILED, CANCELLED = "SUCCEEDED", "FAILED", "CANCELLED"
# Why a job ends whose audit refutes what was promised.
PROMISE_BROKEN = "PROMISE_BROKEN"
# How often a worker may be evicted, and how often one may die without a word, before its job is given up.
MOST_EVICTIONS = 100
MOST_DEATHS = 3
# How exactly is written down for how long a machine is held, while it is.
NODE_SECONDS_STEP = 30.0
TERMINAL = frozenset({SUCCEEDED, FAILED, CANCELLED})


class IllegalTransition(ValueError):
    """The job is in a state that does not allow this.

    Args:
        state: the state that it is in.
    """

    def __init__(self, state: str) -> None:
        super().__init__(f"the job is {state.lower()}")
        self.state = state


class Fenced(ValueError):
    """The worker belongs to an attempt that was given up."""


@dataclass(frozen=True)
class Ending:
    """How a job is about to end, once its reservation is resolved.

    Attributes:
        state: FAILED or CANCELLED.
        cause: a name of the failure causes, for the sentence that the analyst reads.
        attested_steps: steps that the worker attests; None where nobody can say.
        words: of whoever runs workers, about why none could; nothing private.
    """

    state: str
    cause: str
    attested_steps: int | None
    words: str = ""


@dataclass(frozen=True)
class Job:
    """A training job.

    Attributes:
        job_id: the last part of its name.
        owner: who asked for it.
        total_steps: what was planned.
        state: one of the six.
        attempt: from 1; a worker of an older one is fenced off.
        begun: the newest attempt whose worker has taken the job; 0 before.
        since: when this attempt was made, in seconds since the epoch.
        evictions: workers that left with a checkpoint because their machine was wanted for something else.
        deaths: workers that went without a word.
        checkpoint_steps: steps that the last checkpoint holds.
        completed_steps: as last reported.
        reservation: in the ledger; empty until it is made.
        evaluation_reservation: of the measurement at the end; empty where none was asked for.
        measured: the two noisy sums of the measurement, once they have arrived.
        audit: what came of the canaries, in `messages.py`'s words; empty where none were planted.
        ending: set while a job that has failed or was cancelled waits for its reservation to be resolved.
        cancel_requested: whether someone asked to stop it.
        waiting: what the worker of this attempt waits for; empty while it runs.
        waiting_since: when that began, in seconds since the epoch.
        replaced, died: of this attempt's workers, as counted so far among the evictions and deaths.
        node_seconds: for which machines were held by earlier attempts.
        attempt_seconds: for which they are held by this one, as last seen.
        stage: what goes on, for people.
        created: seconds since the epoch.
        started: when a worker began; 0 before.
        ended: when it ended; 0 before.
    """

    job_id: str
    owner: str
    total_steps: int
    state: str = PROVISIONING
    attempt: int = 1
    begun: int = 0
    since: float = 0.0
    evictions: int = 0
    deaths: int = 0
    checkpoint_steps: int = 0
    completed_steps: int = 0
    reservation: str = ""
    evaluation_reservation: str = ""
    measured: tuple[float, float] | None = None
    audit: str = ""
    ending: Ending | None = None
    cancel_requested: bool = False
    waiting: str = ""
    waiting_since: float = 0.0
    replaced: int = 0
    died: int = 0
    node_seconds: float = 0.0
    attempt_seconds: float = 0.0
    stage: str = "reserving the budget"
    created: float = 0.0
    started: float = 0.0
    ended: float = 0.0

    @property
    def name(self) -> str:
        """`trainingJobs/<id>`."""
        return f"trainingJobs/{self.job_id}"

    @property
    def adapter(self) -> str:
        """`adapters/<id>`."""
        return f"adapters/{self.job_id}"


def reserved(job: Job, reservation: str, evaluation: str = "") -> Job:
    """Note that the budget is set aside, also that of the measurement if there is to be one."""
    _require(job, PROVISIONING)
    return replace(job, reservation=reservation, evaluation_reservation=evaluation, stage="starting a worker")


def begun(job: Job, attempt: int, now: float) -> Job:
    """Note that a worker has taken the job; asking twice is no harm.

    A job that is to be stopped or is being settled can no longer begin: its reservation may be given back already.
    """
    _require(job, PROVISIONING, RUNNING)
    _fence(job, attempt)
    if job.ending is not None or not job.reservation:
        raise IllegalTransition(job.state)
    if job.begun == attempt:
        return job
    if job.cancel_requested:
        raise IllegalTransition(CANCELLED)
    return replace(job, state=RUNNING, begun=attempt, started=job.started or now, stage="training")


def saved(job: Job, attempt: int, steps: int) -> Job:
    """Note that a checkpoint is kept."""
    _require(job, RUNNING)
    _fence(job, attempt)
    if job.ending is not None:
        raise IllegalTransition(job.ending.state)
    return replace(job, checkpoint_steps=min(steps, job.total_steps))


def may_retry(job: Job, evicted: bool) -> bool:
    """Say whether a job whose worker is gone gets another one."""
    if job.cancel_requested or job.ending is not None:
        return False
    return job.evictions < MOST_EVICTIONS if evicted else job.deaths + 1 < MOST_DEATHS


def retried(job: Job, evicted: bool, now: float) -> Job:
    """Begin another attempt from the last checkpoint, or from the beginning where there is none.

    The old worker is fenced off from here on and can release nothing any more. So all that will ever be released of
    this job is one run of its mechanism, whichever attempt ends it, and it is paid for once.
    """
    _require(job, PROVISIONING, RUNNING)
    if not may_retry(job, evicted):
        raise IllegalTransition(job.state)
    attempt, steps = job.attempt + 1, job.checkpoint_steps
    return replace(
        job,
        attempt=attempt,
        since=now,
        evictions=job.evictions + evicted,
        deaths=job.deaths + (not evicted),
        waiting="",
        waiting_since=0.0,
        replaced=0,
        died=0,
        node_seconds=job.node_seconds + job.attempt_seconds,
        attempt_seconds=0.0,
        stage=f"resuming from step {steps}, attempt {attempt}" if steps else f"starting again, attempt {attempt}",
    )


def observed(job: Job, waiting: str, replaced: int, died: int, node_seconds: float, now: float) -> Job:
    """Note how the workers of the present attempt are.

    Args:
        job: as it was.
        waiting: what is waited for; empty where one runs.
        replaced: how many were replaced so far, by whoever runs them.
        died: how many of those went without a word. What they ran nobody can say.
        node_seconds: for which machines have been held for this attempt.
        now: seconds since the epoch.

    Returns:
        The job; the very same if only time has passed.
    """
    died, replaced = max(died, job.died), max(replaced, job.replaced)
    since = (job.waiting_since or now) if waiting else 0.0
    seen = replace(
        job,
        waiting=waiting,
        waiting_since=since,
        replaced=replaced,
        died=died,
        deaths=job.deaths + died - job.died,
        evictions=job.evictions + (replaced - died) - (job.replaced - job.died),
    )
    if seen == job and node_seconds < job.attempt_seconds + NODE_SECONDS_STEP:
        return job
    return replace(seen, attempt_seconds=max(node_seconds, job.attempt_seconds))


def differs_in_waiting_alone(job: Job, before: Job) -> bool:
    """Say whether what a job waits for is all that has changed: nothing that would be missed after a crash."""
    return job != before and replace(before, waiting=job.waiting, waiting_since=job.waiting_since) == job


def progressed(job: Job, attempt: int, steps: int) -> Job:
    """Note reported steps; they never go back and never exceed the plan."""
    _require(job, RUNNING)
    _fence(job, attempt)
    return replace(job, completed_steps=max(job.completed_steps, min(steps, job.total_steps)))


def uploaded(job: Job, attempt: int, measured: tuple[float, float] | None = None, audit: str = "") -> Job:
    """Note that the adapter has arrived, with what was measured. A job that is being stopped no longer takes one."""
    _require(job, RUNNING)
    _fence(job, attempt)
    if job.ending is not None:
        raise IllegalTransition(job.ending.state)
    return replace(
        job,
        state=PUBLISHING,
        completed_steps=job.total_steps,
        measured=measured,
        audit=audit,
        stage="publishing the adapter",
    )


def broken(job: Job, attempt: int, audit: str) -> Job:
    """Begin to end a job whose audit proves that its adapter gives away more than was promised."""
    _require(job, RUNNING)
    _fence(job, attempt)
    return replace(ending(job, PROMISE_BROKEN, None), audit=audit)


def published(job: Job, now: float) -> Job:
    """Note that the budget is charged and the adapter is in the store."""
    _require(job, PUBLISHING)
    return replace(job, state=SUCCEEDED, ended=now, stage="")


def cancelling(job: Job) -> Job:
    """Note that someone asked to stop. What has its adapter already cannot be stopped."""
    _require(job, PROVISIONING, RUNNING)
    return replace(job, cancel_requested=True, stage="stopping")


def ending(job: Job, cause: str, attested_steps: int | None, words: str = "") -> Job:
    """Begin to end without an adapter."""
    _require(job, PROVISIONING, RUNNING)
    if job.ending is not None:
        return job
    state = CANCELLED if job.cancel_requested else FAILED
    if job.deaths:
        attested_steps = None  # what the dead have run beyond their checkpoint, nobody can say
    if attested_steps is not None:
        # A worker cannot take back what it, or one before it, has reported.
        attested_steps = min(max(attested_steps, job.completed_steps, job.checkpoint_steps), job.total_steps)
    return replace(job, ending=Ending(state, cause, attested_steps, words or job.waiting), stage="settling the budget")


def ended(job: Job, now: float) -> Job:
    """Note that the reservation is resolved and the job is over."""
    _require(job, PROVISIONING, RUNNING)
    if job.ending is None:
        raise IllegalTransition(job.state)
    steps = job.ending.attested_steps
    done = job.completed_steps if steps is None else steps
    return replace(job, state=job.ending.state, completed_steps=done, ended=now, stage="", waiting="")


def _require(job: Job, *states: str) -> None:
    if job.state not in states:
        raise IllegalTransition(job.state)


def _fence(job: Job, attempt: int) -> None:
    if attempt != job.attempt:
        raise Fenced
