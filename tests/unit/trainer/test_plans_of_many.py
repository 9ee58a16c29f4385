"""Plans of many people at once."""

from __future__ import annotations

import asyncio
from typing import Any

from murmura.api.trainer.v1 import trainer_pb2
from murmura.api.trainer.v1 import trainer_service_pb2 as pb
from services.common import auth
from services.common.tokens import Principal
from services.trainer.base_models import BaseModels
from services.trainer.service import TrainerService


class Planner:
    """Plans when it is told to; knows how many wait."""

    def __init__(self) -> None:
        self.go = asyncio.Event()
        self.waiting: list[str] = []

    async def plan(self, spec: Any, principal: Principal) -> trainer_pb2.Plan:
        self.waiting.append(principal.subject)
        await self.go.wait()
        return trainer_pb2.Plan()


async def test_one_plan_of_a_person_at_a_time_is_with_the_ledger() -> None:
    """To the ledger all of them are the trainer's, so it cannot be fair among people."""
    planner = Planner()
    service = TrainerService(planner, None, BaseModels({}, max_rank=64))  # type: ignore[arg-type]

    async def ask(subject: str) -> None:
        auth._principal.set(Principal(subject, frozenset({"analyst"})))
        await service.PlanTrainingJob(pb.PlanTrainingJobRequest(), None)

    asking = [asyncio.create_task(ask(subject)) for subject in ["greedy"] * 50 + ["other"]]
    await asyncio.sleep(0.01)
    assert planner.waiting == ["greedy", "other"]
    planner.go.set()
    await asyncio.gather(*asking)
    assert len(planner.waiting) == 51
