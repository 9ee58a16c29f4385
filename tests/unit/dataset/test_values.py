"""Numbers, times, conditions, JSON and regular expressions: what plain Python makes of them, or a row that is gone."""

import json
import math
import operator
import re
from datetime import datetime

import polars as pl
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from services.dataset import execution, patterns
from services.dataset import expressions as ex

INTEGERS = st.integers(-(2**63), 2**63 - 1) | st.integers(-5, 5)
FLOATS = st.floats() | st.sampled_from([0.0, -0.0, 0.5, 1.5, 2.5, 1e308])
TEXTS = st.text(max_size=8) | st.sampled_from(["12", " -7 ", "1_000", "1e5", "nan", "٣", "9" * 30, "x"])
TIMES = st.datetimes(datetime(1000, 1, 1), datetime(9999, 12, 31))
DTYPES = {
    "STRING": pl.String,
    "INTEGER": pl.Int64,
    "FLOAT": pl.Float64,
    "BOOLEAN": pl.Boolean,
    "TIMESTAMP": pl.Datetime("us"),
}
ONE, OTHER = ex.Column("one"), ex.Column("other")
FAILURES = (ValueError, ArithmeticError, TypeError, LookupError)


def call(function, *arguments):
    wrapped = (a if isinstance(a, ex.Column | ex.Call | ex.Literal) else ex.Literal(a) for a in arguments)
    return ex.Call(function, tuple(wrapped))


def made(expression, **columns):
    """Run an expression; columns are (type, values)."""
    kind = ex.check(expression, {name: kind for name, (kind, _) in columns.items()})
    series = {name: pl.Series(name, values, dtype=DTYPES[kind]) for name, (kind, values) in columns.items()}
    height = len(next(iter(series.values())))
    result = execution.evaluate(expression, series, height)
    assert result.dtype == DTYPES[kind]
    return result.to_list()


def plainly(function, *values):
    if None in values:
        return None
    try:
        result = function(*values)
    except FAILURES:
        return None
    return None if type(result) is int and not -(2**63) <= result < 2**63 else result


def same(found, expected):
    """Equal, NaN to NaN and a float to the float of an integer."""
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        both_nan = isinstance(one, float) and isinstance(other, float) and math.isnan(one) and math.isnan(other)
        assert both_nan or (one == other if not isinstance(one, float) or other is None else one == float(other)), (
            one,
            other,
        )


ARITHMETIC = {
    "ADD": operator.add,
    "SUBTRACT": operator.sub,
    "MULTIPLY": operator.mul,
    "DIVIDE": operator.truediv,
    "FLOOR_DIVIDE": operator.floordiv,
    "MODULO": operator.mod,
    "EQUAL": operator.eq,
    "NOT_EQUAL": operator.ne,
    "LESS": operator.lt,
    "LESS_OR_EQUAL": operator.le,
    "GREATER": operator.gt,
    "GREATER_OR_EQUAL": operator.ge,
}


@pytest.mark.parametrize("function", ARITHMETIC)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_two_columns_give_what_python_gives(function, data):
    kinds = {"INTEGER": INTEGERS, "FLOAT": FLOATS}
    one, other = data.draw(st.sampled_from(list(kinds))), data.draw(st.sampled_from(list(kinds)))
    rows = data.draw(st.lists(st.tuples(st.none() | kinds[one], st.none() | kinds[other]), min_size=1, max_size=5))
    left, right = [list(column) for column in zip(*rows, strict=True)]
    found = made(call(function, ONE, OTHER), one=(one, left), other=(other, right))
    same(found, [plainly(ARITHMETIC[function], *row) for row in rows])


@settings(max_examples=100, deadline=None)
@given(st.lists(st.none() | INTEGERS, min_size=1, max_size=5), st.lists(st.none() | FLOATS, min_size=1, max_size=5))
def test_one_number_gives_what_python_gives(integers, floats):
    for kind, values in (("INTEGER", integers), ("FLOAT", floats)):
        for name, function in (("NEGATE", operator.neg), ("ABSOLUTE", abs), ("ROUND", round)):
            same(made(call(name, ONE), one=(kind, values)), [plainly(function, value) for value in values])
        same(made(call("ROUND", ONE, 1), one=(kind, values)), [plainly(lambda v: round(v, 1), v) for v in values])
        same(made(call("CAST", ONE, "STRING"), one=(kind, values)), [plainly(str, value) for value in values])


@settings(max_examples=150, deadline=None)
@given(st.lists(st.none() | TEXTS, min_size=1, max_size=5), st.text(min_size=1, max_size=2))
def test_texts_give_what_python_gives(texts, part):
    columns = {"one": ("STRING", texts)}
    for expression, function in (
        (call("CAST", ONE, "INTEGER"), int),
        (call("CAST", ONE, "FLOAT"), float),
        (call("STRING_TITLE", ONE), str.title),
        (call("STRING_FIND", ONE, part), lambda text: text.find(part)),
        (call("STRING_COUNT", ONE, part), lambda text: text.count(part)),
        (call("LIST_LENGTH", call("STRING_SPLIT", ONE, part)), lambda text: len(text.split(part))),
        (call("IN", ONE, part, "x", "12"), lambda text: text in (part, "x", "12")),
        (call("STRING_SLICE", ONE, 0, call("STRING_FIND", ONE, part)), lambda text: text[0 : text.find(part)]),
        (call("STRING_CONTAINS", call("STRING_CONCAT", ONE, part), ONE), lambda text: text in text + part),
    ):
        same(made(expression, **columns), [plainly(function, text) for text in texts])


