"""Encrypted files that are written and read piece by piece, so that neither holds more than one piece in memory.

A piece has one or more parts, and each part is sealed with AES-256-GCM under the file's own key. The piece's position
(of its first row, or byte) and the part's number are its nonce; the lengths of all parts, and whether the piece is the
last, are authenticated with it; a piece of its own marks the end. So neither pieces nor parts can be moved, dropped,
repeated or cut off without a reader noticing (the STREAM construction of Hoang, Reyhanitabar, Rogaway and Vizar, CRYPTO
2015). A reader may skip pieces and parts that it does not need: what it opens proves where it stands.
"""

from __future__ import annotations

import struct
from collections.abc import Collection, Iterator, Sequence
from typing import IO, NamedTuple

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

KEY_BITS = 256
# How much a piece counts, how many parts it has, and whether it is the last; then the sealed bytes of each part.
_HEADER = struct.Struct(">IH?")
_SIZE_BYTES = 4
# The piece's position, the part's number, and whether the piece is the last.
_NONCE = struct.Struct(">QHx?")
_TAG_BYTES = 16
# What is read on the word of a header that is not proved yet.
MOST_PART_BYTES = 1 << 31


class Sealed(Exception):
    """What is encrypted cannot be opened with this key."""


def new_key() -> bytes:
    """Return a fresh key; it must seal one file only, for positions make the nonces."""
    return AESGCM.generate_key(bit_length=KEY_BITS)


class Piece(NamedTuple):
    """What was opened of a piece.

    Attributes:
        position: where it begins.
        span: by how much it moves the position on.
        parts: those that were asked for, in their order.
    """

    position: int
    span: int
    parts: list[bytes]


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

    def add(self, parts: Sequence[bytes], count: int) -> None:
        """Seal a piece.

        Args:
            parts: what is sealed; at least one.
            count: by how much it moves the position on; at least 1.

        Raises:
            ValueError: if it would not move: two pieces would share a nonce.
        """
        if count < 1:
            raise ValueError("a piece counts at least 1")
        self._put(parts, count, last=False)
        self._position += count

    def end(self) -> None:
        """Mark the end; nothing can be added after it."""
        self._put([b""], 0, last=True)

    def _put(self, parts: Sequence[bytes], count: int, *, last: bool) -> None:
        sizes = struct.pack(f">{len(parts)}I", *(len(part) + _TAG_BYTES for part in parts))
        header = _HEADER.pack(count, len(parts), last) + sizes
        self._file.write(header)
        for number, part in enumerate(parts):
            nonce = _NONCE.pack(self._position, number, last)
            self._file.write(self._cipher.encrypt(nonce, part, self._name + header))


def read(
    file: IO[bytes],
    key: bytes,
    name: str,
    start: int = 0,
    stop: int | None = None,
    parts: Collection[int] | None = None,
) -> Iterator[Piece]:
    """Open the pieces of a file that hold positions from `start` up to `stop`; by default all.

    Args:
        file: open for reading, at its start.
        key: of this file.
        name: of what was sealed.
        start: pieces that end before it are skipped.
        stop: reading ends before it.
        parts: the numbers of those to open, at least one; by default all.

    Raises:
        Sealed: if the key is another one, or what was opened, or should be there, was changed, moved, dropped or cut
            off.
    """
    reader = _Reader(file, key, name)
    wanted = None if parts is None else frozenset(parts)
    position = 0
    while stop is None or position < stop:
        header = reader.take(_HEADER.size)
        count, number, last = _HEADER.unpack(header)
        header += reader.take(_SIZE_BYTES * number)
        sizes = struct.unpack_from(f">{number}I", header, _HEADER.size)
        if not last and position + count <= start:
            file.seek(sum(sizes), 1)
            position += count
            continue
        opened = []
        for part, size in enumerate(sizes):
            if wanted is None or last or part in wanted:
                # Where a part should stand makes the nonce, so one from elsewhere does not open.
                opened.append(reader.open(size, _NONCE.pack(position, part, last), header))
            else:
                file.seek(size, 1)
        if len(opened) < (1 if wanted is None or last else len(wanted)):
            raise Sealed(name)
        if last:
            return
        yield Piece(position, count, opened)
        position += count


class _Reader:
    """Takes what a file must hold next."""

    def __init__(self, file: IO[bytes], key: bytes, name: str) -> None:
        self._file, self._cipher, self._name, self._associated = file, AESGCM(key), name, name.encode()
        # One piece of memory for all that is read: new memory for each would have to be cleared first.
        self._sealed = bytearray()

    def take(self, size: int) -> bytes:
        """Return the next bytes as they are."""
        taken = self._file.read(size)
        if len(taken) < size:
            raise Sealed(self._name)
        return taken

    def open(self, size: int, nonce: bytes, header: bytes) -> bytes:
        """Return what the next part holds."""
        if not _TAG_BYTES <= size <= MOST_PART_BYTES:
            raise Sealed(self._name)
        if size > len(self._sealed):
            self._sealed = bytearray(size)
        sealed = memoryview(self._sealed)[:size]
        try:
            # What is cut off leaves in its place what was read before, and that does not open here.
            self._file.readinto(sealed)  # type: ignore[attr-defined]
            return self._cipher.decrypt(nonce, sealed, self._associated + header)
        except (InvalidTag, ValueError):
            raise Sealed(self._name) from None
