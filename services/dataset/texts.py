"""Operations on texts and lists of texts, by Polars, with the results that plain Python has.

Apart from `execution.py`, which walks the tree. What could grow is asked for its length before it is made.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import polars as pl

from services.dataset import expressions as ex
from services.dataset import patterns

# No list and no text is as long, so that an index beyond is an index at which there is nothing.
_FAR = 1 << 31
# What str.strip() removes: Unicode white space as Python sees it.
WHITESPACE = "".join(chr(code) for code in range(0x110000) if not 0xD800 <= code < 0xE000 and chr(code).isspace())

_NO_TEXT = pl.lit("")
_NO_TEXTS = pl.lit(pl.Series([[]], dtype=pl.List(pl.String))).first()


def combine(function: str, one: pl.Series, other: pl.Series) -> pl.Series:
    """Return what an operation that takes any number of arguments makes of two.

    Args:
        function: `AND`, `OR` or `STRING_CONCAT`.
        one: what the arguments before gave.
        other: the next argument.
    """
    if function == "AND":
        return one & other
    if function == "OR":
        return one | other
    pair = pl.DataFrame([one.alias("one"), other.alias("other")])
    one_column, other_column = pl.col("one"), pl.col("other")
    length = one_column.str.len_bytes().cast(pl.Int64) + other_column.str.len_bytes().cast(pl.Int64)
    return pair.select(_if_short(one_column, length, _NO_TEXT, lambda text: text + other_column)).to_series()


def call(function: str, subject: pl.Expr, rest: list[Any]) -> pl.Expr:
    """Return how Polars does an operation on texts.

    Args:
        function: which.
        subject: the texts or lists.
        rest: further arguments, each a constant or an expression of the row where the allow-list has it so.
    """
    first: Any = rest[0] if rest else None
    match function:
        case "STRING_SPLIT":
            return _split(subject, first)
        case "LIST_GET":
            return subject.list.get(max(-_FAR, min(first, _FAR - 1)), null_on_oob=True)
        case "LIST_JOIN":
            length = subject.list.len().cast(pl.Int64) * _bytes(first)
            return _if_short(subject, length, _NO_TEXTS, lambda texts: texts.list.join(first))
        case "STRING_STRIP":
            return subject.str.strip_chars(WHITESPACE if first is None else first)
        case "STRING_STRIP_START":
            return subject.str.strip_chars_start(WHITESPACE if first is None else first)
        case "STRING_STRIP_END":
            return subject.str.strip_chars_end(WHITESPACE if first is None else first)
        case "LIST_LENGTH":
            return subject.list.len().cast(pl.Int64)
        case "STRING_REPLACE":
            return _replace(subject, first, rest[1])
        case "STRING_SLICE":
            return _slice(subject, *[*rest, None, None][:2])
        case "STRING_CONTAINS":
            return subject.str.contains(_part(first), literal=True)
        case "STRING_STARTS_WITH":
            return subject.str.starts_with(_part(first))
        case "STRING_ENDS_WITH":
            return subject.str.ends_with(_part(first))
        case "STRING_LENGTH":
            return subject.str.len_chars().cast(pl.Int64)
        case "REGEX_EXTRACT":
            group = rest[1] if len(rest) > 1 else None
            return _matched(subject).str.extract(first, min(1, patterns.regex(first)) if group is None else group)
        case "REGEX_REPLACE":
            return _substitute(_matched(subject), first, rest[1])
        case "REGEX_MATCHES":
            return _matched(subject).str.contains(first)
        case "NOT":
            return ~subject
    raise ex.Rejected(function, f"{function} passed the check and cannot run")


def _split(subject: pl.Expr, separator: str) -> pl.Expr:
    """Split where the pieces are not too many: each takes 16 bytes beside its text, and a separator only one."""
    fits = subject.str.count_matches(separator, literal=True) < ex.MOST_PIECES
    return pl.when(fits).then(pl.when(fits).then(subject).otherwise(_NO_TEXT).str.split(separator))


def _replace(subject: pl.Expr, old: str, new: str) -> pl.Expr:
    found = subject.str.count_matches(old, literal=True).cast(pl.Int64)
    length = subject.str.len_bytes().cast(pl.Int64) + found * (_bytes(new) - _bytes(old))
    return _if_short(subject, length, _NO_TEXT, lambda text: text.str.replace_all(old, new, literal=True))


def _if_short(subject: pl.Expr, length: pl.Expr, nothing: pl.Expr, make: Callable[[pl.Expr], pl.Expr]) -> pl.Expr:
    """Make something of the subject where it stays within bounds; elsewhere there is no value.

    Asked before it is made: a few chained replacements could otherwise ask for more than any memory. What is too long
    is replaced by nothing first, and not only masked: Polars works on what lies behind a mask as well.
    """
    fits = length <= ex.MOST_TEXT_BYTES
    return pl.when(fits).then(make(pl.when(fits).then(subject).otherwise(nothing)))


def _bytes(text: str) -> int:
    return len(text.encode())


def _part(text: Any) -> pl.Expr:
    return text if isinstance(text, pl.Expr) else pl.lit(text)


def _matched(subject: pl.Expr) -> pl.Expr:
    """Leave out texts on which a regular expression would take too long."""
    return pl.when(subject.str.len_bytes() <= patterns.MOST_MATCHED_BYTES).then(subject)


def _substitute(subject: pl.Expr, pattern: str, new: str) -> pl.Expr:
    length = subject.str.len_bytes().cast(pl.Int64) + subject.str.count_matches(pattern).cast(pl.Int64) * _bytes(new)
    # A dollar would name a group.
    text = new.replace("$", "$$")
    return _if_short(subject, length, _NO_TEXT, lambda subject: subject.str.replace_all(pattern, text))


def _slice(subject: pl.Expr, start: Any, stop: Any) -> pl.Expr:
    """Slice characters as Python does: bounds beyond the ends are the ends, negative ones count from the end."""
    length = subject.str.len_chars().cast(pl.Int64)

    def bound(value: Any, default: pl.Expr) -> pl.Expr:
        if value is None:
            return default
        if isinstance(value, int):
            value = pl.lit(max(-_FAR, min(value, _FAR)), dtype=pl.Int64)
        at = value.clip(-_FAR, _FAR)
        return pl.when(at < 0).then(pl.max_horizontal(length + at, pl.lit(0))).otherwise(pl.min_horizontal(at, length))

    first, last = bound(start, pl.lit(0)), bound(stop, length)
    width = pl.max_horizontal(last - first, pl.lit(0))
    # A bound without a value is one on which the expression failed.
    given = pl.all_horizontal([value.is_not_null() for value in (start, stop) if isinstance(value, pl.Expr)] or [True])
    return pl.when(given).then(subject.str.slice(first, width))
