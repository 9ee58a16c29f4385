"""Training jobs on real parts: ledger, dataset service, trainer and worker, each a process of its own."""

from __future__ import annotations

import hashlib
import json
import math
import uuid
from typing import Any

import pytest
from google.protobuf import json_format

from murmura.api.common.v1 import privacy_pb2
from murmura.api.ledger.v1 import ledger_pb2
from murmura.api.trainer.v1 import trainer_pb2, trainer_service_pb2
from services.common.tokens import TrustedKeys
from tests.support.training_jobs import LONG, cancel, refusal, stepped


def test_private_job_succeeds_and_costs_exactly_its_plan(cluster: Any, notes: list[dict[str, Any]]) -> None:
    dataset = cluster.register(notes)
    created = cluster.create(cluster.spec(dataset, epochs=5.0))
    watched = [
        answer.training_job
        for answer in cluster.trainer.WatchTrainingJob(
            trainer_service_pb2.WatchTrainingJobRequest(name=created.name),
            metadata=cluster.who(),
            timeout=120,
        )
    ]
    job = watched[-1]
    assert job.state == trainer_pb2.JOB_STATE_SUCCEEDED, job
    assert job.completed_steps == job.plan.steps == 20
    steps = [seen.completed_steps for seen in watched]
    assert steps == sorted(steps)

    reservation = cluster.reservation(job.reservation)
    assert reservation.state == ledger_pb2.RESERVATION_STATE_COMMITTED
    assert reservation.committed == job.plan.statement.price
    account = cluster.account(dataset.account)
    assert account.spent == job.plan.statement.price
    assert account.pending == privacy_pb2.Price()
    assert 0 < job.statement.epsilon <= 4.0
    assert job.statement.privacy_unit_column == "patient"

    place = cluster.artifacts / job.adapter.removeprefix("adapters/")
    manifest = (place / "manifest.json").read_bytes()
    (key,) = TrustedKeys(cluster.directory / "keys" / "trusted.json").issuers_of("worker")
    key.verify((place / "manifest.sig").read_bytes(), manifest)
    facts = json.loads(manifest)
    assert (facts["owner"], facts["training_job"]) == ("analyst@local", job.name)
    for name, digest in facts["files"].items():
        found = place / "adapter" / name.removeprefix("adapter/")
        assert hashlib.sha256(found.read_bytes()).hexdigest() == digest
    said = json_format.ParseDict(facts["statement"], privacy_pb2.PrivacyStatement())
    assert said == job.statement

    # What a row says, and how training went, is in no log and no message.
    everything = cluster.logs() + str(watched)
    for secret in ("xylophone", "loss", "grad", "batch_units", "perplexity"):
        assert secret not in everything


def with_measurement(spec: trainer_pb2.JobSpec, dataset: Any) -> trainer_pb2.JobSpec:
    """Add a measurement on the last half of the rows."""
    spec.frame.operations.add().slice.stop = dataset.row_count // 2
    spec.evaluation.frame.dataset, spec.evaluation.target_epsilon = dataset.name, 1.0
    spec.evaluation.frame.operations.add().slice.start = dataset.row_count // 2
    return spec


@pytest.mark.parametrize("epsilon", [4.0, None])
def test_a_measurement_is_paid_for_beside_its_job(
    cluster: Any, notes: list[dict[str, Any]], epsilon: float | None
) -> None:
    dataset = cluster.register(notes)
    job = cluster.ended(cluster.create(with_measurement(cluster.spec(dataset, epsilon, epochs=1.0), dataset)).name)
    assert job.state == trainer_pb2.JOB_STATE_SUCCEEDED, job
    found, plan = job.evaluation, job.plan.evaluation
    assert found.statement == plan.statement
    assert 0 < found.statement.epsilon <= 1.0
    assert found.statement.mechanism.sampling_probability == found.statement.mechanism.steps == 1
    assert 0 <= found.mean_loss <= plan.loss_bound == 8.0
    assert found.perplexity == pytest.approx(math.exp(found.mean_loss))
    assert found.standard_error > 0

    own, measured = map(cluster.reservation, (job.reservation, job.evaluation_reservation))
    assert own.state == measured.state == ledger_pb2.RESERVATION_STATE_COMMITTED
    assert measured.committed == plan.statement.price
    spent = cluster.account(dataset.account).spent
    assert spent.units == own.committed.units + measured.committed.units
    assert spent.truncation_delta_e18 == sum(one.committed.truncation_delta_e18 for one in (own, measured))


