"""Statistics as an analyst meets them: lazy, planned before they are paid, and every outcome called by its name."""

import io
import uuid

import pytest
from rich.console import Console

import murmura
from murmura import display, errors
from murmura.api.common.v1 import privacy_pb2
from murmura.api.dataset.v1 import dataset_pb2
from murmura.api.dataset.v1 import dataset_service_pb2 as messages
from murmura.api.dataset.v1 import expressions_pb2 as pb
from murmura.api.trainer.v1 import trainer_pb2
from murmura.calls import request_id
from murmura.dataset import RemoteDataset
from murmura.frame import RemoteFrame
from murmura.llm import Model
from murmura.outcomes import MockRows, released
from murmura.tracing import trace


class Service:
    """Stands for the dataset service: one frame, and answers that count the draws."""

    def __init__(self):
        self.asked = []
        self.paid = {}
        self.affordable = True

    def call(self, method, request, timeout_s=0):
        self.asked.append((method, type(request).FromString(request.SerializeToString())))
        return getattr(self, method)(request)

    def DescribeFrame(self, request):
        answer = messages.DescribeFrameResponse(row_count=10, unit_count=4)
        names = ["patient", "age"]
        for operation in request.frame.operations:
            if operation.HasField("select"):
                names = list(operation.select.columns)
            if operation.HasField("assign"):
                names.append(operation.assign.column)
        for name in names:
            answer.schema.columns.add(name=name, type=pb.VALUE_TYPE_FLOAT)
        answer.mock_rows.add(values=[f"mock {name}" for name in names])
        return answer

    def QueryStatistic(self, request):
        answer = messages.QueryStatisticResponse()
        answer.statement.epsilon, answer.statement.delta = request.target_epsilon, 1e-5
        answer.statement.account = "accounts/d"
        answer.plan.affordable, answer.plan.left_epsilon = self.affordable, 3.0
        answer.plan.expected_error = 1.5
        answer.plan.paid = request.request_id in self.paid
        if not request.validate_only:
            answer.values.append(self.paid.setdefault(request.request_id, 40.0 + len(self.paid)))
            answer.plan.paid = True
        return answer

    def spent(self):
        return len(self.paid)


class FakeClient:
    subject = "ann"

    def __init__(self):
        self.service = Service()

    def stub(self, service, interface=""):
        return self.service

    def run(self, call):
        assert call.service == "dataset"
        return self.service.call(call.method, call.request)

    def request_id(self, message, salt=""):
        return request_id(self.subject, message, salt)


@pytest.fixture
def frame():
    return RemoteFrame(FakeClient(), pb.Frame(dataset="datasets/d"))


@pytest.fixture
def printed(monkeypatch):
    text = io.StringIO()
    monkeypatch.setattr(display, "console", Console(file=text, highlight=False, width=100))
    return text


def outcome(printed):
    """The one line that says what the outcome is."""
    lines = [line for line in printed.getvalue().splitlines() if line.startswith("outcome: ")]
    assert len(lines) == 1, printed.getvalue()
    return lines[0].removeprefix("outcome: ")


def sent(frame, method="QueryStatistic"):
    return [request for name, request in frame.client.service.asked if name == method]


def test_a_statistic_asks_nothing_until_it_is_evaluated(frame):
    mean = frame["age"].mean(lower=0, upper=120)
    assert sent(frame) == []
    assert "not asked yet" in repr(mean)
    for look in (lambda: mean.value, lambda: float(mean), lambda: mean.statement):
        with pytest.raises(errors.MurmuraError, match=r"murmura\.eval"):
            look()


def test_the_plan_is_shown_before_anything_is_spent(frame, printed, monkeypatch):
    seen = []
    service = frame.client.service
    original = service.QueryStatistic

    def watched(request):
        seen.append((request.validate_only, "Plan (nothing is spent yet)" in printed.getvalue()))
        return original(request)

    monkeypatch.setattr(service, "QueryStatistic", watched)
    mean = murmura.eval(frame["age"].mean(lower=0, upper=120), target_epsilon=0.5)
    assert seen == [(True, False), (False, True)]
    assert (mean.value, float(mean), mean.values) == (40.0, 40.0, [40.0])
    assert outcome(printed) == "DP (ε = 0.5, δ = 1e-05)"


