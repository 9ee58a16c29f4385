"""Encrypted files that are written and read piece by piece, so that neither holds more than one piece in memory.

Each piece is sealed with AES-256-GCM under the file's own key. Its position (of its first row, or byte) is part of its
nonce and, with its length and whether it is the last, of what is authenticated; a piece of its own marks the end. So
pieces cannot be moved, dropped, repeated or cut off without a reader noticing (the STREAM construction of Hoang,
Reyhanitabar, Rogaway and Vizar, CRYPTO 2015). A reader may skip pieces that it does not need: what it opens proves
where it stands.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import IO

import pyarrow as pa
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

KEY_BITS = 256
# How much a piece counts, its sealed bytes, and whether it is the last.
_HEADER = struct.Struct(">II?")
_NONCE = struct.Struct(">Q3x?")
_TAG_BYTES = 16
# What is read on the word of a header that is not proved yet.
MOST_PIECE_BYTES = 1 << 31


class Sealed(Exception):
    """What is encrypted cannot be opened with this key."""


def new_key() -> bytes:
    """Return a fresh key; it must seal one file only, for positions make the nonces."""
    return AESGCM.generate_key(bit_length=KEY_BITS)


class Writer:
    """Seals pieces into a file.

    Args:
        file: open for writing, at its start.
        key: of this file alone.
        name: of what is sealed; it opens under no other.
    """

    def __init__(self, file: IO[bytes], key: bytes, name: str) -> None:
        self._file = file
        self._cipher = AESGCM(key)
        self._name = name.encode()
        self._position = 0

    def add(self, plain: bytes, count: int) -> None:
        """Seal a piece.

        Args:
            plain: what is sealed.
            count: by how much it moves the position on; at least 1.

        Raises:
            ValueError: if it would not move: two pieces would share a nonce.
        """
        if count < 1:
            raise ValueError("a piece counts at least 1")
        self._put(plain, count, last=False)
        self._position += count

    def end(self) -> None:
        """Mark the end; nothing can be added after it."""
        self._put(b"", 0, last=True)

    def _put(self, plain: bytes, count: int, *, last: bool) -> None:
        header = _HEADER.pack(count, len(plain) + _TAG_BYTES, last)
        self._file.write(header)
        self._file.write(self._cipher.encrypt(_NONCE.pack(self._position, last), plain, self._name + header))


def read(
    file: IO[bytes], key: bytes, name: str, start: int = 0, stop: int | None = None
) -> Iterator[tuple[int, pa.Buffer]]:
    """Open the pieces of a file that hold positions from `start` up to `stop`; by default all.

    Args:
        file: open for reading, at its start.
        key: of this file.
        name: of what was sealed.
        start: pieces that end before it are skipped.
        stop: reading ends before it.

    Yields:
        The position of each piece, and what it holds.

    Raises:
        Sealed: if the key is another one, or pieces were changed, moved, dropped or cut off.
    """
    cipher = AESGCM(key)
    position = 0
    while stop is None or position < stop:
        header = file.read(_HEADER.size)
        if len(header) < _HEADER.size:
            raise Sealed(name)
        # Where the piece should stand makes the nonce, so one from elsewhere does not open.
        count, size, last = _HEADER.unpack(header)
        if not last and position + count <= start:
            file.seek(size, 1)
            position += count
            continue
        plain = _opened(file, cipher, size, _NONCE.pack(position, last), name, header)
        if last:
            return
        yield position, plain
        position += count


def _opened(file: IO[bytes], cipher: AESGCM, size: int, nonce: bytes, name: str, header: bytes) -> pa.Buffer:
    """Open one piece, in memory of Arrow's pool: unlike the system's it is not cleared anew for each piece."""
    if not _TAG_BYTES <= size <= MOST_PIECE_BYTES:
        raise Sealed(name)
    sealed, plain = pa.allocate_buffer(size), pa.allocate_buffer(size - _TAG_BYTES)
    try:
        # The pool's memory is as it was left: what is missing at the end could still lie there, from a whole file.
        if file.readinto(memoryview(sealed)) < size:  # type: ignore[attr-defined]
            raise Sealed(name)
        data, into = memoryview(sealed).cast("B"), memoryview(plain).cast("B")
        cipher.decrypt_into(nonce, data, name.encode() + header, into)
    except (InvalidTag, ValueError):
        raise Sealed(name) from None
    return plain
