"""Rows at rest: one encrypted file a dataset, each with a key of its own.

The data key is random, encrypts the rows piece by piece, and lies beside them wrapped by a key that the operator holds
(`keys.py`). Erasing the wrapped key erases the dataset, backups of the rows included. The key of the lineages is
wrapped the same way; `rewrap.py` lets all of them change hands. A piece holds about a mebibyte of rows: neither writing
nor reading holds more. Each of its columns is a part of its own, so that a reader decrypts those alone that it needs,
and is sealed as the message in which it is sent to a worker. The first part says of each column whether it may be sent
so.
"""

from __future__ import annotations

import hmac
import tempfile
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import polars as pl
import pyarrow as pa

from services.common.files import alone, create, settle, sync, write
from services.dataset import batches, outgoing, sealing
from services.dataset.keys import FileKeys, Keys
from services.dataset.lineage import Fingerprint
from services.dataset.sealing import Sealed, new_key

# Names in a service's directory: what wraps the key of the lineages, which is in a file of its own, and what whoever
# writes or erases a wrapped key holds meanwhile.
MASTER, LINEAGE, CHANGING = "master.key", "lineage", "keys.lock"


class Vault:
    """The encrypted rows of all datasets.

    Args:
        directory: the service's own; the keys are made in it on the first start.
        keys: who wraps keys; by default a file in the directory does.

    Raises:
        Sealed: if there is something encrypted and what wraps keys is gone or another one. Making a new one instead
            would give every dataset a new lineage, and with it a fresh budget.
        HolderAway: if whoever wraps keys cannot be asked.
    """

    def __init__(self, directory: Path, keys: Keys | None = None) -> None:
        self._directory = directory / "rows"
        self._directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._changing = directory / CHANGING
        with alone(self._changing):
            lineage = directory / f"{LINEAGE}.key"
            rows = any(self._directory.iterdir())
            self._keys = keys or FileKeys(directory / MASTER, may_make=not rows and not lineage.exists())
            if not lineage.exists():
                if rows:
                    raise Sealed(f"{lineage.name} is missing and there are datasets: restore it from its backup")
                write(lineage, self._keys.wrap(new_key(), LINEAGE))
            try:
                self._lineage_key = self._keys.unwrap(lineage.read_bytes(), LINEAGE)
            except Sealed:
                raise Sealed(
                    f"{lineage.name} was wrapped by another key than {self._keys.holder}; if keys are to change hands, "
                    "run `python -m services.dataset.rewrap`"
                ) from None

    def incoming(self, storage_id: str) -> Incoming:
        """Begin to encrypt rows under a fresh data key; nothing counts before they are kept."""
        return Incoming(self._rows(storage_id), self._key(storage_id), storage_id, self._keys, self._changing)

    def read(self, storage_id: str, slots: range | None = None) -> Iterator[pl.DataFrame]:
        """Decrypt rows, a piece at a time, in their order; arguments and errors as for `pieces`."""
        for piece in self.pieces(storage_id, slots):
            yield batches.frame(piece.batch())

    def pieces(
        self, storage_id: str, slots: range | None = None, columns: Collection[int] | None = None
    ) -> Iterator[Piece]:
        """Decrypt columns, a piece at a time, in the order of their rows, and do nothing else with them.

        Args:
            storage_id: where they are.
            slots: of which rows; by default of all.
            columns: the numbers of those to decrypt; by default all.

        Raises:
            Sealed: if the wrapping key is another one, or a file was changed or erased.
            HolderAway: if whoever wraps keys cannot be asked.
        """
        start, stop = (slots.start, slots.stop) if slots is not None else (0, None)
        parts = None if columns is None else [0, *(1 + number for number in columns)]
        key = self._data_key(storage_id)
        try:
            file = self._rows(storage_id).open("rb")
        except FileNotFoundError:
            raise Sealed(storage_id) from None
        with file:
            for position, count, (marks, *opened) in sealing.read(file, key, storage_id, start, stop, parts):
                asked = range(max(start - position, 0), count if stop is None else min(stop - position, count))
                chosen = marks if columns is None else [marks[number] for number in columns]
                yield Piece(count, asked, opened, all(chosen))

    def derived(self, storage_id: str, purpose: str) -> bytes:
        """Return 32 bytes that follow from a dataset's data key; another purpose gives unrelated ones.

        Raises:
            Sealed: as for `read`.
            HolderAway: as for `read`.
        """
        return hmac.digest(self._data_key(storage_id), purpose.encode(), "sha256")

    def erase(self, storage_id: str) -> None:
        """Erase the key, then the rows."""
        with alone(self._changing):
            self._key(storage_id).unlink(missing_ok=True)
            sync(self._directory)
        for path in self._directory.glob(f"{storage_id}.*"):
            path.unlink()
        sync(self._directory)

    def sweep(self, known: Collection[str]) -> None:
        """Erase what belongs to no dataset: what a crash left of registrations that never came to their end."""
        with alone(self._changing):
            for path in list(self._directory.iterdir()):
                storage_id = path.name.partition(".")[0]
                if storage_id not in known or path.suffix == ".new":
                    path.unlink()
            sync(self._directory)

    def fingerprint(self) -> Fingerprint:
        """Begin the digest that names the content of rows."""
        return Fingerprint(self._lineage_key, self._directory)

    def spool(self) -> Spool:
        """Begin an encrypted copy of a source, for as long as it is read in."""
        return Spool(self._directory)

    def _data_key(self, storage_id: str) -> bytes:
        try:
            wrapped = self._key(storage_id).read_bytes()
        except FileNotFoundError:
            raise Sealed(storage_id) from None
        return self._keys.unwrap(wrapped, storage_id)

    def _rows(self, storage_id: str) -> Path:
        return self._directory / f"{storage_id}.rows.aes"

    def _key(self, storage_id: str) -> Path:
        return self._directory / f"{storage_id}.key"


