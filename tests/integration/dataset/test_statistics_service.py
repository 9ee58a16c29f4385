"""Noisy statistics with a real ledger: what is promised is what is charged, once, whatever is killed in between."""

from __future__ import annotations

import contextlib
import json
import random
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

import murmura
from murmura import errors
from murmura.api.dataset.v1 import dataset_service_pb2 as pb
from murmura.api.dataset.v1 import expressions_pb2
from murmura.api.ledger.v1 import ledger_pb2, ledger_service_pb2
from murmura.client import Client

SLOTS, ROWS_A_UNIT = 3000, 2


def content(ages: list[float | None] | None = None) -> str:
    """Return rows of patients with two visits each, at ages around 50; salted, so that each call is a lineage."""
    salt = uuid.uuid4().hex
    ages = ages or [min(max(random.gauss(50, 15), 0), 120) for _ in range(SLOTS)]
    return "".join(
        json.dumps({"patient": f"{salt}-{slot // ROWS_A_UNIT}", "age": age, "note": f"note {slot}"}) + "\n"
        for slot, age in enumerate(ages)
    )


def ask(dataset: Any, statistic: Any = pb.STATISTIC_MEAN, **fields: Any) -> pb.QueryStatisticRequest:
    if statistic != pb.STATISTIC_COUNT:
        fields = {"column": "age", "lower": 0.0, "upper": 120.0, **fields}
    return pb.QueryStatisticRequest(
        request_id=str(uuid.uuid4()),
        frame=fields.pop("frame", expressions_pb2.Frame(dataset=dataset.name)),
        statistic=statistic,
        target_epsilon=fields.pop("target_epsilon", 0.5),
        **fields,
    )


def query(pair: Any, request: pb.QueryStatisticRequest, subject: str = "", role: str = "analyst") -> Any:
    return pair.dataset.QueryStatistic(request, metadata=pair.who(role, subject), timeout=60)


def account(pair: Any, dataset: Any) -> Any:
    request = ledger_service_pb2.GetAccountRequest(name=dataset.account)
    return pair.ledger.GetAccount(request, metadata=pair.who("steward"), timeout=20).account


def reservations(pair: Any, dataset: Any) -> list[Any]:
    request = ledger_service_pb2.ListReservationsRequest(account=dataset.account)
    return list(pair.ledger.ListReservations(request, metadata=pair.who("steward"), timeout=20).reservations)


@pytest.fixture
def own(pair: Any) -> Iterator[Any]:
    """The services, both running again after the test."""
    yield pair
    if "dataset" not in pair._processes:
        pair.start("dataset")


def test_what_is_promised_is_what_is_charged(pair: Any) -> None:
    dataset = pair.register(pair.request(content()))
    before = account(pair, dataset)
    request = ask(dataset, validate_only=True)
    plan = query(pair, request)
    assert not plan.values and not plan.HasField("receipt")
    assert account(pair, dataset) == before
    assert reservations(pair, dataset) == []

    request.validate_only = False
    answer = query(pair, request)
    assert abs(answer.values[0] - 50) < 8 * answer.plan.expected_error + 2
    assert answer.statement == plan.statement
    assert 0 < answer.statement.epsilon <= 0.5
    assert answer.statement.max_rows_per_unit == ROWS_A_UNIT
    assert answer.statement.privacy_unit_column == "patient"
    after = account(pair, dataset)
    (charge,) = reservations(pair, dataset)
    assert charge.name == answer.reservation
    assert charge.state == ledger_pb2.RESERVATION_STATE_COMMITTED
    assert charge.principal == "analyst@local"
    assert charge.job == f"statistics/{request.request_id}"
    assert charge.price == charge.committed == answer.statement.price
    assert after.left_epsilon == pytest.approx(plan.plan.left_epsilon_after)
    assert after.spent_epsilon == pytest.approx(answer.statement.epsilon)

    again = query(pair, request)
    assert list(again.values) == list(answer.values)
    assert account(pair, dataset) == after


def test_each_statistic_is_near_the_truth(pair: Any) -> None:
    ages = [float(slot % 100) for slot in range(SLOTS)]
    dataset = pair.register(pair.request(content([*ages, None, None])))
    count = query(pair, ask(dataset, pb.STATISTIC_COUNT, column="age"))
    assert abs(count.values[0] - SLOTS) < 8 * count.plan.expected_error
    bins = query(pair, ask(dataset, pb.STATISTIC_HISTOGRAM, parameter=4, upper=100.0))
    assert list(bins.edges) == [0, 25, 50, 75, 100]
    assert np.abs(np.array(bins.values) - SLOTS / 4).max() < 8 * bins.plan.expected_error
    high = query(pair, ask(dataset, pb.STATISTIC_QUANTILE, parameter=0.9, upper=100.0))
    assert abs(high.values[0] - 90) < 8 * 100 * high.plan.expected_error
    assert high.plan.resolution == pytest.approx(100 / 1024)
    kept = expressions_pb2.Frame(dataset=dataset.name)
    kept.operations.add().slice.stop = 1000
    part = query(pair, ask(dataset, pb.STATISTIC_COUNT, frame=kept))
    assert part.plan.row_count == 1000
    assert abs(part.values[0] - 1000) < 8 * part.plan.expected_error


def test_a_filter_empties_rows_and_a_failing_row_is_gone(pair: Any) -> None:
    dataset = pair.register(pair.request(content()))
    frame = expressions_pb2.Frame(dataset=dataset.name)
    call = frame.operations.add().filter.predicate.call
    call.function = expressions_pb2.FUNCTION_STRING_CONTAINS
    call.arguments.add().column = "note"
    call.arguments.add().literal.string_value = "note 1"
    expected = sum(str(slot).startswith("1") for slot in range(SLOTS))
    answer = query(pair, ask(dataset, pb.STATISTIC_COUNT, frame=frame, target_epsilon=2.0))
    assert answer.plan.row_count == SLOTS
    assert abs(answer.values[0] - expected) < 8 * answer.plan.expected_error


