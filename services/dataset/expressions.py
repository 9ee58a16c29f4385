"""What may be asked of a row: the allow-list, its types, and the shape of frames. Pure.

Nothing an analyst writes is ever run; a tree of these operations is. Each works on one row alone, so a privacy unit
stays a unit, and each is total: where plain Python would raise, the value is missing and the row disappears.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

STRING, INTEGER, FLOAT, BOOLEAN, TIMESTAMP, STRING_LIST = [
    "STRING",
    "INTEGER",
    "FLOAT",
    "BOOLEAN",
    "TIMESTAMP",
    "STRING_LIST",
]
MOST_DEPTH = 60
MOST_NODES = 2_000
MOST_NAME = 200
# No text may grow beyond this, in bytes of UTF-8: a row that would is a row on which the expression fails.
MOST_TEXT_BYTES = 1 << 20


class Rejected(ValueError):
    """An expression or operation that is not allowed.

    Args:
        operation: what was not allowed.
        message: why, and what is.
    """

    def __init__(self, operation: str, message: str) -> None:
        super().__init__(message)
        self.operation = operation


class UnknownColumn(ValueError):
    """A column that the frame does not have.

    Args:
        column: its name.
        columns: those there are.
    """

    def __init__(self, column: str, columns: Mapping[str, str]) -> None:
        super().__init__(f"no column {column!r}; there are {', '.join(columns)}")
        self.column = column
        self.columns = tuple(columns)


@dataclass(frozen=True)
class Column:
    """The value of a column."""

    name: str


@dataclass(frozen=True)
class Literal:
    """A constant; None is null."""

    value: str | int | float | bool | None


@dataclass(frozen=True)
class Call:
    """An operation on arguments."""

    function: str
    arguments: tuple[Expression, ...]


Expression = Column | Literal | Call


@dataclass(frozen=True)
class Signature:
    """What an operation takes and gives.

    Attributes:
        subject: type of the first argument.
        constants: types of the further ones, which must be constants unless `open_ended`.
        optional: how many of the constants may be left out or null.
        result: type of the value.
        open_ended: any number of further arguments of the subject's type, which may be expressions.
    """

    subject: str
    constants: tuple[str, ...]
    result: str
    optional: int = 0
    open_ended: bool = False


ALLOWED: dict[str, Signature] = {
    "STRING_SPLIT": Signature(STRING, (STRING,), STRING_LIST),
    "LIST_GET": Signature(STRING_LIST, (INTEGER,), STRING),
    "LIST_JOIN": Signature(STRING_LIST, (STRING,), STRING),
    "STRING_STRIP": Signature(STRING, (STRING,), STRING, optional=1),
    "STRING_STRIP_START": Signature(STRING, (STRING,), STRING, optional=1),
    "STRING_STRIP_END": Signature(STRING, (STRING,), STRING, optional=1),
    "STRING_LOWER": Signature(STRING, (), STRING),
    "STRING_UPPER": Signature(STRING, (), STRING),
    "STRING_REPLACE": Signature(STRING, (STRING, STRING), STRING),
    "STRING_SLICE": Signature(STRING, (INTEGER, INTEGER), STRING, optional=2),
    "STRING_CONCAT": Signature(STRING, (), STRING, open_ended=True),
    "STRING_CONTAINS": Signature(STRING, (STRING,), BOOLEAN),
    "STRING_STARTS_WITH": Signature(STRING, (STRING,), BOOLEAN),
    "STRING_ENDS_WITH": Signature(STRING, (STRING,), BOOLEAN),
    "STRING_LENGTH": Signature(STRING, (), INTEGER),
    "NOT": Signature(BOOLEAN, (), BOOLEAN),
    "AND": Signature(BOOLEAN, (), BOOLEAN, open_ended=True),
    "OR": Signature(BOOLEAN, (), BOOLEAN, open_ended=True),
}
_NEEDS_TEXT = {
    "STRING_SPLIT": "an empty separator fails on every text",
    "STRING_REPLACE": "the old text is empty",
}


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
    if _nodes(expression) > MOST_NODES:
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
    subject, *rest = expression.arguments or (Literal(None),)
    found = _check(subject, schema, depth - 1)
    if found != signature.subject:
        raise Rejected(expression.function, f"{expression.function} takes a {signature.subject}, not a {found}")
    if signature.open_ended:
        for argument in rest:
            if _check(argument, schema, depth - 1) != signature.subject:
                raise Rejected(expression.function, f"{expression.function} takes only {signature.subject}s")
    else:
        _check_constants(expression.function, signature, rest)
    return signature.result


def _check_constants(function: str, signature: Signature, rest: list[Expression]) -> None:
    least, most = len(signature.constants) - signature.optional, len(signature.constants)
    if not least <= len(rest) <= most:
        raise Rejected(function, f"{function} takes {least} to {most} further arguments, not {len(rest)}")
    for position, (argument, expected) in enumerate(zip(rest, signature.constants, strict=False)):
        if not isinstance(argument, Literal):
            raise Rejected(function, f"argument {position + 2} of {function} must be a constant")
        if argument.value is None and position >= least:
            continue
        if _literal_type(argument) != expected:
            raise Rejected(function, f"argument {position + 2} of {function} must be a {expected}")
        if function in _NEEDS_TEXT and position == 0 and argument.value == "":
            raise Rejected(function, f"{function}: {_NEEDS_TEXT[function]}")


def _literal_type(literal: Literal) -> str:
    value = literal.value
    if isinstance(value, bool):
        return BOOLEAN
    if isinstance(value, int):
        return INTEGER
    if isinstance(value, float):
        return FLOAT
    return STRING if isinstance(value, str) else "NULL"


def _nodes(expression: Expression) -> int:
    """Count the parts of a tree without recursion, so that a deep one is refused rather than overflows."""
    count, waiting = 0, [expression]
    while waiting:
        node = waiting.pop()
        count += 1
        if isinstance(node, Call):
            waiting.extend(node.arguments)
    return count


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
    if kind in (STRING_LIST, "NULL"):
        raise Rejected("assign", f"a column cannot hold a {kind}")
    return Shape({**schema, operation.column: kind}, shape.slots)


def _known(names: Mapping[str, str] | tuple[str, ...], schema: Mapping[str, str]) -> None:
    for name in names:
        if name not in schema:
            raise UnknownColumn(name, schema)


def _sound(name: str, operation: str) -> None:
    if not 0 < len(name) <= MOST_NAME:
        raise Rejected(operation, f"a column's name has 1 to {MOST_NAME} characters")
