"""What the cluster tells of its objects: the newest events about each."""

from __future__ import annotations

from typing import Any

_EVENTS_EACH = 8


class Events:
    """Events, by the uid of what they are about; the cluster forgets them after an hour, and so does this.

    Attributes:
        told: of each uid, oldest first.
    """

    def __init__(self) -> None:
        self.told: dict[str, list[dict[str, Any]]] = {}

    def note(self, event: dict[str, Any], gone: bool) -> str:
        """Take an event that has come, changed or gone; returns the uid of what it is about."""
        uid = str(event["involvedObject"].get("uid", ""))
        told = [one for one in self.told.get(uid, []) if one["metadata"]["name"] != event["metadata"]["name"]]
        if not gone:
            told = [*told, event][-_EVENTS_EACH:]
        if told:
            self.told[uid] = told
        else:
            self.told.pop(uid, None)
        return uid
