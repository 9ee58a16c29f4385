"""Rows at rest: one encrypted file a dataset, each with a key of its own.

The data key is random, encrypts the rows with AES-256-GCM, and lies beside them wrapped by a master key that the
operator holds. Erasing the wrapped key erases the dataset, backups of the rows included.
"""

from __future__ import annotations

import hashlib
import hmac
import io
import os
from pathlib import Path

import polars as pl
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

NONCE_BYTES = 12


class Sealed(Exception):
    """The rows cannot be opened with this master key."""


class Vault:
    """The encrypted rows of all datasets.

    Args:
        directory: the service's own; the master key is made in it when it is missing.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory / "rows"
        self._directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        path = directory / "master.key"
        if not path.exists():
            _write(path, AESGCM.generate_key(bit_length=256))
        self._master = path.read_bytes()

    def store(self, storage_id: str, rows: pl.DataFrame) -> None:
        """Encrypt rows under a fresh data key."""
        plain = io.BytesIO()
        rows.write_parquet(plain)
        key = AESGCM.generate_key(bit_length=256)
        _write(self._rows(storage_id), _seal(key, plain.getvalue(), storage_id))
        _write(self._key(storage_id), _seal(self._master, key, storage_id))

    def load(self, storage_id: str) -> pl.DataFrame:
        """Decrypt rows.

        Raises:
            Sealed: if the master key is another one or a file was changed.
        """
        try:
            key = _open(self._master, self._key(storage_id).read_bytes(), storage_id)
            return pl.read_parquet(io.BytesIO(_open(key, self._rows(storage_id).read_bytes(), storage_id)))
        except (InvalidTag, FileNotFoundError):
            raise Sealed(storage_id) from None

    def erase(self, storage_id: str) -> None:
        """Erase the key, then the rows."""
        self._key(storage_id).unlink(missing_ok=True)
        self._rows(storage_id).unlink(missing_ok=True)

    def lineage(self, rows: pl.DataFrame) -> str:
        """Return the lineage of rows: the same rows have the same one, and nobody without the key can guess them.

        Keyed, because a plain digest in a public name would let anyone test a guess of the whole dataset.
        """
        key = hashlib.sha256(b"lineage" + self._master).digest()
        digest = hmac.new(key, digestmod=hashlib.sha256)
        columns = sorted(rows.columns)
        digest.update("\0".join(columns).encode())
        for row in rows.select(columns).iter_rows():
            digest.update(repr(row).encode())
        return digest.hexdigest()[:20]

    def _rows(self, storage_id: str) -> Path:
        return self._directory / f"{storage_id}.parquet.aes"

    def _key(self, storage_id: str) -> Path:
        return self._directory / f"{storage_id}.key"


def _seal(key: bytes, plain: bytes, name: str) -> bytes:
    nonce = os.urandom(NONCE_BYTES)
    return nonce + AESGCM(key).encrypt(nonce, plain, name.encode())


def _open(key: bytes, sealed: bytes, name: str) -> bytes:
    return AESGCM(key).decrypt(sealed[:NONCE_BYTES], sealed[NONCE_BYTES:], name.encode())


def _write(path: Path, data: bytes) -> None:
    """Write a file atomically, readable by its owner only, on disk when this returns."""
    temporary = path.with_name(path.name + ".new")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as out:
        out.write(data)
        out.flush()
        os.fsync(out.fileno())
    temporary.replace(path)
