"""What may be asked of a row: the allow-list, its types, and the shape of frames. Pure.

Nothing an analyst writes is ever run; a tree of these operations is. Each works on one row alone, so a privacy unit
stays a unit, and each is total: where plain Python would raise, the value is missing and the row disappears.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from services.dataset import patterns
from services.dataset.signatures import (
    ALLOWED,
    BOOLEAN,
    COMMON,
    FLOAT,
    INTEGER,
    NULL,
    NUMBERS,
    STRING,
    STRING_LIST,
    TIMESTAMP,
    Signature,
)
from services.dataset.trees import Call, Column, Expression, Literal, Rejected, UnknownColumn, nodes

__all__ = [
    "ALLOWED",
    "BOOLEAN",
    "COMMON",
    "FLOAT",
    "INTEGER",
    "NULL",
    "STRING",
    "STRING_LIST",
    "TIMESTAMP",
    "Call",
    "Column",
    "Expression",
    "Literal",
    "Rejected",
    "Signature",
    "UnknownColumn",
    "nodes",
]

MOST_DEPTH = 60
MOST_NODES = 2_000
# Of all the expressions of one frame.
MOST_FRAME_NODES = 10_000
MOST_NAME = 200
# No text may grow beyond this, in bytes of UTF-8: a row that would is a row on which the expression fails.
MOST_TEXT_BYTES = 1 << 20
# No list of texts may have more.
MOST_PIECES = 1 << 16


def check(expression: Expression, schema: Mapping[str, str]) -> str:
    """Type-check an expression.

    Args:
        expression: the tree.
        schema: column name to type.

    Returns:
        The type of its value.

    Raises:
        Rejected: if it uses what is not on the allow-list, is too large, or does not fit.
        UnknownColumn: if it names a column that does not exist.
    """
    if nodes(expression) > MOST_NODES:
        raise Rejected("expression", f"it has more than {MOST_NODES} parts")
    return _check(expression, schema, MOST_DEPTH)


def _check(expression: Expression, schema: Mapping[str, str], depth: int) -> str:
    if depth == 0:
        raise Rejected("expression", f"it is nested more than {MOST_DEPTH} deep")
    if isinstance(expression, Column):
        if expression.name not in schema:
            raise UnknownColumn(expression.name, schema)
        return schema[expression.name]
    if isinstance(expression, Literal):
        return _literal_type(expression)
    signature = ALLOWED.get(expression.function)
    if signature is None:
        raise Rejected(
            expression.function,
            f"{expression.function} is not in this release; there are {', '.join(ALLOWED)}",
        )
    arguments = expression.arguments
    kinds = [_check(argument, schema, depth - 1) for argument in arguments]
    _check_arguments(expression.function, signature, arguments, kinds)
    try:
        patterns.check(expression.function, [one.value if isinstance(one, Literal) else None for one in arguments])
    except patterns.Unsound as unsound:
        raise Rejected(expression.function, str(unsound)) from None
    if expression.function == "CAST":
        return str(arguments[1].value) if isinstance(arguments[1], Literal) else NULL
    if expression.function == "ROUND" and (len(kinds) < 2 or kinds[1] == NULL):
        return INTEGER
    if signature.result == COMMON:
        return _common(expression.function, [kinds[position] for position in signature.alike])
    return signature.result


def _check_arguments(function: str, signature: Signature, arguments: tuple[Expression, ...], kinds: list[str]) -> None:
    most = len(signature.arguments)
    least = most - signature.optional
    if len(kinds) < least or (len(kinds) > most and not signature.open_ended):
        raise Rejected(function, f"{function} takes {least} to {most} arguments, not {len(kinds)}")
    for position, (argument, kind) in enumerate(zip(arguments, kinds, strict=True)):
        place = min(position, most - 1)
        if place in signature.constants and not isinstance(argument, Literal):
            raise Rejected(function, f"argument {position + 1} of {function} must be a constant")
        if kind == NULL and place >= least and not signature.open_ended:
            continue
        if kind not in signature.arguments[place]:
            allowed = " or ".join(signature.arguments[place])
            raise Rejected(function, f"argument {position + 1} of {function} must be a {allowed}, not a {kind}")
    if signature.open_ended and signature.alike:
        _common(function, kinds)
    elif signature.alike:
        _common(function, [kinds[position] for position in signature.alike])


def _common(function: str, kinds: list[str]) -> str:
    """Return the type that values of some types have in common; numbers are floats if one is."""
    known = {kind for kind in kinds if kind != NULL}
    if known and known <= set(NUMBERS):
        return FLOAT if FLOAT in known else INTEGER
    if len(known) != 1:
        raise Rejected(function, f"{function} takes values of one type, not {' and '.join(kinds)}")
    return known.pop()


def _literal_type(literal: Literal) -> str:
    if isinstance(literal.value, float) and not math.isfinite(literal.value):
        raise Rejected("literal", "a constant must be finite")
    return type_of(literal.value)


def type_of(value: object) -> str:
    """Return the type of a constant."""
    if isinstance(value, bool):
        return BOOLEAN
    if isinstance(value, int):
        return INTEGER
    if isinstance(value, float):
        return FLOAT
    if isinstance(value, datetime):
        return TIMESTAMP
    return STRING if isinstance(value, str) else NULL


@dataclass(frozen=True)
class Rename:
    """Gives columns other names."""

    columns: Mapping[str, str]


@dataclass(frozen=True)
class Assign:
    """Sets a column."""

    column: str
    expression: Expression


@dataclass(frozen=True)
class Select:
    """Keeps columns, in order."""

    columns: tuple[str, ...]


@dataclass(frozen=True)
class Drop:
    """Removes columns."""

    columns: tuple[str, ...]


@dataclass(frozen=True)
class Slice:
    """Keeps a range of slots."""

    start: int | None
    stop: int | None


@dataclass(frozen=True)
class Filter:
    """Empties slots; never moves or counts them."""

    predicate: Expression


Operation = Rename | Assign | Select | Drop | Slice | Filter


@dataclass(frozen=True)
class Shape:
    """What is public of a frame.

    Attributes:
        schema: column name to type, in order.
        slots: the positions of the dataset that it covers.
    """

    schema: Mapping[str, str]
    slots: range


def after(shape: Shape, operation: Operation) -> Shape:
    """Return the shape after an operation.

    Raises:
        Rejected: if the operation is not allowed.
        UnknownColumn: if it names a column that does not exist.
    """
    schema = dict(shape.schema)
    if isinstance(operation, Slice):
        return Shape(schema, shape.slots[operation.start : operation.stop])
    if isinstance(operation, Rename):
        _known(operation.columns, schema)
        renamed = [operation.columns.get(name, name) for name in schema]
        for name in operation.columns.values():
            _sound(name, "rename")
        if len(set(renamed)) < len(renamed):
            raise Rejected("rename", "two columns would have the same name")
        return Shape(dict(zip(renamed, schema.values(), strict=True)), shape.slots)
    if isinstance(operation, Select):
        _known(operation.columns, schema)
        if len(set(operation.columns)) < len(operation.columns):
            raise Rejected("select", "a column is named twice")
        return Shape({name: schema[name] for name in operation.columns}, shape.slots)
    if isinstance(operation, Drop):
        _known(operation.columns, schema)
        return Shape(
            {name: kind for name, kind in schema.items() if name not in operation.columns},
            shape.slots,
        )
    if isinstance(operation, Filter):
        if check(operation.predicate, schema) != BOOLEAN:
            raise Rejected("filter", "the predicate must be a BOOLEAN")
        return shape
    _sound(operation.column, "assign")
    kind = check(operation.expression, schema)
    if kind in (STRING_LIST, NULL):
        raise Rejected("assign", f"a column cannot hold a {kind}")
    return Shape({**schema, operation.column: kind}, shape.slots)


def _known(names: Mapping[str, str] | tuple[str, ...], schema: Mapping[str, str]) -> None:
    for name in names:
        if name not in schema:
            raise UnknownColumn(name, schema)


def is_name(name: str) -> bool:
    """Say whether a column may have a name: Arrow's C interface ends names at a NUL."""
    return 0 < len(name) <= MOST_NAME and "\0" not in name


def _sound(name: str, operation: str) -> None:
    if not is_name(name):
        raise Rejected(operation, f"a column's name has 1 to {MOST_NAME} characters, and no NUL")
