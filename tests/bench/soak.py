"""`make soak`: the inference service at saturation for ten minutes, with adapters that come and go.

Three tenants send more than it serves: completions, streams, batches, and what goes wrong in real life (clients that
vanish, deadlines that pass, prompts that are too long, adapters of others). Meanwhile adapters are unloaded and loaded,
more of them than memory holds. Each greedy answer must be the very text that its adapter gave before anybody else was
there. Prints a table for people on standard error and one JSON line on standard output.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import shutil
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import psutil
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from rich.console import Console
from rich.table import Table

from murmura.api.inference.v1 import inference_pb2, inference_service_pb2_grpc
from murmura.api.inference.v1 import inference_service_pb2 as pb
from murmura.errors import from_rpc
from services.common.tokens import mint
from tests.support.inference_process import Service, deploy
from tests.support.random_models import make_adapter, make_base, publish

TENANTS = ("ana@local", "bob@local", "eve@local")
WORKERS = 10  # of each tenant
ADAPTERS = 4  # of each tenant
PROMPT = "The patient"
GREEDY = inference_pb2.SamplingOptions(temperature=0, max_tokens=24)
LIMITS = {
    "ENGINE_MAX_ADAPTERS": "3",
    "ENGINE_MAX_RESIDENT_ADAPTERS": "5",
    "ENGINE_MAX_RUNNING": "16",
    "TENANT_MAX_RUNNING": "8",
    "TENANT_MAX_WAITING": "6",
}
DOCUMENTED = {
    *("OK", "CANCELLED", "DEADLINE_EXCEEDED"),
    *("TENANT_LIMIT", "OVERLOADED", "ADAPTER_NOT_READY", "PROMPT_TOO_LONG", "RESOURCE_NOT_FOUND"),
}
GROWTH = 1.05
_console = Console(stderr=True)


@dataclass
class Report:
    """What happened.

    Attributes:
        outcomes: requests by how they ended.
        mixed: answers that were not their adapter's.
        memory: bytes of the service and its engine, from time to time.
    """

    outcomes: Counter[str] = field(default_factory=Counter)
    mixed: int = 0
    memory: list[int] = field(default_factory=list)

    @property
    def undocumented(self) -> int:
        """Requests that ended as no document says."""
        return sum(count for outcome, count in self.outcomes.items() if outcome not in DOCUMENTED)

    @property
    def growth(self) -> float:
        """Memory in the last fifth of the time over that in the second."""
        fifth = max(1, len(self.memory) // 5)
        return statistics.median(self.memory[-fifth:]) / statistics.median(self.memory[fifth : 2 * fifth])


class Tenant:
    """One tenant's way to the service, and the texts of their adapters."""

    def __init__(self, service: Service, channel: Any, subject: str) -> None:
        self._adapters = inference_service_pb2_grpc.AdapterServiceStub(channel)
        self._inference = inference_service_pb2_grpc.InferenceServiceStub(channel)
        token = mint(service.key, "deployment", subject, ["analyst"], 3600)
        self._who = (("authorization", f"Bearer {token}"),)
        self._number = TENANTS.index(subject)
        self.texts: dict[str, str] = {}

    def own(self) -> list[str]:
        """Return the names of the tenant's adapters."""
        return [f"adapters/t{self._number}-{n}" for n in range(ADAPTERS)]

    async def learn(self) -> None:
        """Ask each adapter once, while nobody else is there."""
        for name in self.own():
            asked = pb.GenerateRequest(model=name, prompt=PROMPT, options=GREEDY)
            self.texts[name] = (await self._inference.Generate(asked, metadata=self._who)).text

    async def one(self, chance: random.Random) -> list[tuple[str, str]]:
        """Do one thing; returns the greedy answers, each beside what it must be."""
        name = chance.choice(self.own())
        asked = pb.GenerateRequest(model=name, prompt=PROMPT, options=GREEDY)
        long = inference_pb2.SamplingOptions(max_tokens=200)

        async def unary() -> list[tuple[str, str]]:
            return [((await self._inference.Generate(asked, metadata=self._who)).text, self.texts[name])]

        async def stream() -> list[tuple[str, str]]:
            call = self._inference.StreamGenerate(pb.StreamGenerateRequest(request=asked), metadata=self._who)
            return [("".join([piece.text async for piece in call]), self.texts[name])]

        async def batch() -> list[tuple[str, str]]:
            request = pb.BatchGenerateRequest(model=name, prompts=[PROMPT] * 5, options=GREEDY)
            answers = [answer async for answer in self._inference.BatchGenerate(request, metadata=self._who)]
            return [(a.completion.text, self.texts[name]) for a in answers if a.HasField("completion")]

        async def vanish() -> list[tuple[str, str]]:
            request = pb.StreamGenerateRequest(request=pb.GenerateRequest(model=name, prompt="a", options=long))
            call = self._inference.StreamGenerate(request, metadata=self._who)
            await call.read()
            call.cancel()
            raise asyncio.CancelledError

        async def late() -> list[tuple[str, str]]:
            request = pb.GenerateRequest(model="baseModels/tiny", prompt="a", options=long)
            await self._inference.Generate(request, metadata=self._who, timeout=chance.uniform(0.01, 0.1))
            return []

        async def oversize() -> list[tuple[str, str]]:
            await self._inference.Generate(pb.GenerateRequest(model=name, prompt="a" * 999), metadata=self._who)
            return []

        async def foreign() -> list[tuple[str, str]]:
            other = f"adapters/t{(self._number + 1) % len(TENANTS)}-0"
            await self._inference.Generate(pb.GenerateRequest(model=other, prompt=PROMPT), metadata=self._who)
            return []

        async def come_and_go() -> list[tuple[str, str]]:
            await self._adapters.UnloadAdapter(pb.UnloadAdapterRequest(name=name), metadata=self._who)
            await asyncio.sleep(chance.uniform(0, 0.2))
            await self._adapters.LoadAdapter(pb.LoadAdapterRequest(name=name), metadata=self._who)
            return []

        ways: list[Callable[[], Awaitable[list[tuple[str, str]]]]]
        ways = [unary, stream, batch, vanish, late, oversize, foreign, come_and_go]
        (way,) = chance.choices(ways, weights=[8, 6, 3, 2, 2, 1, 1, 1])
        return await way()


