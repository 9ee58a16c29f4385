"""What names the content of a dataset: a keyed digest that a copy in any other shape has too.

Keyed, because a plain digest in a public name would let anyone test a guess of the whole dataset. Content is taken
broadly, so that a copy finds its old account: the format of the file, the order of rows and columns, the names of
columns, and whether a number is written as text make no difference. The digests of rows are sorted on disk, so memory
does not grow with them; a sum of digests would need no sorting, but content that was registered before the sum came
would get a second lineage, which is a second budget.
"""

from __future__ import annotations

import hashlib
import heapq
import hmac
import tempfile
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import IO, Any

import polars as pl

_DIGEST_BYTES = 32
# Digests that are sorted at once: 4 MiB of them, as Python holds them.
_RUN = 1 << 15
_READ_AT_ONCE = 1 << 10


class Fingerprint:
    """The digest of the rows that are added to it, in whatever order.

    Args:
        key: secret, the same for all datasets of a service.
        directory: for a nameless file of rows' digests, which say nothing without the key.
    """

    def __init__(self, key: bytes, directory: Path) -> None:
        self._key = key
        self._spilled: IO[bytes] = tempfile.TemporaryFile(dir=directory)  # noqa: SIM115 - `close` does
        self._run: list[bytes] = []
        self._lengths: list[int] = []

    def add(self, rows: pl.DataFrame) -> None:
        """Take some rows in."""
        for row in rows.iter_rows():
            content = "\0".join(sorted(map(canonical, row)))
            self._run.append(hmac.digest(self._key, content.encode(), "sha256"))
            if len(self._run) == _RUN:
                self._spill()

    def hexdigest(self) -> str:
        """Return the digest of all rows, as hex."""
        self._spill()
        total = hmac.new(self._key, digestmod=hashlib.sha256)
        starts = [sum(self._lengths[:index]) for index in range(len(self._lengths))]
        runs = (self._read(start, length) for start, length in zip(starts, self._lengths, strict=True))
        for digest in heapq.merge(*runs):
            total.update(digest)
        return total.hexdigest()

    def close(self) -> None:
        """Let the file go."""
        self._spilled.close()

    def _spill(self) -> None:
        self._run.sort()
        self._spilled.write(b"".join(self._run))
        self._lengths.append(len(self._run))
        self._run = []

    def _read(self, start: int, length: int) -> Iterator[bytes]:
        for at in range(start, start + length, _READ_AT_ONCE):
            count = min(_READ_AT_ONCE, start + length - at)
            self._spilled.seek(at * _DIGEST_BYTES)
            block = self._spilled.read(count * _DIGEST_BYTES)
            yield from (block[index : index + _DIGEST_BYTES] for index in range(0, len(block), _DIGEST_BYTES))


def canonical(value: Any) -> str:
    """Write a value in the one way that all formats share; no value and an empty text are the same in CSV."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return str(int(value)) if value.is_integer() else repr(value)
    if isinstance(value, datetime):
        return value.isoformat()
    return str(value)
