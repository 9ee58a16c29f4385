"""Messages of one field of bytes, written and read without copying what the field holds.

A message object would copy a field's bytes when it is set, serialised, parsed and read: for rows, which come by the
mebibyte, that takes as long as all else that is done with them. The wire format is that of
protobuf.dev/programming-guides/encoding; a message that is not of this form is for the message class.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from google.protobuf.message import Message

_LENGTH_DELIMITED = 2


def tag(message: type[Message], field: str) -> bytes:
    """Return what stands before a field of bytes in a message."""
    return _varint(message.DESCRIPTOR.fields_by_name[field].number << 3 | _LENGTH_DELIMITED)


def write(tag: bytes, parts: Sequence[Any]) -> bytes:
    """Return a serialised message in which one field alone is set.

    Args:
        tag: of the field.
        parts: pieces of memory that make its value, one after the other.
    """
    return b"".join((tag, _varint(sum(map(len, parts))), *parts))


def read(tag: bytes, message: bytes) -> memoryview | None:
    """Return the value of the one field that is set in a serialised message; None where it is not of that form."""
    if not message.startswith(tag):
        return None
    length = shift = 0
    for position in range(len(tag), min(len(tag) + 5, len(message))):
        length |= (message[position] & 0x7F) << shift
        shift += 7
        if message[position] < 0x80:
            value = memoryview(message)[position + 1 :]
            return value if len(value) == length else None
    return None


def _varint(number: int) -> bytes:
    """Return a number seven bits a byte, the lowest first."""
    written = bytearray()
    while number >= 0x80:
        written.append(number & 0x7F | 0x80)
        number >>= 7
    written.append(number)
    return bytes(written)
