"""The order of a query: charged before it is answered, drawn once for a price, whatever breaks in between."""

import uuid
from types import SimpleNamespace

import grpc
import numpy as np
import polars as pl
import pytest

from murmura.api.common.v1 import privacy_pb2
from murmura.api.dataset.v1 import dataset_pb2, expressions_pb2
from murmura.api.dataset.v1 import dataset_service_pb2 as pb
from murmura.api.ledger.v1 import ledger_pb2
from murmura.api.ledger.v1 import ledger_service_pb2 as ledger_messages
from services.common.errors import MurmuraError
from services.common.tokens import Principal
from services.dataset import execution, queries
from services.dataset import expressions as ex
from services.dataset.catalogue import Described
from services.dataset.queries import Queries
from services.dataset.registry import Registry

ANN, BOB = (Principal(name, frozenset({"analyst"})) for name in ("ann@local", "bob@local"))
SCHEMA = {"patient": ex.STRING, "age": ex.FLOAT, "visits": ex.INTEGER, "note": ex.STRING}
ROWS = pl.DataFrame(
    {
        "patient": ["a", "a", "b", "c", "c", "c"],
        "age": [30.0, None, 50.0, float("nan"), 400.0, -5.0],
        "visits": [1, 2, None, 4, 5, 6],
        "note": ["x", None, "y", "z", "", "w"],
    }
)


class Catalogue:
    """One frame over six rows of three units."""

    def __init__(self, registry):
        self.registry = registry
        self.dataset = dataset_pb2.Dataset(name="datasets/d", account="accounts/d", privacy_unit_column="patient")
        self.operations = []
        self.breaks = None
        self.sealed = None
        self.opened = 0

    def describe(self, frame, principal):
        units = np.array([0, 0, 1, 2, 2, 2])
        return Described(self.dataset, "s", self.operations, ex.Shape(SCHEMA, range(6)), units, 3)

    def require_openable(self, described):
        if self.sealed:
            raise self.sealed

    def applied(self, described):
        self.opened += 1
        if self.breaks:
            raise self.breaks
        for start in (0, 4):
            yield execution.apply(ROWS.slice(start, 4), described.operations)


class Ledger:
    """Prices everything alike, and writes down what it is asked in which order."""

    def __init__(self):
        self.stub = self
        self.calls = []
        self.reservations = {}
        self.fails = {}
        self.before = {}
        self.affordable = True

    def __getattr__(self, name):
        return name

    async def call(self, method, request, timeout_s=0):
        if method in self.before:
            self.before[method]()
        if self.fails.get(method):
            raise self.fails[method]
        self.calls.append(method)
        return getattr(self, f"answer_{method}")(request)

    def answer_Calibrate(self, request):
        answer = ledger_messages.CalibrateResponse(affordable=self.affordable, left_epsilon_after=2.5)
        answer.account.left_epsilon = 3.0
        answer.statement.account = request.account
        answer.statement.epsilon = request.target_epsilon
        answer.statement.mechanism.noise_multiplier = 4.0
        return answer

    def answer_CreateReservation(self, request):
        pending = ledger_pb2.RESERVATION_STATE_PENDING
        made = self.reservations.setdefault(
            request.request_id,
            ledger_pb2.Reservation(
                name=f"accounts/d/reservations/{request.request_id}", job=request.job, state=pending
            ),
        )
        return ledger_messages.CreateReservationResponse(reservation=made)

    def answer_CommitReservation(self, request):
        for made in self.reservations.values():
            if made.name == request.name:
                made.state = ledger_pb2.RESERVATION_STATE_COMMITTED
        return ledger_messages.CommitReservationResponse(receipt=privacy_pb2.Receipt(sequence=7))

    def states(self):
        return [made.state for made in self.reservations.values()]


class House:
    def __init__(self, path):
        self.registry = Registry(path / "registry.sqlite3")
        self.catalogue = Catalogue(self.registry)
        self.ledger = Ledger()
        self.queries = Queries(self.catalogue, self.ledger)

    async def ask(self, request, who=ANN):
        return await self.queries.answer(request, who)


@pytest.fixture
def house(tmp_path, monkeypatch):
    monkeypatch.setattr(queries, "TICK_S", 0.001)
    made = House(tmp_path)
    yield made
    made.registry.close()


def ask(statistic=pb.STATISTIC_MEAN, column="age", **fields):
    if statistic != pb.STATISTIC_COUNT:
        fields = {"lower": 0.0, "upper": 100.0, **fields}
    return pb.QueryStatisticRequest(
        request_id=str(uuid.uuid4()),
        frame=expressions_pb2.Frame(dataset="datasets/d"),
        statistic=statistic,
        column=column,
        target_epsilon=0.5,
        **fields,
    )


UNREACHABLE = MurmuraError(grpc.StatusCode.UNAVAILABLE, "DEPENDENCY_UNAVAILABLE", "away", {"service": "ledger"})


