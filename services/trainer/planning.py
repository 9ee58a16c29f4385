"""From what an analyst says to what would run: defaults filled in, noise calibrated, price known, nothing spent."""

from __future__ import annotations

import re
from typing import Any

import grpc

from murmura.api.common.v1 import privacy_pb2
from murmura.api.dataset.v1 import dataset_pb2, dataset_service_pb2, dataset_service_pb2_grpc, expressions_pb2
from murmura.api.ledger.v1 import ledger_service_pb2
from murmura.api.trainer.v1 import trainer_pb2
from services.common import rights
from services.common.errors import MurmuraError, invalid, not_found
from services.common.ledger import Ledger
from services.common.tokens import Principal
from services.common.upstream import Upstream
from services.trainer import defaults, evaluation
from services.trainer.base_models import BaseModels
from services.trainer.defaults import Public
from services.trainer.prices import Prices

DEFAULT_TEXT_COLUMN = "text"
DEFAULT_CANARIES = 500
CANARY_HOLES = ("name", "word", "number")
CALIBRATION_TIMEOUT_S = 90.0
# 10^-13 of δ, where a job's share is about 10^-7: a single Gaussian costs the same with any, and jobs need the pool.
EVALUATION_TRUNCATION_E18 = 100_000


class Planner:
    """Plans jobs.

    Args:
        datasets: the dataset service.
        ledger: the ledger.
        base_models: those that can be fine-tuned.
        prices: of machines; None where nobody says them.
        nodes: machines that share a private run.
    """

    def __init__(
        self,
        datasets: Upstream,
        ledger: Ledger,
        base_models: BaseModels,
        prices: Prices | None = None,
        nodes: int = 1,
    ) -> None:
        self._prices, self._nodes = prices, nodes
        self._datasets = datasets
        self._dataset_stub = dataset_service_pb2_grpc.DatasetServiceStub(datasets.channel)
        self._ledger = ledger
        self._base_models = base_models

    async def plan(self, spec: trainer_pb2.JobSpec, principal: Principal) -> trainer_pb2.Plan:
        """Plan a job for someone.

        Raises:
            MurmuraError: if it cannot be, for a reason that the analyst can mend.
        """
        privacy = spec.WhichOneof("privacy")
        if privacy is None or (privacy == "unlimited" and not spec.unlimited):
            raise invalid("spec.target_epsilon", "must be set, or unlimited must be true")
        longest = self._base_models.longest(spec.base_model, spec.settings)
        canaries = _canaries(spec)
        dataset = await self._dataset(spec, principal)
        if (spec.text_format == trainer_pb2.TEXT_FORMAT_COMPLETION) != bool(spec.completion_column):
            completes = not spec.completion_column
            must = "must name the column of completions" if completes else "goes with TEXT_FORMAT_COMPLETION alone"
            raise invalid("spec.completion_column", must)
        shape = await self._frame(spec, spec.frame)
        if privacy == "unlimited":
            plan = await self._unlimited(spec, dataset, shape, principal, canaries, longest)
        else:
            plan = await self._private(spec, dataset, shape, longest)
        if spec.HasField("evaluation"):
            await self._add_evaluation(spec, dataset, plan)
        if canaries is not None:
            plan.canaries.CopyFrom(canaries)
        else:
            plan.ClearField("audit_delta")
        if self._prices is not None:
            plan.cost.CopyFrom(self._prices.of_plan(plan, 1 if plan.statement.unlimited else self._nodes))
        return plan

    async def _dataset(self, spec: trainer_pb2.JobSpec, principal: Principal) -> dataset_pb2.Dataset:
        request = dataset_service_pb2.GetDatasetRequest(name=spec.frame.dataset)
        dataset: dataset_pb2.Dataset = (await self._datasets.call(self._dataset_stub.GetDataset, request)).dataset
        # The dataset service trusts this service with all datasets; whether the analyst may use one is checked here.
        if not rights.may_use(dataset.policy.analysts, principal.subject, principal.roles):
            raise not_found(spec.frame.dataset)
        return dataset

    async def _frame(self, spec: trainer_pb2.JobSpec, frame: expressions_pb2.Frame) -> Any:
        """Return what is public of a frame that has the job's columns."""
        request = dataset_service_pb2.DescribeFrameRequest(frame=frame, mock_rows=1)
        shape = await self._datasets.call(self._dataset_stub.DescribeFrame, request)
        _check_text_column(shape, "text_column", spec.text_column or DEFAULT_TEXT_COLUMN)
        if spec.completion_column:
            _check_text_column(shape, "completion_column", spec.completion_column)
        if not shape.unit_count:
            raise invalid("spec.frame" if frame is spec.frame else "spec.evaluation.frame", "covers no rows")
        return shape

    async def _private(
        self, spec: Any, dataset: dataset_pb2.Dataset, shape: Any, longest: int | None
    ) -> trainer_pb2.Plan:
        public = Public(int(shape.unit_count), int(shape.row_count), spec.target_epsilon, longest)
        settings, reasons, steps = _filled(spec.settings, public)
        probability = settings.batch_size / public.units
        calibrated = await self._ledger.call(
            self._ledger.stub.Calibrate,
            ledger_service_pb2.CalibrateRequest(
                account=dataset.account,
                target_epsilon=spec.target_epsilon,
                sampling_probability=probability,
                steps=steps,
            ),
            CALIBRATION_TIMEOUT_S,
        )
        statement = calibrated.statement
        statement.privacy_unit_column = dataset.privacy_unit_column
        statement.max_rows_per_unit = settings.max_rows_per_unit
        statement.clipping_norm = settings.clipping_norm
        account = calibrated.account
        return trainer_pb2.Plan(
            settings=settings,
            statement=statement,
            reasons=reasons,
            steps=steps,
            row_count=shape.row_count,
            unit_count=shape.unit_count,
            audit_delta=statement.delta,
            affordable=calibrated.affordable,
            left_epsilon=account.left_epsilon,
            left_epsilon_after=calibrated.left_epsilon_after,
            account=account.name,
            cap_epsilon=account.epsilon,
            spent_epsilon=account.spent_epsilon,
        )

    async def _add_evaluation(
        self, spec: trainer_pb2.JobSpec, dataset: dataset_pb2.Dataset, plan: trainer_pb2.Plan
    ) -> None:
        """Add the measurement to a plan: one step of the Gaussian mechanism, in which every unit takes part."""
        wanted = spec.evaluation
        if wanted.frame.dataset != spec.frame.dataset:
            raise invalid("spec.evaluation.frame.dataset", "must be the dataset that the job is trained on")
        if not wanted.target_epsilon:
            raise invalid("spec.evaluation.target_epsilon", "must be set")
        shape = await self._frame(spec, wanted.frame)
        bound = wanted.loss_bound if wanted.HasField("loss_bound") else evaluation.DEFAULT_LOSS_BOUND
        request = ledger_service_pb2.CalibrateRequest(
            account=dataset.account,
            target_epsilon=wanted.target_epsilon,
            sampling_probability=1.0,
            steps=1,
            truncation_delta_e18=EVALUATION_TRUNCATION_E18,
            beside=plan.statement.price,
        )
        calibrated = await self._ledger.call(self._ledger.stub.Calibrate, request, CALIBRATION_TIMEOUT_S)
        statement = calibrated.statement
        statement.privacy_unit_column = dataset.privacy_unit_column
        statement.max_rows_per_unit = plan.settings.max_rows_per_unit
        statement.clipping_norm = evaluation.UNIT_NORM
        noise = statement.mechanism.noise_multiplier
        plan.evaluation.CopyFrom(
            trainer_pb2.EvaluationPlan(
                statement=statement,
                loss_bound=bound,
                row_count=shape.row_count,
                unit_count=shape.unit_count,
                standard_error=evaluation.greatest_error(shape.unit_count, bound, noise),
            )
        )
        plan.affordable = calibrated.affordable and (plan.affordable or not plan.statement.unlimited)
        plan.left_epsilon_after = calibrated.left_epsilon_after

    async def _unlimited(
        self,
        spec: Any,
        dataset: dataset_pb2.Dataset,
        shape: Any,
        principal: Principal,
        canaries: trainer_pb2.CanarySpec | None,
        longest: int | None,
    ) -> trainer_pb2.Plan:
        # Without privacy a pass is one over all rows; about half of the canaries take part.
        planted = canaries.count * canaries.rows // 2 if canaries else 0
        public = Public(int(shape.unit_count), int(shape.row_count) + planted, None, longest)
        settings, reasons, steps = _filled(spec.settings, public)
        request = ledger_service_pb2.GetAccountRequest(name=dataset.account)
        account = (await self._ledger.call(self._ledger.stub.GetAccount, request)).account
        return trainer_pb2.Plan(
            settings=settings,
            statement=privacy_pb2.PrivacyStatement(
                unlimited=True,
                sampling=privacy_pb2.SAMPLING_SCHEME_SHUFFLED,
                privacy_unit_column=dataset.privacy_unit_column,
                account=account.name,
            ),
            reasons=reasons,
            steps=steps,
            row_count=shape.row_count,
            unit_count=shape.unit_count,
            # For show: the ledger decides, when the reservation is made.
            audit_delta=account.delta,
            affordable=rights.may_train_unlimited(
                account.unlimited_allowed, account.unlimited_principals, principal.subject
            ),
            left_epsilon=account.left_epsilon,
            left_epsilon_after=account.left_epsilon,
            account=account.name,
            cap_epsilon=account.epsilon,
            spent_epsilon=account.spent_epsilon,
        )


