"""Random, odd and hostile expression trees against the real checker and the real engine."""

from __future__ import annotations

import random
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from murmura.api.dataset.v1 import expressions_pb2 as pb
from services.dataset import execution, frames
from services.dataset import expressions as ex

SCHEMA = {"text": "STRING", "note": "STRING", "age": "INTEGER", "dose": "FLOAT", "sick": "BOOLEAN", "at": "TIMESTAMP"}
TEXTS = [
    "",
    "a,b",
    "12",
    "-3.5e400",
    "nan",
    "x" * 3000,
    "ß\u0301\U0001f600\x00",
    '{"a": [1, {"b": null}]}',
    "[" * 3000,
    "2020-02-30",
    "true",
    "\ud7ff\ue000$1",
    "9" * 5000,
    "%Y",
    "murmura",
]
PATTERNS = [
    "(a+)+$",
    "(?=a)",
    r"(a)\1",
    r"\w{1000}",
    "((a{100}){100}){100}",
    "[",
    "(?P<x>a)|b",
    "\\pL+",
    "a" * 5000,
    "(" * 250 + ")" * 250,
    "(?i)ß",
    "x*",
    "^",
    "(?:a?){50}a{50}",
    "(?x) a # b",
    "\\",
    "{",
    "a{2,1}",
]
PATHS = ["$.a", "$.a[1].b", "$..a", "$.*", "$[999999999]", "$['a']", "$[?(@.a)]", "$", "", "$" + ".a" * 500, "$[-1]"]
FORMATS = ["%Y-%m-%d", "%d%d", "%", "%Q", "%Y" * 60, "%s", "%Z", "%H:%M", "\x00", "%-d"]
NUMBERS = [0, 1, -1, 2, 7, 2**31, -(2**63), 2**63 - 1, 10**9]
FLOATS = [0.0, -0.0, 0.5, 1e308, -1e308, 5e-324, float("nan"), float("inf")]


def rows() -> pl.DataFrame:
    """Return rows with every kind of oddity, one unit each."""
    count = len(TEXTS) + 1
    ages = [NUMBERS[index % len(NUMBERS)] for index in range(count - 1)] + [None]
    moments = [0, -(10**15), 10**17, None] * count
    return pl.DataFrame(
        {
            "text": [*TEXTS, None],
            "note": [None, *TEXTS],
            "age": pl.Series(ages, dtype=pl.Int64),
            "dose": pl.Series([*(FLOATS * 3)[: count - 1], None], dtype=pl.Float64),
            "sick": pl.Series(([True, False, None] * count)[:count], dtype=pl.Boolean),
            "at": pl.Series(moments[:count], dtype=pl.Int64).cast(pl.Datetime("us")),
        }
    )


def literal(chance: random.Random) -> pb.Expression:
    """Return a constant, of any type and often a nasty one."""
    kind = chance.randrange(7)
    made = pb.Literal()
    if kind == 0:
        made.integer_value = chance.choice(NUMBERS)
    elif kind == 1:
        made.float_value = chance.choice([*FLOATS, struct.unpack("d", chance.randbytes(8))[0]])
    elif kind == 2:
        made.boolean_value = chance.random() < 0.5
    elif kind == 3:
        made.timestamp_value.seconds = chance.choice([0, -(2**62), 2**62, 10**9])
    elif kind < 6:
        made.string_value = chance.choice(
            [*TEXTS, *PATTERNS, *PATHS, *FORMATS, *ex.ALLOWED, "STRING", "INTEGER", "FLOAT"]
        )
    return pb.Expression(literal=made)


def fitting(chance: random.Random, kind: str, depth: int) -> pb.Expression:
    """Return a tree that mostly fits a type, so that much of what is made gets past the checker."""
    if kind == "STRING_LIST":
        return operation(chance, "STRING_SPLIT", depth)
    if depth <= 0 or chance.random() < 0.2:
        names = [name for name, its in SCHEMA.items() if its == kind]
        if names and chance.random() < 0.8:
            return pb.Expression(column=chance.choice(names))
        return constant(chance, kind)
    able = [name for name, one in ex.ALLOWED.items() if one.result in (kind, ex.COMMON)]
    return operation(chance, chance.choice(able), depth)


def constant(chance: random.Random, kind: str) -> pb.Expression:
    """Return a constant of a type."""
    made = pb.Literal()
    if kind == "INTEGER":
        made.integer_value = chance.choice(NUMBERS)
    elif kind == "FLOAT":
        made.float_value = chance.choice(FLOATS[:6])
    elif kind == "BOOLEAN":
        made.boolean_value = chance.random() < 0.5
    elif kind == "TIMESTAMP":
        made.timestamp_value.seconds = chance.randrange(10**9)
    else:
        made.string_value = chance.choice(TEXTS)
    return pb.Expression(literal=made)


def operation(chance: random.Random, function: str, depth: int) -> pb.Expression:
    """Return a call whose arguments mostly fit."""
    signature = ex.ALLOWED[function]
    common = chance.choice(["STRING", "INTEGER", "FLOAT", "BOOLEAN", "TIMESTAMP"])
    arguments = []
    for position, kinds in enumerate(signature.arguments):
        kind = common if common in kinds else chance.choice(kinds)
        if position in signature.constants:
            arguments.append(special(chance, function, position, kind))
        elif chance.random() < 0.03:
            arguments.append(literal(chance))
        else:
            arguments.append(fitting(chance, kind, depth - 1))
    if chance.random() < 0.03:
        arguments = arguments[: chance.randrange(len(arguments) + 1)] * chance.randrange(1, 4)
    number = pb.Function.Value(f"FUNCTION_{function}")
    return pb.Expression(call=pb.Call(function=number, arguments=arguments))


