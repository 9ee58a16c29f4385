"""Columns of remote frames: what pandas does to a series, recorded for rows that stay where they are.

A series is a frame, and the proxy that stands for the column's value in each row; `proxies.py` does the recording.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, NoReturn

from murmura.accessors import SERIES_FEATURES, TextMethods, TimeMethods
from murmura.api.dataset.v1 import expressions_pb2 as pb
from murmura.errors import InvalidInput, NotSupported, TraceError
from murmura.proxies import Proxy
from murmura.statistics import SeriesStatistics
from murmura.tracing import Traced

if TYPE_CHECKING:
    from murmura.frame import RemoteFrame


def _binary(name: str) -> Callable[[RemoteSeries, object], RemoteSeries]:
    def operate(self: RemoteSeries, other: object) -> RemoteSeries:
        return self._record(lambda proxy: getattr(proxy, name)(self._operand(other)), name)

    return operate


def _comparison(name: str, *, missing: bool = False) -> Callable[[RemoteSeries, object], RemoteSeries]:
    """Compare as pandas does: where there is no value, the answer is False, and of `!=` True."""

    def compare(self: RemoteSeries, other: object) -> RemoteSeries:
        return self._record(lambda proxy: getattr(proxy, name)(self._operand(other)).fillna(missing), name)

    return compare


class RemoteSeries(SeriesStatistics):
    """A column of a remote frame, or what is computed from one.

    Args:
        owner: the frame.
        proxy: stands for each row's value.
    """

    def __init__(self, owner: RemoteFrame, proxy: Proxy) -> None:
        self._owner = owner
        self._proxy = proxy
        self.frame = owner.proto
        self.expression: pb.Expression = proxy._expression

    def apply(self, function: Traced) -> RemoteSeries:
        """Apply a traced function to each row.

        Raises:
            NotSupported: if the function is not traced.
            murmura.errors.TraceError: if it does what cannot be recorded.
        """
        if not isinstance(function, Traced):
            raise NotSupported("Wrap the function: X['text'].apply(murmura.trace(function)). Code never travels.")
        return RemoteSeries(self._owner, function.applied(self._proxy))

    def map(self, arg: Traced | Mapping[Any, object]) -> RemoteSeries:
        """Apply a traced function, or take what a table has for the value; where it has nothing, there is no value."""
        if isinstance(arg, Mapping):
            return self._record(lambda proxy: proxy.map(arg), "map")
        return self.apply(arg)

    def clip(self, lower: object = None, upper: object = None) -> RemoteSeries:
        """Put bounds in the place of what lies beyond them."""
        return self._record(lambda proxy: proxy.clip(self._operand(lower), self._operand(upper)), "clip")

    def astype(self, kind: type) -> RemoteSeries:
        """Convert to int, float, str or bool; a row on which that fails disappears."""
        return self._record(lambda proxy: proxy.astype(kind), "astype")

    def isna(self) -> RemoteSeries:
        """Whether there is no value."""
        return self._record(lambda proxy: proxy.isna(), "isna")

    def notna(self) -> RemoteSeries:
        """Whether there is a value."""
        return self._record(lambda proxy: proxy.notna(), "notna")

    def fillna(self, value: object) -> RemoteSeries:
        """Another value where there is none."""
        return self._record(lambda proxy: proxy.fillna(self._operand(value)), "fillna")

    def isin(self, values: Iterable[object]) -> RemoteSeries:
        """Whether the value is one of some constants."""
        return self._record(lambda proxy: proxy.isin(values).fillna(False), "isin")

    def between(self, left: object, right: object, inclusive: str = "both") -> RemoteSeries:
        """Whether the value lies between two others.

        Args:
            left: the lower one.
            right: the upper one.
            inclusive: which of them counts: `both`, `left`, `right` or `neither`.
        """
        if inclusive not in ("both", "left", "right", "neither"):
            raise InvalidInput(f"inclusive is both, left, right or neither; not {inclusive!r}.")
        above = self >= left if inclusive in ("both", "left") else self > left
        return above & (self <= right if inclusive in ("both", "right") else self < right)

    def where(self, condition: RemoteSeries, other: object = None) -> RemoteSeries:
        """Keep the value where a condition holds; elsewhere another, or none: then the row disappears."""
        return self._record(lambda proxy: proxy.where(self._operand(condition), self._operand(other)), "where")

    def mask(self, condition: RemoteSeries, other: object = None) -> RemoteSeries:
        """As `where`, with the condition turned round."""
        return self._record(lambda proxy: proxy.mask(self._operand(condition), self._operand(other)), "mask")

    def round(self, decimals: int = 0) -> RemoteSeries:
        """Round to decimals; halves go to the even digit."""
        return self._record(lambda proxy: round(proxy, decimals), "round")

    __eq__ = _comparison("__eq__")  # type: ignore[assignment]
    __ne__ = _comparison("__ne__", missing=True)  # type: ignore[assignment]
    __lt__, __le__ = _comparison("__lt__"), _comparison("__le__")
    __gt__, __ge__ = _comparison("__gt__"), _comparison("__ge__")
    __add__, __radd__ = _binary("__add__"), _binary("__radd__")
    __sub__, __rsub__ = _binary("__sub__"), _binary("__rsub__")
    __mul__, __rmul__ = _binary("__mul__"), _binary("__rmul__")
    __truediv__, __rtruediv__ = _binary("__truediv__"), _binary("__rtruediv__")
    __floordiv__, __rfloordiv__ = _binary("__floordiv__"), _binary("__rfloordiv__")
    __mod__, __rmod__ = _binary("__mod__"), _binary("__rmod__")
    __and__, __rand__ = _binary("__and__"), _binary("__rand__")
    __or__, __ror__ = _binary("__or__"), _binary("__ror__")
    __xor__, __rxor__ = _binary("__xor__"), _binary("__rxor__")
    __hash__ = None  # type: ignore[assignment]

    def __invert__(self) -> RemoteSeries:
        return self._record(lambda proxy: ~proxy, "~")

    def __neg__(self) -> RemoteSeries:
        return self._record(lambda proxy: -proxy, "-")

    def __abs__(self) -> RemoteSeries:
        return self._record(lambda proxy: abs(proxy), "abs")

    def __bool__(self) -> NoReturn:
        raise NotSupported(
            f"A remote column is neither true nor false; combine with & | ~. Supported: {SERIES_FEATURES}."
        )

    def __getattr__(self, name: str) -> NoReturn:
        if name.startswith("_"):
            raise AttributeError(name)
        raise NotSupported(f"`series.{name}` is not available on a remote column. Supported: {SERIES_FEATURES}.")

    def __iter__(self) -> NoReturn:
        raise NotSupported("Values of a remote column cannot be looped over: they stay where they are.")

    def __repr__(self) -> str:
        return f"<a column of {self.frame.dataset}, private; assign it to the frame to use it>"

    def _operand(self, other: object) -> object:
        if not isinstance(other, RemoteSeries):
            return other
        if other.frame != self.frame:
            raise InvalidInput("Two series of different states of a frame cannot be combined; take both from the same.")
        return other._proxy

    def _record(self, function: Callable[[Any], Any], name: str) -> RemoteSeries:
        try:
            return RemoteSeries(self._owner, function(self._proxy))
        except (TraceError, TypeError, AttributeError) as refusal:
            raise NotSupported(f"`{name}` on this column: {refusal}. Supported: {SERIES_FEATURES}.") from None

    @property
    def dt(self) -> TimeMethods:
        """Parts of timestamps, as in pandas."""
        return TimeMethods(self)

    # Last, because the name hides the type in the rest of the class.
    @property
    def str(self) -> TextMethods:
        """Text methods, as in pandas."""
        return TextMethods(self)
