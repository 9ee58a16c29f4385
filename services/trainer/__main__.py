"""`python -m services.trainer`: run the trainer."""

from __future__ import annotations

import asyncio
import fcntl
import os
import sys
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Self

import grpc
from pydantic import Field, field_validator, model_validator

from murmura.api.trainer.v1 import trainer_service_pb2_grpc
from services.common.ledger import Ledger, Witness
from services.common.loop import run
from services.common.redis_checks import RedisUnusable
from services.common.redis_settings import PREFIX_PATTERN, StoreSettings
from services.common.requests import frame_digest
from services.common.server import Lifecycle, make_directory, serve
from services.common.tokens import load_signing_key, mint
from services.common.told import Endpoint, EndpointOrNone
from services.common.upstream import Upstream
from services.trainer.artifacts import ArtifactStore
from services.trainer.base_models import BaseModels
from services.trainer.checkpoints import Checkpoints
from services.trainer.control import Control
from services.trainer.launching import Launching, launching
from services.trainer.planning import Planner
from services.trainer.prices import Prices, UnsoundPrices
from services.trainer.service import TrainerService
from services.trainer.sqlite_database import SqliteDatabase
from services.trainer.store import Database, JobStore, Record
from services.trainer.tending import Limits
from services.trainer.workers import WorkerService

JOB_TOKEN_LIFETIME_S = 600


class TrainerSettings(StoreSettings):
    """What the trainer is told."""

    ledger_endpoint: Endpoint = Field(description="host:port of the ledger")
    dataset_endpoint: Endpoint = Field(description="host:port of the dataset service")
    worker_dataset_endpoint: EndpointOrNone = Field(
        "", description="host:port at which workers find it; with TLS its port for people and workers"
    )
    base_models: dict[str, str] = Field(description="JSON: public name to path or hub id")
    max_lora_rank: int = Field(64, ge=1, le=512, description="MURMURA_ENGINE_MAX_RANK of the inference service")
    artifacts: Path = Field(description="directory of the artifact store")
    signing_key_file: Path = Field(description="Ed25519 PEM; signs job tokens and manifests")
    trainer_endpoint: Endpoint = Field(description="host:port at which workers find this service")
    waiting_limit_s: float = Field(Limits.waiting, gt=0, description="for a worker to begin")
    checkpoint_seconds: float = Field(60.0, ge=0, description="between two checkpoints of a worker")
    worker_processes: int = Field(1, ge=1, le=64, description="processes of a worker, one for each GPU it may use")
    worker_nodes: int = Field(1, ge=1, le=64, description="machines that share a private run; not with launcher local")
    running_limit_s: float = Field(Limits.running, gt=0, description="for a job that has begun")
    silence_limit_s: float = Field(Limits.silence, gt=0, description="for the next heartbeat of a worker")
    launcher: str = Field(
        "local", pattern="local|kubernetes", description="where workers run; see MURMURA_CLUSTER_* for kubernetes"
    )
    redis_key_prefix: str = Field("murmura:trainer", pattern=PREFIX_PATTERN, description="of the jobs' keys")
    redis_timeout_s: float = Field(2.0, gt=0, description="for connecting, and for an answer; all wait for it")
    prices: Path | None = Field(None, description="TOML file: what machines cost; see prices.py")

    @field_validator("signing_key_file")
    @classmethod
    def _signs(cls, path: Path) -> Path:
        load_signing_key(path)
        return path

    @model_validator(mode="after")
    def _priced(self) -> Self:
        try:
            _ = self.known_prices
        except UnsoundPrices as problem:
            raise ValueError(f"MURMURA_PRICES: {problem}") from None
        return self

    @cached_property
    def known_prices(self) -> Prices | None:
        """The operator's prices; None where there are none."""
        return Prices.read(self.prices) if self.prices is not None else None


def open_database(settings: TrainerSettings, superseded: Callable[[], None]) -> Database:
    """Open the database that the settings name.

    Args:
        settings: of the trainer.
        superseded: is called from any thread when another trainer has opened it since.

    Raises:
        RedisUnusable: naming the setting, if it cannot be used.
    """
    if settings.store == "sqlite":
        return SqliteDatabase(settings.state_dir / "jobs.sqlite3")
    try:
        from services.common.redis_client import TrustedRedis
        from services.trainer.redis_database import RedisDatabase
    except ImportError:
        raise RedisUnusable("MURMURA_STORE: redis needs the package redis: install murmura-services[redis].") from None
    try:
        server = TrustedRedis(settings.redis_url, "jobs", settings.redis_password(), settings.redis_timeout_s)
        return RedisDatabase(server, superseded, settings.redis_key_prefix)
    except RedisUnusable as problem:
        raise RedisUnusable(f"MURMURA_REDIS_URL: {problem}") from problem


async def _alone(where: Launching, lifecycle: Lifecycle, lost: Callable[[], None]) -> None:
    """Wait until no other trainer is active; `lost` is called when that can no longer be relied on."""
    waiting = [
        asyncio.ensure_future(asyncio.to_thread(where.acquire, lost)),
        asyncio.ensure_future(lifecycle.ended()),
    ]
    done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
    waiting[1].cancel()
    if waiting[0] not in done:
        where.release()  # the wait ends too
        await waiting[0]
        raise SystemExit(lifecycle.exit_code)