@pytest.mark.parametrize("unlimited", [False, True])
def test_an_audit_comes_with_its_job_and_costs_nothing(
    cluster: Any, notes: list[dict[str, Any]], unlimited: bool
) -> None:
    dataset = cluster.register(notes, epsilon=30.0)
    spec = cluster.spec(dataset, epochs=5.0)
    if unlimited:
        spec.unlimited = True
    spec.canaries.template, spec.canaries.count = "{name} has {number}|{word}", 40
    job = cluster.ended(cluster.create(spec).name)
    assert job.state == trainer_pb2.JOB_STATE_SUCCEEDED, job
    audit = job.audit
    assert (audit.canaries, audit.others, audit.delta) == (40, 2000, pytest.approx(job.plan.audit_delta))
    assert 5 < audit.planted < 35
    assert audit.attacked == audit.planted
    assert sum(audit.exposure_histogram) == audit.planted
    assert (audit.roc[0].false_positive_rate, audit.roc[-1].true_positive_rate) == (0.0, 1.0)
    spent = cluster.account(dataset.account).spent
    assert spent == (privacy_pb2.Price() if unlimited else job.plan.statement.price)


def test_a_job_that_is_stopped_gives_its_measurement_back(cluster: Any, notes: list[dict[str, Any]]) -> None:
    dataset = cluster.register(notes)
    name = cluster.create(with_measurement(cluster.spec(dataset, **LONG), dataset)).name
    cluster.wait(lambda: stepped(cluster, name), "a step")
    cancel(cluster, name)
    job = cluster.ended(name)
    assert job.state == trainer_pb2.JOB_STATE_CANCELLED, job
    assert cluster.reservation(job.reservation).state == ledger_pb2.RESERVATION_STATE_COMMITTED
    assert cluster.reservation(job.evaluation_reservation).state == ledger_pb2.RESERVATION_STATE_RELEASED
    assert not job.HasField("evaluation")


def test_a_measurement_that_the_budget_does_not_cover_keeps_its_job_from_starting(
    cluster: Any, notes: list[dict[str, Any]]
) -> None:
    dataset = cluster.register(notes, epsilon=4.0)
    spec = with_measurement(cluster.spec(dataset, 3.9, epochs=1.0), dataset)
    planned = cluster.trainer.PlanTrainingJob(
        trainer_service_pb2.PlanTrainingJobRequest(spec=spec), metadata=cluster.who(), timeout=60
    ).plan
    assert not planned.affordable
    reason, _ = refusal(lambda: cluster.create(spec))
    assert reason == "BUDGET_EXHAUSTED"
    account = cluster.account(dataset.account)
    assert account.pending == account.spent == privacy_pb2.Price()
    spec.ClearField("evaluation")
    assert cluster.ended(cluster.create(spec).name).state == trainer_pb2.JOB_STATE_SUCCEEDED


def test_a_job_learns_completions(cluster: Any, notes: list[dict[str, Any]]) -> None:
    dataset = cluster.register(notes)
    spec = cluster.spec(dataset, epochs=5.0)
    spec.text_format, spec.completion_column = trainer_pb2.TEXT_FORMAT_COMPLETION, spec.text_column or "text"
    job = cluster.ended(cluster.create(spec).name)
    assert job.state == trainer_pb2.JOB_STATE_SUCCEEDED, job


def test_a_base_model_that_cannot_write_chats_is_said_so_before_a_row_is_read(
    cluster: Any, notes: list[dict[str, Any]]
) -> None:
    dataset = cluster.register(notes)
    spec = cluster.spec(dataset, epochs=5.0)
    spec.text_format = trainer_pb2.TEXT_FORMAT_CHAT
    job = cluster.ended(cluster.create(spec).name)
    assert job.state == trainer_pb2.JOB_STATE_FAILED
    assert "no chat template" in job.error.message
    assert cluster.account(dataset.account).spent == privacy_pb2.Price()


def test_unlimited_job_is_an_entry_that_costs_nothing(cluster: Any, notes: list[dict[str, Any]]) -> None:
    dataset = cluster.register(notes)
    job = cluster.ended(cluster.create(cluster.spec(dataset, None, epochs=1.0)).name)
    assert job.state == trainer_pb2.JOB_STATE_SUCCEEDED, job
    assert job.statement.unlimited
    account = cluster.account(dataset.account)
    assert account.unlimited_jobs == 1
    assert account.spent == privacy_pb2.Price()


def test_unlimited_job_needs_the_policys_consent(cluster: Any, notes: list[dict[str, Any]]) -> None:
    dataset = cluster.register(notes, unlimited_allowed=False)
    spec = cluster.spec(dataset, None)
    plan = cluster.trainer.PlanTrainingJob(
        trainer_service_pb2.PlanTrainingJobRequest(spec=spec), metadata=cluster.who(), timeout=60
    ).plan
    assert not plan.affordable
    assert refusal(lambda: cluster.create(spec))[0] == "UNLIMITED_NOT_ALLOWED"