@settings(max_examples=100, deadline=None)
@given(st.lists(st.none() | TIMES, min_size=1, max_size=5))
def test_times_give_what_python_gives(times):
    columns, form = {"one": ("TIMESTAMP", times)}, "%Y-%m-%d %H:%M:%S.%f"
    for name in ("YEAR", "MONTH", "DAY", "HOUR", "MINUTE", "SECOND"):
        same(made(call(name, ONE), **columns), [plainly(lambda t, n=name: getattr(t, n.lower()), t) for t in times])
    same(made(call("WEEKDAY", ONE), **columns), [plainly(datetime.weekday, time) for time in times])
    written = call("FORMAT_TIMESTAMP", ONE, form)
    same(made(written, **columns), [plainly(lambda time: time.strftime(form), time) for time in times])
    same(made(call("PARSE_TIMESTAMP", written, form), **columns), times)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.none() | st.booleans(), st.none() | INTEGERS, st.none() | FLOATS), min_size=1, max_size=5))
def test_conditions_choose_for_each_row(rows):
    tests, ones, others = [list(column) for column in zip(*rows, strict=True)]
    columns = {"test": ("BOOLEAN", tests), "one": ("INTEGER", ones), "other": ("FLOAT", others)}
    chosen = [None if test is None else (one if test else other) for test, one, other in rows]
    same(made(call("IF", ex.Column("test"), ONE, OTHER), **columns), chosen)
    same(made(call("IF", ex.Column("test"), ONE, None), **columns), [one if test else None for test, one, _ in rows])
    same(made(call("FILL_NULL", ONE, 7), **columns), [7 if one is None else one for one in ones])
    missing = [other is None or math.isnan(other) for other in others]
    assert made(call("IS_NULL", OTHER), **columns) == missing


@settings(max_examples=200, deadline=None)
@given(
    st.sampled_from(["a+", "(b|ab)c?", r"(\d+),", "[^a]b", "(?:ab)+(c)?", "^a", r"\bb"]),
    st.lists(st.none() | st.text("abc1, ", max_size=10), min_size=1, max_size=5),
)
def test_patterns_match_as_python_matches(pattern, texts):
    columns = {"one": ("STRING", texts)}
    group = min(1, re.compile(pattern).groups)
    same(
        made(call("REGEX_MATCHES", ONE, pattern), **columns),
        [plainly(lambda t: bool(re.search(pattern, t)), t) for t in texts],
    )
    found = [None if text is None or not (m := re.search(pattern, text)) else m[group] for text in texts]
    same(made(call("REGEX_EXTRACT", ONE, pattern, group), **columns), found)
    # Which group is meant need not be said: the first, where there is one.
    same(made(call("REGEX_EXTRACT", ONE, pattern), **columns), found)
    replaced = [plainly(lambda t: re.sub(pattern, lambda _: "$1\\", t), text) for text in texts]
    same(made(call("REGEX_REPLACE", ONE, pattern, "$1\\"), **columns), replaced)


@settings(max_examples=100, deadline=None)
@example({"a": 1 << 63})
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=3),
        lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from("ab"), inner),
        max_leaves=8,
    )
)
def test_json_paths_find_what_python_finds(value):
    for path, keys in (("$.a", ["a"]), ("$[0].b", [0, "b"]), ("$['a'][-1]", ["a", -1])):
        expected = value
        for key in keys:
            fits = isinstance(expected, dict if isinstance(key, str) else list)
            try:
                expected = expected[key] if fits else None  # a number of any size: what comes out is its text
            except LookupError:
                expected = None
        if expected is not None and not isinstance(expected, str):
            expected = json.dumps(expected, ensure_ascii=False)
        assert made(call("JSON_EXTRACT", ONE, path), one=("STRING", [json.dumps(value)])) == [expected]


@pytest.mark.parametrize(
    "pattern", [r"(?=a)b", r"(?!a)b", r"(?<=a)b", r"(a)\1", r"\w{1001}", "((a{50}){50}){50}", "a" * 301, "("]
)
def test_patterns_that_are_not_linear_or_too_large_are_refused(pattern):
    with pytest.raises(ex.Rejected):
        ex.check(call("REGEX_MATCHES", ONE, pattern), {"one": "STRING"})


def test_the_worst_pattern_on_the_longest_text_takes_bounded_time():
    long = "a" * patterns.MOST_MATCHED_BYTES
    assert made(call("REGEX_MATCHES", ONE, "(a+)+$"), one=("STRING", [long + "b", long])) == [None, True]


@pytest.mark.parametrize(
    ("function", "text"),
    [
        ("JSON_EXTRACT", "$..a"),
        ("JSON_EXTRACT", "a"),
        ("PARSE_TIMESTAMP", "%Q"),
        ("PARSE_TIMESTAMP", "%d%d"),
        ("CAST", "STRING_LIST"),
    ],
)
def test_constants_that_say_nothing_known_are_refused(function, text):
    with pytest.raises(ex.Rejected):
        ex.check(call(function, ONE, text), {"one": "STRING"})


def test_deep_json_is_a_failed_row():
    assert made(call("JSON_EXTRACT", ONE, "$.a"), one=("STRING", ["[" * 100_000, '{"a": "x"}'])) == [None, "x"]
