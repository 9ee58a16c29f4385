"""Noisy statistics: planned, reserved, computed, written down, charged, and only then answered.

An answer exists once: it is in the registry before the ledger is told to charge it, and it leaves only after the ledger
has. A crash before it is written down has shown nobody anything, and the same request finds its reservation waiting and
draws for the first time that counts; a crash after it finds the answer itself, and sees to the charge. So no price ever
pays for two draws, and no draw is ever seen before it is paid.
"""

from __future__ import annotations

import asyncio
import hashlib
import math
import sqlite3
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc
import numpy as np
import polars as pl

from murmura.api.common.v1 import privacy_pb2
from murmura.api.dataset.v1 import dataset_service_pb2 as pb
from murmura.api.ledger.v1 import ledger_pb2, ledger_service_pb2
from services.common.errors import MurmuraError, invalid
from services.common.ledger import Ledger
from services.common.requests import body_hash, reused
from services.common.tokens import Principal
from services.dataset import expressions as ex
from services.dataset import noise, statistics
from services.dataset.catalogue import Catalogue, Described, unknown_column
from services.dataset.statistics import Integers, Statistic
from services.dataset.threads import whole

# 10^-13 of δ: what a single Gaussian costs hardly depends on it, and jobs need the pool.
TRUNCATION_E18 = 100_000
# An answer leaves at an age of this many seconds times a power of two: a clock is not to show how long rows took.
TICK_S = 0.25
_NUMERIC = (ex.INTEGER, ex.FLOAT)
_LEDGER_TIMEOUT_S = 60.0
_NAMESPACE = uuid.UUID("c1f0a4e2-6b0d-5c55-9a3e-0d5f7b1c9e84")


