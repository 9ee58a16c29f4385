"""Random expressions of Python that mean the same for the values of a row and for the stand-ins of remote columns.

What Python spells as a function, or as an operator that stand-ins cannot have, has a name here and two meanings.
"""

from __future__ import annotations

import operator
import random
from collections.abc import Callable
from datetime import datetime
from typing import Any

from murmura import where

TEXTS = [
    "", "a,b", "12", "-3.5", " x ", "ß\u0301\U0001f600", "2020-02-29", "True", "Ünïcode İı", "abc abc",
    "tab\tline\r\x0b\x1c\x85", "ǆ ŉ ﬁ", "O'Neil's", "\u2003em\u3000", "1e5", "١٢", "_1_0", "+7", "inf", "Σας ΣΑΣ",
    "aaa", "ab" * 40, "\x00z", "I\u0307",
]  # fmt: skip
WHOLE = [0, 1, -1, 2, 3, 7, -7, 2**31, -(2**63), 2**63 - 1, 10**9]
BROKEN = [0.0, -0.0, 0.5, -2.5, 1.5, 1e308, -1e308, 5e-324, 1 / 3, 1e16, 123456.789]
MOMENTS = [
    datetime(2020, 2, 29, 13, 5, 9, 123456),
    datetime(1, 1, 1),
    datetime(9999, 12, 31, 23, 59, 59, 999999),
    datetime(1969, 12, 31),
]
COLUMNS = {"t": "STRING", "u": "STRING", "i": "INTEGER", "j": "INTEGER", "f": "FLOAT", "b": "BOOLEAN", "d": "TIMESTAMP"}
_VALUES: dict[str, list[Any]] = {
    "STRING": TEXTS, "INTEGER": WHOLE, "FLOAT": BROKEN, "BOOLEAN": [True, False], "TIMESTAMP": MOMENTS,
}  # fmt: skip


class Number(int):
    """An integer of 64 bits; what needs more has no value."""


def _bounded(name: str) -> Callable[..., Any]:
    def compute(self: Number, *others: Any) -> Any:
        return number(getattr(int, name)(self, *others))

    return compute


for _name in ("add", "sub", "mul", "floordiv", "mod"):
    setattr(Number, f"__{_name}__", _bounded(f"__{_name}__"))
    setattr(Number, f"__r{_name}__", _bounded(f"__r{_name}__"))
for _name in ("neg", "abs"):
    setattr(Number, f"__{_name}__", _bounded(f"__{_name}__"))


def number(value: Any) -> Any:
    """Return an integer as `Number`, and everything else as it is.

    Raises:
        OverflowError: if it needs more than 64 bits.
    """
    if type(value) is int and not -(1 << 63) <= value < 1 << 63:
        raise OverflowError
    return Number(value) if type(value) is int else value


def _choose(condition: bool, one: Any, other: Any) -> Any:
    return one if condition else other


HERE: dict[str, Callable[..., Any]] = {
    "where": _choose,
    "no": operator.not_,
    "length": lambda text: Number(len(text)),
    "find": lambda text, part: Number(text.find(part)),
    "count": lambda text, part: Number(text.count(part)),
    "has": operator.contains,
    "join": lambda parts, mark: mark.join(parts),
    "among": lambda value, *options: value in options,
    "between": lambda value, low, high: low <= value <= high,
    "clip": lambda value, low, high: low if value < low else high if value > high else value,
    "part": lambda moment, name: Number(getattr(moment, name)),
    "weekday": lambda moment: Number(moment.weekday()),
    "parse": datetime.strptime,
    "to": lambda value, kind: number(kind(value)),
    "lookup": lambda value, table, other: number(table.get(value, other)),
}
THERE: dict[str, Callable[..., Any]] = {
    "where": where,
    "no": operator.invert,
    "length": lambda text: text.len(),
    "find": lambda text, part: text.find(part),
    "count": lambda text, part: text.count(part),
    "has": lambda text, part: text.contains(part),
    "join": lambda parts, mark: parts.join(mark),
    "among": lambda value, *options: value.isin(options),
    "between": lambda value, low, high: value.between(low, high),
    "clip": lambda value, low, high: value.clip(low, high),
    "part": getattr,
    "weekday": lambda moment: moment.weekday(),
    "parse": lambda text, form: text.strptime(form),
    "to": lambda value, kind: value.astype(kind),
    "lookup": lambda value, table, other: value.map(table).fillna(other),
}


