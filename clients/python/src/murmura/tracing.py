"""`trace`: record what a plain Python function does to a value, so that it can be done where the data is.

The function runs once, here, on a proxy that stands for the text of one row. What it does to the proxy becomes an
expression tree from the contracts' allow-list; the function itself never travels. What cannot be recorded is refused
with the line that did it and the spelling that works.
"""

from __future__ import annotations

import linecache
import sys
from collections.abc import Callable
from typing import Any, NoReturn

from murmura.api.dataset.v1 import expressions_pb2 as pb
from murmura.errors import TraceError

SUPPORTED = (
    "s.split(sep), list[index], sep.join(list) as list.join(sep), s.strip(), s.lstrip(), s.rstrip(), "
    "s.lower(), s.upper(), s.replace(old, new), s[start:stop], s + other"
)


def literal(value: str | int | None) -> pb.Expression:
    """Make a constant."""
    if value is None:
        return pb.Expression(literal=pb.Literal())
    if isinstance(value, str):
        return pb.Expression(literal=pb.Literal(string_value=value))
    return pb.Expression(literal=pb.Literal(integer_value=value))


def column(name: str) -> pb.Expression:
    """Make a reference to a column."""
    return pb.Expression(column=name)


class _Proxy:
    """Stands for a value of each row; refuses whatever is not recorded."""

    _kind = "value"

    def __init__(self, expression: pb.Expression) -> None:
        self._expression = expression

    def _call(self, function: str, *arguments: _Proxy | str | int | None) -> pb.Expression:
        number = pb.Function.Value(f"FUNCTION_{function}")
        encoded = [_encode(argument) for argument in arguments]
        return pb.Expression(call=pb.Call(function=number, arguments=[self._expression, *encoded]))

    def __getattr__(self, name: str) -> NoReturn:
        _refuse(f"`.{name}` cannot be recorded on a {self._kind}")

    def __bool__(self) -> NoReturn:
        _refuse("an `if`, `and`, `or` or `not` on a row's value cannot be recorded")

    def __iter__(self) -> NoReturn:
        _refuse("a loop over a row's value cannot be recorded")

    def __len__(self) -> NoReturn:
        _refuse("`len` of a row's value cannot be recorded")

    def __contains__(self, item: object) -> NoReturn:
        _refuse("`in` on a row's value cannot be recorded")

    def __str__(self) -> NoReturn:
        _refuse("a row's value has no text here (an f-string or `str`); join pieces with `+`")

    def __format__(self, specification: str) -> NoReturn:
        _refuse("an f-string on a row's value cannot be recorded; join pieces with `+`")

    def __int__(self) -> NoReturn:
        _refuse("`int` of a row's value cannot be recorded")

    def __float__(self) -> NoReturn:
        _refuse("`float` of a row's value cannot be recorded")

    def __eq__(self, other: object) -> NoReturn:
        _refuse("a comparison of a row's value cannot be recorded")

    __ne__ = __lt__ = __le__ = __gt__ = __ge__ = __eq__

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"<the {self._kind} of each row>"


class TextProxy(_Proxy):
    """Stands for a text of each row."""

    _kind = "text"

    def split(self, separator: str | None = None, maxsplit: int = -1) -> ListProxy:
        """Record `str.split` with a separator."""
        if separator is None or maxsplit != -1:
            _refuse("`split()` without a separator, or with maxsplit, cannot be recorded; write split('…')")
        if separator == "":
            _refuse("`split('')` fails on every text; name a separator")
        return ListProxy(self._call("STRING_SPLIT", separator))

    def strip(self, characters: str | None = None) -> TextProxy:
        """Record `str.strip`."""
        return TextProxy(self._call("STRING_STRIP", *_given(characters)))

    def lstrip(self, characters: str | None = None) -> TextProxy:
        """Record `str.lstrip`."""
        return TextProxy(self._call("STRING_STRIP_START", *_given(characters)))

    def rstrip(self, characters: str | None = None) -> TextProxy:
        """Record `str.rstrip`."""
        return TextProxy(self._call("STRING_STRIP_END", *_given(characters)))

    def lower(self) -> TextProxy:
        """Record `str.lower`."""
        return TextProxy(self._call("STRING_LOWER"))

    def upper(self) -> TextProxy:
        """Record `str.upper`."""
        return TextProxy(self._call("STRING_UPPER"))

    def replace(self, old: str, new: str) -> TextProxy:
        """Record `str.replace`."""
        return TextProxy(self._call("STRING_REPLACE", old, new))

    def __getitem__(self, key: slice) -> TextProxy:
        if not isinstance(key, slice) or key.step not in (None, 1):
            _refuse("of a text, only slices s[start:stop] can be recorded")
        return TextProxy(self._call("STRING_SLICE", key.start, key.stop))

    def __add__(self, other: TextProxy | str) -> TextProxy:
        return TextProxy(self._call("STRING_CONCAT", _text(other)))

    def __radd__(self, other: str) -> TextProxy:
        number = pb.Function.Value("FUNCTION_STRING_CONCAT")
        call = pb.Call(function=number, arguments=[_encode(_text(other)), self._expression])
        return TextProxy(pb.Expression(call=call))


