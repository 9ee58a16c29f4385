"""Frames on real rows: Python's string semantics, silent failures, slots that never move."""

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.dataset import execution
from services.dataset import expressions as ex
from services.dataset.catalogue import units_within

TEXT = ex.Column("text")
# Not the four separators that Rust and Python disagree about when changing case of them does not arise.
texts = st.text(alphabet=st.sampled_from(' ,;:"abcXYZéçßÄñ\t\n\u00a0\u2003🙂0'), max_size=30)
separators = st.sampled_from([",", ", ", '":', "ab", " ", "é"])
bounds = st.one_of(st.none(), st.integers(-8, 8))


def call(function, *arguments):
    wrapped = (a if isinstance(a, ex.Column | ex.Call | ex.Literal) else ex.Literal(a) for a in arguments)
    return ex.Call(function, tuple(wrapped))


def evaluate(expression, text):
    assert ex.check(expression, {"text": ex.STRING})
    return execution.evaluate(expression, {"text": pl.Series([text], dtype=pl.String)}, 1)[0]


def python(function, text):
    try:
        return function(text)
    except (IndexError, ValueError):
        return None


@given(texts, separators, st.integers(-4, 4))
@settings(max_examples=200, deadline=None)
def test_split_and_get_are_pythons(text, separator, index):
    expression = call("LIST_GET", call("STRING_SPLIT", TEXT, separator), index)
    assert evaluate(expression, text) == python(lambda t: t.split(separator)[index], text)


@given(texts, bounds, bounds)
@settings(max_examples=200, deadline=None)
def test_slices_are_pythons(text, start, stop):
    assert evaluate(call("STRING_SLICE", TEXT, start, stop), text) == text[start:stop]


@given(texts, st.one_of(st.none(), st.sampled_from(['"', ' "', "ab", "é🙂"])))
@settings(max_examples=200, deadline=None)
def test_strips_are_pythons(text, characters):
    arguments = (TEXT,) if characters is None else (TEXT, characters)
    assert evaluate(call("STRING_STRIP", *arguments), text) == text.strip(characters)
    assert evaluate(call("STRING_STRIP_START", *arguments), text) == text.lstrip(characters)
    assert evaluate(call("STRING_STRIP_END", *arguments), text) == text.rstrip(characters)


@given(texts, separators, separators)
@settings(max_examples=200, deadline=None)
def test_the_rest_is_pythons(text, one, other):
    assert evaluate(call("STRING_REPLACE", TEXT, one, other), text) == text.replace(one, other)
    assert evaluate(call("STRING_LOWER", TEXT), text) == text.lower()
    assert evaluate(call("STRING_UPPER", TEXT), text) == text.upper()
    assert evaluate(call("STRING_CONCAT", TEXT, one, TEXT), text) == text + one + text
    assert evaluate(call("LIST_JOIN", call("STRING_SPLIT", TEXT, one), other), text) == other.join(text.split(one))
    assert evaluate(call("STRING_CONTAINS", TEXT, one), text) == (one in text)
    assert evaluate(call("STRING_STARTS_WITH", TEXT, one), text) == text.startswith(one)
    assert evaluate(call("STRING_ENDS_WITH", TEXT, one), text) == text.endswith(one)
    assert evaluate(call("STRING_LENGTH", TEXT), text) == len(text)


def rows(*contents):
    """Two slots a unit."""
    return pl.DataFrame({"text": list(contents)}, schema={"text": pl.String})


def run(table, operations, text_column):
    """Check, cut and run a frame, as the catalogue does."""
    shape = ex.Shape({"text": ex.STRING}, range(table.height))
    for operation in operations:
        shape = ex.after(shape, operation)
    units, _ = units_within(np.arange(table.height) // 2, shape.slots)
    cut = table.slice(shape.slots.start, len(shape.slots))
    return pl.concat(list(execution.run(cut, units, operations, {"text": text_column})))


def test_a_failing_row_disappears_and_its_neighbours_stay_where_they_are():
    second = call("LIST_GET", call("STRING_SPLIT", TEXT, ":"), 1)
    kept = run(rows("a:1", "no colon", "b:2", "c:3"), [ex.Assign("text", second)], "text")
    assert kept["text"].to_list() == ["1", "2", "3"]
    assert kept["unit"].to_list() == [0, 1, 1]


def test_a_filter_empties_slots_and_a_slice_counts_them():
    starts = call("STRING_STARTS_WITH", TEXT, "a")
    operations = [ex.Filter(starts), ex.Slice(1, 4)]
    kept = run(rows("a0", "b1", "a2", "a3", "a4"), operations, "text")
    assert kept["text"].to_list() == ["a2", "a3"]
    shape = ex.Shape({"text": ex.STRING}, range(5))
    for operation in operations:
        shape = ex.after(shape, operation)
    assert len(shape.slots) == 3


def test_units_are_numbered_within_the_frame_also_when_all_their_rows_fail():
    second = call("LIST_GET", call("STRING_SPLIT", TEXT, ":"), 1)
    kept = run(rows("x:0", "x:1", "bad", "bad", "z:4"), [ex.Slice(1, None), ex.Assign("text", second)], "text")
    assert kept["unit"].to_list() == [0, 2]


@pytest.mark.parametrize(
    ("expression", "what"),
    [
        (call("READ_FILE", TEXT), "not in this release"),
        (call("REGEX_MATCHES", TEXT, "(?=a)"), "look-around"),
        (call("LIST_GET", TEXT, 0), "must be a STRING_LIST"),
        (call("STRING_SPLIT", TEXT, ""), "fails on every text"),
        (call("STRING_SPLIT", TEXT, 3), "must be a STRING"),
        (call("STRING_SPLIT", TEXT, TEXT), "must be a constant"),
        (call("STRING_CONCAT", TEXT, 3), "must be a STRING"),
    ],
)
def test_what_is_not_on_the_list_is_refused(expression, what):
    with pytest.raises(ex.Rejected, match=what):
        ex.check(expression, {"text": ex.STRING})


def test_a_tree_that_is_too_deep_or_too_large_is_refused():
    deep = TEXT
    for _ in range(ex.MOST_DEPTH + 1):
        deep = call("STRING_LOWER", deep)
    with pytest.raises(ex.Rejected, match="nested"):
        ex.check(deep, {"text": ex.STRING})
    with pytest.raises(ex.Rejected, match="parts"):
        ex.check(call("STRING_CONCAT", *[TEXT] * (ex.MOST_NODES + 1)), {"text": ex.STRING})


def test_an_unknown_column_names_those_there_are():
    with pytest.raises(ex.UnknownColumn, match="text"):
        ex.check(ex.Column("secret"), {"text": ex.STRING})


def test_a_row_without_its_completion_takes_no_part():
    table = pl.DataFrame({"q": ["a", "b", None, "", "e"], "a": ["1", None, "3", "4", "5"]})
    (part,) = execution.run(table, np.arange(5), [], {"text": "q", "completion": "a"})
    assert part.rows() == [(0, "a", "1"), (4, "e", "5")]
    assert part.columns == ["unit", "text", "completion"]
