"""F-strings over rows: fields are marked in the text, and the marks are resolved when the text is used.

Python wants a field's text at once, so a field puts a mark there that cannot be guessed. Whatever text is recorded
later is searched for marks. A mark that is cut, or that never arrives in what the function returns, means that the text
went where it cannot be recorded: that is refused. Joining is all that can be recorded, and whatever else is done to a
text depends on what is in it. So a function that has fields is recorded again with marks in many disguises, very long
ones among them and some with spaces at their ends, and whoever records compares.
"""

from __future__ import annotations

import inspect
import linecache
import secrets
import string
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from types import CodeType, FunctionType
from typing import Any

from murmura.api.dataset.v1 import expressions_pb2 as pb
from murmura.errors import TraceError

CHANGED = (
    "an f-string with a row's value was cut, changed or asked about; "
    "do that to the values before, or join the pieces with `+`"
)
_FIRST, _LENGTH = 0xF0000, 18
# Texts of a function that its marks are disguised with: more than anybody writes into one, and longer.
_MOST_TEXTS, _MOST_TEXT = 100, 1000
# Than anybody cuts a text at; a mark of that length takes half a mebibyte.
_LONGER = 1 << 17


@dataclass
class _Field:
    expression: pb.Expression
    file: str
    line: int
    used: bool = False


_fields: ContextVar[dict[str, _Field] | None] = ContextVar("fields", default=None)
_disguise: ContextVar[tuple[str, str]] = ContextVar("disguise", default=("", ""))


@contextmanager
def recording(disguise: tuple[str, str] = ("", "")) -> Iterator[None]:
    """Let f-strings have fields; nothing of them outlives the function that is traced.

    Args:
        disguise: what each mark begins and ends with.
    """
    tokens = _fields.set({}), _disguise.set(disguise)
    try:
        yield
    finally:
        _fields.reset(tokens[0])
        _disguise.reset(tokens[1])


def disguises(function: Callable[..., Any]) -> Iterator[tuple[str, str]]:
    """Yield, where the function that is recorded has had fields, how to disguise their marks.

    What is done to a text is done to what the function has in its own code: stripped of it, split there, asked for it.
    One of each begins and ends a mark in turn, and all of them are in it.
    """
    if not _fields.get():
        return
    texts = sorted(_texts(function, set()))[:_MOST_TEXTS]
    within = "".join(["aB", *texts, string.printable])
    yield within, "z" * _LONGER
    for end in (" ", "aB", "Ba", *texts):
        yield end + within, within[::-1] + end


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
    before, after = _disguise.get()
    mark = before + "".join(chr(_FIRST + byte) for byte in secrets.token_bytes(_LENGTH)) + after
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
    fields, rest = _fields.get() or {}, text
    while marks := {mark: rest.find(mark) for mark in fields if mark in rest}:
        mark = min(marks, key=lambda mark: marks[mark])
        fields[mark].used = True
        constant, rest = rest[: marks[mark]], rest[marks[mark] + len(mark) :]
        found += [*_constant(constant), fields[mark].expression]
    found += _constant(rest)
    return found or [""]


def _constant(text: str) -> list[str]:
    if _fields.get() and any(_FIRST <= ord(character) < _FIRST + 256 for character in text):
        raise TraceError(CHANGED)
    return [text] if text else []


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


def _texts(found: Any, seen: set[int]) -> set[str]:
    """Return the texts in the code of a function, of those within it, and of what it can name."""
    if isinstance(found, str):
        return {found} if 0 < len(found) <= _MOST_TEXT else set()
    if id(found) in seen:
        return set()
    seen.add(id(found))
    parts: list[Any] = []
    if isinstance(found, CodeType):
        parts = [*found.co_consts]
    elif isinstance(found, FunctionType):
        named = [found.__globals__.get(name) for name in found.__code__.co_names]
        parts = [found.__code__, *named, *inspect.getclosurevars(found).nonlocals.values()]
    elif isinstance(found, tuple | list | set | frozenset | dict) and len(found) <= _MOST_TEXTS:
        parts = [*found, *(found.values() if isinstance(found, dict) else ())]
    return set().union(*(_texts(part, seen) for part in parts))
