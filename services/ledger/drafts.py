"""Copies of the state: whole ones, and drafts that cost only what they change."""

from __future__ import annotations

from collections import ChainMap
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
        # What the mappings hold is immutable, and nothing is ever deleted from the large ones.
        self._changes: dict[str, dict[Any, Any]] = {name: {} for name in _MAPS}
        maps: dict[str, Any] = {name: ChainMap(self._changes[name], getattr(base, name)) for name in _MAPS}
        self.state = State(**maps, rollback=base.rollback, lost=list(base.lost), debts=dict(base.debts))

    def adopt(self) -> None:
        """Change the other as the draft was changed."""
        for name, changes in self._changes.items():
            getattr(self._base, name).update(changes)
        self._base.rollback, self._base.lost, self._base.debts = (
            self.state.rollback,
            self.state.lost,
            self.state.debts,
        )


def copied(state: State) -> State:
    """Return a state that does not change when the other does."""
    maps: dict[str, Any] = {name: dict(getattr(state, name)) for name in _MAPS}
    return State(**maps, rollback=state.rollback, lost=list(state.lost), debts=dict(state.debts))
