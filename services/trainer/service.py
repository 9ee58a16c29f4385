"""The trainer's gRPC face for analysts: plan, create, watch, cancel."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import time
import uuid
from collections.abc import AsyncIterator
from typing import Any

import grpc

from murmura.api.trainer.v1 import trainer_pb2, trainer_service_pb2_grpc
from murmura.api.trainer.v1 import trainer_service_pb2 as pb
from services.common.auth import current_principal
from services.common.errors import MurmuraError, dependency_unavailable, not_found
from services.common.locks import Locks
from services.common.pages import page
from services.common.requests import body_hash, reused
from services.common.tokens import Principal
from services.common.turns import TurnLimits, Turns
from services.trainer import jobs
from services.trainer.base_models import BaseModels
from services.trainer.budget import is_refusal
from services.trainer.control import Control
from services.trainer.jobs import TERMINAL, IllegalTransition, Job
from services.trainer.messages import job_message
from services.trainer.planning import Planner
from services.trainer.prices import Prices
from services.trainer.store import Record

_NAMESPACE = uuid.UUID("0c7e4a9b-3d15-5f26-9a8c-7b1d2e3f4a5b")
WATCH_REFRESH_S = 15.0
# Of many who come at once, the first should not have to wait until the last one's job is planned too.
CREATION = TurnLimits(running=4, tenant_running=4, tenant_waiting=sys.maxsize)


class TrainerService(trainer_service_pb2_grpc.TrainerServiceServicer):
    """Plans, runs and watches fine-tuning jobs.

    Args:
        planner: plans them.
        control: drives them.
        base_models: those that can be fine-tuned.
        prices: of machines; None where nobody says them.
    """

    def __init__(
        self, planner: Planner, control: Control, base_models: BaseModels, prices: Prices | None = None
    ) -> None:
        self._prices = prices
        self._planner = planner
        self._control = control
        self._base_models = base_models
        self._turns = Turns(CREATION)
        self._planning = Locks()

    async def ListBaseModels(self, request: pb.ListBaseModelsRequest, context: Any) -> pb.ListBaseModelsResponse:
        """List base models."""
        chosen, token = page(self._base_models.names, request.page_size, request.page_token)
        found = [trainer_pb2.BaseModel(name=f"baseModels/{name}") for name in chosen]
        return pb.ListBaseModelsResponse(base_models=found, next_page_token=token)

    async def PlanTrainingJob(self, request: pb.PlanTrainingJobRequest, context: Any) -> pb.PlanTrainingJobResponse:
        """Plan a job; spends nothing."""
        principal = current_principal()
        # A plan may take the ledger seconds, and to the ledger all of them are this service's.
        async with self._planning.of(principal.subject):
            return pb.PlanTrainingJobResponse(plan=await self._planner.plan(request.spec, principal))

    async def CreateTrainingJob(
        self, request: pb.CreateTrainingJobRequest, context: Any
    ) -> pb.CreateTrainingJobResponse:
        """Write down the intent, reserve the budget, and let the loop start a worker."""
        principal = current_principal()
        # The id follows from who asks and the request id: a retry meets the same job, whatever was lost.
        job_id = uuid.uuid5(_NAMESPACE, f"{principal.subject}/{uuid.UUID(request.request_id)}").hex[:16]
        with self._control.for_a_person():
            async with self._turns.turn(principal.subject), self._control.lock(job_id):
                return await self._create(request, principal, job_id)

    async def _create(
        self, request: pb.CreateTrainingJobRequest, principal: Principal, job_id: str
    ) -> pb.CreateTrainingJobResponse:
        existing = self._control.store.get(job_id)
        if existing is not None:
            if existing.body_hash != body_hash(request):
                raise reused(request.request_id)
            if existing.job.reservation or existing.job.state in TERMINAL:
                return pb.CreateTrainingJobResponse(training_job=self._said(existing))
            record = existing
        else:
            plan = await self._planner.plan(request.spec, principal)
            job = Job(job_id, principal.subject, plan.steps, created=time.time())
            record = Record(job, body_hash(request), request.spec, plan)
            if request.validate_only:
                answer = self._said(record)
                answer.name = ""
                return pb.CreateTrainingJobResponse(training_job=answer)
            self._control.store.add(record)
        try:
            reserved = await self._control.budget.reserve(record)
        except MurmuraError as error:
            if is_refusal(error):
                self._control.store.remove(job_id)
                raise
            raise _undecided() from None
        self._control.save(reserved)
        self._control.attend(job_id)
        return pb.CreateTrainingJobResponse(training_job=self._message(job_id))

    async def GetTrainingJob(self, request: pb.GetTrainingJobRequest, context: Any) -> pb.GetTrainingJobResponse:
        """Read a job."""
        record = self._visible(request.name, current_principal())
        return pb.GetTrainingJobResponse(training_job=self._said(record))

    async def ListTrainingJobs(self, request: pb.ListTrainingJobsRequest, context: Any) -> pb.ListTrainingJobsResponse:
        """List the caller's jobs; stewards and operators see all."""
        principal = current_principal()
        found = [record for record in self._control.store.newest_first() if _may_see(record.job, principal)]
        chosen, token = page(found, request.page_size, request.page_token)
        return pb.ListTrainingJobsResponse(
            training_jobs=[self._said(record) for record in chosen], next_page_token=token
        )

    async def WatchTrainingJob(
        self, request: pb.WatchTrainingJobRequest, context: Any
    ) -> AsyncIterator[pb.WatchTrainingJobResponse]:
        """Stream a job whenever it changes."""
        principal, sent = current_principal(), None
        job_id = self._visible(request.name, principal).job.job_id
        while True:
            news = self._control.news(job_id)
            message = self._said(self._visible(request.name, principal))
            if message != sent:
                yield pb.WatchTrainingJobResponse(training_job=message)
                sent = message
            if trainer_pb2.JobState.Name(message.state).removeprefix("JOB_STATE_") in TERMINAL:
                return
            if self._control.leaving:
                raise dependency_unavailable(
                    "trainer", "The trainer is being restarted; the job goes on. Watch it again.", retry_after_s=1
                )
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(WATCH_REFRESH_S):
                    await news.wait()

    async def CancelTrainingJob(
        self, request: pb.CancelTrainingJobRequest, context: Any
    ) -> pb.CancelTrainingJobResponse:
        """Ask a job to stop; asking twice, or after its cancellation, is no harm."""
        principal, body = current_principal(), body_hash(request)
        record = self._visible(request.name, principal)
        request_id = str(uuid.UUID(request.request_id))
        if self._control.store.first_body(principal.subject, request_id, body) != body:
            raise reused(request.request_id)
        async with self._control.lock(record.job.job_id):
            record = self._visible(request.name, principal)
            if not record.job.cancel_requested:
                try:
                    self._control.save(jobs.cancelling(record.job))
                    self._control.attend(record.job.job_id)
                except IllegalTransition as problem:
                    raise state_error(record.job, problem) from None
        return pb.CancelTrainingJobResponse(training_job=self._message(record.job.job_id))

    def _visible(self, name: str, principal: Principal) -> Record:
        record = self._control.store.get(name.removeprefix("trainingJobs/"))
        if record is None or not _may_see(record.job, principal):
            raise not_found(name)
        return record

    def _said(self, record: Record) -> trainer_pb2.TrainingJob:
        return job_message(record, self._prices)

    def _message(self, job_id: str) -> trainer_pb2.TrainingJob:
        record = self._control.store.get(job_id)
        if record is None:
            raise not_found(f"trainingJobs/{job_id}")
        return self._said(record)


def state_error(job: Job, problem: IllegalTransition) -> MurmuraError:
    """Return the refusal of what a job's state does not allow."""
    return MurmuraError(
        grpc.StatusCode.FAILED_PRECONDITION,
        "JOB_STATE",
        f"{job.name} is {problem.state.lower()}; that can no longer be done.",
        {"job": job.name, "state": problem.state},
    )


def _undecided() -> MurmuraError:
    return dependency_unavailable(
        "ledger",
        "The ledger does not answer, so it is not known whether the budget was set aside. The job is kept and starts "
        "as soon as it is; send the same request again to come back to it. It is charged once.",
        retry_after_s=2,
    )


def _may_see(job: Job, principal: Principal) -> bool:
    return job.owner == principal.subject or principal.has("steward", "operator")
