"""Copies of the state: whole ones, and drafts that cost only what they change."""

from __future__ import annotations

from collections.abc import Iterator, MutableMapping
from dataclasses import fields
from typing import Any

from services.ledger.state import State

_MAPS = ("accounts", "grants", "reservations", "cap_changes", "requests")
assert {*_MAPS, "rollback", "lost", "debts"} == {part.name for part in fields(State)}  # noqa: S101 - or a copy lacks it


class Draft:
    """A state that starts as another, and whose changes leave that one alone until they are adopted.

    Args:
        base: the other.

    Attributes:
        state: the draft.
    """

    def __init__(self, base: State) -> None:
        self._base = base
        maps: dict[str, Any] = {name: _Overlay(getattr(base, name)) for name in _MAPS}
        self.state = State(**maps, rollback=base.rollback, lost=list(base.lost), debts=dict(base.debts))

    def adopt(self) -> None:
        """Change the other as the draft was changed."""
        for name in _MAPS:
            getattr(self._base, name).update(getattr(self.state, name).changes)
        self._base.rollback, self._base.lost, self._base.debts = (
            self.state.rollback,
            self.state.lost,
            self.state.debts,
        )


class _Overlay(MutableMapping[Any, Any]):
    """A mapping's changes over the mapping. What it holds is immutable, and nothing is ever deleted from it."""

    def __init__(self, below: dict[Any, Any]) -> None:
        self.changes: dict[Any, Any] = {}
        self._below = below

    def __getitem__(self, key: Any) -> Any:
        return self.changes[key] if key in self.changes else self._below[key]

    def get(self, key: Any, default: Any = None) -> Any:
        return self.changes[key] if key in self.changes else self._below.get(key, default)

    def __contains__(self, key: object) -> bool:
        return key in self.changes or key in self._below

    def __setitem__(self, key: Any, value: Any) -> None:
        self.changes[key] = value

    def __delitem__(self, key: Any) -> None:
        raise NotImplementedError

    def __iter__(self) -> Iterator[Any]:
        return iter(self._below | self.changes)

    def __len__(self) -> int:
        return len(self._below | self.changes)


def copied(state: State) -> State:
    """Return a state that does not change when the other does."""
    maps: dict[str, Any] = {name: dict(getattr(state, name)) for name in _MAPS}
    return State(**maps, rollback=state.rollback, lost=list(state.lost), debts=dict(state.debts))
