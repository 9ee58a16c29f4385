"""Properties of a job's life, over any order in which things may happen to it."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.trainer import jobs, settlement
from services.trainer.jobs import Fenced, IllegalTransition, Job

ORDER = [jobs.PROVISIONING, jobs.RUNNING, jobs.PUBLISHING, jobs.SUCCEEDED]
TOTAL = 20


def fresh() -> Job:
    return Job("job", "analyst@local", TOTAL)


def running() -> Job:
    return jobs.begun(jobs.reserved(fresh(), "accounts/a/reservations/r"), 1, 5.0)


steps = st.integers(-3, TOTAL + 3)
events = st.one_of(
    st.just(lambda job: jobs.reserved(job, "accounts/a/reservations/r")),
    st.builds(lambda attempt: lambda job: jobs.begun(job, attempt, 5.0), st.integers(0, 2)),
    st.builds(
        lambda attempt, done: lambda job: jobs.progressed(job, attempt, done),
        st.integers(0, 2),
        steps,
    ),
    st.builds(lambda attempt: lambda job: jobs.uploaded(job, attempt), st.integers(0, 2)),
    st.builds(lambda attempt, done: lambda job: jobs.saved(job, attempt, done), st.integers(0, 3), steps),
    st.builds(lambda evicted: lambda job: jobs.retried(job, evicted, 7.0), st.booleans()),
    st.just(lambda job: jobs.published(job, 9.0)),
    st.just(jobs.cancelling),
    st.builds(lambda done: lambda job: jobs.ending(job, "INTERNAL", done), st.one_of(st.none(), steps)),
    st.just(lambda job: jobs.ended(job, 9.0)),
)


@given(st.lists(events, max_size=30))
def test_whatever_happens_a_job_keeps_its_promises(happening: list) -> None:
    job, settled = fresh(), None
    for event in happening:
        before = job
        try:
            job = event(job)
        except (IllegalTransition, Fenced):
            continue
        # What is over stays as it is.
        assert before.state not in jobs.TERMINAL
        # Forward only.
        if before.state in ORDER and job.state in ORDER:
            assert ORDER.index(before.state) <= ORDER.index(job.state)
        # A worker runs on reserved budget only.
        assert job.reservation or not job.started
        assert before.completed_steps <= job.completed_steps <= TOTAL
        assert job.attempt in (before.attempt, before.attempt + 1)
        assert job.deaths < jobs.MOST_DEATHS
        # Whoever comes after a dead worker cannot attest what that one ran.
        if job.deaths and job.ending is not None:
            assert job.ending.attested_steps is None
        # Free of charge only if no worker ever began; never beside an adapter.
        resolution = settlement.resolution(job)
        assert resolution.release == (not job.started)
        if job.state in (jobs.PUBLISHING, jobs.SUCCEEDED):
            assert job.started
            assert resolution == settlement.Resolution(release=False, attested_steps=None)
        if resolution.attested_steps is not None:
            assert 0 <= resolution.attested_steps <= TOTAL
            assert resolution.attested_steps >= job.completed_steps
        # The ledger is asked as soon as an end is decided; after that the question may not change.
        if settled is not None:
            assert resolution == settled
        if job.ending is not None or job.state == jobs.PUBLISHING:
            settled = resolution


def test_success_leads_through_publishing() -> None:
    job = running()
    with pytest.raises(IllegalTransition):
        jobs.published(job, 9.0)
    assert jobs.published(jobs.uploaded(job, 1), 9.0).state == jobs.SUCCEEDED


def test_a_job_that_is_being_settled_cannot_begin() -> None:
    """Its reservation may be released already: a worker that began now would train for free."""
    reserved = jobs.reserved(fresh(), "accounts/a/reservations/r")
    with pytest.raises(IllegalTransition):
        jobs.begun(jobs.cancelling(reserved), 1, 5.0)
    with pytest.raises(IllegalTransition):
        jobs.begun(jobs.ending(reserved, "INTERNAL", None), 1, 5.0)


def test_a_job_without_budget_cannot_begin() -> None:
    with pytest.raises(IllegalTransition):
        jobs.begun(fresh(), 1, 5.0)


def test_a_worker_cannot_take_back_reported_steps() -> None:
    job = jobs.ending(jobs.progressed(running(), 1, 7), "STOPPED", 3)
    assert settlement.resolution(job) == settlement.Resolution(release=False, attested_steps=7)


def test_an_evicted_worker_is_followed_from_its_checkpoint() -> None:
    job = jobs.retried(jobs.saved(jobs.progressed(running(), 1, 7), 1, 8), True, 6.0)
    assert (job.attempt, job.stage) == (2, "resuming from step 8, attempt 2")
    assert job.started and not settlement.resolution(job).release
    assert jobs.begun(job, 2, 9.0).started == job.started
    assert jobs.ending(jobs.begun(job, 2, 9.0), "STOPPED", 3).ending == jobs.Ending(jobs.FAILED, "STOPPED", 8)


def test_a_cancelled_job_is_not_tried_again() -> None:
    job = jobs.cancelling(running())
    assert not jobs.may_retry(job, True)
    with pytest.raises(IllegalTransition):
        jobs.retried(job, True, 6.0)


def test_a_silent_death_is_charged_in_full() -> None:
    job = jobs.ending(jobs.progressed(running(), 1, 7), "INTERNAL", None)
    assert settlement.resolution(job) == settlement.Resolution(release=False, attested_steps=None)


def test_a_measurement_is_given_back_only_where_training_is_known_to_have_ended_before_it() -> None:
    """It runs after the last step: with that, or when nobody can say, it is charged."""
    release = settlement.Resolution(release=True)
    charge = settlement.Resolution(release=False)
    reserved = jobs.reserved(fresh(), "accounts/a/reservations/r", "accounts/a/reservations/e")
    assert settlement.evaluation_resolution(jobs.ending(jobs.cancelling(reserved), "STOPPED", 0)) == release
    begun = jobs.begun(reserved, 1, 5.0)
    assert settlement.evaluation_resolution(jobs.ending(begun, "STOPPED", TOTAL - 1)) == release
    for job in (
        jobs.ending(begun, "INTERNAL", None),
        jobs.ending(begun, "INTERNAL", TOTAL),
        jobs.ending(jobs.retried(begun, False, 6.0), "STOPPED", 3),
        jobs.uploaded(begun, 1, (0.5, 3.0)),
    ):
        assert settlement.evaluation_resolution(job) == charge


@pytest.mark.parametrize("attempt", [0, 2])
def test_another_attempts_worker_is_fenced_off(attempt: int) -> None:
    for transition in (
        lambda: jobs.begun(running(), attempt, 5.0),
        lambda: jobs.progressed(running(), attempt, 1),
        lambda: jobs.uploaded(running(), attempt),
        lambda: jobs.saved(running(), attempt, 3),
    ):
        with pytest.raises(Fenced):
            transition()


def test_a_job_cannot_be_changed_in_place() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        fresh().state = jobs.SUCCEEDED  # type: ignore[misc]


# ---------------------------------------------------------------- workers that somebody else replaces


def at_work() -> Job:
    return jobs.begun(jobs.reserved(Job("j", "a", 100), "r"), 1, 5.0)


def test_waiting_has_a_beginning_and_an_end() -> None:
    job = jobs.observed(at_work(), "a GPU node", 0, 0, 0.0, 10.0)
    assert (job.waiting, job.waiting_since) == ("a GPU node", 10.0)
    job = jobs.observed(job, "its container", 0, 0, 1.0, 20.0)
    assert (job.waiting, job.waiting_since) == ("its container", 10.0)
    job = jobs.observed(job, "", 0, 0, 2.0, 30.0)
    assert (job.waiting, job.waiting_since) == ("", 0.0)


def test_what_is_seen_twice_counts_once() -> None:
    job = at_work()
    for _ in range(3):
        job = jobs.observed(job, "", 2, 1, 0.0, 10.0)
    assert (job.evictions, job.deaths) == (1, 1)
    # A launcher that has forgotten some of it takes nothing back.
    assert jobs.observed(job, "", 0, 0, 0.0, 10.0) == job
    job = jobs.observed(job, "", 3, 1, 0.0, 10.0)
    assert (job.evictions, job.deaths) == (2, 1)


def test_attempts_add_up() -> None:
    job = jobs.observed(at_work(), "", 1, 1, 50.0, 10.0)
    job = jobs.retried(job, evicted=True, now=20.0)
    assert (job.evictions, job.deaths, job.replaced, job.died) == (1, 1, 0, 0)
    job = jobs.observed(job, "", 1, 0, 40.0, 30.0)
    assert (job.evictions, job.deaths) == (2, 1)
    assert job.node_seconds + job.attempt_seconds == 90.0


def test_a_worker_that_died_and_was_replaced_leaves_nothing_to_give_back() -> None:
    """Its successor attests its own steps; what the dead one ran beyond the checkpoint is anybody's guess."""
    calm, sad = (jobs.observed(at_work(), "", 1, died, 0.0, 10.0) for died in (0, 1))
    ended = [settlement.resolution(jobs.ending(jobs.cancelling(job), "STOPPED", 10)) for job in (calm, sad)]
    assert [one.attested_steps for one in ended] == [10, None]


def test_time_alone_is_not_written_down_all_the_time() -> None:
    job = jobs.observed(at_work(), "", 0, 0, 100.0, 10.0)
    assert jobs.observed(job, "", 0, 0, 100.0 + jobs.NODE_SECONDS_STEP / 2, 11.0) is job
    assert jobs.observed(job, "", 0, 0, 100.0 + jobs.NODE_SECONDS_STEP, 12.0).attempt_seconds > 100.0


def test_only_what_is_found_again_need_not_be_written() -> None:
    job = at_work()
    assert jobs.differs_in_waiting_alone(jobs.observed(job, "its pod", 0, 0, 0.0, 9.0), job)
    assert not jobs.differs_in_waiting_alone(job, job)
    assert not jobs.differs_in_waiting_alone(jobs.observed(job, "its pod", 1, 1, 0.0, 9.0), job)
