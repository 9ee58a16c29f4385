"""The SDK's manners: quick to import, clear when it refuses, readable when it prints."""

import io
import re

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2
from rich.console import Console

from murmura import errors
from murmura.api.dataset.v1 import dataset_service_pb2 as messages
from murmura.api.dataset.v1 import expressions_pb2 as pb
from murmura.api.trainer.v1 import trainer_pb2
from murmura.client import Client
from murmura.connection import choose_profile, local_profile, remote_profile
from murmura.display import budget_bar, plan_table
from murmura.frame import RemoteFrame
from murmura.llm import LLM, Model
from murmura.metrics import Evaluation


class Service:
    """Stands for the dataset service: every frame has the same two columns."""

    def call(self, method, request, timeout_s=0):
        assert method == "DescribeFrame"
        answer = messages.DescribeFrameResponse(row_count=10, unit_count=4)
        for name in ("patient", "text"):
            answer.schema.columns.add(name=name, type=pb.VALUE_TYPE_STRING)
        answer.mock_rows.add(values=["mock patient 1", "<b>mock</b>"])
        return answer


class FakeClient:
    subject = "ann"

    def stub(self, service, interface=""):
        return Service()


@pytest.fixture
def frame():
    return RemoteFrame(FakeClient(), pb.Frame(dataset="datasets/d"))


def test_pandas_habits_become_operations(frame):
    X = frame.rename(columns={"context": "text"})
    X["text"] = X["text"].str.strip()
    part = X.drop(columns="patient")[["text"]].iloc[2:-1]
    kinds = [operation.WhichOneof("kind") for operation in part.proto.operations]
    assert kinds == ["rename", "assign", "drop", "select", "slice"]
    bounds = part.proto.operations[-1].slice
    assert (bounds.start, bounds.stop) == (2, -1)
    assert not frame.proto.operations


def test_a_slice_does_not_follow_later_assignments(frame):
    part = frame.iloc[:5]
    frame["text"] = frame["text"].str.lower()
    assert len(part.proto.operations) == 1
    assert len(frame.proto.operations) == 1


@pytest.mark.parametrize(
    "use",
    [
        lambda f: f.groupby("text"),
        lambda f: f.iloc[3],
        lambda f: f.iloc[::2],
        lambda f: f["text"].apply(str.upper),
        lambda f: f["text"].std(),
        lambda f: list(f),
        lambda f: list(f["text"]),
        lambda f: f.__setitem__("text", ["a", "list"]),
        lambda f: f["text"].str.swapcase("a"),
    ],
)
def test_what_a_remote_frame_cannot_do_says_what_it_can(frame, use):
    with pytest.raises(errors.NotSupported, match=r"Supported:|stay where they are|Wrap the function|Only ranges"):
        use(frame)


def test_a_series_of_another_state_is_refused(frame):
    stale = frame["text"].str.lower()
    frame["text"] = frame["text"].str.strip()
    with pytest.raises(errors.InvalidInput, match="another state"):
        frame["text"] = stale


def test_a_frame_says_that_its_rows_are_mock(frame):
    assert "mock rows" in repr(frame)
    assert "10 slots of 4 privacy units" in repr(frame)
    assert "<b>mock</b>" not in frame._repr_html_()


def test_fit_checks_before_anything_is_asked_of_anyone(frame):
    llm = LLM("base", FakeClient())
    for wrong in (
        lambda: llm.fit([1, 2]),
        lambda: llm.fit(frame, text_field="absent"),
        lambda: llm.fit(frame, epoch=3),
        lambda: llm.fit(frame, batch_size=2.5),
        lambda: llm.fit(frame, epochs="many"),
        lambda: llm.fit(frame).spec("lots"),
        lambda: llm.fit(frame).spec(True),
    ):
        with pytest.raises(errors.InvalidInput):
            wrong()
    with pytest.raises(errors.MurmuraError, match=r"murmura\.eval"):
        llm.fit(frame).sample(["x"])