class ListProxy(_Proxy):
    """Stands for the list of texts that `split` makes of each row."""

    _kind = "list of texts"

    def __getitem__(self, index: int) -> TextProxy:
        if not isinstance(index, int) or isinstance(index, bool):
            _refuse("of a list, only list[number] can be recorded")
        return TextProxy(self._call("LIST_GET", index))

    def join(self, separator: str) -> TextProxy:
        """Record `separator.join(list)`."""
        return TextProxy(self._call("LIST_JOIN", separator))


class Traced:
    """A function that can be applied to a remote column, and still be called here.

    Args:
        function: takes one text and returns one text.
    """

    def __init__(self, function: Callable[[Any], Any]) -> None:
        self.function = function
        self.__name__ = getattr(function, "__name__", "function")

    def __call__(self, value: str) -> Any:
        """Run the function here, on a value of your own."""
        return self.function(value)

    def record(self, expression: pb.Expression) -> pb.Expression:
        """Return the expression that the function makes of `expression`.

        Raises:
            TraceError: names the line that cannot be recorded and what can.
        """
        try:
            result = self.function(TextProxy(expression))
        except TraceError as refusal:
            raise TraceError(f"{self._place()}: {refusal}.\nSupported: {SUPPORTED}.") from None
        except Exception as failure:
            message = f"{self._place()}: {type(failure).__name__}: {failure}"
            raise TraceError(f"{message}.\nSupported: {SUPPORTED}.") from None
        if isinstance(result, str):
            raise TraceError(f"{self.__name__} returns the same text for each row; assign a constant instead.")
        if not isinstance(result, TextProxy):
            kind = getattr(result, "_kind", type(result).__name__)
            raise TraceError(f"{self.__name__} must return a text; it returns a {kind}. Supported: {SUPPORTED}.")
        return result._expression

    def _place(self) -> str:
        """Name the function's own line at which the present exception passed through it."""
        code = getattr(self.function, "__code__", None)
        trace_back, line = sys.exc_info()[2], 0
        while trace_back is not None:
            if trace_back.tb_frame.f_code is code:
                line = trace_back.tb_lineno
            trace_back = trace_back.tb_next
        if code is None or not line:
            return self.__name__
        source = linecache.getline(code.co_filename, line).strip()
        return f"{self.__name__}, line {line}: `{source}`" if source else f"{self.__name__}, line {line}"


def trace(function: Callable[[Any], Any]) -> Traced:
    """Make a plain Python function applicable to a remote column.

    Args:
        function: takes one text and returns one text.

    Returns:
        A callable for `X["column"].apply(...)`.
    """
    return Traced(function)


def _encode(value: _Proxy | str | int | None) -> pb.Expression:
    return value._expression if isinstance(value, _Proxy) else literal(value)


def _given(value: str | None) -> tuple[str, ...]:
    return () if value is None else (value,)


def _text(value: TextProxy | str) -> TextProxy | str:
    if not isinstance(value, TextProxy | str):
        _refuse(f"`+` of a text and a {type(value).__name__} cannot be recorded")
    return value


def _refuse(what: str) -> NoReturn:
    raise TraceError(what)