def test_cancel_before_the_start_gives_everything_back_and_a_retry_charges_once(
    cluster: Any, notes: list[dict[str, Any]]
) -> None:
    dataset = cluster.register(notes)
    spec, request_id = cluster.spec(dataset, **LONG), str(uuid.uuid4())
    first = cluster.create(spec, request_id)
    cancel(cluster, first.name)
    again = cluster.create(spec, request_id)
    assert again.name == first.name
    assert cluster.account(dataset.account).pending.units in (0, first.plan.statement.price.units)
    spec.display_name = "another body"
    assert refusal(lambda: cluster.create(spec, request_id))[0] == "REQUEST_ID_REUSED"

    job = cluster.ended(first.name)
    assert job.state == trainer_pb2.JOB_STATE_CANCELLED
    assert cluster.reservation(job.reservation).state == ledger_pb2.RESERVATION_STATE_RELEASED
    account = cluster.account(dataset.account)
    assert account.spent == account.pending == privacy_pb2.Price()
    cluster.wait(lambda: not cluster.workers(job.name), "the worker is gone")


def test_cancel_during_the_run_charges_the_attested_steps(cluster: Any, notes: list[dict[str, Any]]) -> None:
    dataset = cluster.register(notes)
    name = cluster.create(cluster.spec(dataset, **LONG)).name
    cluster.wait(lambda: stepped(cluster, name), "the worker takes steps")
    cancel(cluster, name)
    job = cluster.ended(name)
    assert job.state == trainer_pb2.JOB_STATE_CANCELLED
    assert 0 < job.completed_steps < job.plan.steps
    reservation = cluster.reservation(job.reservation)
    assert reservation.state == ledger_pb2.RESERVATION_STATE_COMMITTED
    assert 0 < reservation.committed.units < job.plan.statement.price.units
    cluster.wait(lambda: not cluster.workers(name), "the worker is gone")


def test_over_budget_is_refused_with_what_is_left(cluster: Any, notes: list[dict[str, Any]]) -> None:
    dataset = cluster.register(notes, epsilon=1.0)
    reason, metadata = refusal(lambda: cluster.create(cluster.spec(dataset, 3.0, epochs=5.0)))
    assert reason == "BUDGET_EXHAUSTED"
    assert metadata["account"] == dataset.account
    assert 0.9 < float(metadata["left_epsilon"]) <= 1.0
    assert cluster.account(dataset.account).pending == privacy_pb2.Price()
    listed = cluster.trainer.ListTrainingJobs(
        trainer_service_pb2.ListTrainingJobsRequest(), metadata=cluster.who(), timeout=20
    )
    assert dataset.name not in {job.spec.frame.dataset for job in listed.training_jobs}


def test_foreign_jobs_do_not_exist(cluster: Any, notes: list[dict[str, Any]]) -> None:
    dataset = cluster.register(notes)
    spec, request_id = cluster.spec(dataset, **LONG), str(uuid.uuid4())
    job = cluster.create(spec, request_id)
    stranger = cluster.who(subject="stranger@local")
    named = {
        "GetTrainingJob": trainer_service_pb2.GetTrainingJobRequest(name=job.name),
        "CancelTrainingJob": trainer_service_pb2.CancelTrainingJobRequest(request_id=str(uuid.uuid4()), name=job.name),
    }
    for method, request in named.items():
        call = getattr(cluster.trainer, method)
        reason, _ = refusal(lambda c=call, r=request: c(r, metadata=stranger, timeout=20))
        assert reason == "RESOURCE_NOT_FOUND"
    watch = trainer_service_pb2.WatchTrainingJobRequest(name=job.name)
    reason, _ = refusal(lambda: list(cluster.trainer.WatchTrainingJob(watch, metadata=stranger, timeout=20)))
    assert reason == "RESOURCE_NOT_FOUND"
    mine = cluster.trainer.ListTrainingJobs(
        trainer_service_pb2.ListTrainingJobsRequest(), metadata=stranger, timeout=20
    )
    assert not mine.training_jobs
    # The same request id of another person is another request.
    other = cluster.create(spec, request_id, metadata=stranger)
    assert other.name != job.name
    steward = cluster.who("steward")
    request = trainer_service_pb2.GetTrainingJobRequest(name=job.name)
    assert cluster.trainer.GetTrainingJob(request, metadata=steward, timeout=20).training_job
    for name, metadata in ((job.name, cluster.who()), (other.name, stranger)):
        cancelling = trainer_service_pb2.CancelTrainingJobRequest(request_id=str(uuid.uuid4()), name=name)
        cluster.trainer.CancelTrainingJob(cancelling, metadata=metadata, timeout=20)
    cluster.wait(lambda: not cluster.workers(), "the workers are gone")