class Queries:
    """Answers queries for statistics.

    Args:
        catalogue: the datasets.
        ledger: where budgets are kept.
    """

    def __init__(self, catalogue: Catalogue, ledger: Ledger) -> None:
        self._catalogue = catalogue
        self._ledger = ledger

    async def answer(self, request: pb.QueryStatisticRequest, principal: Principal) -> pb.QueryStatisticResponse:
        """Answer a query, or plan it. One call for a request id at a time; the caller sees to that.

        Args:
            request: what is asked.
            principal: who asks and pays.

        Raises:
            MurmuraError: if it may not be asked, cannot be answered, or the budget does not cover it.
        """
        described = await whole(self._catalogue.describe, request.frame, principal)
        statistic = statistic_of(request, described)
        entry = request.request_id.lower(), _body(request, principal)
        known = self._catalogue.registry.answer(entry[0])
        if known is not None:
            if known[0] != entry[1]:
                raise reused(request.request_id)
            answer = pb.QueryStatisticResponse.FromString(known[1])
            answer.plan.paid = True
            return _without_values(answer) if request.validate_only else await self._charge(answer)
        planned = await self._plan(request, statistic, described)
        if request.validate_only:
            return planned
        await whole(self._catalogue.require_openable, described)
        planned.reservation = await self._reserve(request, planned.statement, principal)
        async with _paced():
            values = await whole(self._draw, statistic, described, request.column, planned.statement)
        planned.values.extend(values)
        await whole(self._remember, entry, planned)
        return await self._charge(planned)

    async def _plan(
        self, request: pb.QueryStatisticRequest, statistic: Statistic, described: Described
    ) -> pb.QueryStatisticResponse:
        """Say what it costs and how exact it is; touches no row."""
        most_rows = int(np.bincount(described.units).max())
        calibrated = await self._ledger.call(
            self._ledger.stub.Calibrate,
            ledger_service_pb2.CalibrateRequest(
                account=described.dataset.account,
                target_epsilon=request.target_epsilon,
                sampling_probability=1.0,
                steps=1,
                truncation_delta_e18=TRUNCATION_E18,
            ),
            _LEDGER_TIMEOUT_S,
        )
        statement, account = calibrated.statement, calibrated.account
        statement.privacy_unit_column = described.dataset.privacy_unit_column
        statement.max_rows_per_unit = most_rows
        multiplier, squared = statement.mechanism.noise_multiplier, statistic.sensitivity_squared(most_rows)
        try:
            noise.lattice(squared, multiplier, TRUNCATION_E18 / 1e18, statistic.size)
        except noise.Unsupported as unsupported:
            raise MurmuraError(
                grpc.StatusCode.INVALID_ARGUMENT,
                "TARGET_UNREACHABLE",
                f"This statistic cannot be made private at ε = {request.target_epsilon:g}: {unsupported}. Ask for "
                "another target_epsilon, or for a frame in which each unit owns fewer rows.",
            ) from None
        deviation = noise.deviation(multiplier, squared) / statistic.scale
        return pb.QueryStatisticResponse(
            statement=statement,
            edges=statistic.edges() if statistic.kind == statistics.HISTOGRAM else (),
            plan=pb.StatisticPlan(
                row_count=len(described.shape.slots),
                unit_count=described.unit_count,
                sensitivity=math.sqrt(squared) / statistic.scale,
                noise_standard_deviation=deviation,
                expected_error=statistic.expected_error(deviation, len(described.shape.slots)),
                resolution=statistic.resolution(),
                affordable=calibrated.affordable,
                left_epsilon=account.left_epsilon,
                left_epsilon_after=calibrated.left_epsilon_after,
                spent_epsilon=account.spent_epsilon,
                cap_epsilon=account.epsilon,
            ),
        )

    async def _reserve(
        self, request: pb.QueryStatisticRequest, statement: privacy_pb2.PrivacyStatement, principal: Principal
    ) -> str:
        """Set the price aside; the same request finds what it has set aside before."""
        made = await self._ledger.call(
            self._ledger.stub.CreateReservation,
            ledger_service_pb2.CreateReservationRequest(
                request_id=_derived(f"{principal.subject}\n{request.request_id.lower()}\nreserve"),
                account=statement.account,
                principal=principal.subject,
                job=f"statistics/{request.request_id.lower()}",
                kind=ledger_pb2.RESERVATION_KIND_PRIVATE,
                mechanism=statement.mechanism,
                truncation_delta_e18=TRUNCATION_E18,
            ),
            _LEDGER_TIMEOUT_S,
        )
        reservation = made.reservation
        if reservation.state != ledger_pb2.RESERVATION_STATE_PENDING:
            # Only after this service's own state was lost: what was charged before pays for no second draw.
            raise MurmuraError(
                grpc.StatusCode.FAILED_PRECONDITION,
                "RESERVATION_RESOLVED",
                "This statistic was charged before and its answer is lost. Ask under a new request id: again=True.",
                {"reservation": reservation.name, "state": ledger_pb2.ReservationState.Name(reservation.state)},
            )
        return str(reservation.name)

    def _draw(
        self, statistic: Statistic, described: Described, column: str, statement: privacy_pb2.PrivacyStatement
    ) -> list[float]:
        """Add the rows up, add noise, and make the answer of that alone."""
        exact = exact_vector(self._catalogue, statistic, described, column)
        noisy = noise.noised(
            exact,
            statistic.sensitivity_squared(statement.max_rows_per_unit),
            statement.mechanism.noise_multiplier,
            TRUNCATION_E18 / 1e18,
        )
        rows = noisy / statistic.scale
        return statistic.answer(
            noise.leaves(rows, statistics.BRANCHES) if statistic.kind == statistics.QUANTILE else rows
        )

    def _remember(self, entry: tuple[str, str], answer: pb.QueryStatisticResponse) -> None:
        try:
            self._catalogue.registry.remember((*entry, answer.SerializeToString()))
        except sqlite3.IntegrityError:
            # The same id came for something else at the same moment, and that one was first.
            raise reused(entry[0]) from None

    async def _charge(self, answer: pb.QueryStatisticResponse) -> pb.QueryStatisticResponse:
        """Have the price charged, or make sure that it was; the answer may leave once this has returned."""
        committed = await self._ledger.call(
            self._ledger.stub.CommitReservation,
            ledger_service_pb2.CommitReservationRequest(
                request_id=_derived(f"{answer.reservation}\ncommit"), name=answer.reservation
            ),
            _LEDGER_TIMEOUT_S,
        )
        answer.plan.paid = True
        answer.receipt.CopyFrom(committed.receipt)
        return answer


