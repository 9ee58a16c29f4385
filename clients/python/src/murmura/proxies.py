"""Stand-ins for a row's value: what is done to one becomes an expression tree.

Used by `trace` and by the columns of remote frames alike, so that both record the same. A proxy refuses whatever
cannot be recorded, with the spelling that works; it never guesses. Longer than most modules: kinds of values return
each other, and apart they would import in circles.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NoReturn

from murmura import templates
from murmura.api.dataset.v1 import expressions_pb2 as pb
from murmura.recording import Recorded, call, encode, lookup, refuse

CASTS = {int: "INTEGER", float: "FLOAT", str: "STRING", bool: "BOOLEAN"}
_BOOLEAN = pb.VALUE_TYPE_BOOLEAN
_GROUP = re.compile(r"\\(\d|g<)")


def of_type(kind: pb.ValueType.ValueType, expression: pb.Expression) -> Proxy:
    """Return the proxy for values of a type."""
    return TextProxy(expression) if kind == pb.VALUE_TYPE_STRING else ValueProxy(expression, kind)


def _truth(function: str) -> Callable[[Proxy, object], ValueProxy]:
    def combine(self: Proxy, other: object) -> ValueProxy:
        return ValueProxy(call(function, self, other), _BOOLEAN)

    return combine


def _arithmetic(function: str, *, swapped: bool = False) -> Callable[[ValueProxy, object], ValueProxy]:
    def combine(self: ValueProxy, other: object) -> ValueProxy:
        return ValueProxy(call(function, other, self) if swapped else call(function, self, other))

    return combine


class Proxy(Recorded):
    """Stands for a value of each row; refuses whatever is not recorded."""

    _kind = "value"

    def __getattr__(self, name: str) -> NoReturn:
        refuse(f"`.{name}` cannot be recorded on a {self._kind}")

    def __bool__(self) -> NoReturn:
        refuse(
            "an `if`, `and`, `or` or `not` on a row's value cannot be recorded; "
            "write murmura.where(condition, a, b), and combine conditions with & | ~"
        )

    def __iter__(self) -> NoReturn:
        refuse("a loop over a row's value cannot be recorded; write s.split(sep)[index], or s.extract(pattern)")

    def __len__(self) -> NoReturn:
        refuse("`len` of a row's value cannot be recorded; write s.len()")

    def __contains__(self, item: object) -> NoReturn:
        refuse("`in` on a row's value cannot be recorded; write s.contains(part), or s.isin([…])")

    def __str__(self) -> NoReturn:
        refuse("`str` of a row's value cannot be recorded; write s.astype(str), or an f-string")

    def __format__(self, specification: str) -> str:
        if specification:
            refuse(
                f"the format `:{specification}` in an f-string cannot be recorded; "
                "write s.round(digits), or t.strftime(format), and a plain field"
            )
        return templates.field(encode(self if isinstance(self, TextProxy) else self.astype(str)))

    def __int__(self) -> NoReturn:
        refuse("`int` of a row's value cannot be recorded; write s.astype(int)")

    def __float__(self) -> NoReturn:
        refuse("`float` of a row's value cannot be recorded; write s.astype(float)")

    __eq__ = _truth("EQUAL")  # type: ignore[assignment]
    __ne__ = _truth("NOT_EQUAL")  # type: ignore[assignment]
    __lt__ = _truth("LESS")
    __le__ = _truth("LESS_OR_EQUAL")
    __gt__ = _truth("GREATER")
    __ge__ = _truth("GREATER_OR_EQUAL")

    def __hash__(self) -> NoReturn:
        refuse("a row's value cannot be looked up in a dict or a set; write s.map({…}), or s.isin([…])")

    def astype(self, kind: type) -> Proxy:
        """Record a conversion; a row on which it fails disappears."""
        if kind not in CASTS:
            refuse("`astype` takes int, float, str or bool")
        if kind is bool and isinstance(self, TextProxy):
            refuse("every text but the empty one would be true, 'False' as well; write s == 'True', or s.len() > 0")
        made = call("CAST", self, CASTS[kind])
        return TextProxy(made) if kind is str else ValueProxy(made)

    def isna(self) -> ValueProxy:
        """Record whether there is no value."""
        return ValueProxy(call("IS_NULL", self), _BOOLEAN)

    def notna(self) -> ValueProxy:
        """Record whether there is a value."""
        return ~self.isna()

    def fillna(self, value: object) -> Proxy:
        """Record a value for where there is none."""
        return self._same(call("FILL_NULL", self, value))

    def isin(self, values: Iterable[object]) -> ValueProxy:
        """Record whether the value is one of some constants."""
        return ValueProxy(call("IN", self, *values), _BOOLEAN)

    def between(self, left: object, right: object) -> ValueProxy:
        """Record whether the value lies between two others, both included."""
        return (self >= left) & (self <= right)

    def where(self, condition: Proxy, other: object = None) -> Proxy:
        """Record the value where a condition holds, and another elsewhere."""
        return self._same(call("IF", condition, self, other))

    def mask(self, condition: Proxy, other: object = None) -> Proxy:
        """Record the value where a condition does not hold, and another elsewhere."""
        return self._same(call("IF", condition, other, self))

    def map(self, table: Mapping[Any, object]) -> Proxy:
        """Record what a table has for the value; where it has nothing, there is no value."""
        made = lookup(self, table)
        return TextProxy(made) if any(isinstance(value, str) for value in table.values()) else ValueProxy(made)

    def _same(self, expression: pb.Expression) -> Proxy:
        return type(self)(expression)

    def __repr__(self) -> str:
        if templates.is_recording():
            refuse("`repr` of a row's value cannot be recorded; write an f-string with a plain field")
        return f"<the {self._kind} of each row>"


class ValueProxy(Proxy):
    """Stands for a number, a truth value or a time of each row."""

    _kind = "number, boolean or timestamp"

    def __init__(self, expression: pb.Expression, kind: pb.ValueType.ValueType = pb.VALUE_TYPE_UNSPECIFIED) -> None:
        super().__init__(expression)
        self.kind = kind

    __add__ = _arithmetic("ADD")
    __radd__ = _arithmetic("ADD", swapped=True)
    __sub__ = _arithmetic("SUBTRACT")
    __rsub__ = _arithmetic("SUBTRACT", swapped=True)
    __mul__ = _arithmetic("MULTIPLY")
    __rmul__ = _arithmetic("MULTIPLY", swapped=True)
    __truediv__ = _arithmetic("DIVIDE")
    __rtruediv__ = _arithmetic("DIVIDE", swapped=True)
    __floordiv__ = _arithmetic("FLOOR_DIVIDE")
    __rfloordiv__ = _arithmetic("FLOOR_DIVIDE", swapped=True)
    __mod__ = _arithmetic("MODULO")
    __rmod__ = _arithmetic("MODULO", swapped=True)
    __and__ = __rand__ = _truth("AND")
    __or__ = __ror__ = _truth("OR")
    __xor__ = __rxor__ = _truth("NOT_EQUAL")

    def __invert__(self) -> ValueProxy:
        return ValueProxy(call("NOT", self), _BOOLEAN)

    def __neg__(self) -> ValueProxy:
        return ValueProxy(call("NEGATE", self))

    def __abs__(self) -> ValueProxy:
        return ValueProxy(call("ABSOLUTE", self))

    def __round__(self, digits: int | None = None) -> ValueProxy:
        return ValueProxy(call("ROUND", self) if digits is None else call("ROUND", self, digits))

    abs, round = __abs__, __round__

    year = property(lambda self: ValueProxy(call("YEAR", self)))
    month = property(lambda self: ValueProxy(call("MONTH", self)))
    day = property(lambda self: ValueProxy(call("DAY", self)))
    hour = property(lambda self: ValueProxy(call("HOUR", self)))
    minute = property(lambda self: ValueProxy(call("MINUTE", self)))
    second = property(lambda self: ValueProxy(call("SECOND", self)))

    def clip(self, lower: object = None, upper: object = None) -> Proxy:
        """Record the value, or the bound that it lies beyond."""
        made: Proxy = self if lower is None else self.mask(self < lower, lower)
        return made if upper is None else made.mask(self > upper, upper)

    def weekday(self) -> ValueProxy:
        """Record `datetime.weekday`: Monday is 0."""
        return ValueProxy(call("WEEKDAY", self))

    def strftime(self, form: str) -> TextProxy:
        """Record `datetime.strftime`."""
        return TextProxy(call("FORMAT_TIMESTAMP", self, form))


class TextProxy(Proxy):
    """Stands for a text of each row."""

    _kind = "text"

    def split(self, separator: str | None = None, maxsplit: int = -1) -> ListProxy:
        """Record `str.split` with a separator."""
        if separator is None or maxsplit != -1:
            refuse("`split()` without a separator, or with maxsplit, cannot be recorded; write split('…')")
        if separator == "":
            refuse("`split('')` fails on every text; name a separator")
        return ListProxy(call("STRING_SPLIT", self, separator))

    def strip(self, characters: str | None = None) -> TextProxy:
        """Record `str.strip`."""
        return self._text("STRING_STRIP", *_given(characters))

    def lstrip(self, characters: str | None = None) -> TextProxy:
        """Record `str.lstrip`."""
        return self._text("STRING_STRIP_START", *_given(characters))

    def rstrip(self, characters: str | None = None) -> TextProxy:
        """Record `str.rstrip`."""
        return self._text("STRING_STRIP_END", *_given(characters))

    def lower(self) -> TextProxy:
        """Record `str.lower`."""
        return self._text("STRING_LOWER")

    def upper(self) -> TextProxy:
        """Record `str.upper`."""
        return self._text("STRING_UPPER")

    def title(self) -> TextProxy:
        """Record `str.title`."""
        return self._text("STRING_TITLE")

    def replace(self, old: str, new: str) -> TextProxy:
        """Record `str.replace`."""
        return self._text("STRING_REPLACE", old, new)

    def startswith(self, prefix: str | TextProxy) -> ValueProxy:
        """Record `str.startswith`."""
        return ValueProxy(call("STRING_STARTS_WITH", self, prefix), _BOOLEAN)

    def endswith(self, suffix: str | TextProxy) -> ValueProxy:
        """Record `str.endswith`."""
        return ValueProxy(call("STRING_ENDS_WITH", self, suffix), _BOOLEAN)

    def contains(self, part: str | TextProxy) -> ValueProxy:
        """Record `part in text`."""
        return ValueProxy(call("STRING_CONTAINS", self, part), _BOOLEAN)

    def find(self, part: str | TextProxy) -> ValueProxy:
        """Record `str.find`."""
        return ValueProxy(call("STRING_FIND", self, part))

    def count(self, part: str) -> ValueProxy:
        """Record `str.count`."""
        return ValueProxy(call("STRING_COUNT", self, part))

    def len(self) -> ValueProxy:
        """Record `len(text)`."""
        return ValueProxy(call("STRING_LENGTH", self))

    def matches(self, pattern: str) -> ValueProxy:
        """Record whether a regular expression (RE2) matches somewhere."""
        return ValueProxy(call("REGEX_MATCHES", self, pattern), _BOOLEAN)

    def extract(self, pattern: str, group: int | None = None) -> TextProxy:
        """Record what a regular expression matches: its first group if it has one, or else all of it."""
        return self._text("REGEX_EXTRACT", pattern, *_given(group))

    def sub(self, pattern: str, new: str) -> TextProxy:
        """Record a replacement, taken literally, of whatever a regular expression matches."""
        if isinstance(new, str) and _GROUP.search(new):
            refuse(
                r"a replacement that names a group, such as `\1`, cannot be recorded; take it with s.extract(pattern)"
            )
        return self._text("REGEX_REPLACE", pattern, new)

    def json(self, path: str) -> TextProxy:
        """Record what a JSON text has at a path such as `$.notes[0].text`."""
        return self._text("JSON_EXTRACT", path)

    def strptime(self, form: str) -> ValueProxy:
        """Record `datetime.strptime(text, form)`."""
        return ValueProxy(call("PARSE_TIMESTAMP", self, form), pb.VALUE_TYPE_TIMESTAMP)

    def __getitem__(self, key: slice) -> TextProxy:
        if not isinstance(key, slice) or key.step not in (None, 1):
            refuse("of a text, only slices s[start:stop] can be recorded")
        return self._text("STRING_SLICE", key.start, key.stop)

    def __add__(self, other: TextProxy | str) -> TextProxy:
        return self._text("STRING_CONCAT", _piece(other))

    def __radd__(self, other: str) -> TextProxy:
        return TextProxy(call("STRING_CONCAT", _piece(other), self))

    def _text(self, function: str, *arguments: object) -> TextProxy:
        return TextProxy(call(function, self, *arguments))


class ListProxy(Proxy):
    """Stands for the list of texts that `split` makes of each row."""

    _kind = "list of texts"

    def __getitem__(self, index: int) -> TextProxy:
        if not isinstance(index, int) or isinstance(index, bool):
            refuse("of a list, only list[number] can be recorded")
        return TextProxy(call("LIST_GET", self, index))

    def join(self, separator: str) -> TextProxy:
        """Record `separator.join(list)`."""
        return TextProxy(call("LIST_JOIN", self, separator))

    def len(self) -> ValueProxy:
        """Record `len(list)`."""
        return ValueProxy(call("LIST_LENGTH", self))


def _given(value: object) -> tuple[object, ...]:
    return () if value is None else (value,)


def _piece(value: TextProxy | str) -> TextProxy | str:
    if not isinstance(value, TextProxy | str):
        refuse(f"`+` of a text and a {type(value).__name__} cannot be recorded; write an f-string")
    return value


def where(condition: Any, one: Any, other: Any) -> Any:
    """Choose, for each row, between two values: what an `if` would do.

    Args:
        condition: of the row; a plain bool chooses at once.
        one: the value where it holds.
        other: the value where it does not.
    """
    if not isinstance(condition, Proxy):
        return one if condition else other
    made = call("IF", condition, one, other)
    # A text chooses between texts; else the value is a number, a truth value or a time.
    return TextProxy(made) if any(isinstance(value, TextProxy | str) for value in (one, other)) else ValueProxy(made)
