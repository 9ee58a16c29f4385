"""Workers as processes of this machine.

Each runs in a session of its own, so that it lives on when the trainer dies; a file names it by id and start time, so
that the trainer's next life finds it again.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import psutil

from services.trainer.launcher import Observation, WorkOrder


class LocalLauncher:
    """Starts `python -m services.trainer.worker`.

    Args:
        directory: keeps a folder for each job: token, process file, log.
        environment: what every worker is told, besides its job.
    """

    def __init__(self, directory: Path, environment: dict[str, str]) -> None:
        self._directory = directory
        self._environment = environment
        self._children: dict[str, subprocess.Popen[bytes]] = {}

    def ensure(self, order: WorkOrder) -> None:
        """Start a worker unless one was started for this attempt already."""
        if self.observe(order.job_id, order.attempt).exists:
            return
        folder = self._folder(order.job_id)
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        token_file = folder / "token"
        descriptor = os.open(token_file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w") as out:
            out.write(order.token)
        environment = self._environment | {
            "MURMURA_JOB": order.job,
            "MURMURA_ATTEMPT": str(order.attempt),
            "MURMURA_JOB_TOKEN_FILE": str(token_file.resolve()),
        }
        with (folder / "worker.log").open("ab") as log:
            child = subprocess.Popen(
                [sys.executable, "-m", "services.trainer.worker"],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        created = psutil.Process(child.pid).create_time()
        facts = {"pid": child.pid, "create_time": created, "attempt": order.attempt}
        (folder / "process.json").write_text(json.dumps(facts))
        self._children[order.job_id] = child

    def observe(self, job_id: str, attempt: int) -> Observation:
        """Say how the worker of an attempt is."""
        try:
            facts = json.loads((self._folder(job_id) / "process.json").read_text())
        except (FileNotFoundError, ValueError):
            return Observation(exists=False, alive=False)
        if facts["attempt"] != attempt:
            return Observation(exists=False, alive=False)
        child = self._children.get(job_id)
        if child is not None:
            code = child.poll()
            return Observation(exists=True, alive=code is None, exit_code=code)
        process = _find(facts)
        return Observation(exists=True, alive=process is not None)

    def stop(self, job_id: str, attempt: int) -> None:
        """Ask the worker to stop."""
        if self.observe(job_id, attempt).alive:
            facts = json.loads((self._folder(job_id) / "process.json").read_text())
            process = _find(facts)
            if process is not None:
                process.terminate()

    def collect(self, job_id: str) -> None:
        """Remove the token and the process file."""
        for name in ("token", "process.json"):
            (self._folder(job_id) / name).unlink(missing_ok=True)
        shutil.rmtree(self._folder(job_id) / "scratch", ignore_errors=True)
        self._children.pop(job_id, None)

    def _folder(self, job_id: str) -> Path:
        return self._directory / job_id


def _find(facts: dict[str, float]) -> psutil.Process | None:
    try:
        process = psutil.Process(int(facts["pid"]))
        same = abs(process.create_time() - facts["create_time"]) < 1.0
        alive = process.is_running() and process.status() != psutil.STATUS_ZOMBIE
        return process if same and alive else None
    except psutil.Error:
        return None