def test_an_exhausted_budget_is_refused_as_for_jobs_and_nothing_is_computed(pair: Any, refused: Any) -> None:
    dataset = pair.register(pair.request(content()))
    query(pair, ask(dataset, target_epsilon=2.9))
    before = account(pair, dataset)
    plan = query(pair, ask(dataset, target_epsilon=2.9, validate_only=True))
    assert not plan.plan.affordable
    answer = refused(lambda: query(pair, ask(dataset, target_epsilon=2.9)))
    assert (answer.code, answer.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "BUDGET_EXHAUSTED")
    assert answer.metadata["account"] == dataset.account
    assert account(pair, dataset) == before


def test_who_may_ask(pair: Any, refused: Any) -> None:
    request = pair.request(content())
    request.policy.analysts.append("ann@local")
    dataset = pair.register(request)
    asked = ask(dataset, pb.STATISTIC_COUNT)
    assert refused(lambda: query(pair, asked, "bob@local")).reason == "RESOURCE_NOT_FOUND"
    first = query(pair, asked, "ann@local")
    # Not even an answer that is paid for is for those who may not use the dataset.
    assert refused(lambda: query(pair, asked, "bob@local")).reason == "RESOURCE_NOT_FOUND"
    assert refused(lambda: query(pair, asked, role="steward")).reason == "REQUEST_ID_REUSED"
    assert refused(lambda: query(pair, asked, role="operator")).reason == "ROLE_DENIED"
    changed = pb.QueryStatisticRequest()
    changed.CopyFrom(asked)
    changed.target_epsilon = 1.0
    answer = refused(lambda: query(pair, changed, "ann@local"))
    assert (answer.code, answer.reason) == (grpc.StatusCode.ALREADY_EXISTS, "REQUEST_ID_REUSED")
    assert list(query(pair, asked, "ann@local").values) == list(first.values)
    assert len(reservations(pair, dataset)) == 1


def test_a_column_that_is_no_number_is_named(pair: Any, refused: Any) -> None:
    dataset = pair.register(pair.request(content()))
    answer = refused(lambda: query(pair, ask(dataset, column="note")))
    assert answer.reason == "FIELD_RULES"
    assert b"must name a column of numbers" in answer.everything
    assert reservations(pair, dataset) == []


@pytest.mark.parametrize("seconds", [0.0, 0.03, 0.15, 0.4])
def test_a_power_cut_at_any_time_costs_one_price_and_gives_one_answer(own: Any, seconds: float) -> None:
    dataset = own.register(own.request(content()))
    request, answered = ask(dataset), []

    def impatient() -> None:
        # The service dies, or its channel is closed.
        with contextlib.suppress(grpc.RpcError, ValueError):
            answered.append(query(own, request))

    thread = threading.Thread(target=impatient)
    thread.start()
    thread.join(seconds)
    own.kill("dataset")
    thread.join(60)
    own.start("dataset")
    first, second = query(own, request), query(own, request)
    assert list(first.values) == list(second.values)
    for earlier in answered:
        assert list(earlier.values) == list(first.values)
    (charge,) = reservations(own, dataset)
    assert charge.state == ledger_pb2.RESERVATION_STATE_COMMITTED


# ------------------------------------------------------------------ as an analyst does it


@pytest.fixture
def client(pair: Any, tmp_path: Path) -> Iterator[Client]:
    token = tmp_path / "token"
    token.write_text(pair.who("analyst")[0][1].removeprefix("Bearer "))
    endpoints = {name: (pair.state(name) / "listening").read_text().strip() for name in ("dataset", "ledger")}
    profile = tmp_path / "profile.json"
    profile.write_text(json.dumps({"endpoints": endpoints, "tokens": {"analyst": str(token)}}))
    made = Client(profile=profile)
    yield made
    made.close()


def test_an_analyst_pays_once_for_a_cell_and_knows_what_it_is(pair: Any, client: Client, capsys: Any) -> None:
    dataset = pair.register(pair.request(content()))
    X = client.dataset(dataset.name).as_pandas()
    capsys.readouterr()
    mean = murmura.eval(X["age"].mean(lower=0, upper=120), target_epsilon=0.5)
    said = capsys.readouterr().out
    assert said.index("Plan (nothing is spent yet)") < said.index("outcome: DP (ε = ")
    assert abs(mean.value - 50) < 8 * mean.expected_error + 2
    spent = client.account(dataset.name)
    assert spent.spent_epsilon == pytest.approx(mean.statement.epsilon)

    again = murmura.eval(X["age"].mean(lower=0, upper=120), target_epsilon=0.5)
    assert again.value == mean.value
    assert client.account(dataset.name) == spent
    anew = murmura.eval(X["age"].mean(lower=0, upper=120), target_epsilon=0.5, again=True)
    assert anew.value != mean.value
    assert client.account(dataset.name).spent_epsilon > spent.spent_epsilon

    spent = client.account(dataset.name)
    capsys.readouterr()
    assert len(murmura.eval(X)) == 5
    assert "outcome: mock, " in capsys.readouterr().out
    assert murmura.eval(X.shape) == (SLOTS, 3)
    assert "outcome: public, " in capsys.readouterr().out
    with pytest.raises(errors.BudgetExhausted):
        murmura.eval(X.count(), target_epsilon=30)
    with pytest.raises(errors.InvalidInput, match="must name a column of numbers"):
        murmura.eval(X["note"].mean(lower=0, upper=1), target_epsilon=0.1)
    assert client.account(dataset.name) == spent