def test_the_same_wish_is_the_same_request_and_another_is_not(frame):
    class Asker(Client):
        def __init__(self, subject):
            self._subject = subject

        subject = property(lambda self: self._subject)

    spec = Model("base", frame, {"text": "text"}, {"epochs": 3}).spec(22)
    same = Model("base", frame, {"text": "text"}, {"epochs": 3}).spec(22.0)
    ann, bob = Asker("ann"), Asker("bob")
    assert ann.request_id(spec) == ann.request_id(same)
    others = [
        ann.request_id(spec, "1"),
        bob.request_id(spec),
        ann.request_id(Model("b", frame, {"text": "text"}, {}).spec(22)),
    ]
    assert ann.request_id(spec) not in others


@pytest.mark.parametrize("width", [60, 80, 120])
@pytest.mark.parametrize("unlimited", [False, True])
def test_a_plan_fits_and_says_what_matters(width, unlimited):
    plan = trainer_pb2.Plan(
        steps=77,
        row_count=2608,
        unit_count=1582,
        left_epsilon=25,
        left_epsilon_after=7.8,
        cap_epsilon=25,
        affordable=True,
    )
    plan.settings.batch_size, plan.settings.lora_rank, plan.settings.max_rows_per_unit = 206, 16, 4
    plan.settings.clipping = trainer_pb2.CLIPPING_NORMALISED
    plan.statement.unlimited = unlimited
    plan.statement.epsilon, plan.statement.delta = 21.98, 1e-4
    spec = trainer_pb2.JobSpec(base_model="baseModels/murmura-base")
    spec.frame.dataset = "datasets/phee"
    out = io.StringIO()
    Console(file=out, width=width).print(plan_table(plan, spec))
    text = out.getvalue()
    assert max(map(len, text.splitlines())) <= width
    assert "77 steps" in text
    assert ("may repeat" in text) if unlimited else ("ε = 21.98" in text and "7.8" in text)


def measured(unlimited):
    plan = trainer_pb2.Plan(steps=77, left_epsilon=25, left_epsilon_after=7.8, cap_epsilon=25)
    plan.statement.unlimited, plan.statement.epsilon = unlimited, 21.98
    plan.evaluation.unit_count, plan.evaluation.loss_bound, plan.evaluation.standard_error = 290, 8, 0.1957
    plan.evaluation.statement.epsilon = 0.4999
    return plan


@pytest.mark.parametrize("unlimited", [False, True])
def test_a_plan_says_what_a_measurement_costs_and_is_worth(unlimited):
    out = io.StringIO()
    spec = trainer_pb2.JobSpec(base_model="baseModels/murmura-base")
    Console(file=out, width=80).print(plan_table(measured(unlimited), spec))
    text = " ".join(out.getvalue().replace("│", " ").split())
    for said in ("290 held-out units", "8 nats", "ε = 0.4999", "about 0.2"):
        assert said in text
    assert unlimited or "after this one and its measurement 7.8" in text


def test_what_was_measured_says_how_far_it_can_be_trusted():
    message = trainer_pb2.Evaluation(mean_loss=3.0, perplexity=20.1, standard_error=0.1, unit_count=288.4)
    message.statement.epsilon = 0.5
    found = Evaluation(message)
    assert str(found) == ("perplexity 20.1 on held-out rows of about 288 units (16.4 to 24.5, with noise for ε = 0.5)")


@pytest.mark.parametrize(
    ("wish", "said"),
    [
        ({"evaluation_epsilon": 0.5}, "Pass held_out=X_test too"),
        ({"held_out": "same"}, "Pass evaluation_epsilon=0.5 too"),
        ({"held_out": "other", "evaluation_epsilon": 0.5}, "both must be frames of one dataset"),
        ({"held_out": [1], "evaluation_epsilon": 0.5}, "not a list"),
    ],
)
def test_a_measurement_that_makes_no_sense_is_refused_before_anything_is_sent(frame, wish, said):
    other = RemoteFrame(FakeClient(), pb.Frame(dataset="datasets/other"))
    frames = {"same": frame, "other": other}
    held_out = wish.get("held_out")
    wish = wish | ({"held_out": frames[held_out]} if isinstance(held_out, str) else {})
    with pytest.raises(errors.InvalidInput, match=re.escape(said)):
        Model("b", frame, {"text": "text"}, {}).spec(22, **wish)


def test_held_out_rows_need_the_columns_that_are_learned(frame):
    with pytest.raises(errors.InvalidInput, match="has no column note"):
        Model("b", frame, {"text": "note"}, {}).spec(22, held_out=frame, evaluation_epsilon=0.5)


