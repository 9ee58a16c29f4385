"""Expressions do what plain Python does, row by row, and nothing that an analyst writes reaches the privacy units."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from murmura.api.dataset.v1 import expressions_pb2 as pb
from services.dataset import execution, frames
from services.dataset import expressions as ex
from services.dataset.signatures import ALLOWED

TEXT = ex.Column("text")
# Letters that change length or meaning with case, white space of all kinds, characters of many bytes, and separators.
LETTERS = st.sampled_from(list("aAbB,. \t\n\x00\x1c\x85\u00a0\u2003\u200bßŉİ\u0131Σσςǅée\u0301😀𐐀\ua7cb$\\^*"))
TEXTS = st.text(LETTERS | st.characters(exclude_categories=["Cs"]), max_size=12)
BOUNDS = st.none() | st.integers(-15, 15)


def call(function: str, *arguments: Any) -> ex.Call:
    return ex.Call(
        function, tuple(a if isinstance(a, ex.Column | ex.Literal | ex.Call) else ex.Literal(a) for a in arguments)
    )


def strings(inner: st.SearchStrategy[ex.Expression]) -> st.SearchStrategy[ex.Expression]:
    part = st.text(LETTERS, min_size=1, max_size=2)
    strip = st.sampled_from(["STRING_STRIP", "STRING_STRIP_START", "STRING_STRIP_END"])
    lists = st.builds(lambda text, by: call("STRING_SPLIT", text, by), inner, part)
    return st.one_of(
        st.builds(lambda name, text: call(name, text), strip, inner),
        st.builds(lambda name, text, chars: call(name, text, chars), strip, inner, st.text(LETTERS, max_size=3)),
        st.builds(lambda text: call("STRING_LOWER", text), inner),
        st.builds(lambda text: call("STRING_UPPER", text), inner),
        st.builds(lambda text, old, new: call("STRING_REPLACE", text, old, new), inner, part, TEXTS),
        st.builds(lambda text, start, stop: call("STRING_SLICE", text, start, stop), inner, BOUNDS, BOUNDS),
        st.builds(lambda one, other: call("STRING_CONCAT", one, other), inner, inner | TEXTS.map(ex.Literal)),
        st.builds(lambda items, index: call("LIST_GET", items, index), lists, st.integers(-4, 4)),
        st.builds(lambda items, by: call("LIST_JOIN", items, by), lists, TEXTS),
    )


def plainly(expression: ex.Expression, text: str | None) -> Any:
    """What plain Python makes of a text; raises where Python raises."""
    if isinstance(expression, ex.Column):
        return text
    if isinstance(expression, ex.Literal):
        return expression.value
    subject, *rest = [plainly(argument, text) for argument in expression.arguments]
    match expression.function:
        case "STRING_SPLIT":
            return subject.split(*rest)
        case "LIST_GET":
            return subject[rest[0]]
        case "LIST_JOIN":
            return rest[0].join(subject)
        case "STRING_STRIP":
            return subject.strip(*rest)
        case "STRING_STRIP_START":
            return subject.lstrip(*rest)
        case "STRING_STRIP_END":
            return subject.rstrip(*rest)
        case "STRING_LOWER":
            return subject.lower()
        case "STRING_UPPER":
            return subject.upper()
        case "STRING_REPLACE":
            return subject.replace(*rest)
        case "STRING_SLICE":
            return subject[slice(*rest)]
        case "STRING_CONCAT":
            return "".join([subject, *rest])
        case "STRING_CONTAINS":
            return rest[0] in subject
        case "STRING_STARTS_WITH":
            return subject.startswith(rest[0])
        case "STRING_ENDS_WITH":
            return subject.endswith(rest[0])
        case "STRING_LENGTH":
            return len(subject)
    raise AssertionError(expression.function)


def in_python(expression: ex.Expression, text: str | None) -> Any:
    try:
        return plainly(expression, text)
    except (IndexError, AttributeError, TypeError):
        return None


def in_polars(expression: ex.Expression, texts: list[str | None]) -> list[Any]:
    assert ex.check(expression, {"text": ex.STRING})
    return in_polars_unchecked(expression, texts)


def in_polars_unchecked(expression: ex.Expression, texts: list[str | None]) -> list[Any]:
    rows = pl.DataFrame({"text": pl.Series(texts, dtype=pl.String)})
    columns, _ = execution.apply(rows, [ex.Assign("made", expression)])
    return columns["made"].to_list()


def read(rows: pl.DataFrame, *operations: ex.Operation, units: Any = None) -> list[tuple[int, str]]:
    numbers = np.arange(rows.height) if units is None else np.array(units)
    return [row for part in execution.run(rows, numbers, operations, {"text": "text"}) for row in part.iter_rows()]


@settings(max_examples=400, deadline=None)
@given(st.recursive(st.just(TEXT), strings, max_leaves=4), st.lists(st.none() | TEXTS, min_size=1, max_size=6))
def test_texts_become_what_plain_python_makes_of_them(expression: ex.Expression, texts: list[str | None]) -> None:
    assert in_polars(expression, texts) == [in_python(expression, text) for text in texts]


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(["STRING_CONTAINS", "STRING_STARTS_WITH", "STRING_ENDS_WITH"]),
    st.text(LETTERS, max_size=2),
    st.lists(st.none() | TEXTS, min_size=1, max_size=6),
)
def test_questions_are_answered_as_python_does(function: str, part: str, texts: list[str | None]) -> None:
    question = call(function, TEXT, part)
    assert in_polars(question, texts) == [in_python(question, text) for text in texts]
    length = call("STRING_LENGTH", TEXT)
    assert in_polars(length, texts) == [in_python(length, text) for text in texts]


@pytest.mark.parametrize("function", ["STRING_LOWER", "STRING_UPPER", "STRING_STRIP"])
def test_every_character_changes_as_python_changes_it(function: str) -> None:
    texts = [f"x{chr(code)}" for code in range(0x110000) if not 0xD800 <= code < 0xE000]
    expression = call(function, TEXT)
    assert in_polars(expression, texts) == [plainly(expression, text) for text in texts]


def test_work_grows_with_the_tree_only() -> None:
    expression: ex.Expression = TEXT
    for _ in range(ex.MOST_DEPTH - 1):
        expression = call("STRING_SLICE", call("STRING_REPLACE", expression, "a", "b"), -(2**63), 2**63 - 1)
    assert in_polars_unchecked(expression, ["banana"]) == ["bbnbnb"]


def test_a_far_index_is_a_failed_row() -> None:
    split = call("STRING_SPLIT", TEXT, ",")
    for index in (1, -2, 2**62, -(2**63), 2**63 - 1):
        assert in_polars(call("LIST_GET", split, index), ["one"]) == [None]


# ---------------------------------------------------------------- units


@pytest.mark.parametrize("name", ["__unit", "unit", "alive", "c0", "*", "^.*$"])
def test_no_column_that_an_analyst_makes_reaches_the_units(name: str) -> None:
    rows = pl.DataFrame({"patient": ["a", "a", "b"], "text": ["x", "yy", "zzz"]})
    operations = [ex.Assign(name, call("STRING_UPPER", TEXT)), ex.Rename({"patient": "__patient"})]
    assert read(rows, *operations, units=[0, 0, 1]) == [(0, "x"), (0, "yy"), (1, "zzz")]


@pytest.mark.parametrize("name", ["__unit", "alive", "c0", "c1", "*", "^.*$"])
def test_no_column_of_a_source_is_taken_for_something_else(name: str) -> None:
    rows = pl.DataFrame({"patient": ["a", "b"], name: ["one", "two"]})
    operations = [ex.Assign("text", call("STRING_UPPER", ex.Column(name)))]
    assert read(rows, *operations, units=[1, 0]) == [(1, "ONE"), (0, "TWO")]


def test_slots_keep_their_units_over_the_seams_of_the_work() -> None:
    count = 3 * execution.ROWS_AT_ONCE + 7
    rows = pl.DataFrame({"text": [f"t{number}" for number in range(count)]})
    units = [number // 2 for number in range(count)]
    found = read(rows, ex.Filter(call("STRING_ENDS_WITH", TEXT, "7")), units=units)
    assert found == [(number // 2, f"t{number}") for number in range(count) if number % 10 == 7]


@pytest.mark.parametrize("grows", [False, True])
def test_the_same_comes_out_however_many_rows_are_worked_on_at_once(grows: bool) -> None:
    count = 3 * execution.ROWS_AT_ONCE + 7
    rows = pl.DataFrame({"text": [None if n % 5 == 0 else f"t:{n}" for n in range(count)]})
    second = call("LIST_GET", call("STRING_SPLIT", TEXT, ":"), 1)
    made = call("STRING_CONCAT", second, "!") if grows else second
    found = read(rows, ex.Assign("text", made), units=list(range(count)))
    assert found == [(n, f"{n}!" if grows else f"{n}") for n in range(count) if n % 5]


GROWING = {"LIST_JOIN", "STRING_REPLACE", "STRING_CONCAT", "REGEX_REPLACE", "JSON_EXTRACT", "FORMAT_TIMESTAMP"}


def test_what_may_make_texts_long_is_worked_on_in_small_parts() -> None:
    rows = pl.DataFrame({"text": ["x"] * 1000})

    def largest(*operations: ex.Operation) -> int:
        return max(part.height for part in execution.parts(rows, operations))

    assert {name for name, signature in ALLOWED.items() if signature.grows} == GROWING
    assert largest(ex.Assign("text", call("STRING_SLICE", TEXT, 0, 5))) == 1000
    assert largest(ex.Filter(call("STRING_CONTAINS", TEXT, "x")), ex.Rename({"text": "t"})) == 1000
    # Deep inside, in a filter, as a long constant, and by sheer number.
    joined = call("STRING_CONCAT", TEXT, TEXT)
    assert largest(ex.Assign("text", call("STRING_SLICE", call("STRING_LOWER", joined), 0, 5))) == 64
    assert largest(ex.Filter(call("STRING_CONTAINS", joined, "x"))) == 64
    assert largest(ex.Assign("text", ex.Literal("x" * 1000))) == 64
    assert largest(*[ex.Assign(f"c{n}", call("STRING_LOWER", TEXT)) for n in range(40)]) == 64
    assert [part.height for part in execution.parts(rows.clear(), [])] == []


# ---------------------------------------------------------------- rows that disappear


ROWS = pl.DataFrame({"text": ["keep", "other", None, ""], "note": ["a,b", "c", "d,e", "f,g"]})
SECOND = call("LIST_GET", call("STRING_SPLIT", ex.Column("note"), ","), 1)


def test_a_filtered_row_never_comes_back() -> None:
    empty = ex.Filter(call("STRING_CONTAINS", TEXT, "keep"))
    assert read(ROWS, empty, ex.Assign("text", ex.Literal("alive"))) == [(0, "alive")]


def test_a_row_on_which_anything_fails_disappears_whole() -> None:
    assert read(ROWS, ex.Assign("second", SECOND)) == [(0, "keep")]
    assert read(ROWS, ex.Assign("note", SECOND), ex.Assign("text", ex.Literal("alive"))) == [
        (0, "alive"),
        (2, "alive"),
        (3, "alive"),
    ]


def test_a_copied_column_may_hold_nothing() -> None:
    assert read(ROWS, ex.Assign("copy", TEXT), ex.Assign("text", ex.Column("note"))) == [
        (0, "a,b"),
        (1, "c"),
        (2, "d,e"),
        (3, "f,g"),
    ]


def test_no_expression_makes_a_text_beyond_the_bound() -> None:
    bomb: ex.Expression = TEXT
    for _ in range(ex.MOST_DEPTH - 1):
        bomb = call("STRING_REPLACE", bomb, "a", "a" * 10_000)
    ten_thousand = call("STRING_REPLACE", TEXT, "a", "a" * 10_000)
    joined = call("LIST_JOIN", call("STRING_SPLIT", ten_thousand, "a"), "a" * 10_000)
    concatenated = call("STRING_CONCAT", *[ten_thousand] * 110)
    rows = pl.DataFrame({"text": ["a", "b"]})
    for expression in (bomb, joined, concatenated):
        ex.check(expression, {"text": ex.STRING})
        assert [unit for unit, _ in read(rows, ex.Assign("text", expression))] == [1]


def test_no_expression_makes_more_pieces_than_the_bound() -> None:
    split = call("STRING_SPLIT", TEXT, ",")
    texts = ["," * ex.MOST_PIECES, "," * (ex.MOST_PIECES - 1), ",", None]
    assert in_polars(call("LIST_LENGTH", split), texts) == [None, ex.MOST_PIECES, 2, None]


def test_a_text_that_was_too_long_on_the_way_is_a_failed_row() -> None:
    # 200 letters become two million and then one: short at the end, and beyond the bound before.
    long = call("STRING_REPLACE", TEXT, "a", "a" * 10_000)
    rows = pl.DataFrame({"text": ["a" * 200, "a" * 50]})
    assert read(rows, ex.Assign("text", call("STRING_SLICE", long, 0, 1))) == [(1, "a")]


# ---------------------------------------------------------------- the checker


SHAPE = ex.Shape({"text": ex.STRING, "age": ex.INTEGER}, range(10))


@pytest.mark.parametrize(
    "operation",
    [
        ex.Assign("a", call("REGEX_EXTRACT", TEXT, "x", 1)),
        ex.Assign("a", call("STRING_LOWER", ex.Column("age"))),
        ex.Assign("a", call("STRING_SPLIT", TEXT, ",")),
        ex.Assign("a", call("LIST_GET", call("STRING_SPLIT", TEXT, ""), 0)),
        ex.Assign("a", call("STRING_REPLACE", TEXT, "", "x")),
        ex.Assign("a", call("STRING_REPLACE", TEXT, TEXT, "x")),
        ex.Assign("a", call("STRING_CONCAT")),
        ex.Assign("a", call("STRING_CONCAT", TEXT, ex.Column("age"))),
        ex.Assign("a", ex.Literal(None)),
        ex.Assign("", TEXT),
        ex.Assign("x" * 201, TEXT),
        ex.Rename({"text": ""}),
        ex.Rename({"text": "age"}),
        ex.Select(("text", "text")),
        ex.Filter(TEXT),
    ],
)
def test_what_is_not_allowed_is_rejected(operation: ex.Operation) -> None:
    with pytest.raises(ex.Rejected):
        ex.after(SHAPE, operation)


def test_a_rejection_names_what_is_supported() -> None:
    with pytest.raises(ex.Rejected, match=r"READ_FILE is not in this release.*STRING_SPLIT.*STRING_LENGTH"):
        ex.check(call("READ_FILE", TEXT, "x"), SHAPE.schema)


def test_large_and_deep_trees_are_rejected() -> None:
    deep: ex.Expression = TEXT
    for _ in range(ex.MOST_DEPTH + 1):
        deep = call("STRING_LOWER", deep)
    with pytest.raises(ex.Rejected, match="deep"):
        ex.check(deep, SHAPE.schema)
    with pytest.raises(ex.Rejected, match="parts"):
        ex.check(call("STRING_CONCAT", *[TEXT] * ex.MOST_NODES), SHAPE.schema)


def test_all_expressions_of_a_frame_together_are_not_too_large() -> None:
    text = pb.Expression(column="text")
    wide = pb.Expression(call=pb.Call(function="FUNCTION_STRING_CONCAT", arguments=[text] * 100))
    one = pb.Operation(assign=pb.Assign(column="text", expression=wide))
    assert len(frames.operations(pb.Frame(operations=[one] * 90))) == 90
    with pytest.raises(ex.Rejected, match="in all"):
        frames.operations(pb.Frame(operations=[one] * 100))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_constants_are_finite(value: float) -> None:
    with pytest.raises(ex.Rejected, match="finite"):
        ex.check(call("ADD", ex.Column("age"), value), SHAPE.schema)


@given(st.none() | st.integers(-12, 12), st.none() | st.integers(-12, 12), st.none() | st.integers(-12, 12))
def test_slots_are_sliced_as_python_slices(start: int | None, stop: int | None, again: int | None) -> None:
    shape = ex.after(ex.after(SHAPE, ex.Slice(start, stop)), ex.Slice(again, None))
    assert list(shape.slots) == list(range(10))[start:stop][again:]


def test_filters_do_not_move_slots() -> None:
    assert ex.after(SHAPE, ex.Filter(call("STRING_CONTAINS", TEXT, "x"))) == SHAPE


def test_unknown_and_missing_parts_of_a_message_are_rejected() -> None:
    for function in (0, 999):
        with pytest.raises(ex.Rejected):
            ex.check(
                frames.expression(pb.Expression(call=pb.Call(function=function))),  # type: ignore[arg-type]
                SHAPE.schema,
            )
    with pytest.raises(ex.Rejected):
        frames.expression(pb.Expression())
    with pytest.raises(ex.Rejected):
        frames.operations(pb.Frame(operations=[pb.Operation()]))