async def test_the_charge_comes_before_the_answer(house):
    request = ask()
    answer = await house.ask(request)
    assert house.ledger.calls == ["Calibrate", "CreateReservation", "CommitReservation"]
    assert house.ledger.states() == [ledger_pb2.RESERVATION_STATE_COMMITTED]
    assert answer.receipt.sequence == 7
    assert answer.plan.paid


async def test_without_a_charge_there_is_no_answer_and_later_the_same_one(house, tmp_path):
    request = ask()
    kept_before_the_charge = []
    house.ledger.before["CommitReservation"] = lambda: kept_before_the_charge.append(
        house.registry.answer(request.request_id)
    )
    house.ledger.fails["CommitReservation"] = UNREACHABLE
    with pytest.raises(MurmuraError, match="away"):
        await house.ask(request)
    assert kept_before_the_charge[0] is not None
    drawn = pb.QueryStatisticResponse.FromString(kept_before_the_charge[0][1])
    house.ledger.fails.clear()
    # As after a crash: what is in memory is gone.
    house.queries = Queries(house.catalogue, house.ledger)
    answer = await house.ask(request)
    assert list(answer.values) == list(drawn.values)
    assert house.catalogue.opened == 1
    assert house.ledger.states() == [ledger_pb2.RESERVATION_STATE_COMMITTED]


async def test_what_breaks_before_it_is_written_down_has_one_reservation_in_the_end(house):
    request = ask()
    house.catalogue.breaks = MemoryError()
    with pytest.raises(MemoryError):
        await house.ask(request)
    assert house.ledger.states() == [ledger_pb2.RESERVATION_STATE_PENDING]
    assert house.registry.answer(request.request_id) is None
    house.catalogue.breaks = None
    await house.ask(request)
    assert house.ledger.states() == [ledger_pb2.RESERVATION_STATE_COMMITTED]


async def test_nothing_is_set_aside_for_rows_that_cannot_be_opened(house):
    house.catalogue.sealed = MurmuraError(grpc.StatusCode.FAILED_PRECONDITION, "SOURCE_UNREADABLE", "sealed")
    with pytest.raises(MurmuraError, match="sealed"):
        await house.ask(ask())
    assert house.ledger.calls == ["Calibrate"]


async def test_a_lost_registry_gives_no_second_draw_for_an_old_price(house, tmp_path):
    request = ask()
    await house.ask(request)
    house.registry.close()
    (tmp_path / "fresh").mkdir()
    house.catalogue.registry = house.registry = Registry(tmp_path / "fresh" / "registry.sqlite3")
    with pytest.raises(MurmuraError) as refusal:
        await house.ask(request)
    assert refusal.value.reason == "RESERVATION_RESOLVED"
    assert house.catalogue.opened == 1


async def test_the_same_request_is_the_same_answer_and_no_second_charge(house):
    request = ask(pb.STATISTIC_HISTOGRAM, parameter=5)
    first = await house.ask(request)
    again = await house.ask(request)
    assert list(again.values) == list(first.values)
    assert again == first
    assert len(house.ledger.reservations) == 1
    other = ask(pb.STATISTIC_HISTOGRAM, parameter=5)
    assert list((await house.ask(other)).values) != list(first.values)
    assert len(house.ledger.reservations) == 2


async def test_the_same_id_for_something_else_or_by_someone_else_is_refused(house):
    request = ask()
    await house.ask(request)
    narrower = pb.QueryStatisticRequest()
    narrower.CopyFrom(request)
    narrower.upper = 90
    for changed, who in ((narrower, ANN), (request, BOB)):
        with pytest.raises(MurmuraError) as refusal:
            await house.ask(changed, who)
        assert refusal.value.reason == "REQUEST_ID_REUSED"
    assert len(house.ledger.reservations) == 1


async def test_a_plan_reads_no_row_and_spends_nothing(house):
    request = ask(validate_only=True)
    plan = await house.ask(request)
    assert house.ledger.calls == ["Calibrate"]
    assert house.catalogue.opened == 0
    assert not plan.values and not plan.plan.paid and not plan.reservation
    assert plan.statement.max_rows_per_unit == 3
    assert plan.plan.sensitivity == pytest.approx(3 * 2**0.5)
    assert plan.plan.noise_standard_deviation == pytest.approx(4 * 3 * 2**0.5, rel=2e-3)
    assert (plan.plan.row_count, plan.plan.unit_count, plan.plan.left_epsilon) == (6, 3, 3.0)
    # The plan of what was paid says so, and shows no value.
    request.validate_only = False
    await house.ask(request)
    request.validate_only = True
    paid = await house.ask(request)
    assert paid.plan.paid and not paid.values


