"""What is in the cluster, kept up to date: a list, then a watch, and a list again whenever in doubt.

The client's own informer asks a server that is down thousands of times in a second, and waits for ever for one that has
frozen. This one has an end to every wait, pauses that grow, and lists anew from time to time, so that what a watch has
missed is found.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable

import structlog

from services.common.errors import unknown
from services.trainer.cluster.client import Cluster, ClusterError, Object

_WATCH_S = 60
_PAUSE_S, _MOST_PAUSE_S = 0.1, 10.0
_GONE = 410
_log = structlog.get_logger()


class Watched:
    """The objects of one kind.

    Args:
        cluster: where they are.
        kind: which.
        selector: labels that they have.
        by: the label by which they are found.
        changed: is called with each object that appears, changes or goes, from the thread that watches.
        resync_s: between two full lists.
        watch_s: a watch is ended and begun anew after so long.
    """

    def __init__(
        self,
        cluster: Cluster,
        kind: str,
        selector: str,
        by: str,
        changed: Callable[[Object, bool], None],
        resync_s: float,
        watch_s: int = _WATCH_S,
    ) -> None:
        self._cluster, self._kind, self._selector = cluster, kind, selector
        self._changed, self._resync_s, self._watch_s = changed, resync_s, watch_s
        self._by = by
        self._objects: dict[str, Object] = {}
        self._groups: dict[str, dict[str, Object]] = {}
        self._lock = threading.Lock()
        self._listed = threading.Event()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._follow, name=f"watch {kind}", daemon=True)

    def start(self) -> None:
        """Begin to watch."""
        self._thread.start()

    def ready(self, timeout_s: float) -> bool:
        """Wait for the first list; says whether it has come."""
        return self._listed.wait(timeout_s)

    def all(self) -> list[Object]:
        """Return the objects as last heard of."""
        with self._lock:
            return list(self._objects.values())

    def of(self, value: str) -> list[Object]:
        """Return the objects whose label has a value."""
        with self._lock:
            return list(self._groups.get(value, {}).values())

    def get(self, name: str) -> Object | None:
        """Return an object as last heard of, or None."""
        with self._lock:
            return self._objects.get(name)

    def note(self, found: Object) -> None:
        """Take an object that a call has returned, before the watch tells of it."""
        self._put(found)

    def close(self) -> None:
        """Watch no longer; the thread ends by itself."""
        self._closing.set()

    def _follow(self) -> None:
        pause_s = _PAUSE_S
        while not self._closing.is_set():
            try:
                version = self._list()
                pause_s = _PAUSE_S
                resync = time.monotonic() + self._resync_s
                while not self._closing.is_set() and time.monotonic() < resync:
                    version = self._watch(version)
            except Exception as error:
                if not isinstance(error, ClusterError):
                    # Whatever it was, a trainer that is blind from here on would be worse.
                    unknown(error)
                elif error.code != _GONE and not self._closing.is_set():
                    _log.warning("cluster does not answer", kind=self._kind, code=error.code, why=error.words)
                self._closing.wait(pause_s * random.uniform(0.5, 1))  # noqa: S311 - spreads load, no secret
                pause_s = min(2 * pause_s, _MOST_PAUSE_S)

    def _list(self) -> str:
        found, version = self._cluster.listed(self._kind, self._selector)
        names = {one["metadata"]["name"] for one in found}
        for one in found:
            self._put(one)
        with self._lock:
            # What was created after the list was made is not gone.
            gone = [
                one
                for name, one in self._objects.items()
                if name not in names and int(one["metadata"]["resourceVersion"]) <= int(version)
            ]
        for one in gone:
            self._drop(one)
        self._listed.set()
        return version

    def _watch(self, version: str) -> str:
        for event in self._cluster.watched(self._kind, version, self._selector, self._watch_s):
            found = event["object"]
            if event["type"] == "ERROR":
                raise ClusterError(int(found.get("code", 0)), str(found.get("message", "")))
            version = found["metadata"]["resourceVersion"]
            if event["type"] == "DELETED":
                self._drop(found)
            elif event["type"] != "BOOKMARK":
                self._put(found)
            if self._closing.is_set():
                break
        return version

    def _put(self, found: Object) -> None:
        name = found["metadata"]["name"]
        with self._lock:
            known = self._objects.get(name)
            if known is not None and _version(known) >= _version(found):
                return
            self._objects[name] = found
            self._groups.setdefault(self._group(found), {})[name] = found
        self._changed(found, False)

    def _drop(self, found: Object) -> None:
        with self._lock:
            known = self._objects.get(found["metadata"]["name"])
            if known is None or known["metadata"]["uid"] != found["metadata"]["uid"]:
                return
            del self._objects[found["metadata"]["name"]]
            group = self._groups[self._group(known)]
            del group[found["metadata"]["name"]]
            if not group:
                del self._groups[self._group(known)]
        self._changed(found, True)

    def _group(self, found: Object) -> str:
        return str(found["metadata"].get("labels", {}).get(self._by, ""))


def _version(found: Object) -> int:
    """Return an object's version; they are numbers that grow (KEP-5504)."""
    return int(found["metadata"]["resourceVersion"])
