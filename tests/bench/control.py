"""`make bench-control`: how quickly the trainer turns a wish into a pod, and a finished pod into a finished job.

Real trainer, ledger and dataset service; the cluster is the small API server of `tests/support/kube_api`, over HTTP.
What stands for each pod makes the calls of a worker (ExchangeToken, GetAssignment, Heartbeat, UploadAdapter) and trains
nothing, since a hundred at once would measure this machine's two cores. For each job, at 1 and at 100 at once:

- to_pod: from sending CreateTrainingJob, so planning and the ledger's reservation included, to the pod's creation.
- to_done: from the last message of the worker's upload to SUCCEEDED, as a client sees it that watches. A job of ours is
  done when its adapter is charged and published, and its pod ends after that; so this begins earlier than at the pod's
  success.
- leaked: Jobs, pods and Services that are left half a minute after the last job.

Prints a table for people on standard error and one JSON line on standard output.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import statistics
import sys
import tempfile
import time
import uuid
from pathlib import Path
from typing import Any

import grpc
from rich.console import Console
from rich.table import Table

from murmura.api.trainer.v1 import trainer_pb2, trainer_service_pb2_grpc
from murmura.api.trainer.v1 import trainer_service_pb2 as pb
from tests.support.cloud import Cloud
from tests.support.deployment import BASE_MODEL, tiny_base_model
from tests.support.stand_ins import StandIns

COUNTS = (1, 100)
ROUNDS = {1: 20, 100: 3}
P50_BAR_S, P99_BAR_S = 1.0, 5.0
LEFT_AFTER_S = 30.0
_console = Console(stderr=True)


class Bench:
    """The deployment, and what is measured with it."""

    def __init__(self, directory: Path) -> None:
        model = tiny_base_model(directory)
        self.cloud = Cloud(directory, {BASE_MODEL: str(model)})
        self.workers = StandIns()
        self.pods: dict[str, float] = {}
        api = self.cloud.api
        api.kubelet.stand_in = self.workers
        api.add_node("gpus", gpus=1000, pods=1000)
        create = api.store.create

        def noting(plural: str, namespace: str, body: dict[str, Any], strict: bool = False) -> dict[str, Any]:
            if plural == "pods":
                self.pods.setdefault(body["metadata"]["labels"]["murmura.dev/job"], time.monotonic())
            return create(plural, namespace, body, strict)

        api.store.create = noting  # type: ignore[method-assign]
        self.cloud.start_all()

    async def round(self, count: int, datasets: list[Any]) -> tuple[list[float], list[float]]:
        """Run so many jobs at once; returns the seconds to each pod and to each end."""
        async with grpc.aio.insecure_channel(self.cloud.endpoints["trainer"]) as channel:
            stub: Any = trainer_service_pb2_grpc.TrainerServiceStub(channel)
            both = await asyncio.gather(*(self._one(stub, datasets[number % len(datasets)]) for number in range(count)))
        return [to_pod for to_pod, _ in both], [to_done for _, to_done in both]

    async def _one(self, stub: Any, dataset: Any) -> tuple[float, float]:
        who = self.cloud.who()
        spec = self.cloud.spec(dataset, 2.0, epochs=2.0)
        request = pb.CreateTrainingJobRequest(request_id=str(uuid.uuid4()), spec=spec)
        asked = time.monotonic()
        job = (await stub.CreateTrainingJob(request, metadata=who, timeout=120)).training_job
        async for answer in stub.WatchTrainingJob(pb.WatchTrainingJobRequest(name=job.name), metadata=who, timeout=120):
            job = answer.training_job
        done = time.monotonic()
        assert job.state == trainer_pb2.JOB_STATE_SUCCEEDED, job.error.message
        job_id = job.name.removeprefix("trainingJobs/")
        return self.pods[job_id] - asked, done - self.workers.uploaded[job.name]

    def leaked(self) -> int:
        """Return how many objects are left in the cluster."""
        end = time.monotonic() + LEFT_AFTER_S
        while not self.cloud.empty() and time.monotonic() < end:
            time.sleep(0.1)
        return sum(len(self.cloud.api.names(plural)) for plural in ("jobs", "pods", "services"))


def main() -> int:
    """Run the benchmark; returns the exit code."""
    directory = Path(tempfile.mkdtemp(prefix="bench-control-", dir=Path.cwd())).resolve()
    figures: dict[str, dict[str, float]] = {}
    bench = Bench(directory)
    try:
        asyncio.run(bench.round(2, bench.cloud.datasets(2)))  # warms it up
        for count in COUNTS:
            to_pod, to_done = [], []
            for _ in range(ROUNDS[count]):
                pods, dones = asyncio.run(bench.round(count, bench.cloud.datasets(count)))
                to_pod, to_done = to_pod + pods, to_done + dones
            figures[str(count)] = {
                f"{what}_{quantile}_s": round(statistics.quantiles(found, n=100)[at], 3)
                for what, found in (("to_pod", to_pod), ("to_done", to_done))
                for quantile, at in (("p50", 49), ("p99", 98))
            } | {"leaked": bench.leaked()}
    finally:
        bench.cloud.stop()
        shutil.rmtree(directory)
    table = Table(title="from a wish to a pod, and from the adapter to the end; seconds")
    for heading in ("jobs at once", "to pod, p50", "p99", "to done, p50", "p99", "leaked"):
        table.add_column(heading, justify="right")
    for count, found in figures.items():
        table.add_row(count, *(f"{value:g}" for value in found.values()))
    _console.print(table)
    most = figures[str(COUNTS[-1])]
    for what in ("to_pod", "to_done"):
        met = most[f"{what}_p50_s"] <= P50_BAR_S and most[f"{what}_p99_s"] <= P99_BAR_S
        _console.print(f"{what} at {COUNTS[-1]}: bars p50 {P50_BAR_S} s, p99 {P99_BAR_S} s{'' if met else ': MISSED'}")
    print(json.dumps(figures))
    return 0


if __name__ == "__main__":
    sys.exit(main())