async def test_the_error_of_a_plan_is_that_of_answers(house, monkeypatch):
    """Ten thousand rows, so that the noise and not the number of rows decides."""
    large = pl.concat([ROWS] * 1700)
    monkeypatch.setattr(
        house.catalogue, "applied", lambda described: [execution.apply(large.with_columns(age=37.0), [])]
    )
    monkeypatch.setattr(
        house.catalogue,
        "describe",
        lambda frame, who: Described(
            house.catalogue.dataset,
            "s",
            [],
            ex.Shape(SCHEMA, range(large.height)),
            np.arange(large.height),
            large.height,
        ),
    )
    answers = [await house.ask(ask()) for _ in range(60)]
    error = np.sqrt(np.mean([(answer.values[0] - 37) ** 2 for answer in answers]))
    stated = answers[0].plan.expected_error
    assert stated / 4 < error < stated * 1.6


def exact(house, request):
    described = house.catalogue.describe(request.frame, ANN)
    statistic = queries.statistic_of(request, described)
    return queries.exact_vector(house.catalogue, statistic, described, request.column) // statistic.scale


@pytest.mark.parametrize(
    ("request_", "expected"),
    [
        (ask(pb.STATISTIC_COUNT, ""), [6]),
        (ask(pb.STATISTIC_COUNT, "age"), [4]),
        (ask(pb.STATISTIC_COUNT, "visits"), [5]),
        (ask(pb.STATISTIC_COUNT, "note"), [5]),
        (ask(pb.STATISTIC_HISTOGRAM, "age", parameter=2), [2, 2]),
        (ask(pb.STATISTIC_HISTOGRAM, "visits", parameter=4, upper=8.0), [1, 1, 2, 1]),
        # 400 counts as 100 and -5 as 0: (-0.4 + 0 + 1 - 1) half-ranges, of 4 rows that have a value.
        (ask(pb.STATISTIC_MEAN, "age"), [-1, 4]),
    ],
)
def test_rows_without_a_value_add_nothing_and_bounds_hold(house, request_, expected):
    assert exact(house, request_).tolist() == expected


def test_rows_that_a_filter_or_a_failure_has_emptied_add_nothing(house):
    has_x = ex.Call("STRING_CONTAINS", (ex.Column("note"), ex.Literal("x")))
    house.catalogue.operations = [ex.Filter(has_x)]
    assert exact(house, ask(pb.STATISTIC_COUNT, "")).tolist() == [1]
    assert exact(house, ask(pb.STATISTIC_COUNT, "visits")).tolist() == [1]
    assert exact(house, ask(pb.STATISTIC_HISTOGRAM, "age", parameter=2)).tolist() == [1, 0]
    second = ex.Call("LIST_GET", (ex.Call("STRING_SPLIT", (ex.Column("note"), ex.Literal("x"))), ex.Literal(1)))
    house.catalogue.operations = [ex.Assign("note", second)]
    assert exact(house, ask(pb.STATISTIC_COUNT, "")).tolist() == [1]


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"statistic": 99}, "statistic"),
        ({"column": "note"}, "column"),
        ({"lower": None}, "lower"),
        ({"upper": None}, "upper"),
        ({"lower": 100.0}, "upper"),
        ({"lower": 0.0, "upper": 5e-324}, "upper"),
        ({"parameter": 3.0}, "parameter"),
        ({"statistic": pb.STATISTIC_QUANTILE}, "parameter"),
        ({"statistic": pb.STATISTIC_QUANTILE, "parameter": 1.5}, "parameter"),
        ({"statistic": pb.STATISTIC_HISTOGRAM, "parameter": 0.0}, "parameter"),
        ({"statistic": pb.STATISTIC_HISTOGRAM, "parameter": 2.5}, "parameter"),
        ({"statistic": pb.STATISTIC_HISTOGRAM, "parameter": 1001.0}, "parameter"),
    ],
)
async def test_what_cannot_be_asked_names_the_field(house, change, field):
    request = ask()
    for name, value in change.items():
        if value is None:
            request.ClearField(name)
        else:
            setattr(request, name, value)
    with pytest.raises(MurmuraError) as refusal:
        await house.ask(request)
    assert list(refusal.value.violations) == [field]
    assert house.ledger.calls == []


async def test_an_unknown_column_is_named(house):
    with pytest.raises(MurmuraError) as refusal:
        await house.ask(ask(column="weight"))
    assert refusal.value.reason == "COLUMN_UNKNOWN"


async def test_an_answer_leaves_at_a_coarse_age(monkeypatch):
    """Short and shorter work ends at the same age, and so does work that fails."""
    monkeypatch.setattr(queries, "TICK_S", 0.2)
    slept = []

    async def sleep(seconds):
        slept.append(seconds)

    clock = iter([0.0, 0.05, 10.0, 10.13, 20.0, 20.3])
    monkeypatch.setattr(queries, "asyncio", SimpleNamespace(sleep=sleep))
    monkeypatch.setattr(queries, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    async with queries._paced():
        pass
    with pytest.raises(KeyError):
        async with queries._paced():
            raise KeyError
    async with queries._paced():
        pass
    assert slept == pytest.approx([0.15, 0.07, 0.1])
