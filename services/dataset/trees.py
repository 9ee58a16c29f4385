"""What an expression is made of, and the two ways to refuse one. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime


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

    value: str | int | float | bool | datetime | None


@dataclass(frozen=True)
class Call:
    """An operation on arguments."""

    function: str
    arguments: tuple[Expression, ...]


Expression = Column | Literal | Call


def walk(expression: Expression) -> Iterator[Expression]:
    """Yield the parts of a tree without recursion, so that a deep one is refused rather than overflows."""
    waiting = [expression]
    while waiting:
        node = waiting.pop()
        yield node
        if isinstance(node, Call):
            waiting.extend(node.arguments)


def nodes(expression: Expression) -> int:
    """Count the parts of a tree."""
    return sum(1 for _ in walk(expression))
