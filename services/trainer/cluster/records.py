"""What is remembered of pods that are gone: on disk, since the cluster forgets them.

An evicted pod is deleted a moment after it has ended, and a job's pods a day after the job. Without memory nobody could
say how often a worker was replaced, how it ended, or for how long machines were held.
"""

from __future__ import annotations

import json
import threading
import time
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from services.common.files import write

_LOG_BYTES = 1 << 20


@dataclass(frozen=True)
class PodRecord:
    """A pod that has been seen.

    Attributes:
        ran: whether its container was ever started.
        exit_code: how that ended; None while it is not known.
        reason: why, as the node says it ("OOMKilled", "Evicted", …).
        started, ended: seconds since the epoch; 0 where unknown.
    """

    ran: bool = False
    exit_code: int | None = None
    reason: str = ""
    started: float = 0.0
    ended: float = 0.0

    @property
    def over(self) -> bool:
        """Whether it runs no more."""
        return self.ended > 0


def record_of(pod: dict[str, Any]) -> PodRecord:
    """Return what a pod's status says of how it is."""
    status = pod.get("status", {})
    states = [one.get("state", {}) for one in status.get("containerStatuses") or []]
    ended = next((state["terminated"] for state in states if state.get("terminated")), None)
    started = seconds(status.get("startTime"))
    if status.get("phase") not in ("Succeeded", "Failed"):
        return PodRecord(any(state.get("running") for state in states), None, "", started)
    reason = status.get("reason") or (ended or {}).get("reason") or ""
    if any(one["type"] == "DisruptionTarget" and one["status"] == "True" for one in status.get("conditions") or []):
        reason = "Evicted"
    code = ended["exitCode"] if ended else None
    at = seconds((ended or {}).get("finishedAt")) or time.time()
    return PodRecord(ended is not None, code, reason, started, max(at, started))


def seconds(stamp: str | None) -> float:
    """Return a time as the cluster writes it, in seconds since the epoch; 0 where there is none."""
    return datetime.fromisoformat(stamp).timestamp() if stamp else 0.0


class Records:
    """Records of the pods of each attempt, by their uid, and the ends of their logs.

    Args:
        directory: keeps a folder for each job.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._lock = threading.Lock()
        self._known: dict[tuple[str, int], dict[str, PodRecord]] = {}

    def of(self, job_id: str, attempt: int) -> dict[str, PodRecord]:
        """Return the pods of an attempt."""
        with self._lock:
            return dict(self._read(job_id, attempt))

    def put(self, job_id: str, attempt: int, uid: str, record: PodRecord) -> None:
        """Note how a pod is. What it ended with is never forgotten for something later."""
        with self._lock:
            known = self._read(job_id, attempt)
            before = known.get(uid)
            if before is not None and before.over:
                record = replace(
                    before, exit_code=before.exit_code if before.exit_code is not None else record.exit_code
                )
            if before == record:
                return
            known[uid] = record
            if before is not None and before.ran == record.ran and before.over == record.over:
                return  # what has changed is seen again after a crash
            path = self._path(job_id, attempt)
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            write(path, json.dumps({uid: asdict(one) for uid, one in known.items()}).encode())

    def add_log(self, job_id: str, text: str) -> None:
        """Keep the end of a log."""
        path = self._directory / job_id / "worker.log"
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with self._lock, path.open("a") as out:
            if out.tell() < _LOG_BYTES:
                out.write(text)

    def log(self, job_id: str) -> str:
        """Return what is kept of a job's logs."""
        path = self._directory / job_id / "worker.log"
        return path.read_text() if path.exists() else ""

    def forget(self, job_id: str) -> None:
        """Forget the pods of a job that is over; its log stays."""
        with self._lock:
            for path in (self._directory / job_id).glob("pods-*.json"):
                path.unlink(missing_ok=True)
            for key in [key for key in self._known if key[0] == job_id]:
                del self._known[key]

    def _read(self, job_id: str, attempt: int) -> dict[str, PodRecord]:
        key = (job_id, attempt)
        if key not in self._known:
            try:
                found = json.loads(self._path(job_id, attempt).read_text())
            except (FileNotFoundError, ValueError):
                found = {}
            self._known[key] = {uid: PodRecord(**facts) for uid, facts in found.items()}
        return self._known[key]

    def _path(self, job_id: str, attempt: int) -> Path:
        return self._directory / job_id / f"pods-{attempt}.json"