def test_the_same_cell_again_is_free_and_again_pays_anew(frame, printed):
    first = murmura.eval(frame["age"].mean(lower=0, upper=120), target_epsilon=0.5)
    repeated = murmura.eval(frame["age"].mean(lower=0, upper=120), target_epsilon=0.5)
    assert (repeated.value, frame.client.service.spent()) == (first.value, 1)
    assert "nothing more is spent" in printed.getvalue()
    anew = murmura.eval(frame["age"].mean(lower=0, upper=120), target_epsilon=0.5, again=True)
    assert (anew.value, frame.client.service.spent()) == (41.0, 2)
    murmura.eval(frame["age"].mean(lower=0, upper=120), target_epsilon=0.6)
    murmura.eval(frame["age"].mean(lower=0, upper=100), target_epsilon=0.5)
    assert frame.client.service.spent() == 4
    assert all(uuid.UUID(request.request_id) for request in sent(frame))


def test_each_statistic_says_what_it_means(frame, printed):
    age = frame["age"]
    wishes = {
        (messages.STATISTIC_COUNT, "", None): frame.count(),
        (messages.STATISTIC_COUNT, "age", None): age.count(),
        (messages.STATISTIC_MEAN, "age", None): age.mean(lower=0, upper=120),
        (messages.STATISTIC_QUANTILE, "age", 0.9): age.quantile(0.9, lower=0, upper=120),
        (messages.STATISTIC_QUANTILE, "age", 0.5): age.median(lower=0, upper=120),
        (messages.STATISTIC_HISTOGRAM, "age", 12.0): age.hist(bins=12, lower=0, upper=120),
    }
    for (kind, column, parameter), wish in wishes.items():
        request = wish.request(0.5)
        assert (request.statistic, request.column) == (kind, column)
        assert (request.parameter if request.HasField("parameter") else None) == parameter
        bounded = kind != messages.STATISTIC_COUNT
        assert (request.HasField("lower"), request.HasField("upper")) == (bounded, bounded)
        assert request.frame == frame.proto


def test_a_computed_column_becomes_one_of_the_frame_without_changing_it(frame):
    shorter = frame["age"].apply(trace(lambda age: abs(age)))
    request = shorter.count().request(0.5)
    assert request.frame.operations[-1].assign.column == request.column == "value"
    assert not frame.proto.operations


@pytest.mark.parametrize(
    "wish",
    [
        lambda age: age.mean(),
        lambda age: age.mean(lower=0),
        lambda age: age.median(upper=9),
        lambda age: age.hist(10),
        lambda age: age.mean(lower=3, upper=3),
        lambda age: age.quantile(1.2, lower=0, upper=1),
    ],
)
def test_missing_or_wrong_bounds_say_what_to_pass(frame, wish):
    with pytest.raises(errors.InvalidInput, match=r"lower=…|must be the greater|between 0 and 1"):
        wish(frame["age"])


def test_a_histogram_has_values_and_no_value(frame, printed):
    bins = murmura.eval(frame["age"].hist(lower=0, upper=1), target_epsilon=0.5)
    assert bins.values == [40.0]
    with pytest.raises(errors.InvalidInput, match="values"):
        _ = bins.value


def test_what_the_budget_does_not_cover_is_planned_and_not_asked(frame, printed):
    frame.client.service.affordable = False
    with pytest.raises(errors.BudgetExhausted, match=r"3\.00 is left"):
        murmura.eval(frame.count(), target_epsilon=5)
    assert frame.client.service.spent() == 0
    assert "Plan (nothing is spent yet)" in printed.getvalue()
    assert "outcome" not in printed.getvalue()


