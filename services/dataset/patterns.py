"""Constants that are small languages of their own: regular expressions, JSON paths, formats of times.

Each is checked before any row is read: afterwards none can fail, take more than linear time, or grow. Regular
expressions are Rust's, which has neither look-around nor backreferences; what it compiles to is bounded by bounding
how much the counted repetitions multiply.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache

import polars as pl

from services.dataset.signatures import BOOLEAN, FLOAT, INTEGER, STRING

MOST_PATTERN = 300
# Length of a pattern times all its counted repetitions: bounds the automaton, and with it the time per character.
MOST_WEIGHT = 2_000
# A longer text fails on a regular expression: the time is this times the automaton at worst.
MOST_MATCHED_BYTES = 1 << 16
MOST_PATH = 20
MOST_FORMAT = 100
_CASTS = (STRING, INTEGER, FLOAT, BOOLEAN)
_MOST_DIGITS = 300
_NEEDS_TEXT = {
    "STRING_SPLIT": "an empty separator fails on every text",
    "STRING_REPLACE": "the old text is empty",
    "STRING_COUNT": "the part is empty",
}

_COUNTED = re.compile(r"\{\s*(\d+)\s*(?:,\s*(\d*)\s*)?\}")
_STEP = re.compile(r"\.([^.\[\]'\"*@?\s]+)|\[(-?\d{1,9})\]|\['([^'\\]*)'\]|\[\"([^\"\\]*)\"\]")
_FORMATS = re.compile(r"(?:[^%]|%[YymdHMSfbBjpI%])*", re.DOTALL)


class Unsound(ValueError):
    """A constant that is not in its language; the message says why."""


def check(function: str, given: Sequence[object]) -> None:
    """Check what the constants of an operation say.

    Args:
        function: the operation.
        given: its arguments; None where one is not a constant.

    Raises:
        Unsound: if one says nothing that the operation can do.
    """
    second = given[1] if len(given) > 1 else None
    if function in _NEEDS_TEXT and second == "":
        raise Unsound(f"{function}: {_NEEDS_TEXT[function]}")
    if function == "CAST" and second not in _CASTS:
        raise Unsound(f"CAST makes a {', '.join(_CASTS)}; not a {str(second)[:40]}")
    if function == "ROUND" and isinstance(second, int) and not -_MOST_DIGITS <= second <= _MOST_DIGITS:
        raise Unsound(f"ROUND takes {-_MOST_DIGITS} to {_MOST_DIGITS} digits")
    if not isinstance(second, str):
        return
    if function.startswith("REGEX_"):
        groups = regex(second)
        group = given[2] if function == "REGEX_EXTRACT" and len(given) > 2 else None
        if isinstance(group, int) and not 0 <= group <= groups:
            raise Unsound(f"the pattern has {groups} groups; group 0 is the whole match")
        if function == "REGEX_REPLACE" and empty_match(second):
            raise Unsound("the pattern matches the empty text")
    elif function == "JSON_EXTRACT":
        path(second)
    elif function.endswith("_TIMESTAMP"):
        moment_format(second)


@lru_cache(maxsize=256)
def regex(pattern: str) -> int:
    """Check a regular expression.

    Returns:
        How many groups it has.

    Raises:
        Unsound: if it is not linear-time, is too large, or does not compile.
    """
    if len(pattern) > MOST_PATTERN:
        raise Unsound(f"a pattern has at most {MOST_PATTERN} characters")
    weight = len(pattern)
    for least, most in _COUNTED.findall(pattern):
        weight *= max(1, int((most or least)[:9]))
        if weight > MOST_WEIGHT:
            raise Unsound(
                f"its length times its counted repetitions is more than {MOST_WEIGHT}; write + or * for large counts"
            )
    try:
        groups = pl.Series([""]).str.extract_groups(pattern)
    except pl.exceptions.PolarsError:
        raise Unsound(
            "it is not a linear-time regular expression: look-around and backreferences are not available"
        ) from None
    return len(groups.struct.fields)


def empty_match(pattern: str) -> bool:
    """Whether a checked pattern matches the empty text."""
    return bool(pl.Series([""]).str.contains(pattern)[0])


@lru_cache(maxsize=256)
def path(text: str) -> tuple[str | int, ...]:
    """Read a JSON path of members and indexes, such as `$.notes[0].text`.

    Raises:
        Unsound: if it is anything else.
    """
    steps: list[str | int] = []
    position = 1
    while text.startswith("$") and position < len(text) and len(steps) < MOST_PATH:
        found = _STEP.match(text, position)
        if found is None:
            break
        member, index, single, double = found.groups()
        steps.append(int(index) if index is not None else next(x for x in (member, single, double) if x is not None))
        position = found.end()
    if not steps or position < len(text):
        raise Unsound(f"a JSON path reads like $.member[0]['other member'], with 1 to {MOST_PATH} steps")
    return tuple(steps)


def moment_format(text: str) -> str:
    """Check a format of times.

    Raises:
        Unsound: if it has a directive that is not known, or one twice.
    """
    directives = re.findall(r"%(.)", text.replace("%%", ""), re.DOTALL)
    if len(text) > MOST_FORMAT or not _FORMATS.fullmatch(text) or len(set(directives)) < len(directives):
        raise Unsound(
            f"a format has at most {MOST_FORMAT} characters and, each once, %Y %y %m %d %H %M %S %f %b %B %j %p %I"
        )
    return text