def special(chance: random.Random, function: str, position: int, kind: str) -> pb.Expression:
    """Return a constant in the little language that an operation reads."""
    if kind != "STRING" or position != 1:
        return constant(chance, kind)
    choices = TEXTS
    if function.startswith("REGEX"):
        alphabet = "ab(|)*+?[]{}^$.\\dw0123,"
        choices = [*PATTERNS, "".join(chance.choices(alphabet, k=chance.randrange(20)))]
    elif function == "JSON_EXTRACT":
        choices = [*PATHS, "$" + "".join(chance.choices(".a[]0'\"*", k=8))]
    elif function.endswith("_TIMESTAMP"):
        choices = FORMATS
    elif function == "CAST":
        choices = ["STRING", "INTEGER", "FLOAT", "BOOLEAN", "TIMESTAMP", "STRING_LIST", ""]
    return pb.Expression(literal=pb.Literal(string_value=chance.choice(choices)))


def hostile(chance: random.Random) -> pb.Expression:
    """Return what nobody would build by hand: deep, wide, empty or unknown."""
    made = fitting(chance, "STRING", 3)
    for _ in range(chance.randrange(40)):
        name = chance.choice(["STRING_UPPER", "STRING_CONCAT", "STRING_REPLACE"])
        arguments = [made]
        if name == "STRING_REPLACE":
            arguments += [pb.Expression(literal=pb.Literal(string_value=part)) for part in ("a", "a" * 5000)]
        made = pb.Expression(call=pb.Call(function=pb.Function.Value(f"FUNCTION_{name}"), arguments=arguments))
        if made.ByteSize() > 1 << 20:
            break
    if chance.random() < 0.3:
        made.call.function = chance.choice([0, 19, 999, -5])  # type: ignore[assignment]
    return chance.choice(
        [made, pb.Expression(), literal(chance), pb.Expression(column=chance.choice(["unit", "*", "^.*$"]))]
    )


def frame(chance: random.Random) -> pb.Frame:
    """Return a frame of a few random operations."""
    made = pb.Frame(dataset="datasets/notes")
    for _ in range(chance.randrange(1, 4)):
        kind = chance.choice(["STRING", "INTEGER", "FLOAT", "BOOLEAN", "TIMESTAMP"])
        tree = hostile(chance) if chance.random() < 0.1 else fitting(chance, kind, chance.randrange(1, 7))
        made.operations.append(
            chance.choice(
                [
                    pb.Operation(assign=pb.Assign(column=chance.choice([*SCHEMA, "new", "*"]), expression=tree)),
                    pb.Operation(filter=pb.Filter(predicate=fitting(chance, "BOOLEAN", 3))),
                ]
            )
        )
    if chance.random() < 0.2:
        column = chance.choice(list(SCHEMA))
        made.operations.append(
            chance.choice(
                [
                    pb.Operation(),
                    pb.Operation(drop=pb.Drop(columns=[column])),
                    pb.Operation(select=pb.Select(columns=[column, "text"])),
                    pb.Operation(rename=pb.Rename(columns={column: chance.choice(list(SCHEMA))})),
                    pb.Operation(slice=pb.Slice(start=chance.choice(NUMBERS), stop=chance.choice(NUMBERS))),
                ]
            )
        )
    return made


@dataclass
class Outcome:
    """How a run of the fuzzer went.

    Attributes:
        ran: frames that passed the checker and ran.
        refused: frames that were refused, as they should be.
        slowest: seconds that the slowest took, checked and run.
    """

    ran: int = 0
    refused: int = 0
    slowest: float = 0.0


def attempt(request: pb.Frame, table: pl.DataFrame) -> bool:
    """Check a frame and run it; anything but a refusal escapes.

    Returns:
        Whether it was allowed.
    """
    shape = ex.Shape(SCHEMA, range(table.height))
    try:
        operations = frames.operations(request)
        for item in operations:
            shape = ex.after(shape, item)
    except (ex.Rejected, ex.UnknownColumn):
        return False
    columns, alive = execution.apply(table, operations)
    assert len(alive) == table.height
    assert alive.null_count() == 0
    for name, kind in shape.schema.items():
        assert len(columns[name]) == table.height
        assert columns[name].dtype == DTYPES[kind], (name, kind, columns[name].dtype)
    kept = {name: name for name, kind in shape.schema.items() if kind == "STRING"}
    units = np.arange(table.height)
    for part in execution.run(table, units, operations, kept):
        assert set(part["unit"]) <= set(units.tolist())
    return True


DTYPES: dict[str, Any] = {
    "STRING": pl.String,
    "INTEGER": pl.Int64,
    "FLOAT": pl.Float64,
    "BOOLEAN": pl.Boolean,
    "TIMESTAMP": pl.Datetime("us"),
}


def fuzz(seconds: float, seed: int, describe: Callable[[pb.Frame], bool]) -> Outcome:
    """Feed random frames for some seconds.

    Args:
        seconds: how long.
        seed: the same seed makes the same frames.
        describe: asks the service for a frame; says whether it was allowed, and lets all but mapped errors escape.
    """
    chance, table, outcome = random.Random(seed), rows(), Outcome()
    end = time.monotonic() + seconds
    while (began := time.monotonic()) < end:
        request = frame(chance)
        try:
            allowed = attempt(request, table)
            assert describe(request) == allowed
        except Exception as escaped:
            raise AssertionError(f"{type(escaped).__name__}: {escaped}\n{str(request)[:4000]}") from escaped
        outcome.ran += allowed
        outcome.refused += not allowed
        outcome.slowest = max(outcome.slowest, time.monotonic() - began)
    return outcome
