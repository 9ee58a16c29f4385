"""Make expression trees out of constants and of what stands for a row's value; refuse the rest."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any, NoReturn

from murmura import templates
from murmura.api.dataset.v1 import expressions_pb2 as pb
from murmura.errors import TraceError


class Recorded:
    """Has an expression.

    Args:
        expression: how each row's value is computed.
    """

    def __init__(self, expression: pb.Expression) -> None:
        self._expression = expression


def literal(value: object) -> pb.Expression:
    """Make a constant; a text with f-string fields in it becomes the joined pieces."""
    if value is None:
        return pb.Expression(literal=pb.Literal())
    if isinstance(value, bool):
        return pb.Expression(literal=pb.Literal(boolean_value=value))
    if isinstance(value, int):
        if not -(1 << 63) <= value < 1 << 63:
            refuse(f"{value} does not fit into 64 bits")
        return pb.Expression(literal=pb.Literal(integer_value=value))
    if isinstance(value, float):
        return pb.Expression(literal=pb.Literal(float_value=value))
    if isinstance(value, datetime):
        made = pb.Literal()
        made.timestamp_value.FromDatetime(value)
        return pb.Expression(literal=made)
    if isinstance(value, str):
        pieces = [
            piece if isinstance(piece, pb.Expression) else pb.Expression(literal=pb.Literal(string_value=piece))
            for piece in templates.pieces(value)
        ]
        return pieces[0] if len(pieces) == 1 else call("STRING_CONCAT", *pieces)
    refuse(f"a {type(value).__name__} is no constant of an expression; use texts, numbers, booleans or datetimes")


def call(function: str, *arguments: object) -> pb.Expression:
    """Make an operation on proxies, expressions and constants."""
    number = pb.Function.Value(f"FUNCTION_{function}")
    return pb.Expression(call=pb.Call(function=number, arguments=[encode(argument) for argument in arguments]))


def encode(value: object) -> pb.Expression:
    """Return the expression of a proxy, or of a constant."""
    if isinstance(value, pb.Expression):
        return value
    return value._expression if isinstance(value, Recorded) else literal(value)


def lookup(value: object, table: Mapping[Any, object]) -> pb.Expression:
    """Make what a table has for a value, by halves, so that the tree stays shallow; no value where it has nothing."""

    def choose(keys: list[Any]) -> object:
        if len(keys) == 1:
            return table[keys[0]]
        half = len(keys) // 2
        return call("IF", call("IN", value, *keys[:half]), choose(keys[:half]), choose(keys[half:]))

    keys = list(table)
    if not keys:
        refuse("an empty table has nothing for any row")
    return call("IF", call("IN", value, *keys), choose(keys), None)


def columns_of(expression: pb.Expression) -> set[str]:
    """Return the names of the columns that an expression reads."""
    if expression.WhichOneof("kind") == "column":
        return {expression.column}
    return set().union(*(columns_of(argument) for argument in expression.call.arguments))


def refuse(what: str) -> NoReturn:
    """Refuse what cannot be recorded."""
    raise TraceError(what)
