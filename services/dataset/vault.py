"""Rows at rest: one encrypted file a dataset, each with a key of its own.

The data key is random, encrypts the rows with AES-256-GCM, and lies beside them wrapped by a master key that the
operator holds. Erasing the wrapped key erases the dataset, backups of the rows included. The key of the lineages is
wrapped the same way: whoever wraps keys in another place (a KMS) replaces `_master` alone.
"""

from __future__ import annotations

import hashlib
import hmac
import io
import os
from collections.abc import Collection
from datetime import datetime
from pathlib import Path
from typing import Any

import polars as pl
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

NONCE_BYTES = 12
KEY_BITS = 256
_LINEAGE = "lineage"


class Sealed(Exception):
    """What is encrypted cannot be opened with this master key."""


class Vault:
    """The encrypted rows of all datasets.

    Args:
        directory: the service's own; the keys are made in it on the first start.

    Raises:
        Sealed: if there is something encrypted and the master key is gone or another one. Making a new one instead
            would give every dataset a new lineage, and with it a fresh budget.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory / "rows"
        self._directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        master, lineage = directory / "master.key", directory / "lineage.key"
        if not master.exists():
            if lineage.exists() or any(self._directory.iterdir()):
                raise Sealed(f"{master.name} is missing and there are encrypted datasets: restore it from its backup")
            _write(master, AESGCM.generate_key(bit_length=KEY_BITS))
        self._master = master.read_bytes()
        if not lineage.exists():
            if any(self._directory.iterdir()):
                raise Sealed(f"{lineage.name} is missing and there are datasets: restore it from its backup")
            _write(lineage, _seal(self._master, AESGCM.generate_key(bit_length=KEY_BITS), _LINEAGE))
        self._lineage_key = _open(self._master, lineage.read_bytes(), _LINEAGE)

    def store(self, storage_id: str, rows: pl.DataFrame) -> None:
        """Encrypt rows under a fresh data key."""
        plain = io.BytesIO()
        rows.write_parquet(plain)
        key = AESGCM.generate_key(bit_length=KEY_BITS)
        _write(self._rows(storage_id), _seal(key, plain.getvalue(), storage_id))
        _write(self._key(storage_id), _seal(self._master, key, storage_id))

    def load(self, storage_id: str) -> pl.DataFrame:
        """Decrypt rows.

        Raises:
            Sealed: if the master key is another one, or a file was changed or erased.
        """
        try:
            key = _open(self._master, self._key(storage_id).read_bytes(), storage_id)
            return pl.read_parquet(io.BytesIO(_open(key, self._rows(storage_id).read_bytes(), storage_id)))
        except FileNotFoundError:
            raise Sealed(storage_id) from None

    def derived(self, storage_id: str, purpose: str) -> bytes:
        """Return 32 bytes that follow from a dataset's data key; another purpose gives unrelated ones.

        Raises:
            Sealed: as for `load`.
        """
        try:
            key = _open(self._master, self._key(storage_id).read_bytes(), storage_id)
        except FileNotFoundError:
            raise Sealed(storage_id) from None
        return hmac.digest(key, purpose.encode(), "sha256")

    def erase(self, storage_id: str) -> None:
        """Erase the key, then the rows."""
        for path in (self._key(storage_id), self._rows(storage_id)):
            path.unlink(missing_ok=True)
            _sync(path.parent)

    def sweep(self, known: Collection[str]) -> None:
        """Erase what belongs to no dataset: what a crash left of registrations that never came to their end."""
        for path in list(self._directory.iterdir()):
            storage_id = path.name.partition(".")[0]
            if storage_id not in known or path.suffix == ".new":
                path.unlink()
        _sync(self._directory)

    def fingerprint(self, rows: pl.DataFrame) -> str:
        """Return what names the content of rows, as hex: the same content has the same one.

        Keyed, because a plain digest in a public name would let anyone test a guess of the whole dataset. Content is
        taken broadly, so that a copy finds its old account: the format of the file, the order of rows and columns, the
        names of columns, and whether a number is written as text make no difference.
        """
        digests = sorted(
            hmac.digest(self._lineage_key, "\0".join(sorted(map(_canonical, row))).encode(), "sha256")
            for row in rows.iter_rows()
        )
        return hmac.new(self._lineage_key, b"".join(digests), hashlib.sha256).hexdigest()

    def _rows(self, storage_id: str) -> Path:
        return self._directory / f"{storage_id}.parquet.aes"

    def _key(self, storage_id: str) -> Path:
        return self._directory / f"{storage_id}.key"


def _canonical(value: Any) -> str:
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


def _seal(key: bytes, plain: bytes, name: str) -> bytes:
    nonce = os.urandom(NONCE_BYTES)
    return nonce + AESGCM(key).encrypt(nonce, plain, name.encode())


def _open(key: bytes, sealed: bytes, name: str) -> bytes:
    try:
        return AESGCM(key).decrypt(sealed[:NONCE_BYTES], sealed[NONCE_BYTES:], name.encode())
    except InvalidTag:
        raise Sealed(name) from None


def _write(path: Path, data: bytes) -> None:
    """Write a file atomically, readable by its owner only, on disk when this returns."""
    temporary = path.with_name(path.name + ".new")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as out:
        out.write(data)
        out.flush()
        os.fsync(out.fileno())
    temporary.replace(path)
    _sync(path.parent)


def _sync(directory: Path) -> None:
    """Make a rename or a removal durable."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