async def _let_go(lifecycle: Lifecycle, control: Control) -> None:
    """Let whoever watches jobs go as soon as this life is to end."""
    await lifecycle.ended()
    control.leave()


async def main() -> int:
    """Run until told to stop."""
    settings = TrainerSettings.load()
    key = load_signing_key(settings.signing_key_file)

    def token(record: Record) -> str:
        job, evaluation = record.job, {}
        if job.evaluation_reservation:
            evaluation = {
                "evaluation_reservation": job.evaluation_reservation,
                "evaluation_frame_sha256": frame_digest(record.spec.evaluation.frame),
            }
        return mint(
            key,
            "trainer",
            f"worker:{job.job_id}",
            ["worker"],
            JOB_TOKEN_LIFETIME_S,
            job=job.name,
            attempt=str(job.attempt),
            dataset=record.spec.frame.dataset,
            reservation=job.reservation,
            frame_sha256=frame_digest(record.spec.frame),
            **evaluation,
        )

    make_directory("MURMURA_STATE_DIR", settings.state_dir)
    make_directory("MURMURA_ARTIFACTS", settings.artifacts)
    only = (settings.state_dir / "lock").open("w")
    try:
        # Two trainers on the same jobs would start every worker twice.
        fcntl.flock(only, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        print(f"MURMURA_STATE_DIR: another trainer runs on {settings.state_dir}.", file=sys.stderr)
        return 2

    async def register(server: grpc.aio.Server, lifecycle: Lifecycle) -> list[str]:
        to_ledger = Upstream("ledger", settings.ledger_endpoint, settings)
        datasets = Upstream("dataset", settings.dataset_endpoint, settings)
        for upstream in (to_ledger, datasets):
            lifecycle.resources.push_async_callback(upstream.close)
        told = {
            "MURMURA_TRAINER_ENDPOINT": settings.trainer_endpoint,
            "MURMURA_DATASET_ENDPOINT": settings.worker_dataset_endpoint or settings.dataset_endpoint,
            "MURMURA_CHECKPOINT_SECONDS": str(settings.checkpoint_seconds),
            "MURMURA_PROCESSES": str(settings.worker_processes),
        } | settings.told_to_workers()
        nodes = settings.worker_nodes
        where = launching(settings.launcher, settings.state_dir / "workers", told, settings.running_limit_s, nodes)
        lifecycle.resources.push_async_callback(asyncio.to_thread, where.release)
        running = asyncio.get_running_loop()
        loop: asyncio.Task[None] | None = None

        def stop_acting() -> None:
            # The calls that are under way may take a while to end; what starts and removes workers must not.
            if loop is not None:
                loop.cancel()
            lifecycle.end(exit_code=1)

        def another_acts() -> None:
            running.call_soon_threadsafe(stop_acting)

        await _alone(where, lifecycle, another_acts)
        # Not before: what another trainer still changes is not read, and one that is active is not shut out.
        database = await asyncio.to_thread(open_database, settings, another_acts)
        lifecycle.resources.callback(database.close)
        store = JobStore(database)
        artifacts = ArtifactStore(settings.artifacts, key)
        staging = settings.state_dir / "staging"
        checkpoints = Checkpoints(settings.state_dir / "checkpoints")
        limits = Limits(settings.waiting_limit_s, settings.running_limit_s, settings.silence_limit_s)
        ledger = Ledger(to_ledger, Witness(settings.state_dir / "witness.json"))
        control = Control(store, ledger, where.launcher, artifacts, staging, checkpoints, token, limits, nodes)
        base_models = BaseModels(settings.base_models, settings.max_lora_rank)
        planner = Planner(datasets, ledger, base_models, settings.known_prices, nodes)
        trainer_service_pb2_grpc.add_TrainerServiceServicer_to_server(
            TrainerService(planner, control, base_models, settings.known_prices), server
        )
        trainer_service_pb2_grpc.add_WorkerServiceServicer_to_server(
            WorkerService(control, base_models, where.pods), server
        )
        loop = asyncio.create_task(control.reconcile_forever())

        def ended(task: asyncio.Task[None]) -> None:
            # Without its loop the trainer is deaf: better to end and be restarted.
            if not task.cancelled():
                lifecycle.end(exit_code=1)

        loop.add_done_callback(ended)
        lifecycle.resources.callback(loop.cancel)
        leaving = asyncio.create_task(_let_go(lifecycle, control))
        lifecycle.resources.callback(leaving.cancel)
        return ["murmura.api.trainer.v1.TrainerService", "murmura.api.trainer.v1.WorkerService"]

    try:
        code = await serve("trainer", settings, register)
        if code:
            # Another one may be active: what threads still wait for from the cluster must not be done by this one, and
            # an interpreter that ends would wait for them.
            sys.stderr.flush()
            os._exit(code)
        return code
    except RedisUnusable as problem:
        print(problem, file=sys.stderr)
        return 2


if __name__ == "__main__":
    run(main())
