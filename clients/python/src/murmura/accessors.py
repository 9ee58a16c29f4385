"""`series.str` and `series.dt`: what pandas calls accessors, on columns that stay where they are.

A method records what the pandas method of its name would do, or says that it cannot. Where pandas reads an argument as
a regular expression and a tree has only texts, a pattern that stands for one text is taken, and others are refused.
"""

from __future__ import annotations

import builtins
import re
from typing import TYPE_CHECKING, Any

from murmura.errors import NotSupported

if TYPE_CHECKING:
    from murmura.series import RemoteSeries

SERIES_FEATURES = (
    "series.apply(trace(function)), series.map({value: other}), series + - * / // % other, abs(series), "
    "series.round(digits), series.clip(a, b), == != < <= > >=, & | ~, series.between(a, b), series.isin([…]), "
    "series.isna(), series.notna(), series.fillna(value), series.where(condition, other), series.mask(condition, "
    "other), series.astype(type), series.str.<strip, lstrip, rstrip, lower, upper, title, replace, slice, len, "
    "find, count, startswith, endswith, contains, match, fullmatch, extract, get, split(…).str.get, json>(…), "
    "series.str[start:stop], series.str.to_datetime(format), series.dt.<year, month, day, hour, minute, second, "
    "day_of_week, strftime>, series.count(), series.<mean, median, quantile, hist>(lower=…, upper=…)"
)
_REGEX = frozenset(".^$*+?{}[]|()")
_INSTEAD = {
    "split": "Say regex=False if you mean just this text, or use str.replace(pattern, separator, regex=True) first.",
    "count": "Escape it if you mean just this text.",
}


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


class TextMethods(_Methods):
    """`series.str`."""

    _prefix = "str"
    _names = frozenset({"lstrip", "rstrip", "lower", "upper", "title", "len", "find", "json"})

    def __getitem__(self, key: int | builtins.slice) -> RemoteSeries:
        """A range of characters, or the piece of a split at an index."""
        return self._do("__getitem__", key)

    def strip(self, to_strip: str | None = None) -> RemoteSeries:
        """Strip characters from both ends."""
        return self._do("strip", to_strip)

    def replace(self, pat: str, repl: str, *, case: bool = True, regex: bool = False) -> RemoteSeries:
        """Replace every occurrence of a text, or of what a regular expression matches; the new text is literal."""
        if regex or not case:
            return self._do("sub", _pattern(pat, regex=regex, case=case), repl)
        return self._do("replace", pat, repl)

    def slice(self, start: int | None = None, stop: int | None = None) -> RemoteSeries:
        """Keep a range of characters."""
        return self[slice(start, stop)]

    def startswith(self, pat: str, na: bool = False) -> RemoteSeries:
        """Whether the text starts with another; `na` is for where there is no text."""
        return self._told("startswith", pat, na)

    def endswith(self, pat: str, na: bool = False) -> RemoteSeries:
        """Whether the text ends with another; `na` is for where there is no text."""
        return self._told("endswith", pat, na)

    def contains(self, pat: str, case: bool = True, *, na: bool = False, regex: bool = True) -> RemoteSeries:
        """Whether a regular expression matches somewhere, or a text is in it; `na` is for where there is no text."""
        if regex or not case:
            return self._told("matches", _pattern(pat, regex=regex, case=case), na)
        return self._told("contains", pat, na)

    def match(self, pat: str, case: bool = True, *, na: bool = False) -> RemoteSeries:
        """Whether a regular expression matches at the start; `na` is for where there is no text."""
        return self._told("matches", _pattern(rf"\A(?:{pat})", case=case), na)

    def fullmatch(self, pat: str, case: bool = True, *, na: bool = False) -> RemoteSeries:
        """Whether a regular expression matches the whole text; `na` is for where there is no text."""
        return self._told("matches", _pattern(rf"\A(?:{pat})\z", case=case), na)

    def count(self, pat: str) -> RemoteSeries:
        """How often a text occurs; written as a regular expression that stands for it, as pandas reads it.

        Raises:
            NotSupported: if the pattern can match more than one text.
        """
        return self._do("count", _text_of(pat, "count"))

    def extract(self, pat: str, group: int | None = None) -> RemoteSeries:
        """What a regular expression's group matches; a row without a match disappears unless `fillna` follows.

        Args:
            pat: the pattern.
            group: which; the first if there is one, or else the whole match.
        """
        return self._do("extract", pat, group)

    def split(self, pat: str | None = None, *, regex: bool | None = None) -> RemoteSeries:
        """Split at a separator; take a piece with `.str.get(index)`.

        Args:
            pat: the separator.
            regex: False to take it as it is; otherwise, as in pandas, one of several characters is read as a regular
                expression, and must stand for one text.

        Raises:
            NotSupported: if the separator can match more than one text.
        """
        if pat is not None and (regex or (regex is None and len(pat) > 1)):
            pat = _text_of(pat, "split")
        return self._do("split", pat)

    def get(self, i: int) -> RemoteSeries:
        """The piece of a split at an index; a row without it disappears unless `fillna` follows."""
        return self[i]

    def join(self, sep: str) -> RemoteSeries:
        """Join the pieces of a split."""
        return self._do("join", sep)

    def to_datetime(self, form: str) -> RemoteSeries:
        """Parse timestamps, with a format as of `strptime`."""
        return self._do("strptime", form)

    def _told(self, name: str, pattern: str, na: bool) -> RemoteSeries:
        return self._do(name, pattern).fillna(na)


class TimeMethods(_Methods):
    """`series.dt`."""

    _prefix = "dt"
    _names = frozenset({"strftime"})
    _parts = frozenset({"year", "month", "day", "hour", "minute", "second"})
    _weekdays = frozenset({"weekday", "dayofweek", "day_of_week"})

    def __getattr__(self, name: str) -> Any:
        if name in self._parts:
            return self._series._record(lambda proxy: getattr(proxy, name), f"dt.{name}")
        if name in self._weekdays:
            return self._series._record(lambda proxy: proxy.weekday(), f"dt.{name}")
        return super().__getattr__(name)


def _pattern(pattern: str, *, regex: bool = True, case: bool) -> str:
    """Return a regular expression for a pattern, or for a text."""
    return ("" if case else "(?i)") + (pattern if regex else re.escape(pattern))


def _text_of(pattern: str, method: str) -> str:
    """Return the one text that a regular expression stands for.

    Raises:
        NotSupported: if it is more than that.
    """
    found, rest = [], iter(pattern)
    for character in rest:
        taken = next(rest, "") if character == "\\" else character
        if not taken or (character == "\\" and taken.isalnum()) or character in _REGEX:
            raise NotSupported(
                f"pandas reads {pattern!r} in `str.{method}` as a regular expression; on a remote column it takes a "
                f"text. {_INSTEAD[method]}"
            )
        found.append(taken)
    return "".join(found)
