"""Checkpoints at rest: for each unfinished job, the last one that its worker has sent, encrypted.

The trainer cannot read them (`worker.checkpoint`); it keeps them because it knows which worker may still write.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from pathlib import Path

from services.common.files import sync

MOST_BYTES = 16 << 30
_CHUNK_BYTES = 1 << 19


class Checkpoints:
    """The checkpoints of all jobs.

    Args:
        directory: made if missing; what a crash left half-written in it is removed.
    """

    def __init__(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._directory = directory
        for left in directory.glob("*.new"):
            left.unlink()

    def incoming(self, job_id: str) -> Path:
        """Return a path of one's own for a checkpoint that is arriving."""
        return self._directory / f"{job_id}.{secrets.token_hex(4)}.new"

    def keep(self, job_id: str, incoming: Path) -> None:
        """Put a checkpoint that has arrived in the place of the last one; safe on disk when this returns."""
        for path in (incoming, self._directory):
            sync(path)
        incoming.replace(self._path(job_id))
        sync(self._directory)

    def pieces(self, job_id: str) -> Iterator[bytes]:
        """Yield the last checkpoint of a job; nothing if there is none."""
        try:
            file = self._path(job_id).open("rb")
        except FileNotFoundError:
            return
        with file:
            while data := file.read(_CHUNK_BYTES):
                yield data

    def remove(self, job_id: str) -> None:
        """Forget a job that is over."""
        self._path(job_id).unlink(missing_ok=True)

    def _path(self, job_id: str) -> Path:
        return self._directory / f"{job_id}.sealed"
