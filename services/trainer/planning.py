"""From what an analyst says to what would run: defaults filled in, noise calibrated, price known, nothing spent."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import grpc

from murmura.api.common.v1 import privacy_pb2
from murmura.api.dataset.v1 import dataset_pb2, dataset_service_pb2, dataset_service_pb2_grpc
from murmura.api.ledger.v1 import ledger_service_pb2
from murmura.api.trainer.v1 import trainer_pb2
from services.common.errors import MurmuraError, invalid, not_found
from services.common.ledger import Ledger
from services.common.tokens import Principal
from services.common.upstream import Upstream

DEFAULT_TEXT_COLUMN = "text"
CALIBRATION_TIMEOUT_S = 90.0


@dataclass(frozen=True)
class Defaults:
    """Choices that work when an analyst makes none. Tried on PHEE with the bundled base model.

    Attributes:
        epochs: passes over units (private) or rows (unlimited).
        batch_fraction: units expected in a step, as a fraction of all (private).
        batch_size: rows of a step (unlimited).
        learning_rate: constant (private), or the highest of a schedule (unlimited).
    """

    epochs: float
    batch_fraction: float
    batch_size: int
    learning_rate: float


PRIVATE = Defaults(epochs=10.0, batch_fraction=0.13, batch_size=0, learning_rate=3e-3)
UNLIMITED = Defaults(epochs=3.0, batch_fraction=0.0, batch_size=12, learning_rate=6e-3)
LORA_RANK = 16
MAX_LENGTH = 256
MAX_ROWS_PER_UNIT = 4
CLIPPING_NORM = 1.0


class Planner:
    """Plans jobs.

    Args:
        datasets: the dataset service.
        ledger: the ledger.
        base_models: public name to location.
    """

    def __init__(self, datasets: Upstream, ledger: Ledger, base_models: dict[str, str]) -> None:
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
        self.location(spec.base_model)
        dataset = await self._dataset(spec, principal)
        shape = await self._datasets.call(
            self._dataset_stub.DescribeFrame,
            dataset_service_pb2.DescribeFrameRequest(frame=spec.frame, mock_rows=1),
        )
        _check_text_column(shape, spec.text_column or DEFAULT_TEXT_COLUMN)
        if not shape.unit_count:
            raise invalid("spec.frame", "covers no rows")
        if privacy == "unlimited":
            return await self._unlimited(spec, dataset, shape, principal)
        return await self._private(spec, dataset, shape)

    def location(self, base_model: str) -> str:
        """Return where a base model lies.

        Raises:
            MurmuraError: if no such base model is configured.
        """
        name = base_model.removeprefix("baseModels/")
        if name not in self._base_models:
            known = ", ".join(sorted(self._base_models)) or "none"
            raise MurmuraError(
                grpc.StatusCode.NOT_FOUND,
                "BASE_MODEL_UNKNOWN",
                f"There is no base model {name!r}; there are: {known}. An operator adds one: "
                "`murmura up --base-model NAME=PATH_OR_HUB_ID`.",
                {"base_model": name, "base_models": known},
            )
        return self._base_models[name]

    async def _dataset(self, spec: trainer_pb2.JobSpec, principal: Principal) -> dataset_pb2.Dataset:
        request = dataset_service_pb2.GetDatasetRequest(name=spec.frame.dataset)
        dataset: dataset_pb2.Dataset = (await self._datasets.call(self._dataset_stub.GetDataset, request)).dataset
        # The dataset service trusts this service with all datasets; whether the analyst may use one is checked here.
        allowed = dataset.policy.analysts
        if allowed and principal.subject not in allowed and not principal.has("steward"):
            raise not_found(spec.frame.dataset)
        return dataset

    async def _private(self, spec: Any, dataset: dataset_pb2.Dataset, shape: Any) -> trainer_pb2.Plan:
        settings, units = _filled(spec.settings), int(shape.unit_count)
        if not settings.HasField("batch_size"):
            settings.batch_size = max(1, round(PRIVATE.batch_fraction * units))
        settings.batch_size = min(settings.batch_size, units)
        _default(settings, "epochs", PRIVATE.epochs)
        _default(settings, "learning_rate", PRIVATE.learning_rate)
        probability = settings.batch_size / units
        # Not epochs / probability: two roundings could make one step more out of a whole number.
        steps = math.ceil(settings.epochs * units / settings.batch_size)
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
            steps=steps,
            row_count=shape.row_count,
            unit_count=units,
            affordable=calibrated.affordable,
            left_epsilon=account.left_epsilon,
            left_epsilon_after=calibrated.left_epsilon_after,
            account=account.name,
            cap_epsilon=account.epsilon,
            spent_epsilon=account.spent_epsilon,
        )

    async def _unlimited(
        self, spec: Any, dataset: dataset_pb2.Dataset, shape: Any, principal: Principal
    ) -> trainer_pb2.Plan:
        settings = _filled(spec.settings)
        _default(settings, "batch_size", UNLIMITED.batch_size)
        _default(settings, "epochs", UNLIMITED.epochs)
        _default(settings, "learning_rate", UNLIMITED.learning_rate)
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
            steps=math.ceil(settings.epochs * shape.row_count / settings.batch_size),
            row_count=shape.row_count,
            unit_count=shape.unit_count,
            # For show: the ledger decides, when the reservation is made.
            affordable=account.unlimited_allowed
            and (not account.unlimited_principals or principal.subject in account.unlimited_principals),
            left_epsilon=account.left_epsilon,
            left_epsilon_after=account.left_epsilon,
            account=account.name,
            cap_epsilon=account.epsilon,
            spent_epsilon=account.spent_epsilon,
        )


def _filled(chosen: trainer_pb2.Settings) -> trainer_pb2.Settings:
    settings = trainer_pb2.Settings()
    settings.CopyFrom(chosen)
    _default(settings, "lora_rank", LORA_RANK)
    _default(settings, "lora_alpha", 2.0 * settings.lora_rank)
    _default(settings, "max_length", MAX_LENGTH)
    _default(settings, "max_rows_per_unit", MAX_ROWS_PER_UNIT)
    _default(settings, "clipping_norm", CLIPPING_NORM)
    settings.clipping = settings.clipping or trainer_pb2.CLIPPING_NORMALISED
    return settings


def _default(settings: trainer_pb2.Settings, field: str, value: float) -> None:
    if not settings.HasField(field):  # type: ignore[arg-type]
        setattr(settings, field, value)


def _check_text_column(shape: Any, name: str) -> None:
    kinds = {column.name: column.type for column in shape.schema.columns}
    listed = ", ".join(kinds)
    if name not in kinds:
        raise MurmuraError(
            grpc.StatusCode.INVALID_ARGUMENT,
            "COLUMN_UNKNOWN",
            f"There is no column {name!r} in this frame; there are {listed}.",
            {"column": name, "columns": listed},
        )
    # ValueType 1 is a text; the enum lives in the dataset's contract.
    if kinds[name] != 1:
        raise invalid("spec.text_column", "must name a column of text")
