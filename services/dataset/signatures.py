"""The allow-list: each operation that a frame may ask for, what it takes, and what it gives. Pure data.

Apart from the checker, so that what is allowed can be read in one table.
"""

from __future__ import annotations

from dataclasses import dataclass

STRING, INTEGER, FLOAT, BOOLEAN, TIMESTAMP, STRING_LIST, NULL = [
    "STRING",
    "INTEGER",
    "FLOAT",
    "BOOLEAN",
    "TIMESTAMP",
    "STRING_LIST",
    "NULL",
]
NUMBERS = (INTEGER, FLOAT)
SCALARS = (STRING, INTEGER, FLOAT, BOOLEAN, TIMESTAMP)
# Results that depend on the arguments: of their common type; FLOAT if one is, or else INTEGER.
COMMON = "COMMON"


@dataclass(frozen=True)
class Signature:
    """What an operation takes and gives.

    Attributes:
        arguments: the types that each argument may have.
        result: type of the value, or COMMON.
        optional: how many of the last arguments may be left out; a constant among them may be null.
        constants: positions of arguments that must be constants.
        alike: positions of arguments that must have one type; numbers are alike.
        open_ended: any number of further arguments like the last.
        grows: whether its value may be many times as large as what it is given.
    """

    arguments: tuple[tuple[str, ...], ...]
    result: str
    optional: int = 0
    constants: frozenset[int] = frozenset()
    alike: tuple[int, ...] = ()
    open_ended: bool = False
    grows: bool = False


_S, _I, _B, _T, _L = (STRING,), (INTEGER,), (BOOLEAN,), (TIMESTAMP,), (STRING_LIST,)
_SECOND = frozenset({1})
_COMPARED = Signature((SCALARS, SCALARS), BOOLEAN, alike=(0, 1))
_ARITHMETIC = Signature((NUMBERS, NUMBERS), COMMON, alike=(0, 1))
_STRIP = Signature((_S, _S), STRING, optional=1, constants=_SECOND)
_PART = Signature((_S, _S), BOOLEAN)
_OF_TIME = Signature((_T,), INTEGER)

ALLOWED: dict[str, Signature] = {
    "STRING_SPLIT": Signature((_S, _S), STRING_LIST, constants=_SECOND),
    "LIST_GET": Signature((_L, _I), STRING, constants=_SECOND),
    "LIST_JOIN": Signature((_L, _S), STRING, constants=_SECOND, grows=True),
    "LIST_LENGTH": Signature((_L,), INTEGER),
    "STRING_STRIP": _STRIP,
    "STRING_STRIP_START": _STRIP,
    "STRING_STRIP_END": _STRIP,
    "STRING_LOWER": Signature((_S,), STRING),
    "STRING_UPPER": Signature((_S,), STRING),
    "STRING_TITLE": Signature((_S,), STRING),
    "STRING_REPLACE": Signature((_S, _S, _S), STRING, constants=frozenset({1, 2}), grows=True),
    "STRING_SLICE": Signature((_S, _I, _I), STRING, optional=2),
    "STRING_CONCAT": Signature((_S, _S), STRING, optional=1, open_ended=True, grows=True),
    "STRING_CONTAINS": _PART,
    "STRING_STARTS_WITH": _PART,
    "STRING_ENDS_WITH": _PART,
    "STRING_LENGTH": Signature((_S,), INTEGER),
    "STRING_FIND": Signature((_S, _S), INTEGER),
    "STRING_COUNT": Signature((_S, _S), INTEGER),
    "REGEX_EXTRACT": Signature((_S, _S, _I), STRING, optional=1, constants=frozenset({1, 2})),
    "REGEX_REPLACE": Signature((_S, _S, _S), STRING, constants=frozenset({1, 2}), grows=True),
    "REGEX_MATCHES": Signature((_S, _S), BOOLEAN, constants=_SECOND),
    "JSON_EXTRACT": Signature((_S, _S), STRING, constants=_SECOND, grows=True),
    # The constant names the type of the result.
    "CAST": Signature((SCALARS, _S), COMMON, constants=_SECOND),
    "ADD": _ARITHMETIC,
    "SUBTRACT": _ARITHMETIC,
    "MULTIPLY": _ARITHMETIC,
    "DIVIDE": Signature((NUMBERS, NUMBERS), FLOAT),
    "FLOOR_DIVIDE": _ARITHMETIC,
    "MODULO": _ARITHMETIC,
    "NEGATE": Signature((NUMBERS,), COMMON, alike=(0,)),
    "ABSOLUTE": Signature((NUMBERS,), COMMON, alike=(0,)),
    # Without digits an integer, whatever it rounds.
    "ROUND": Signature((NUMBERS, _I), COMMON, optional=1, constants=_SECOND, alike=(0,)),
    "EQUAL": _COMPARED,
    "NOT_EQUAL": _COMPARED,
    "LESS": _COMPARED,
    "LESS_OR_EQUAL": _COMPARED,
    "GREATER": _COMPARED,
    "GREATER_OR_EQUAL": _COMPARED,
    "IN": Signature((SCALARS, SCALARS), BOOLEAN, constants=_SECOND, alike=(0, 1), open_ended=True),
    "AND": Signature((_B, _B), BOOLEAN, optional=1, open_ended=True),
    "OR": Signature((_B, _B), BOOLEAN, optional=1, open_ended=True),
    "NOT": Signature((_B,), BOOLEAN),
    "IF": Signature((_B, (*SCALARS, NULL), (*SCALARS, NULL)), COMMON, alike=(1, 2)),
    "IS_NULL": Signature((SCALARS,), BOOLEAN),
    "FILL_NULL": Signature((SCALARS, SCALARS), COMMON, alike=(0, 1)),
    "YEAR": _OF_TIME,
    "MONTH": _OF_TIME,
    "DAY": _OF_TIME,
    "HOUR": _OF_TIME,
    "MINUTE": _OF_TIME,
    "SECOND": _OF_TIME,
    "WEEKDAY": _OF_TIME,
    "PARSE_TIMESTAMP": Signature((_S, _S), TIMESTAMP, constants=_SECOND),
    "FORMAT_TIMESTAMP": Signature((_T, _S), STRING, constants=_SECOND, grows=True),
}