@dataclass(frozen=True)
class Piece:
    """Columns of some rows. Kept out of `repr`.

    Attributes:
        held: how many rows lie in the piece.
        asked: which of them were asked for.
        columns: the message of each, in their order, with all rows that the piece holds.
        full: whether each of the columns holds texts, and every one of its rows has one that is not empty.
    """

    held: int
    asked: range
    columns: Sequence[bytes] = field(repr=False)
    full: bool = field(repr=False)

    @property
    def whole(self) -> bool:
        """Whether all of its rows were asked for."""
        return len(self.asked) == self.held

    def batch(self) -> pa.RecordBatch:
        """Return the rows that were asked for; shares the memory of the messages."""
        held = [outgoing.batch(message) for message in self.columns]
        joined = pa.record_batch([one.column(0) for one in held], [one.schema.names[0] for one in held])
        return joined.slice(self.asked.start, len(self.asked))


class Incoming:
    """Rows on their way into a vault. Ends with `keep` or `discard`."""

    def __init__(self, rows: Path, key: Path, name: str, keys: Keys, changing: Path) -> None:
        self._path, self._key_path, self._name, self._keys, self._changing = rows, key, name, keys, changing
        self._new = rows.with_name(rows.name + ".new")
        self._file = create(self._new)
        self._key = new_key()
        self._writer = sealing.Writer(self._file, self._key, name)
        self._waiting: list[pl.DataFrame] = []
        self._bytes = 0

    def add(self, rows: pl.DataFrame) -> None:
        """Encrypt some rows, in their order."""
        self._waiting.append(rows)
        self._bytes += int(batches.sizes(rows).sum())
        if self._bytes >= batches.PIECE_BYTES:
            *whole, rest = batches.cut(pl.concat(self._waiting))
            self._seal(whole)
            # Waits for more, so that no piece but the last is small.
            self._waiting, self._bytes = [rest], int(batches.sizes(rest).sum())

    def keep(self) -> None:
        """Write what is left, and let the rows be read."""
        if self._waiting:
            self._seal(batches.cut(pl.concat(self._waiting)))
        self._writer.end()
        settle(self._file, self._new, self._path)
        with alone(self._changing):
            write(self._key_path, self._keys.wrap(self._key, self._name))

    def discard(self) -> None:
        """Leave nothing; does nothing where the rows were kept."""
        self._file.close()
        self._new.unlink(missing_ok=True)

    def _seal(self, pieces: Iterable[pl.DataFrame]) -> None:
        for piece in pieces:
            batch = batches.batch(piece)
            marks = bytes(map(batches.full, batch.columns))
            columns = [outgoing.rows(batch.select([number])) for number in range(batch.num_columns)]
            self._writer.add([marks, *columns], piece.height)


class Spool:
    """An encrypted copy of bytes in a file without a name, under a key that is nowhere else."""

    _NAME = "spool"

    def __init__(self, directory: Path) -> None:
        self._file: IO[bytes] = tempfile.TemporaryFile(dir=directory)  # noqa: SIM115 - `close` does
        self._key = new_key()
        self._writer = sealing.Writer(self._file, self._key, self._NAME)

    def copy(self, pieces: Iterator[bytes]) -> Iterator[bytes]:
        """Pass pieces on and keep a copy of each."""
        for piece in pieces:
            self._writer.add([piece], len(piece))
            yield piece
        self._writer.end()

    def again(self) -> Iterator[bytes]:
        """Yield all pieces again."""
        self._file.seek(0)
        for piece in sealing.read(self._file, self._key, self._NAME):
            yield piece.parts[0]

    def close(self) -> None:
        """Let the copy go."""
        self._file.close()
