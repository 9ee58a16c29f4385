"""Operations on numbers, truth values, times, JSON and what is missing: value by value, with Python's own arithmetic.

Python does them itself, since Polars differs where it matters: integers wrap around, NaN equals itself, a zero divisor
gives infinity, halves are rounded away. These are functions of this module, never an analyst's; where one raises, or
its result needs more than 64 bits, the row has no value. Each takes at most linear time.
"""

from __future__ import annotations

import json
import math
import operator
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any

import polars as pl

from services.dataset import expressions as ex
from services.dataset import patterns
from services.dataset.columns import DTYPES

# A text that holds a time is no longer than this.
MOST_TIME = 200
_FAILURES = (ValueError, ArithmeticError, TypeError, LookupError, RecursionError)


def constant(value: Any, height: int) -> pl.Series:
    """Return a constant as a column.

    Args:
        value: of a literal; None is null.
        height: number of rows.
    """
    return pl.Series([value] * height, dtype=DTYPES[ex.type_of(value)] if value is not None else pl.Null)


def call(function: str, arguments: Sequence[pl.Series]) -> pl.Series:
    """Return the values of an operation, one for each row.

    Args:
        function: one of `PLAIN`, `CAST`, `IF`, `FILL_NULL` or `IS_NULL`.
        arguments: all of one length, constants as well.
    """
    columns = [argument.to_list() for argument in arguments]
    if function == "IS_NULL":
        return pl.Series([_missing(value) for value in columns[0]], dtype=pl.Boolean)
    if function in ("IF", "FILL_NULL"):
        return _choose(function, columns, arguments[-2:])
    if function == "CAST":
        # The rows of an empty part have no constant to read.
        kind = columns[1][0] if columns[1] else ex.STRING
        return _values(_CASTS[kind], kind, columns[:1])
    return _values(PLAIN[function], _result(function, arguments), columns)


def _choose(function: str, columns: Sequence[Sequence[Any]], alike: Sequence[pl.Series]) -> pl.Series:
    dtypes = {series.dtype for series in alike} - {pl.Null()}
    if function == "IF":
        made = [None if test is None else (one if test else other) for test, one, other in zip(*columns, strict=True)]
    else:
        made = [fallback if _missing(value) else value for value, fallback in zip(*columns, strict=True)]
    if len(dtypes) > 1:
        return pl.Series([None if value is None else float(value) for value in made], dtype=pl.Float64)
    return pl.Series(made, dtype=dtypes.pop())


def _missing(value: Any) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))


def _result(function: str, arguments: Sequence[pl.Series]) -> str:
    result = ex.ALLOWED[function].result
    if function == "ROUND" and len(arguments) < 2:
        return ex.INTEGER
    if result == ex.COMMON:
        return ex.FLOAT if any(argument.dtype == pl.Float64 for argument in arguments) else ex.INTEGER
    return result


def _values(function: Callable[..., Any], kind: str, columns: Sequence[Sequence[Any]]) -> pl.Series:
    def one(values: Sequence[Any]) -> Any:
        if any(value is None for value in values):
            return None
        try:
            return _fit(kind, function(*values))
        except _FAILURES:
            return None

    return pl.Series([one(values) for values in zip(*columns, strict=True)], dtype=DTYPES[kind])


def _fit(kind: str, value: Any) -> Any:
    if kind == ex.INTEGER and not -(1 << 63) <= value < 1 << 63:
        raise OverflowError
    # Encoding also refuses half a pair of surrogates, which is no text.
    if kind == ex.STRING and len(value.encode()) > ex.MOST_TEXT_BYTES:
        raise OverflowError
    return float(value) if kind == ex.FLOAT else value


def _boolean(value: Any) -> bool:
    if isinstance(value, str):
        return {"true": True, "false": False}[value.lower()]
    return bool(value)


def _json(text: str, path: str) -> str:
    value: Any = json.loads(text)
    for step in patterns.path(path):
        # Python would take an index of a text or a key of a list as something else.
        fits = isinstance(value, dict if isinstance(step, str) else list)
        if not fits:
            raise LookupError
        value = value[step]
    if value is None:
        raise LookupError
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _parse(text: str, form: str) -> datetime:
    if len(text) > MOST_TIME:
        raise ValueError
    return datetime.strptime(text, form)


_CASTS: dict[str, Callable[[Any], Any]] = {ex.STRING: str, ex.INTEGER: int, ex.FLOAT: float, ex.BOOLEAN: _boolean}

PLAIN: dict[str, Callable[..., Any]] = {
    "ADD": operator.add,
    "SUBTRACT": operator.sub,
    "MULTIPLY": operator.mul,
    "DIVIDE": operator.truediv,
    "FLOOR_DIVIDE": operator.floordiv,
    "MODULO": operator.mod,
    "NEGATE": operator.neg,
    "ABSOLUTE": abs,
    "ROUND": round,
    "EQUAL": operator.eq,
    "NOT_EQUAL": operator.ne,
    "LESS": operator.lt,
    "LESS_OR_EQUAL": operator.le,
    "GREATER": operator.gt,
    "GREATER_OR_EQUAL": operator.ge,
    "IN": lambda value, *among: value in among,
    "STRING_LOWER": str.lower,
    "STRING_UPPER": str.upper,
    "STRING_TITLE": str.title,
    "STRING_FIND": str.find,
    "STRING_COUNT": str.count,
    "JSON_EXTRACT": _json,
    "PARSE_TIMESTAMP": _parse,
    "FORMAT_TIMESTAMP": datetime.strftime,
    "YEAR": lambda moment: moment.year,
    "MONTH": lambda moment: moment.month,
    "DAY": lambda moment: moment.day,
    "HOUR": lambda moment: moment.hour,
    "MINUTE": lambda moment: moment.minute,
    "SECOND": lambda moment: moment.second,
    "WEEKDAY": lambda moment: moment.weekday(),
}
HERE = frozenset(PLAIN) | {"CAST", "IF", "FILL_NULL", "IS_NULL"}