def statistic_of(request: pb.QueryStatisticRequest, described: Described) -> Statistic:
    """Check what is asked of a frame.

    Raises:
        MurmuraError: naming the field that is wrong, and what it should be.
    """
    if request.statistic not in pb.Statistic.values():
        raise invalid("statistic", "must be one that this release knows")
    kind = pb.Statistic.Name(request.statistic).removeprefix("STATISTIC_")
    schema = described.shape.schema
    if not described.unit_count:
        raise invalid("frame", "covers no rows")
    if (request.column or kind != statistics.COUNT) and request.column not in schema:
        raise unknown_column(request.column, tuple(schema))
    parametric = kind in (statistics.HISTOGRAM, statistics.QUANTILE)
    if request.HasField("parameter") != parametric:
        must = "must be set: the quantile, or the number of bins" if parametric else "goes with a histogram or quantile"
        raise invalid("parameter", must)
    if kind == statistics.COUNT:
        return Statistic(kind)
    if schema[request.column] not in _NUMERIC:
        raise invalid("column", f"must name a column of numbers; {request.column!r} holds {schema[request.column]}")
    for bound in ("lower", "upper"):
        if not request.HasField(bound):
            raise invalid(bound, "must be set: a bound that is known without the data, such as 0 and 120 for an age")
    # Halves are compared because they are what is computed with: bounds too close for that are refused too.
    if not request.upper / 2 - request.lower / 2 > 0:
        raise invalid("upper", "must be greater than lower")
    if kind == statistics.QUANTILE and request.parameter > 1:
        raise invalid("parameter", "must be a quantile from 0 to 1")
    bins = request.parameter
    if kind == statistics.HISTOGRAM and not (1 <= bins <= statistics.MOST_BINS and bins == int(bins)):
        raise invalid("parameter", f"must be a whole number of bins from 1 to {statistics.MOST_BINS}")
    return Statistic(kind, request.lower, request.upper, request.parameter)


def exact_vector(catalogue: Catalogue, statistic: Statistic, described: Described, column: str) -> Integers:
    """Add up what the rows of a frame that are not empty add to a statistic. Private: only noise may follow.

    Args:
        catalogue: where the rows are.
        statistic: what is added up.
        described: the frame.
        column: its column; empty where a count counts rows.
    """
    total = statistic.zero()
    for columns, alive in catalogue.applied(described):
        if not column:
            total += statistic.added(np.zeros(int(alive.sum())))
            continue
        kept = columns[column].filter(alive).drop_nulls()
        # A count takes columns of any type: what is no number is not looked at.
        numeric = described.shape.schema[column] in _NUMERIC
        total += statistic.added(kept.cast(pl.Float64).to_numpy() if numeric else np.zeros(len(kept)))
    return total


@asynccontextmanager
async def _paced() -> AsyncIterator[None]:
    """Let what happens inside end, well or badly, only at an age that few rows can change."""
    began = time.monotonic()
    try:
        yield
    finally:
        age, tick = time.monotonic() - began, TICK_S
        while tick < age:
            tick *= 2
        await asyncio.sleep(tick - age)


def _without_values(answer: pb.QueryStatisticResponse) -> pb.QueryStatisticResponse:
    answer.ClearField("values")
    answer.ClearField("reservation")
    return answer


def _body(request: pb.QueryStatisticRequest, principal: Principal) -> str:
    """Return the digest of what is asked and by whom: planning it and asking it are the same request."""
    asked = pb.QueryStatisticRequest()
    asked.CopyFrom(request)
    asked.validate_only = False
    return hashlib.sha256(f"{principal.subject}\n{body_hash(asked)}".encode()).hexdigest()


def _derived(purpose: str) -> str:
    return str(uuid.uuid5(_NAMESPACE, purpose))