def test_nothing_private_without_a_price(frame, printed):
    for price in (None, "0.5", True):
        with pytest.raises(errors.InvalidInput, match=r"target_epsilon=0\.5"):
            murmura.eval(frame.count(), price)
    with pytest.raises(errors.NotAllowed, match="noisy, always"):
        murmura.eval(frame.count(), target_epsilon="unlimited")
    with pytest.raises(errors.InvalidInput, match="Training reads private rows"):
        murmura.eval(Model("b", frame, {"text": "age"}, {}))
    assert sent(frame) == []
    assert printed.getvalue() == ""


def test_a_frame_gives_mock_rows_and_says_so(frame, printed):
    rows = murmura.eval(frame)
    assert isinstance(rows, MockRows)
    assert rows == [{"patient": "mock patient", "age": "mock age"}]
    assert "mock" in repr(rows)
    assert outcome(printed).startswith("mock, 1 rows made up from the schema of datasets/d")


def test_a_column_gives_its_mock_values_and_stays_as_it_is(frame, printed):
    age = frame["age"]
    assert murmura.eval(age) == [{"age": "mock age"}]
    assert outcome(printed).startswith("mock, ")
    assert not age.frame.operations
    assert murmura.eval(age.apply(trace(lambda a: abs(a)))) == [{"value": "mock value"}]


def test_rows_are_not_to_be_had_at_any_price(frame, printed):
    for obj in (frame, frame["age"]):
        with pytest.raises(errors.NotAllowed, match="no policy can allow"):
            murmura.eval(obj, target_epsilon="unlimited")
        with pytest.raises(errors.InvalidInput, match="Pay for a statistic"):
            murmura.eval(obj, target_epsilon=1.0)
    assert printed.getvalue() == ""


def test_public_facts_come_as_they_are(frame, printed):
    assert murmura.eval(frame.shape) == (10, 2)
    assert outcome(printed) == "public, (10, 2)"


FACTS = [lambda f: f.units, lambda f: f.columns, lambda f: f.dtypes, lambda f: RemoteDataset(f.client, DATASET)]


@pytest.mark.parametrize("fact", FACTS)
def test_all_public_facts_say_that_they_are(frame, printed, fact):
    obj = fact(frame)
    assert murmura.eval(obj) == obj
    assert outcome(printed).startswith("public, ")
    with pytest.raises(errors.InvalidInput, match="costs nothing"):
        murmura.eval(obj, target_epsilon=1)


DATASET = dataset_pb2.Dataset(name="datasets/d", row_count=10, unit_count=4)


@pytest.mark.parametrize("stranger", [42, "text", [1, 2], (3, 4), None, {"a": 1}])
def test_what_is_no_remote_object_is_called_nothing(stranger, printed):
    with pytest.raises(errors.InvalidInput, match="eval takes a model"):
        murmura.eval(stranger)
    assert printed.getvalue() == ""


def test_options_of_models_are_for_models(frame):
    with pytest.raises(errors.InvalidInput, match="for models"):
        murmura.eval(frame.count(), target_epsilon=1, held_out=frame)


@pytest.mark.parametrize(
    ("statement", "expected"),
    [
        ({"unlimited": True}, "unlimited (by policy of datasets/d), it may repeat what it read"),
        ({"epsilon": 7.9996, "delta": 1e-5}, "DP (ε = 8, δ = 1e-05)"),
    ],
)
def test_a_trained_model_says_what_it_is(frame, printed, monkeypatch, statement, expected):
    from murmura import evaluation

    made = privacy_pb2.PrivacyStatement(**statement)
    assert released(made, "datasets/d") == expected
    model = Model("b", frame, {"text": "age"}, {})
    price = "unlimited" if made.unlimited else 8
    job = trainer_pb2.TrainingJob(
        name="trainingJobs/j", owner="ann", spec=model.spec(price), adapter="adapters/a", statement=made
    )
    job.state = trainer_pb2.JOB_STATE_SUCCEEDED
    frame.client.jobs = lambda: [job]
    monkeypatch.setattr(evaluation, "load", lambda client, adapter: None)
    murmura.eval(model, target_epsilon=price)
    assert outcome(printed) == expected
