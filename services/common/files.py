"""Files that are whole on disk or not there at all, readable by their owner only; and files that settings name."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO


def create(path: Path) -> IO[bytes]:
    """Open a fresh file for writing."""
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb")


def settle(file: IO[bytes], written: Path, path: Path) -> None:
    """Close a written file and give it its name: it is on disk when this returns."""
    with file:
        file.flush()
        os.fsync(file.fileno())
    written.replace(path)
    sync(path.parent)


def write(path: Path, data: bytes) -> None:
    """Write a file atomically; it is on disk when this returns."""
    temporary = path.with_name(path.name + ".new")
    file = create(temporary)
    file.write(data)
    settle(file, temporary, path)


def sync(path: Path) -> None:
    """Make what a file holds durable; of a directory: what was renamed into it or removed."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def alone(path: Path) -> Iterator[None]:
    """Hold a file alone among threads and processes; waits for whoever holds it. It is made where there is none."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        # Closing it lets it go.
        os.close(descriptor)


def read(path: Path) -> str:
    """Return the text of a file that a setting names.

    Raises:
        ValueError: if it cannot be read; says why, and neither the path nor what is in it.
    """
    try:
        return path.read_text()
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else "not text"
        raise ValueError(f"the file that it names cannot be read: {why}") from None


def token_in(path: Path) -> str:
    """Return the token of a file that a setting names.

    Raises:
        ValueError: if it holds none, or what cannot be one.
    """
    token = read(path).strip()
    if not token or not token.isascii() or not token.isprintable() or " " in token:
        raise ValueError("the file that it names does not hold a token, on a line of its own")
    return token
