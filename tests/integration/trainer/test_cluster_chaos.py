"""A hundred jobs at once while everything around them breaks: none is lost, none is charged twice, nothing is left."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from murmura.api.common.v1 import privacy_pb2
from murmura.api.trainer.v1 import trainer_pb2, trainer_service_pb2_grpc
from murmura.api.trainer.v1 import trainer_service_pb2 as pb
from tests.support.cloud import Cloud
from tests.support.deployment import BASE_MODEL
from tests.support.stand_ins import StandIns, patiently

JOBS = 100


@pytest.fixture
def cloud(tmp_path: Path, tiny_base_model: Path) -> Iterator[Cloud]:
    made = Cloud(tmp_path.resolve(), {BASE_MODEL: str(tiny_base_model)})
    made.api.kubelet.stand_in = StandIns()
    made.api.add_node("gpus", gpus=1000, pods=1000)
    with made:
        yield made


async def create(cloud: Cloud, datasets: list[Any]) -> list[str]:
    """Create all jobs at once; who finds the trainer away asks again, with the same request."""
    async with grpc.aio.insecure_channel(cloud.endpoints["trainer"]) as channel:
        stub: Any = trainer_service_pb2_grpc.TrainerServiceStub(channel)

        async def one(dataset: Any) -> str:
            spec = cloud.spec(dataset, 2.0, epochs=2.0)
            request = pb.CreateTrainingJobRequest(request_id=str(uuid.uuid4()), spec=spec)
            answer = await patiently(lambda: stub.CreateTrainingJob(request, metadata=cloud.who(), timeout=60))
            return str(answer.training_job.name)

        return list(await asyncio.gather(*(one(datasets[number % len(datasets)]) for number in range(JOBS))))


def break_things(cloud: Cloud) -> None:
    """Kill the trainer twice, and take the cluster's API away in between, with all that it remembered."""
    time.sleep(0.3)
    cloud.kill("trainer")
    cloud.api.faults.drop_watches()
    cloud.start("trainer")
    cloud.api.faults.frozen = True
    time.sleep(1.0)
    cloud.api.faults.frozen = False
    cloud.api.down()
    cloud.api.compact()
    cloud.kill("trainer")
    cloud.api.up()
    cloud.api.faults.refusals = [(429, "TooManyRequests", 1), (500, "InternalError", 0), (503, "ServiceUnavailable", 0)]
    cloud.start("trainer")


async def test_nothing_is_lost_charged_twice_or_left(cloud: Cloud) -> None:
    datasets = cloud.datasets(JOBS)
    creating = asyncio.create_task(create(cloud, datasets))
    await asyncio.to_thread(break_things, cloud)
    names = await creating
    assert len(set(names)) == JOBS
    jobs = [await asyncio.to_thread(cloud.ended, name) for name in names]
    assert {job.state for job in jobs} == {trainer_pb2.JOB_STATE_SUCCEEDED}, [job.error.message for job in jobs]

    for dataset in datasets:
        own = [job for job in jobs if job.spec.frame.dataset == dataset.name]
        account = cloud.account(dataset.account)
        assert account.pending == privacy_pb2.Price()
        committed = [cloud.reservation(job.reservation).committed for job in own]
        assert committed == [job.plan.statement.price for job in own]
        assert account.spent == privacy_pb2.Price(
            units=sum(price.units for price in committed),
            truncation_delta_e18=sum(price.truncation_delta_e18 for price in committed),
        )
    assert len({job.reservation for job in jobs}) == JOBS
    await asyncio.to_thread(cloud.wait, cloud.empty, "nothing is left in the cluster", 60)
