"""The server in a thread of its own, with everything that a test may do to it."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import yaml
from aiohttp import web

from tests.support.kube_api.faults import Faults
from tests.support.kube_api.job_controller import JobController, condition
from tests.support.kube_api.kubelet import Kubelet
from tests.support.kube_api.rest import KINDS, application
from tests.support.kube_api.scheduler import Scheduler
from tests.support.kube_api.store import Store, now

T = TypeVar("T")
NAMESPACE = "murmura-workers"
_STEP_S, _TICK_S = 0.02, 0.1


class KubeApi:
    """An API server and its cluster.

    Args:
        directory: for pods' volumes and logs.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.users: dict[str, Any] = {}
        self.faults = Faults()
        # What manifests hold besides is kept, checked where the API has a schema for it, and does nothing.
        self.kinds = dict(KINDS)
        self.bookmark_s = 1.0
        self.requests: list[tuple[str, str, str]] = []
        self.port = 0
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="kube api", daemon=True)
        self._runner: web.AppRunner | None = None

    def start(self) -> None:
        self._thread.start()
        self.do(self._make)
        self.up()

    def stop(self) -> None:
        self._stepping.cancel()
        self.wait(self.kubelet.close())
        self.down()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    def down(self) -> None:
        """Stop answering; what is in the cluster goes on."""
        if self._runner is not None:
            self.faults.drop_watches()
            self.wait(self._runner.cleanup())
            self._runner = None

    def up(self) -> None:
        """Answer again, at the same address."""
        self.wait(self._serve())

    def kubeconfig(self, path: Path, rules: Any = "all", namespace: str = NAMESPACE) -> Path:
        """Write a kubeconfig for a user with some rights: triples of group, resource and verb."""
        token = secrets.token_urlsafe(16)
        self.users[token] = rules
        path.write_text(
            yaml.safe_dump(
                {
                    "apiVersion": "v1",
                    "kind": "Config",
                    "current-context": "test",
                    "contexts": [
                        {"name": "test", "context": {"cluster": "test", "user": "test", "namespace": namespace}}
                    ],
                    "clusters": [{"name": "test", "cluster": {"server": f"http://127.0.0.1:{self.port}"}}],
                    "users": [{"name": "test", "user": {"token": token}}],
                }
            )
        )
        return path

    def do(self, function: Callable[[], T]) -> T:
        """Run a function where the cluster lives."""

        async def call() -> T:
            return function()

        return self.wait(call())

    def wait(self, coroutine: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(60)

    # ------------------------------------------------------------ what is there

    def names(self, plural: str) -> list[str]:
        return self.do(lambda: sorted(o["metadata"]["name"] for o in self.store.select(plural)))

    def all(self, plural: str) -> list[dict[str, Any]]:
        return self.do(lambda: list(self.store.select(plural)))

    # ------------------------------------------------------------ what happens to it

    def add_node(self, name: str, **facts: Any) -> None:
        self.do(lambda: self.scheduler.add_node(name, **facts))

    def evict(self, pod: str, *, gently: bool = True) -> None:
        """Take a pod's place away: it is asked to leave, or killed without a word."""

        def evict() -> None:
            found = next(p for p in self.store.select("pods") if p["metadata"]["name"] == pod)

            def mark(object: dict[str, Any]) -> None:
                object["status"].setdefault("conditions", []).append(
                    condition("DisruptionTarget", "EvictionByEvictionAPI")
                )

            self.store.update("pods", found, mark)
            if gently:
                self.store.delete("pods", found["metadata"]["namespace"], pod, {})
            else:
                self.kubelet.kill(found)

        self.do(evict)

    def out_of_memory(self, pod: str) -> None:
        found = next(p for p in self.all("pods") if p["metadata"]["name"] == pod)
        self.do(lambda: self.kubelet.kill(found, "OOMKilled"))

    def lose(self, node: str) -> None:
        """Cut a node off: what runs on it runs on, and nobody hears of it."""

        def lose() -> None:
            found = self.store.get("nodes", "", node)
            self.kubelet.lost.add(node)

            def mark(object: dict[str, Any]) -> None:
                object["status"]["conditions"] = [{"type": "Ready", "status": "Unknown", "lastTransitionTime": now()}]

            self.store.update("nodes", found, mark)

        self.do(lose)

    def compact(self) -> None:
        self.do(lambda: self.store.compact())

    # ------------------------------------------------------------ inside

    def _make(self) -> None:
        self.store = Store()
        self.jobs = JobController(self.store)
        self.scheduler = Scheduler(self.store)
        self.kubelet = Kubelet(self.store, self._directory)
        self._stepping = asyncio.ensure_future(self._steps())

    async def _serve(self) -> None:
        self._runner = web.AppRunner(application(self), shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", self.port, reuse_address=True)
        await site.start()
        self.port = site._server.sockets[0].getsockname()[1]  # type: ignore[union-attr]

    async def _steps(self) -> None:
        with contextlib.suppress(asyncio.CancelledError):
            seen, last = 0, 0.0
            while True:
                # Most of what these do follows from a change; some from time.
                if self.store.version != seen or time.monotonic() - last > _TICK_S:
                    seen, last = self.store.version, time.monotonic()
                    for part in (self.jobs, self.scheduler, self.kubelet):
                        part.step()
                await asyncio.sleep(_STEP_S)
