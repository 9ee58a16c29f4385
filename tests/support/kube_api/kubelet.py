"""Nodes: run pods as processes of this machine, each in a session of its own.

There are no mounts: what a volume would show at a path lies in a directory, and where the environment names the path,
it names the directory instead.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import shutil
import signal
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from tests.support import warm
from tests.support.kube_api.store import ApiError, Store, now

_SUMMARY = "/dev/termination-log"


Process: TypeAlias = asyncio.subprocess.Process | warm.Process


@dataclass(frozen=True)
class PodToken:
    namespace: str
    pod: str
    uid: str
    account: str
    audience: str


class Kubelet:
    """All nodes' kubelets in one.

    Args:
        store: the API server's.
        directory: for volumes and logs.
    """

    def __init__(self, store: Store, directory: Path) -> None:
        self._store = store
        self._directory = directory
        self._running: dict[str, asyncio.Task[None]] = {}
        self.processes: dict[str, Process] = {}
        self._killed_for: dict[str, str] = {}
        self._node_of: dict[str, str] = {}
        self.tokens: dict[str, PodToken] = {}
        self.lost: set[str] = set()
        # Whether pods find each other: a hostname of a pod that they are told is replaced by this machine's.
        self.names = False
        # What stands for the process of a pod, where a test wants more pods than the machine could run.
        self.stand_in: Callable[[dict[str, str]], Awaitable[int]] | None = None

    def step(self) -> None:
        for pod in self._store.select("pods"):
            uid, node = pod["metadata"]["uid"], pod["spec"].get("nodeName")
            if (
                node
                and uid not in self._running
                and pod["status"]["phase"] == "Pending"
                and not pod["metadata"].get("deletionTimestamp")
            ):
                self._running[uid] = asyncio.ensure_future(self._run(pod))
            elif pod["metadata"].get("deletionTimestamp") and node not in self.lost:
                self._terminate(pod)

        there = {pod["metadata"]["uid"] for pod in self._store.select("pods")}
        for uid, process in self.processes.items():
            if uid not in there and process.returncode is None and self._node_of.get(uid) not in self.lost:
                _kill(process)  # it was deleted without being asked

    def log(self, namespace: str, name: str, tail: str | None) -> str:
        pod = self._store.get("pods", namespace, name)
        path = self._folder(pod) / "log"
        if not path.exists():
            raise ApiError(400, "BadRequest", "container is waiting to start")
        lines = path.read_text().splitlines(keepends=True)
        return "".join(lines[-int(tail) :] if tail else lines)

    def kill(self, pod: dict[str, Any], reason: str = "") -> None:
        """End a pod's process at once, for a reason that its status tells."""
        self._killed_for[pod["metadata"]["uid"]] = reason
        process = self.processes.get(pod["metadata"]["uid"])
        if process is not None and process.returncode is None:
            _kill(process)

    def _folder(self, pod: dict[str, Any]) -> Path:
        return self._directory / pod["metadata"]["uid"]

    def _terminate(self, pod: dict[str, Any]) -> None:
        uid = pod["metadata"]["uid"]
        process = self.processes.get(uid)
        if process is None or process.returncode is not None:
            if (
                pod["status"].get("phase") in ("Succeeded", "Failed")
                or uid not in self._running
                or self._running[uid].done()
            ):
                if not pod["metadata"].get("finalizers"):
                    self._store.remove("pods", pod)
                elif pod["status"]["phase"] not in ("Succeeded", "Failed"):
                    self._set(pod, "Failed", {})
            return
        if uid not in self._killed_for:
            self._killed_for[uid] = ""
            grace = pod["metadata"].get("deletionGracePeriodSeconds") or pod["spec"].get(
                "terminationGracePeriodSeconds", 30
            )
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
            asyncio.get_running_loop().call_later(grace, self.kill, pod)

    async def _run(self, pod: dict[str, Any]) -> None:
        container = pod["spec"]["containers"][0]
        if container["image"].startswith("missing/"):
            self._set(pod, "Pending", {"waiting": {"reason": "ErrImagePull", "message": "pull access denied"}})
            await asyncio.sleep(0.3)
            self._set(
                pod,
                "Pending",
                {"waiting": {"reason": "ImagePullBackOff", "message": f"Back-off pulling image {container['image']}"}},
            )
            del self._running[pod["metadata"]["uid"]]
            return
        folder = self._folder(pod)
        environment = self._environment(pod, container, folder)
        if self.stand_in is not None:
            self._set(pod, "Running", {"running": {"startedAt": now()}})
            code = await self.stand_in(environment)
            ended = {"exitCode": code, "reason": "Error" if code else "Completed", "message": "", "finishedAt": now()}
            self._set(pod, "Failed" if code else "Succeeded", {"terminated": ended})
            return
        process = await _started(_command(container), environment, folder / "log")
        self.processes[pod["metadata"]["uid"]] = process
        self._node_of[pod["metadata"]["uid"]] = pod["spec"]["nodeName"]
        self._set(pod, "Running", {"running": {"startedAt": now()}})
        deadline = pod["spec"].get("activeDeadlineSeconds")
        try:
            async with asyncio.timeout(deadline):
                code = await _ended(process)
        except TimeoutError:
            self.kill(pod, "DeadlineExceeded")
            code = await _ended(process)
        if pod["spec"]["nodeName"] in self.lost:
            return
        reason = self._killed_for.get(pod["metadata"]["uid"], "")
        code = 137 if code == -signal.SIGKILL else 128 - code if code < 0 else code
        summary = (folder / "termination-log").read_text() if (folder / "termination-log").exists() else ""
        ended = {
            "exitCode": code,
            "reason": reason or ("Completed" if code == 0 else "Error"),
            "message": summary,
            "finishedAt": now(),
        }
        self._set(
            pod,
            "Failed" if code else "Succeeded",
            {"terminated": ended},
            reason if reason == "DeadlineExceeded" else "",
        )

    def _set(self, pod: dict[str, Any], phase: str, state: dict[str, Any], reason: str = "") -> None:
        def change(object: dict[str, Any]) -> None:
            status = object["status"]
            status["phase"] = phase
            if reason:
                status["reason"] = reason
            status["containerStatuses"] = [
                {"name": "worker", "state": state, "ready": phase == "Running", "restartCount": 0}
            ]

        meta = pod["metadata"]
        if self._store.objects.get(("pods", meta["namespace"], meta["name"])) is pod:
            self._store.update("pods", pod, change)

    def _environment(self, pod: dict[str, Any], container: dict[str, Any], folder: Path) -> dict[str, str]:
        shutil.rmtree(folder, ignore_errors=True)
        places = {_SUMMARY: str(folder / "termination-log")}
        volumes = {volume["name"]: volume for volume in pod["spec"].get("volumes", [])}
        for mount in container.get("volumeMounts", []):
            place = folder / "volumes" / mount["name"]
            place.mkdir(parents=True, exist_ok=True)
            places[mount["mountPath"]] = str(place)
            for source in volumes[mount["name"]].get("projected", {}).get("sources", []):
                if (wanted := source.get("serviceAccountToken")) is not None:
                    (place / wanted["path"]).write_text(self._token(pod, wanted["audience"]))
        folder.mkdir(parents=True, exist_ok=True)
        environment = {"PATH": os.environ["PATH"], "PYTHONPATH": os.getcwd(), "OMP_NUM_THREADS": "1"}
        for variable in container.get("env", []):
            value = variable.get("value", "")
            if (field := variable.get("valueFrom", {}).get("fieldRef", {}).get("fieldPath")) is not None:
                value = _field(pod, field)
            inside = [path for path in places if value == path or value.startswith(f"{path}/")]
            if inside:
                longest = max(inside, key=len)
                value = places[longest] + value[len(longest) :]
            if self.names and value.endswith(f".{pod['spec'].get('subdomain')}"):
                value = "localhost"
                environment["GLOO_SOCKET_IFNAME"] = "lo"
            environment[variable["name"]] = value
        return environment

    def _token(self, pod: dict[str, Any], audience: str) -> str:
        token, meta = secrets.token_urlsafe(32), pod["metadata"]
        account = pod["spec"].get("serviceAccountName", "default")
        self.tokens[token] = PodToken(meta["namespace"], meta["name"], meta["uid"], account, audience)
        return token

    async def close(self) -> None:
        for process in self.processes.values():
            _kill(process)
        await asyncio.gather(*self._running.values(), return_exceptions=True)


