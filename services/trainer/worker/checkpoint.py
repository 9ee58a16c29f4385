"""Sealing what a run needs to go on after its worker has died.

A checkpoint holds the key of the noise. Whoever could read it could take the noise off everything that the run
releases, so it leaves the worker encrypted, under a key that the dataset service gives to the workers of this job
alone; the trainer, which keeps it, cannot open it. It opens for the same assignment only: the same noise under other
settings would be a second answer to the same question, and the difference of the two is about rows.

Format: 32 random bytes, then pieces of a mebibyte, each AES-256-GCM under a key derived from those bytes, with its
number and whether it is the last one in the nonce, so that no piece can be left out, moved or cut off (the STREAM
construction of Hoang, Reyhanitabar, Rogaway and Vizár, CRYPTO 2015).
"""

from __future__ import annotations

import hashlib
import hmac
import io
import os
from collections.abc import Iterator
from typing import Any

import torch
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from murmura.api.trainer.v1 import trainer_pb2

KEY_BYTES = 32
PIECE_BYTES = 1 << 20
_SALT_BYTES, _TAG_BYTES = 32, 16


class CheckpointError(Exception):
    """A checkpoint cannot be opened: another key, another assignment, or not what was sealed."""


def binding(assignment: trainer_pb2.Assignment) -> bytes:
    """Return the digest of all that a run is, whichever worker runs it and wherever its base model lies."""
    same = trainer_pb2.Assignment()
    same.CopyFrom(assignment)
    for field in ("attempt", "base_model_location"):
        same.ClearField(field)
    return hashlib.sha256(same.SerializeToString(deterministic=True)).digest()


def seal(state: dict[str, Any], key: bytes, bound: bytes) -> Iterator[bytes]:
    """Yield the pieces of a sealed state, to be written one after another.

    Args:
        state: tensors and plain values, nested in dictionaries and lists.
        key: 32 bytes.
        bound: from `binding`.
    """
    buffer = io.BytesIO()
    torch.save(state, buffer)
    plain = buffer.getbuffer()
    salt = os.urandom(_SALT_BYTES)
    cipher = _cipher(key, salt)
    yield salt
    for number, start in enumerate(range(0, len(plain), PIECE_BYTES)):
        last = start + PIECE_BYTES >= len(plain)
        yield cipher.encrypt(_nonce(number, last), bytes(plain[start : start + PIECE_BYTES]), bound)


def unseal(sealed: bytes, key: bytes, bound: bytes) -> dict[str, Any]:
    """Return the state that was sealed, on the CPU.

    Raises:
        CheckpointError: if it was not sealed so.
    """
    salt, rest = sealed[:_SALT_BYTES], memoryview(sealed)[_SALT_BYTES:]
    cipher, plain, step = _cipher(key, salt), io.BytesIO(), PIECE_BYTES + _TAG_BYTES
    if len(salt) < _SALT_BYTES or not rest:
        raise CheckpointError("too short")
    for number, start in enumerate(range(0, len(rest), step)):
        last = start + step >= len(rest)
        try:
            plain.write(cipher.decrypt(_nonce(number, last), bytes(rest[start : start + step]), bound))
        except InvalidTag:
            raise CheckpointError("not what was sealed for this run") from None
    plain.seek(0)
    # Never arbitrary objects: loading must not be able to run code.
    state: dict[str, Any] = torch.load(plain, map_location="cpu", weights_only=True)
    return state


def _cipher(key: bytes, salt: bytes) -> AESGCM:
    if len(key) != KEY_BYTES:
        raise ValueError(f"a checkpoint key has {KEY_BYTES} bytes")
    return AESGCM(hmac.digest(key, salt, "sha256"))


def _nonce(number: int, last: bool) -> bytes:
    return number.to_bytes(11, "big") + bytes([last])
