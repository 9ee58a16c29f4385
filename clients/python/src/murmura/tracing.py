"""`trace`: record what a plain Python function does to a value, so that it can be done where the data is.

The function runs once, here, on a proxy that stands for the value of one row. What it does to the proxy becomes an
expression tree from the contracts' allow-list; the function itself never travels. What cannot be recorded is refused
with the line that did it and the spelling that works.
"""

from __future__ import annotations

import linecache
import sys
from collections.abc import Callable
from typing import Any

from murmura import templates
from murmura.api.dataset.v1 import expressions_pb2 as pb
from murmura.errors import TraceError
from murmura.proxies import Proxy, TextProxy, ValueProxy, where
from murmura.recording import encode, literal

__all__ = ["SUPPORTED", "Proxy", "TextProxy", "Traced", "column", "literal", "trace", "where"]

SUPPORTED = (
    "s.split(sep), list[index], list.len(), sep.join(list) as list.join(sep), s.strip(), s.lstrip(), s.rstrip(), "
    "s.lower(), s.upper(), s.title(), s.replace(old, new), s[start:stop], s + other, f'{s}', s.len(), s.find(part), "
    "s.count(part), s.startswith(part), s.endswith(part), s.contains(part), s.matches(pattern), "
    "s.extract(pattern), s.sub(pattern, new), s.json('$.member'), s.strptime(format), t.strftime(format), t.year, "
    "t.month, t.day, t.hour, t.minute, t.second, t.weekday(), s.astype(int), + - * / // %, abs, round, "
    "== != < <= > >=, & | ~, "
    "s.isna(), s.notna(), s.fillna(value), s.isin([…]), s.map({value: other}), s.between(a, b), x.clip(a, b), "
    "murmura.where(condition, a, b)"
)


def column(name: str) -> pb.Expression:
    """Make a reference to a column."""
    return pb.Expression(column=name)


class Traced:
    """A function that can be applied to a remote column, and still be called here.

    Args:
        function: takes the value of one row and returns another.
    """

    def __init__(self, function: Callable[[Any], Any]) -> None:
        self.function = function
        self.__name__ = getattr(function, "__name__", "function")

    def __call__(self, value: Any) -> Any:
        """Run the function here, on a value of your own."""
        return self.function(value)

    def record(self, expression: pb.Expression | Proxy) -> pb.Expression:
        """Return the expression that the function makes of `expression`.

        Raises:
            TraceError: names the line that cannot be recorded and what can.
        """
        return self.applied(expression if isinstance(expression, Proxy) else TextProxy(expression))._expression

    def applied(self, value: Proxy) -> Proxy:
        """Return the proxy that the function makes of another; raises as `record` does."""
        try:
            with templates.recording():
                result = self._made(value)
                others = list(templates.disguises(self.function))
            for disguise in others:
                with templates.recording(disguise):
                    if encode(self._made(value)) != encode(result):
                        raise TraceError(templates.CHANGED)
        except TraceError as refusal:
            raise TraceError(f"{self._place()}: {refusal}.\nSupported: {SUPPORTED}.") from None
        except Exception as failure:
            message = f"{self._place()}: {type(failure).__name__}: {failure}"
            raise TraceError(f"{message}.\nSupported: {SUPPORTED}.") from None
        if isinstance(result, str | int | float):
            what = "text" if isinstance(result, str) else "value"
            raise TraceError(f"{self.__name__} returns the same {what} for each row; assign a constant instead.")
        if not isinstance(result, TextProxy | ValueProxy):
            kind = getattr(result, "_kind", type(result).__name__)
            raise TraceError(f"{self.__name__} must return a value; it returns a {kind}. Supported: {SUPPORTED}.")
        return result

    def _made(self, value: Proxy) -> Any:
        result = self.function(value)
        if isinstance(result, str) and templates.pieces(result) != [result]:
            result = TextProxy(literal(result))
        if isinstance(result, Proxy):
            templates.check_used()
        return result

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
        function: takes the value of one row and returns another.

    Returns:
        A callable for `X["column"].apply(...)`.
    """
    return Traced(function)
