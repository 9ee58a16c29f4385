"""What `trace` records of a random program, the engine computes as Python does; the rest is refused.

`MURMURA_FUZZ_SECONDS` says for how long; a few seconds without it.
"""

from __future__ import annotations

import math
import os
import random
import time
from typing import Any

import polars as pl

from murmura import trace
from murmura.api.dataset.v1 import expressions_pb2 as pb
from murmura.errors import TraceError
from murmura.proxies import of_type
from murmura.tracing import column
from services.dataset import execution
from services.dataset import expressions as ex
from services.dataset.columns import DTYPES
from services.dataset.frames import expression as decode
from tests.support.random_programs import COLUMNS, HERE, THERE, Programs

ROWS = 60


def same(one: Any, other: Any) -> bool:
    """Say whether two values are the same to the last bit; whatever is no number is."""
    if isinstance(one, float) and isinstance(other, float) and not one == other == 0:
        return one == other or (math.isnan(one) and math.isnan(other))
    alike = all(isinstance(one, kind) == isinstance(other, kind) for kind in (bool, float))
    return alike and repr(one) == repr(other)


def test_any_program_is_recorded_as_it_is_or_refused() -> None:
    chance = random.Random(int(os.environ.get("MURMURA_FUZZ_SEED", "7")))
    programs = Programs(chance)
    rows = [programs.row() for _ in range(ROWS)]
    table = {name: pl.Series(name, [row[name] for row in rows], DTYPES[kind]) for name, kind in COLUMNS.items()}
    columns = {name: of_type(pb.ValueType.Value(f"VALUE_TYPE_{kind}"), column(name)) for name, kind in COLUMNS.items()}
    compared = refused = 0
    end = time.monotonic() + float(os.environ.get("MURMURA_FUZZ_SECONDS", "5"))
    while time.monotonic() < end:
        program = programs.of(chance.choice(list(COLUMNS.values())), chance.choice([1, 2, 3, 4]))
        try:
            # A function of its own, as an analyst's: `trace` looks at the texts in it.
            tree = decode(trace(eval(f"lambda _: {program}", THERE | columns)).record(columns["t"]))
            ex.check(tree, COLUMNS)
        except (TraceError, ex.Rejected):
            refused += 1
            continue
        found = execution.evaluate(tree, table, ROWS).to_list()
        run = compile(program, "<program>", "eval")
        for row, value in zip(rows, found, strict=True):
            try:
                expected = eval(run, dict(HERE), row)
            except (ArithmeticError, LookupError, ValueError):
                continue  # it has no value, and neither may what is made of it
            compared += 1
            assert same(value, expected), f"{program} of {row} is {expected!r}, and was computed as {value!r}"
    assert compared > 10 * refused > 0
    if "MURMURA_FUZZ_SECONDS" in os.environ:
        print(f"\n{compared} values compared, {refused} programs refused")