async def soak(service: Service, seconds: float) -> Report:
    """Keep a service busy for so long, and report."""
    report, end = Report(), time.monotonic() + seconds
    process = psutil.Process(service.process.pid)
    async with grpc.aio.insecure_channel(f"127.0.0.1:{service.port}") as channel:
        tenants = [Tenant(service, channel, subject) for subject in TENANTS]
        for tenant in tenants:
            await tenant.learn()

        async def work(tenant: Tenant, chance: random.Random) -> None:
            while time.monotonic() < end:
                try:
                    answers = await tenant.one(chance)
                    report.outcomes["OK"] += 1
                    report.mixed += sum(said != due for said, due in answers)
                except grpc.aio.AioRpcError as error:
                    ended = from_rpc(error, "inference", "").reason or error.code().name
                    report.outcomes[ended] += 1
                    if ended == "TENANT_LIMIT":
                        await asyncio.sleep(chance.uniform(0.1, 0.3))
                except asyncio.CancelledError:
                    report.outcomes["CANCELLED"] += 1

        async def watch() -> None:
            while time.monotonic() < end:
                family = [process, *process.children(recursive=True)]
                report.memory.append(sum(one.memory_full_info().uss for one in family))
                await asyncio.sleep(seconds / 100)

        workers = [work(t, random.Random(n)) for n in range(WORKERS) for t in tenants]
        await asyncio.gather(watch(), *workers)
        # What it answers when all is quiet again is what it answered at first.
        for tenant in tenants:
            before = dict(tenant.texts)
            await asyncio.sleep(0.5)
            for name in tenant.own():
                await tenant._adapters.LoadAdapter(pb.LoadAdapterRequest(name=name), metadata=tenant._who)
            await tenant.learn()
            report.mixed += sum(tenant.texts[name] != before[name] for name in before)
    return report


def start(root: Path, engine: str) -> Service:
    """Start a service with three tenants' adapters, more of them than its memory holds."""
    trainer = Ed25519PrivateKey.generate()
    base = make_base(root / "base")
    for tenant, owner in enumerate(TENANTS):
        for n in range(ADAPTERS):
            adapter = make_adapter(base, root / f"made-{tenant}-{n}", 10 * tenant + n)
            publish(root / "artifacts", f"adapters/t{tenant}-{n}", adapter, trainer, owner=owner)
    return deploy(root, engine, base, trainer, **LIMITS)


def main() -> int:
    """Run; SECONDS says for how long. Returns the exit code."""
    seconds = float(os.environ.get("SECONDS", "600"))
    root = Path(tempfile.mkdtemp(prefix="soak-"))
    service = start(root, os.environ.get("ENGINE", "auto"))
    try:
        _console.print(f"{len(TENANTS)} tenants for {seconds:g} s", style="dim")
        report = asyncio.run(soak(service, seconds))
    finally:
        service.process.kill()
        service.process.wait()
        shutil.rmtree(root)
    table = Table(title=f"{sum(report.outcomes.values())} requests in {seconds:g} s")
    table.add_column("ended as")
    table.add_column("requests", justify="right")
    for outcome, count in report.outcomes.most_common():
        table.add_row(outcome, str(count))
    table.add_row("undocumented", str(report.undocumented), style="red" if report.undocumented else "green")
    table.add_row("another's answer", str(report.mixed), style="red" if report.mixed else "green")
    table.add_row("memory, end over start", f"{report.growth:.3f}")
    _console.print(table)
    found = {
        "seconds": seconds,
        "outcomes": dict(report.outcomes),
        "undocumented": report.undocumented,
        "mixed": report.mixed,
        "memory_growth": round(report.growth, 3),
        "memory_mib": [round(statistics.median(part) / 2**20) for part in (report.memory[:20], report.memory[-20:])],
    }
    print(json.dumps(found))
    return int(bool(report.undocumented or report.mixed or report.growth > GROWTH))


if __name__ == "__main__":
    sys.exit(main())