class Programs:
    """Makes programs.

    Args:
        chance: where chance comes from.
    """

    def __init__(self, chance: random.Random) -> None:
        self._chance = chance

    def row(self) -> dict[str, Any]:
        """Return a value for each column."""
        return {name: number(self._chance.choice(_VALUES[kind])) for name, kind in COLUMNS.items()}

    def of(self, kind: str, depth: int) -> str:
        """Return a program that makes a value of a kind.

        Args:
            kind: of `COLUMNS`.
            depth: of operations, at most.
        """
        pick = self._chance.choice
        if depth <= 0 or self._chance.random() < 0.1:
            return pick([name for name, found in COLUMNS.items() if found == kind])
        if self._chance.random() < 0.1:
            return f"where({self.of('BOOLEAN', depth - 1)}, {self.of(kind, depth - 1)}, {self.of(kind, depth - 1)})"
        form = pick(_FORMS[kind])
        holes = {
            "S": lambda: self.of("STRING", depth - 1),
            "I": lambda: self.of("INTEGER", depth - 1),
            "F": lambda: self.of("FLOAT", depth - 1),
            "N": lambda: self.of(pick(["INTEGER", "FLOAT"]), depth - 1),
            "B": lambda: self.of("BOOLEAN", depth - 1),
            "D": lambda: self.of("TIMESTAMP", depth - 1),
            "s": lambda: self._constant("STRING", depth),
            "i": lambda: self._constant("INTEGER", depth),
            "f": lambda: self._constant("FLOAT", depth),
            "n": lambda: str(pick([0, 1, -1, 2, -3, 100, -100])),
            "c": lambda: repr(pick(TEXTS)),
            "m": lambda: repr(pick([",", "a", " ", "ab", '"', "\u0301"])),
            "o": lambda: pick(["<", "<=", ">", ">=", "==", "!="]),
            "a": lambda: pick(["+", "-", "*", "//", "%"]),
            "w": lambda: pick(["lower", "upper", "title", "strip", "lstrip", "rstrip"]),
            "e": lambda: pick(["strip", "lstrip", "rstrip"]),
            "p": lambda: repr(pick(["year", "month", "day", "hour", "minute", "second"])),
            "t": lambda: repr(pick(["%d/%m/%Y", "%H:%M:%S", "%j", "%A %b", "%y%%"])),
        }
        return "".join(holes[piece]() if even else piece for piece, even in _split(form))

    def _constant(self, kind: str, depth: int) -> str:
        constant = self._chance.random() < 0.6
        return repr(self._chance.choice(_VALUES[kind])) if constant else self.of(kind, depth - 1)


def _split(form: str) -> list[tuple[str, bool]]:
    """Return the pieces of a form, and of each whether it stands for something."""
    return [(piece, index % 2 == 1) for index, piece in enumerate(form.split("$"))]


# Between dollar signs is what stands for something. F-strings of Python 3.11 hold no quotes; `format` does the same.
_FORMS = {
    "STRING": [
        "$S$.$w$()", "$S$.$w$()", "$S$.$e$($c$)", "$S$.replace($c$, $c$)", "$S$[$n$:$n$]", "$S$[:$n$]", "($S$ + $s$)",
        "'<{}|{}>'.format($S$, $N$)", "'<{}|{}>'.format($S$, $B$).$w$()", "$S$.split($m$)[$n$]",
        "join($S$.split($m$), '; ')", "to($N$, str)", "to($B$, str)", "$D$.strftime($t$)",
        "lookup($S$, {'a,b': 'one', '12': 'two', '': 'none'}, 'more')",
    ],
    "BOOLEAN": [
        "($B$ & $B$)", "($B$ | $B$)", "($B$ ^ $B$)", "no($B$)", "($S$ $o$ $s$)", "($N$ $o$ $i$)", "($N$ $o$ $f$)",
        "($D$ $o$ $D$)", "$S$.startswith($s$)", "$S$.endswith($s$)", "has($S$, $s$)", "among($S$, $c$, $c$, $c$)",
        "between($N$, -5, 2.5)", "to($N$, bool)",
    ],
    "INTEGER": [
        "($I$ $a$ $i$)", "($i$ $a$ $I$)", "(-$I$)", "abs($I$)", "length($S$)", "find($S$, $s$)", "count($S$, $c$)",
        "to($S$, int)", "to($F$, int)", "to($B$, int)", "part($D$, $p$)", "weekday($D$)",
        "lookup($S$, {'a,b': 1, '12': 2}, 0)",
    ],
    "FLOAT": [
        "($F$ $a$ $i$)", "($F$ $a$ $f$)", "($f$ $a$ $F$)", "($N$ / $f$)", "(-$F$)", "abs($F$)", "round($F$, $n$)",
        "to($S$, float)", "to($I$, float)", "clip($F$, -2.5, 1e16)",
    ],
    "TIMESTAMP": ["parse($S$, '%Y-%m-%d')", "$D$"],
}  # fmt: skip