def test_a_measurement_is_part_of_what_is_asked(frame):
    spec = Model("b", frame, {"text": "text"}, {}).spec(22, held_out=frame.iloc[1:], evaluation_epsilon=0.5)
    assert spec.evaluation.target_epsilon == 0.5
    assert spec.evaluation.frame.dataset == spec.frame.dataset
    assert spec.evaluation.frame != spec.frame


def test_a_budget_bar_is_full_when_it_is_spent():
    assert budget_bar(0, 10).plain.count("█") == 0
    assert budget_bar(10, 10).plain.count("░") == 0
    assert budget_bar(20, 10).plain.count("█") == 40


class Refused(grpc.RpcError):
    def __init__(self, status):
        self._status = status

    def code(self):
        return grpc.StatusCode.FAILED_PRECONDITION

    def details(self):
        return self._status.message

    def trailing_metadata(self):
        return (("grpc-status-details-bin", self._status.SerializeToString()),)


def test_a_refusal_becomes_the_exception_to_catch():
    status = status_pb2.Status(code=9, message="ε 22 was asked for and 7.8 is left")
    info = error_details_pb2.ErrorInfo(reason="ERROR_REASON_BUDGET_EXHAUSTED", metadata={"left_epsilon": "7.8"})
    status.details.add().Pack(info)
    error = errors.from_rpc(Refused(status), "ledger", "here")
    assert isinstance(error, errors.BudgetExhausted)
    assert (str(error), error.reason, error.metadata["left_epsilon"]) == (status.message, "BUDGET_EXHAUSTED", "7.8")


def test_a_token_never_travels_in_the_clear():
    with pytest.raises(errors.InvalidInput, match="in the clear"):
        remote_profile("grpc://hospital.example:443", "t")
    assert remote_profile("grpcs://hospital.example:443", "t").secure
    assert not remote_profile("grpc://127.0.0.1:7401", "t").secure


def test_the_environment_names_an_organisations_murmura(tmp_path, monkeypatch):
    monkeypatch.delenv("MURMURA_PROFILE", raising=False)
    monkeypatch.setenv("MURMURA_URL", "grpcs://murmura.hospital.example")
    monkeypatch.setenv("MURMURA_TOKEN", "its")
    assert choose_profile(None, None, None, "analyst", None) == remote_profile("murmura.hospital.example", "its")
    assert choose_profile("grpcs://other.example", "t", None, "analyst", None).endpoints["ledger"] == "other.example"
    # A profile that is named goes before it: `murmura up` in a folder of its own is meant.
    with pytest.raises(errors.Unreachable, match="MURMURA_URL"):
        choose_profile(None, None, None, "analyst", tmp_path / "profile.json")


def test_no_murmura_here_says_how_to_start_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MURMURA_PROFILE", raising=False)
    with pytest.raises(errors.Unreachable, match="murmura up"):
        local_profile("analyst")


def test_an_absent_service_says_how_to_start_it(tmp_path):
    client = Client("grpc://127.0.0.1:1", "a.b.c", patience_s=0)
    with pytest.raises(errors.Unreachable, match="murmura up"):
        client.dataset("phee")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"prompt_field": "text"}, "pass completion_field="),
        ({"completion_field": "text"}, "pass prompt_field="),
        ({"text_field": "text", "messages_field": "text"}, "A row is one thing"),
        ({"messages_field": "nothing"}, "No column 'nothing'"),
    ],
)
def test_columns_that_do_not_go_together_are_refused(frame, fields, message):
    with pytest.raises(errors.InvalidInput, match=message):
        LLM("base").fit(frame, **fields)


def test_what_a_row_is_goes_into_the_job(frame):
    spec = LLM("base").fit(frame, prompt_field="text", completion_field="text").spec(1)
    assert (spec.text_column, spec.completion_column) == ("text", "text")
    assert spec.text_format == trainer_pb2.TEXT_FORMAT_COMPLETION
    assert LLM("base").fit(frame, messages_field="text").spec(1).text_format == trainer_pb2.TEXT_FORMAT_CHAT
    assert LLM("base").fit(frame).spec(1).text_format == trainer_pb2.TEXT_FORMAT_PLAIN