def _command(container: dict[str, Any]) -> list[str]:
    """Return what a container runs; its Python is the one that runs the tests."""
    command, *arguments = [*container["command"], *container.get("args", [])]
    return [sys.executable if command == "python" else command, *arguments]


async def _started(command: list[str], environment: dict[str, str], log: Path) -> Process:
    if command == [sys.executable, "-m", "services.trainer.worker"]:
        return warm.start(command[-1], environment, log, new_session=True)
    with log.open("wb") as out:
        return await asyncio.create_subprocess_exec(
            *command,
            env=environment,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            start_new_session=True,
        )


async def _ended(process: Process) -> int:
    if isinstance(process, asyncio.subprocess.Process):
        return await process.wait()
    while (code := process.poll()) is None:
        await asyncio.sleep(0.02)
    return code


def _kill(process: Process) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    with contextlib.suppress(ProcessLookupError):
        process.kill()  # where it does not lead its group yet


def _field(pod: dict[str, Any], path: str) -> str:
    if path.startswith("metadata.annotations['"):
        return str(pod["metadata"]["annotations"][path.removeprefix("metadata.annotations['").removesuffix("']")])
    if path == "status.podIP":
        return "127.0.0.1"
    at: Any = pod
    for part in path.split("."):
        at = at[part]
    return str(at)