def _filled(chosen: trainer_pb2.Settings, public: Public) -> tuple[trainer_pb2.Settings, tuple[str, ...], int]:
    """Return complete settings, why they are what they are, and the number of steps that they make."""
    named = {field.name: value for field, value in chosen.ListFields() if field.has_presence}
    choice = defaults.fill(public, named)
    settings = trainer_pb2.Settings(clipping=chosen.clipping or trainer_pb2.CLIPPING_NORMALISED)
    for field in settings.DESCRIPTOR.fields:
        if field.name in choice.settings:
            value = choice.settings[field.name]
            setattr(settings, field.name, int(value) if field.type == field.TYPE_INT32 else value)
    return settings, choice.reasons, defaults.steps(public, choice.settings)


def _canaries(spec: trainer_pb2.JobSpec) -> trainer_pb2.CanarySpec | None:
    """Return the canaries that will be planted, filled in; they cost nothing."""
    if not spec.HasField("canaries"):
        return None
    wanted, field = spec.canaries, "spec.canaries.template"
    holes = re.findall(r"\{([^{}]*)\}", wanted.template)
    if unknown := sorted(set(holes) - set(CANARY_HOLES)):
        raise invalid(field, f"has the hole {{{unknown[0]}}}; there are {{{'}, {'.join(CANARY_HOLES)}}}")
    if not holes:
        raise invalid(field, f"needs a hole, or all canaries are alike: {{{'}, {'.join(CANARY_HOLES)}}}")
    prompt, bar, secret = wanted.template.partition("|")
    if "|" in secret or (bar and not (prompt.strip() and secret.strip())):
        raise invalid(field, "may have one bar, between what an attacker types and the secret that he is after")
    if not bar and spec.text_format in (trainer_pb2.TEXT_FORMAT_COMPLETION, trainer_pb2.TEXT_FORMAT_CHAT):
        raise invalid(field, "needs a bar between the prompt and its completion")
    return trainer_pb2.CanarySpec(
        template=wanted.template,
        count=wanted.count if wanted.HasField("count") else DEFAULT_CANARIES,
        rows=wanted.rows if wanted.HasField("rows") else 1,
    )


def _check_text_column(shape: Any, field: str, name: str) -> None:
    kinds = {column.name: column.type for column in shape.schema.columns}
    listed = ", ".join(kinds)
    if name not in kinds:
        raise MurmuraError(
            grpc.StatusCode.INVALID_ARGUMENT,
            "COLUMN_UNKNOWN",
            f"There is no column {name!r} in this frame; there are {listed}.",
            {"column": name, "columns": listed},
        )
    if kinds[name] != expressions_pb2.VALUE_TYPE_STRING:
        raise invalid(f"spec.{field}", "must name a column of text")
