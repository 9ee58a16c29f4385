"""Number the privacy units of rows that come piece by piece, and pack the numbers.

The numbers are pseudonyms: they say which slots share a unit, which is public, and nothing of who it is. Which unit has
which number is kept in a temporary database that spills to disk, under digests whose key is thrown away, so that
memory does not grow with the number of units.
"""

from __future__ import annotations

import hmac
import os
import sqlite3
import zlib

import numpy as np
import polars as pl
from numpy.typing import NDArray

from services.dataset.lineage import canonical

_DIGEST_BYTES = 16


class Units:
    """The units of the rows that were added so far.

    Attributes:
        count: how many there are.
        slots: rows that were added.
    """

    def __init__(self) -> None:
        self.count = 0
        self.slots = 0
        self._key = os.urandom(32)
        # An empty name: a private database in a temporary file. A registration goes from thread to thread.
        self._known = sqlite3.connect("", isolation_level=None, check_same_thread=False)
        self._known.execute("PRAGMA journal_mode=OFF")
        self._known.execute("CREATE TABLE units (digest BLOB PRIMARY KEY, number INTEGER NOT NULL) WITHOUT ROWID")
        self._known.execute("BEGIN")
        self._packer = zlib.compressobj()
        self._packed: list[bytes] = []

    def add(self, values: pl.Series) -> NDArray[np.int64]:
        """Number the units of the next slots, in the order of their first ones.

        Args:
            values: the unit of each slot.

        Returns:
            Their numbers; shape (slots,).
        """
        names = [canonical(value) for value in values.to_list()]
        numbers = {name: self._number(name) for name in dict.fromkeys(names)}
        found = np.array([numbers[name] for name in names], dtype="<i8")
        self.slots += len(found)
        self._packed.append(self._packer.compress(found.tobytes()))
        return found

    def packed(self) -> bytes:
        """End, and return the numbers of all slots as `unpack` reads them."""
        self._packed.append(self._packer.flush())
        return b"".join(self._packed)

    def close(self) -> None:
        """Let the database go."""
        self._known.close()

    def _number(self, unit: str) -> int:
        digest = hmac.digest(self._key, unit.encode(), "sha256")[:_DIGEST_BYTES]
        row = self._known.execute("SELECT number FROM units WHERE digest = ?", (digest,)).fetchone()
        if row is None:
            self._known.execute("INSERT INTO units VALUES (?, ?)", (digest, self.count))
            self.count += 1
            return self.count - 1
        return int(row[0])


def unpack(packed: bytes) -> NDArray[np.int64]:
    """Return the numbers that were packed; shape (slots,)."""
    return np.frombuffer(zlib.decompress(packed), dtype="<i8")
