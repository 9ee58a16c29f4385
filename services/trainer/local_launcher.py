"""Workers as processes of this machine.

Each runs in a session of its own, so that it lives on when the trainer dies; a file names it by id and start time, so
that the trainer's next life finds it again. A worker also holds a lock on a file for as long as it lives: should the
trainer die between starting a worker and naming it, no second one is started beside it.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import psutil

from services.trainer.launcher import ABSENT, EVICTED, Observation, WorkOrder

WORKER = (sys.executable, "-m", "services.trainer.worker")
_LOG_CHARACTERS = 100_000


class LocalLauncher:
    """Starts `python -m services.trainer.worker`.

    Args:
        directory: keeps a folder for each job: token, process file, log.
        told: what every worker is told, besides its job. Of this process's environment it gets all but Murmura's own
            settings: where the trainer's keys and tokens lie is none of its business.
        command: what a worker runs.
    """

    def __init__(self, directory: Path, told: dict[str, str], command: Sequence[str] = WORKER) -> None:
        self._directory, self._command = directory, list(command)
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("MURMURA_")}
        self._environment = inherited | told
        self._children: dict[str, subprocess.Popen[bytes]] = {}
        self._ended: dict[str, float] = {}
        self._changed: Callable[[str], None] = lambda job_id: None

    def start(self, changed: Callable[[str], None]) -> None:
        """Tell from now on when a worker that this process started has ended; see `Launcher.start`."""
        self._changed = changed

    def ensure(self, order: WorkOrder) -> None:
        """Start a worker unless one was started for this attempt already."""
        if self.observe(order.job_id, order.attempt).exists:
            return
        folder = self._folder(order.job_id)
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        token_file = (folder / "token").resolve()
        self.renew(order.job_id, order.token)
        environment = self._environment | {
            "MURMURA_JOB": order.job,
            "MURMURA_ATTEMPT": str(order.attempt),
            "MURMURA_JOB_TOKEN_FILE": str(token_file),
            "MURMURA_SUMMARY_FILE": str((folder / "summary.json").resolve()),
        }
        # One lock an attempt: a worker of an older one that has not quite died must not keep the new one away.
        alive = os.open(folder / f"alive-{order.attempt}", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(alive, fcntl.LOCK_EX | fcntl.LOCK_NB)
            with (folder / "worker.log").open("ab") as log:
                child = subprocess.Popen(
                    self._command,
                    env=environment,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                    pass_fds=(alive,),
                )
            self._ended.pop(order.job_id, None)
            self._children[order.job_id] = child
            self._name(order, psutil.Process(child.pid))
            threading.Thread(target=self._follow, args=(order.job_id, child), daemon=True).start()
        except BlockingIOError:
            # A worker lives that no file names: the trainer died just after it had started it.
            orphan = _orphan(order, token_file)
            if orphan is not None:
                self._name(order, orphan)
        finally:
            os.close(alive)

    def observe(self, job_id: str, attempt: int) -> Observation:
        """Say how the worker of an attempt is."""
        try:
            facts = json.loads((self._folder(job_id) / "process.json").read_text())
        except (FileNotFoundError, ValueError):
            return ABSENT
        if facts["attempt"] != attempt:
            return ABSENT
        held = self._ended.get(job_id, time.time()) - facts["create_time"]
        child = self._children.get(job_id)
        if child is not None:
            code = child.poll()
            return Observation(True, code is None, code, evicted=code == EVICTED, node_seconds=held)
        return Observation(True, _find(facts) is not None, node_seconds=held)

    def stop(self, job_id: str, attempt: int) -> None:
        """Ask the worker to stop."""
        if (process := self._process(job_id, attempt)) is not None:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.terminate()

    def kill(self, job_id: str, attempt: int) -> None:
        """End a worker that does not answer."""
        if (process := self._process(job_id, attempt)) is not None:
            # The parent first, lest it sees the others die and reports their failure as its own.
            with contextlib.suppress(psutil.NoSuchProcess):
                children = process.children(recursive=True)
                for one in [process, *children]:
                    with contextlib.suppress(psutil.NoSuchProcess):
                        one.kill()

    def renew(self, job_id: str, token: str) -> None:
        """Replace the token file; a worker whose own token has expired reads it again."""
        _write_private(self._folder(job_id) / "token", token)

    def logs(self, job_id: str, attempt: int) -> str:
        """Return the end of what the workers of a job have printed."""
        try:
            return (self._folder(job_id) / "worker.log").read_text()[-_LOG_CHARACTERS:]
        except FileNotFoundError:
            return ""

    def collect(self, job_id: str) -> None:
        """Remove the token and the process file."""
        folder = self._folder(job_id)
        for path in (folder / "token", folder / "process.json", *folder.glob("alive-*")):
            path.unlink(missing_ok=True)
        for known in (self._children, self._ended):
            known.pop(job_id, None)

    def found(self) -> frozenset[str]:
        """Return the ids of the jobs of which a token or a process file is left."""
        return frozenset(
            path.parent.name for name in ("token", "process.json") for path in self._directory.glob(f"*/{name}")
        )

    def close(self) -> None:
        """Do nothing: workers go on by themselves."""

    def _follow(self, job_id: str, child: subprocess.Popen[bytes]) -> None:
        child.wait()
        self._ended[job_id] = time.time()
        self._changed(job_id)

    def _process(self, job_id: str, attempt: int) -> psutil.Process | None:
        if not self.observe(job_id, attempt).alive:
            return None
        return _find(json.loads((self._folder(job_id) / "process.json").read_text()))

    def _name(self, order: WorkOrder, process: psutil.Process) -> None:
        facts = {"pid": process.pid, "create_time": process.create_time(), "attempt": order.attempt}
        _write_private(self._folder(order.job_id) / "process.json", json.dumps(facts))

    def _folder(self, job_id: str) -> Path:
        return self._directory / job_id


def _write_private(path: Path, text: str) -> None:
    """Write a file whole or not at all, readable by its owner only."""
    temporary = path.with_name(f"{path.name}.new")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as out:
        out.write(text)
    temporary.replace(path)


def _orphan(order: WorkOrder, token_file: Path) -> psutil.Process | None:
    """Find a living worker of an attempt of this deployment by what it was started with."""
    wanted = (order.job, str(order.attempt), str(token_file))
    for process in psutil.process_iter():
        try:
            environment = process.environ()
            names = ("MURMURA_JOB", "MURMURA_ATTEMPT", "MURMURA_JOB_TOKEN_FILE")
            # A worker of several processes is the one that started the others.
            if "RANK" not in environment and tuple(environment.get(name) for name in names) == wanted:
                return process
        except psutil.Error:
            continue
    return None


def _find(facts: dict[str, float]) -> psutil.Process | None:
    try:
        process = psutil.Process(int(facts["pid"]))
        same = abs(process.create_time() - facts["create_time"]) < 1.0
        alive = process.is_running() and process.status() != psutil.STATUS_ZOMBIE
        return process if same and alive else None
    except psutil.Error:
        return None
