"""`python -m services.trainer`: run the trainer."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

import grpc
from pydantic import Field

from murmura.api.trainer.v1 import trainer_service_pb2_grpc
from services.common.config import ServiceSettings
from services.common.requests import frame_digest
from services.common.server import Lifecycle, serve
from services.common.tokens import load_signing_key, mint
from services.common.upstream import Upstream
from services.trainer.artifacts import ArtifactStore
from services.trainer.control import Control
from services.trainer.local_launcher import LocalLauncher
from services.trainer.planning import Planner
from services.trainer.service import TrainerService
from services.trainer.store import JobStore, Record
from services.trainer.workers import WorkerService

JOB_TOKEN_LIFETIME_S = 600


class TrainerSettings(ServiceSettings):
    """What the trainer is told."""

    ledger_endpoint: str = Field(description="host:port of the ledger")
    dataset_endpoint: str = Field(description="host:port of the dataset service")
    base_models: dict[str, str] = Field(description="JSON: public name to path or hub id")
    artifacts: Path = Field(description="directory of the artifact store")
    signing_key_file: Path = Field(description="Ed25519 PEM; signs job tokens and manifests")
    trainer_endpoint: str = Field(description="host:port at which workers find this service")


async def main() -> int:
    """Run until told to stop."""
    settings = TrainerSettings.load()
    key = load_signing_key(settings.signing_key_file)

    def token(record: Record) -> str:
        job = record.job
        return mint(
            key,
            "trainer",
            f"worker:{job.job_id}",
            ["worker"],
            JOB_TOKEN_LIFETIME_S,
            job=job.name,
            dataset=record.spec.frame.dataset,
            reservation=job.reservation,
            frame_sha256=frame_digest(record.spec.frame),
        )

    async def register(server: grpc.aio.Server, lifecycle: Lifecycle) -> list[str]:
        store = JobStore(settings.state_dir / "jobs.sqlite3")
        lifecycle.resources.callback(store.close)
        ledger = Upstream("ledger", settings.ledger_endpoint, settings.service_token_file)
        datasets = Upstream("dataset", settings.dataset_endpoint, settings.service_token_file)
        for upstream in (ledger, datasets):
            lifecycle.resources.push_async_callback(upstream.close)
        # A worker is told where things are and which job is its own; the trainer's own secrets stay here.
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("MURMURA_")}
        launcher = LocalLauncher(
            settings.state_dir / "workers",
            inherited
            | {
                "MURMURA_TRAINER_ENDPOINT": settings.trainer_endpoint,
                "MURMURA_DATASET_ENDPOINT": settings.dataset_endpoint,
            },
        )
        artifacts = ArtifactStore(settings.artifacts, key)
        control = Control(store, ledger, launcher, artifacts, settings.state_dir / "staging", token)
        planner = Planner(datasets, ledger, settings.base_models)
        trainer_service_pb2_grpc.add_TrainerServiceServicer_to_server(
            TrainerService(planner, control, list(settings.base_models)), server
        )
        trainer_service_pb2_grpc.add_WorkerServiceServicer_to_server(WorkerService(control, planner), server)
        loop = asyncio.create_task(control.reconcile_forever())

        def ended(task: asyncio.Task[None]) -> None:
            # Without its loop the trainer is deaf: better to end and be restarted.
            if not task.cancelled():
                lifecycle.end(exit_code=1)

        loop.add_done_callback(ended)
        lifecycle.resources.callback(loop.cancel)
        return ["murmura.api.trainer.v1.TrainerService", "murmura.api.trainer.v1.WorkerService"]

    return await serve("trainer", settings, register)


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
