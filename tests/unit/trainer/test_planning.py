"""Plans: defaults filled in, arithmetic on public counts, refusals that an analyst can act on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import grpc
import pytest

from murmura.api.dataset.v1 import dataset_service_pb2 as datasets_pb
from murmura.api.dataset.v1 import expressions_pb2
from murmura.api.ledger.v1 import ledger_service_pb2 as ledger_pb
from murmura.api.ledger.v1 import ledger_service_pb2_grpc
from murmura.api.trainer.v1 import trainer_pb2
from services.common.errors import MurmuraError
from services.common.tokens import Principal
from services.trainer.base_models import BaseModels
from services.trainer.planning import Planner

ANALYST = Principal("analyst@local", frozenset({"analyst"}))


class Upstream:
    """The dataset service and the ledger, as far as a plan asks them."""

    def __init__(self) -> None:
        self.channel = grpc.aio.insecure_channel("127.0.0.1:1")
        self.stub = ledger_service_pb2_grpc.LedgerServiceStub(self.channel)
        self.asked: list[Any] = []
        self.units, self.rows = 2000, 2608
        self.analysts: list[str] = []
        self.affordable = True
        self.unlimited: tuple[bool, list[str]] = (True, [])

    async def call(self, method: Any, request: Any, timeout_s: float = 0.0) -> Any:
        self.asked.append(request)
        answer = getattr(
            datasets_pb if "dataset" in type(request).__module__ else ledger_pb,
            type(request).__name__.replace("Request", "Response"),
        )()
        if isinstance(request, datasets_pb.GetDatasetRequest):
            answer.dataset.account, answer.dataset.privacy_unit_column = "accounts/a", "patient"
            answer.dataset.policy.analysts.extend(self.analysts)
        elif isinstance(request, datasets_pb.DescribeFrameRequest):
            answer.row_count, answer.unit_count = self.rows, self.units
            answer.schema.columns.add(name="text", type=expressions_pb2.VALUE_TYPE_STRING)
            answer.schema.columns.add(name="age", type=expressions_pb2.VALUE_TYPE_INTEGER)
        elif isinstance(request, ledger_pb.CalibrateRequest):
            answer.affordable = self.affordable
            answer.account.name = request.account
            answer.mechanism.steps = answer.statement.mechanism.steps = request.steps
            answer.statement.mechanism.noise_multiplier = 7.0
            answer.statement.price.units = 10 * request.steps
            answer.left_epsilon_after = 3.0 if request.HasField("beside") else 4.0
        else:
            allowed, principals = self.unlimited
            answer.account.unlimited_allowed = allowed
            answer.account.unlimited_principals.extend(principals)
        return answer


@pytest.fixture
async def upstream() -> Upstream:
    return Upstream()


def spec(**settings: Any) -> trainer_pb2.JobSpec:
    made = trainer_pb2.JobSpec(base_model="baseModels/tiny", target_epsilon=4.0)
    made.frame.dataset = "datasets/notes"
    made.settings.CopyFrom(trainer_pb2.Settings(**settings))
    return made


async def plan(upstream: Upstream, wanted: trainer_pb2.JobSpec, base: str = "/models/tiny") -> trainer_pb2.Plan:
    planner = Planner(upstream, upstream, BaseModels({"tiny": base}, max_rank=64))  # type: ignore[arg-type]
    return await planner.plan(wanted, ANALYST)


def refused(refusal: pytest.ExceptionInfo[MurmuraError]) -> tuple[str, str]:
    """Return the field of a refusal, and what is said of it."""
    assert refusal.value.reason == "FIELD_RULES"
    ((field, said),) = refusal.value.violations.items()
    return field, said


POSITIONS = {"max_position_embeddings": 200}


@pytest.mark.parametrize("config", [POSITIONS, {"n_positions": 200}, {"text_config": POSITIONS}])
async def test_rows_are_no_longer_than_the_base_model_reads(
    upstream: Upstream, tmp_path: Path, config: dict[str, Any]
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    made = await plan(upstream, spec(), str(tmp_path))
    assert made.settings.max_length == 200
    assert made.reasons[-1] == "max_length 200: tokens of a row, as the base model reads no more at once"
    assert (await plan(upstream, spec(max_length=200), str(tmp_path))).settings.max_length == 200
    for unlimited in (False, True):
        wanted = spec(max_length=201)
        if unlimited:
            wanted.unlimited = True
        upstream.asked.clear()
        with pytest.raises(MurmuraError) as refusal:
            await plan(upstream, wanted, str(tmp_path))
        said = ("spec.settings.max_length", "must be at most 200: baseModels/tiny reads no more at once")
        assert refused(refusal) == said
        assert not upstream.asked


@pytest.mark.parametrize(
    "config", ["{}", "[]", "no JSON", '{"max_position_embeddings": 4096}', '{"text_config": null, "n_positions": -1}']
)
async def test_a_base_model_that_sets_no_bound_leaves_the_usual_one(
    upstream: Upstream, tmp_path: Path, config: str
) -> None:
    (tmp_path / "config.json").write_text(config)
    made = await plan(upstream, spec(), str(tmp_path))
    assert made.settings.max_length == 256
    assert len(made.reasons) == 4


async def test_an_adapter_that_would_not_be_served_is_not_paid_for(upstream: Upstream) -> None:
    assert (await plan(upstream, spec(lora_rank=64))).settings.lora_rank == 64
    with pytest.raises(MurmuraError) as refusal:
        await plan(upstream, spec(lora_rank=65))
    field, said = refused(refusal)
    assert field == "spec.settings.lora_rank"
    assert said.startswith("must be at most 64: no more is served. An operator raises MURMURA_ENGINE_MAX_RANK")


async def test_defaults_are_filled_in(upstream: Upstream) -> None:
    chosen = (await plan(upstream, spec())).settings
    for field in chosen.DESCRIPTOR.fields:
        if field.has_presence:
            assert chosen.HasField(field.name), field.name
    assert chosen.clipping == trainer_pb2.CLIPPING_NORMALISED
    assert 100 <= chosen.batch_size <= 1000
    assert chosen.max_rows_per_unit == 16


async def test_a_plan_says_why_for_what_was_not_chosen(upstream: Upstream) -> None:
    reasons = (await plan(upstream, spec(epochs=3))).reasons
    named = [reason.partition(" ")[0] for reason in reasons]
    assert named == ["batch_size", "learning_rate", "lora_rank"]
    assert "of 2000 units" in reasons[0]


@pytest.mark.parametrize(
    ("epochs", "batch", "units", "steps"),
    # Dividing by the rounded probability would make 4 steps, 101 steps and so on of some of these.
    [(10, 256, 2000, 79), (3, 1000, 1000, 3), (1, 7, 49, 7), (10, 49, 490, 100), (0.5, 3, 40, 7)],
)
async def test_steps_cover_the_epochs_exactly(
    upstream: Upstream, epochs: float, batch: int, units: int, steps: int
) -> None:
    upstream.units = units
    made = await plan(upstream, spec(epochs=epochs, batch_size=batch))
    assert made.steps == steps
    (asked,) = [one for one in upstream.asked if isinstance(one, ledger_pb.CalibrateRequest)]
    assert (asked.steps, asked.sampling_probability) == (steps, batch / units)


async def test_a_batch_is_never_more_than_all_units(upstream: Upstream) -> None:
    upstream.units = 5
    made = await plan(upstream, spec(batch_size=100))
    assert made.settings.batch_size == 5


async def test_unlimited_steps_count_slots(upstream: Upstream) -> None:
    """Slots are public; how many of them hold a row is not."""
    wanted = spec(epochs=3, batch_size=12)
    wanted.unlimited = True
    made = await plan(upstream, wanted)
    assert made.steps == 652
    assert made.statement.unlimited
    assert made.affordable


@pytest.mark.parametrize("policy", [(False, []), (True, ["someone@else"])])
async def test_a_plan_shows_that_unlimited_is_not_allowed(upstream: Upstream, policy: tuple[bool, list[str]]) -> None:
    upstream.unlimited = policy
    wanted = spec()
    wanted.unlimited = True
    assert not (await plan(upstream, wanted)).affordable


def measured(unlimited: bool = False) -> trainer_pb2.JobSpec:
    wanted = spec(epochs=3, batch_size=1000)
    wanted.unlimited = wanted.unlimited or unlimited
    if not unlimited:
        wanted.target_epsilon = 4.0
    wanted.evaluation.frame.dataset, wanted.evaluation.target_epsilon = "datasets/notes", 0.5
    return wanted


async def test_a_measurement_is_one_step_of_all_units_at_a_price_of_its_own(upstream: Upstream) -> None:
    made = await plan(upstream, measured())
    training, evaluation = [one for one in upstream.asked if isinstance(one, ledger_pb.CalibrateRequest)]
    assert (evaluation.sampling_probability, evaluation.steps, evaluation.target_epsilon) == (1.0, 1, 0.5)
    assert evaluation.beside == made.statement.price and evaluation.beside.units == 10 * training.steps
    assert 0 < evaluation.truncation_delta_e18 < 10**6
    assert made.evaluation.loss_bound == 8.0
    assert made.evaluation.standard_error == pytest.approx(8.0 * 7.0 / upstream.units)
    assert made.evaluation.statement.clipping_norm == pytest.approx(2**0.5)
    assert made.evaluation.statement.privacy_unit_column == "patient"
    assert (made.affordable, made.left_epsilon_after) == (True, 3.0)


@pytest.mark.parametrize("unlimited", [False, True])
async def test_a_plan_is_affordable_if_job_and_measurement_are(upstream: Upstream, unlimited: bool) -> None:
    assert (await plan(upstream, measured(unlimited))).affordable
    upstream.affordable = False
    assert not (await plan(upstream, measured(unlimited))).affordable
    upstream.affordable, upstream.unlimited = True, (False, [])
    assert (await plan(upstream, measured(unlimited))).affordable is not unlimited


def _measure(change: Any) -> Any:
    def apply(wanted: trainer_pb2.JobSpec) -> None:
        wanted.CopyFrom(measured())
        change(wanted.evaluation)

    return apply


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda s: setattr(s, "text_column", "nothing"), "COLUMN_UNKNOWN"),
        (lambda s: setattr(s, "text_column", "age"), "FIELD_RULES"),
        (lambda s: setattr(s, "completion_column", "text"), "FIELD_RULES"),
        (lambda s: setattr(s, "text_format", trainer_pb2.TEXT_FORMAT_COMPLETION), "FIELD_RULES"),
        (lambda s: setattr(s, "base_model", "baseModels/other"), "BASE_MODEL_UNKNOWN"),
        (lambda s: s.ClearField("target_epsilon"), "FIELD_RULES"),
        (lambda s: setattr(s, "unlimited", False), "FIELD_RULES"),
        (_measure(lambda e: setattr(e.frame, "dataset", "datasets/other")), "FIELD_RULES"),
        (_measure(lambda e: e.ClearField("target_epsilon")), "FIELD_RULES"),
    ],
)
async def test_refusals(upstream: Upstream, change: Any, reason: str) -> None:
    wanted = spec()
    change(wanted)
    with pytest.raises(MurmuraError) as caught:
        await plan(upstream, wanted)
    assert caught.value.reason == reason


async def test_a_dataset_that_the_analyst_may_not_use_does_not_exist(upstream: Upstream) -> None:
    """The dataset service trusts the trainer with every dataset, so the trainer has to look."""
    upstream.analysts = ["someone@else"]
    with pytest.raises(MurmuraError) as caught:
        await plan(upstream, spec())
    assert caught.value.reason == "RESOURCE_NOT_FOUND"


async def test_canaries_are_planned_and_cost_nothing(upstream: Upstream) -> None:
    without = await plan(upstream, spec())
    wanted = spec()
    wanted.canaries.template = "{name} suffers from |{word}"
    with_them = await plan(upstream, wanted)
    assert (with_them.canaries.count, with_them.canaries.rows) == (500, 1)
    assert with_them.canaries.template == wanted.canaries.template
    with_them.ClearField("canaries")
    with_them.ClearField("audit_delta")
    assert with_them == without


@pytest.mark.parametrize(
    ("template", "text_format", "said"),
    [
        ("no hole", trainer_pb2.TEXT_FORMAT_PLAIN, "needs a hole"),
        ("{name} {ward}", trainer_pb2.TEXT_FORMAT_PLAIN, "has the hole {ward}; there are {name}, {word}, {number}"),
        ("{name}|{word}|{word}", trainer_pb2.TEXT_FORMAT_PLAIN, "may have one bar"),
        ("|{word}", trainer_pb2.TEXT_FORMAT_PLAIN, "may have one bar"),
        ("{name}| ", trainer_pb2.TEXT_FORMAT_PLAIN, "may have one bar"),
        ("{name}", trainer_pb2.TEXT_FORMAT_CHAT, "needs a bar"),
    ],
)
async def test_a_template_that_makes_no_canaries_is_refused(
    upstream: Upstream, template: str, text_format: Any, said: str
) -> None:
    wanted = spec()
    wanted.canaries.template, wanted.text_format = template, text_format
    with pytest.raises(MurmuraError) as caught:
        await plan(upstream, wanted)
    assert said in caught.value.violations["spec.canaries.template"]
