"""F-strings over rows: fields are marked in the text, and the marks are resolved when the text is used.

Python wants a field's text at once, so a field puts a mark there that cannot be guessed, out of private-use characters
that no method of texts changes. Whatever text is recorded later is searched for marks. A mark that is cut, or that
never arrives in what the function returns, means that the text went where it cannot be recorded: that is refused.
"""

from __future__ import annotations

import linecache
import secrets
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

from murmura.api.dataset.v1 import expressions_pb2 as pb
from murmura.errors import TraceError

_FIRST, _LENGTH = 0xF0000, 18


@dataclass
class _Field:
    expression: pb.Expression
    file: str
    line: int
    used: bool = False


_fields: ContextVar[dict[str, _Field] | None] = ContextVar("fields", default=None)


@contextmanager
def recording() -> Iterator[None]:
    """Let f-strings have fields; nothing of them outlives the function that is traced."""
    token = _fields.set({})
    try:
        yield
    finally:
        _fields.reset(token)


def is_recording() -> bool:
    """Say whether a function is being traced."""
    return _fields.get() is not None


def field(expression: pb.Expression) -> str:
    """Return the mark of a field.

    Raises:
        TraceError: outside of `trace`.
    """
    fields = _fields.get()
    if fields is None:
        raise TraceError("an f-string on a remote column has no text here; use it inside murmura.trace(function)")
    mark = "".join(chr(_FIRST + byte) for byte in secrets.token_bytes(_LENGTH))
    # The frame above is the proxy's `__format__`; the one above that holds the f-string.
    place = sys._getframe(2)
    fields[mark] = _Field(expression, place.f_code.co_filename, place.f_lineno)
    return mark


def pieces(text: str) -> list[str | pb.Expression]:
    """Return the constant parts and the fields of a text, in order; at least one.

    Raises:
        TraceError: if a field was cut.
    """
    found: list[str | pb.Expression] = []
    fields, position, rest = _fields.get(), 0, ""
    while fields and position < len(text):
        mark = text[position : position + _LENGTH]
        if mark in fields:
            fields[mark].used = True
            found += [rest, fields[mark].expression] if rest else [fields[mark].expression]
            rest, position = "", position + _LENGTH
        elif _FIRST <= ord(text[position]) < _FIRST + 256:
            raise TraceError("an f-string with a row's value was cut or changed; do that to the value before")
        else:
            rest, position = rest + text[position], position + 1
    rest += text[position:]
    return [*found, rest] if rest or not found else found


def check_used() -> None:
    """Check that each field's text went where it was recorded.

    Raises:
        TraceError: if one did not; names the line of the f-string.
    """
    for found in (_fields.get() or {}).values():
        if not found.used:
            raise TraceError(
                f"line {found.line}: `{linecache.getline(found.file, found.line).strip()}`: an f-string with a row's "
                "value was used where it cannot be recorded, such as a comparison or a key; join pieces with `+` there"
            )
