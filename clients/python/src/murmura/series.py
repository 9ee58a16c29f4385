"""Columns of remote frames: what pandas does to a series, recorded for rows that stay where they are.

A series is a frame, and the proxy that stands for the column's value in each row; `proxies.py` does the recording.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, NoReturn

from murmura.api.dataset.v1 import expressions_pb2 as pb
from murmura.errors import InvalidInput, NotSupported, TraceError
from murmura.proxies import Proxy
from murmura.statistics import SeriesStatistics
from murmura.tracing import Traced

if TYPE_CHECKING:
    from murmura.frame import RemoteFrame

SERIES_FEATURES = (
    "series.apply(trace(function)), series + - * / // % other, abs(series), series.round(digits), "
    "== != < <= > >=, & | ~, series.between(a, b), series.isin([…]), series.isna(), series.notna(), "
    "series.fillna(value), series.where(condition, other), series.mask(condition, other), series.astype(type), "
    "series.str.<strip, lstrip, rstrip, lower, upper, title, replace, slice, len, find, count, startswith, endswith, "
    "contains, match, extract, get, split(…).str.get, json>(…), series.str.to_datetime(format), "
    "series.dt.<year, month, day, hour, minute, second, weekday, strftime>, "
    "series.count(), series.<mean, median, quantile, hist>(lower=…, upper=…)"
)


def _binary(name: str) -> Callable[[RemoteSeries, object], RemoteSeries]:
    def operate(self: RemoteSeries, other: object) -> RemoteSeries:
        return self._record(lambda proxy: getattr(proxy, name)(self._operand(other)), name)

    return operate


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
        return self._record(lambda proxy: proxy.isin(values), "isin")

    def between(self, left: object, right: object) -> RemoteSeries:
        """Whether the value lies between two others, both included."""
        return self._record(lambda proxy: proxy.between(self._operand(left), self._operand(right)), "between")

    def where(self, condition: RemoteSeries, other: object = None) -> RemoteSeries:
        """Keep the value where a condition holds; elsewhere another, or none: then the row disappears."""
        return self._record(lambda proxy: proxy.where(self._operand(condition), self._operand(other)), "where")

    def mask(self, condition: RemoteSeries, other: object = None) -> RemoteSeries:
        """As `where`, with the condition turned round."""
        return self._record(lambda proxy: proxy.mask(self._operand(condition), self._operand(other)), "mask")

    def round(self, decimals: int = 0) -> RemoteSeries:
        """Round to decimals; halves go to the even digit."""
        return self._record(lambda proxy: round(proxy, decimals), "round")

    __eq__ = _binary("__eq__")  # type: ignore[assignment]
    __ne__ = _binary("__ne__")  # type: ignore[assignment]
    __lt__, __le__, __gt__, __ge__ = _binary("__lt__"), _binary("__le__"), _binary("__gt__"), _binary("__ge__")
    __add__, __radd__ = _binary("__add__"), _binary("__radd__")
    __sub__, __rsub__ = _binary("__sub__"), _binary("__rsub__")
    __mul__, __rmul__ = _binary("__mul__"), _binary("__rmul__")
    __truediv__, __rtruediv__ = _binary("__truediv__"), _binary("__rtruediv__")
    __floordiv__, __rfloordiv__ = _binary("__floordiv__"), _binary("__rfloordiv__")
    __mod__, __rmod__ = _binary("__mod__"), _binary("__rmod__")
    __and__, __or__ = _binary("__and__"), _binary("__or__")
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
    def dt(self) -> _TimeMethods:
        """Parts of timestamps, as in pandas."""
        return _TimeMethods(self)

    # Last, because the name hides the type in the rest of the class.
    @property
    def str(self) -> _TextMethods:
        """Text methods, as in pandas."""
        return _TextMethods(self)


class _Methods:
    """Methods that a series has under another name."""

    _prefix = ""
    _names: frozenset[str] = frozenset()

    def __init__(self, series: RemoteSeries) -> None:
        self._series = series

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        if name not in self._names:
            raise NotSupported(
                f"`series.{self._prefix}.{name}` is not available on a remote column. Supported: {SERIES_FEATURES}."
            )
        return lambda *arguments: self._do(name, *arguments)

    def _do(self, name: str, *arguments: object) -> RemoteSeries:
        given = [self._series._operand(argument) for argument in arguments]
        return self._series._record(lambda proxy: getattr(proxy, name)(*given), f"{self._prefix}.{name}")


class _TextMethods(_Methods):
    """`series.str`."""

    _prefix = "str"
    _names = frozenset(
        {"lstrip", "rstrip", "lower", "upper", "title", "len", "find", "count", "startswith", "endswith", "json"}
    )

    def strip(self, to_strip: str | None = None) -> RemoteSeries:
        """Strip characters from both ends."""
        return self._do("strip", to_strip)

    def replace(self, old: str, new: str, *, regex: bool = False) -> RemoteSeries:
        """Replace every occurrence of a text, or of what a regular expression matches; the new text is literal."""
        return self._do("sub" if regex else "replace", old, new)

    def slice(self, start: int | None = None, stop: int | None = None) -> RemoteSeries:
        """Keep a range of characters."""
        return self._do("__getitem__", slice(start, stop))

    def contains(self, pat: str, *, regex: bool = True) -> RemoteSeries:
        """Whether a regular expression matches somewhere, or a text is in it."""
        return self._do("matches" if regex else "contains", pat)

    def match(self, pat: str) -> RemoteSeries:
        """Whether a regular expression matches at the start."""
        return self._do("matches", rf"\A(?:{pat})")

    def extract(self, pat: str, group: int | None = None) -> RemoteSeries:
        """What a regular expression's group matches; a row without a match disappears unless `fillna` follows.

        Args:
            pat: the pattern.
            group: which; the first if there is one, or else the whole match.
        """
        return self._do("extract", pat, group)

    def split(self, pat: str) -> RemoteSeries:
        """Split at a separator; take a piece with `.str.get(index)`."""
        return self._do("split", pat)

    def get(self, i: int) -> RemoteSeries:
        """The piece of a split at an index; a row without it disappears unless `fillna` follows."""
        return self._do("__getitem__", i)

    def join(self, sep: str) -> RemoteSeries:
        """Join the pieces of a split."""
        return self._do("join", sep)

    def to_datetime(self, form: str) -> RemoteSeries:
        """Parse timestamps, with a format as of `strptime`."""
        return self._do("strptime", form)


class _TimeMethods(_Methods):
    """`series.dt`."""

    _prefix = "dt"
    _names = frozenset({"strftime"})
    _parts = frozenset({"year", "month", "day", "hour", "minute", "second"})

    def __getattr__(self, name: str) -> Any:
        if name in self._parts:
            return self._series._record(lambda proxy: getattr(proxy, name), f"dt.{name}")
        if name == "weekday":
            return self._series._record(lambda proxy: proxy.weekday(), "dt.weekday")
        return super().__getattr__(name)
