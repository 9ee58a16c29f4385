"""Objects, their versions, and what has happened to them."""

from __future__ import annotations

import asyncio
import bisect
import copy
import json
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import kubernetes_validate

VERSION = "1.36"
FOREGROUND = "foregroundDeletion"
Key = tuple[str, str, str]


class ApiError(Exception):
    """A refusal, as the API server words it."""

    def __init__(self, code: int, reason: str, message: str) -> None:
        super().__init__(message)
        self.code, self.reason, self.message = code, reason, message

    def status(self) -> dict[str, Any]:
        return {
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Failure",
            "message": self.message,
            "reason": self.reason,
            "code": self.code,
        }


@dataclass(frozen=True)
class Change:
    version: int
    kind: str
    plural: str
    namespace: str
    labels: dict[str, str]
    text: str


def now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


class Store:
    """All objects; used from the server's event loop alone."""

    def __init__(self) -> None:
        self.objects: dict[Key, dict[str, Any]] = {}
        self.history: list[Change] = []
        self.version = 100
        self.compacted = 0
        self.changed = asyncio.Condition()
        self._wake: asyncio.Task[None] | None = None

    def select(self, plural: str, namespace: str | None = None) -> Iterator[dict[str, Any]]:
        for (kind, where, _), found in list(self.objects.items()):
            if kind == plural and namespace in (None, "", where):
                yield found

    def get(self, plural: str, namespace: str, name: str) -> dict[str, Any]:
        found = self.objects.get((plural, namespace, name))
        if found is None:
            raise ApiError(404, "NotFound", f'{plural} "{name}" not found')
        return found

    def create(self, plural: str, namespace: str, body: dict[str, Any], strict: bool = False) -> dict[str, Any]:
        if strict:
            check(body)
        body = copy.deepcopy(body)
        meta = body.setdefault("metadata", {})
        name = meta.get("name") or meta.get("generateName", "") + uuid.uuid4().hex[:5]
        if (plural, namespace, name) in self.objects:
            raise ApiError(409, "AlreadyExists", f'{plural} "{name}" already exists')
        if len(name) > 63:
            raise ApiError(
                422, "Invalid", f'{plural} "{name}" is invalid: metadata.name: must be at most 63 characters'
            )
        meta.update(name=name, uid=str(uuid.uuid4()), creationTimestamp=now(), generation=1)
        if namespace:
            meta["namespace"] = namespace
        self.objects[plural, namespace, name] = body
        self._note("ADDED", plural, body)
        return body

    def update(self, plural: str, found: dict[str, Any], change: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
        """Change an object in place; removes it when it was deleted and its last finalizer goes."""
        before = json.dumps(found)
        change(found)
        if json.dumps(found) == before:
            return found
        meta = found["metadata"]
        # A pod that has time to end is taken out by its node, one that has none at once.
        at_once = plural != "pods" or meta.get("deletionGracePeriodSeconds") == 0
        if meta.get("deletionTimestamp") and not meta.get("finalizers") and at_once:
            self.remove(plural, found)
        else:
            self._note("MODIFIED", plural, found)
        return found

    def replace(self, plural: str, namespace: str, name: str, body: dict[str, Any]) -> dict[str, Any]:
        found = self.get(plural, namespace, name)
        wanted = body.get("metadata", {}).get("resourceVersion")
        if wanted and wanted != found["metadata"]["resourceVersion"]:
            raise ApiError(
                409, "Conflict", f'Operation cannot be fulfilled on {plural} "{name}": the object was modified'
            )

        def change(object: dict[str, Any]) -> None:
            kept = {key: object["metadata"][key] for key in ("uid", "creationTimestamp", "resourceVersion")}
            object.clear()
            object.update(copy.deepcopy(body))
            object["metadata"].update(kept, name=name, namespace=namespace)

        return self.update(plural, found, change)

    def delete(self, plural: str, namespace: str, name: str, options: dict[str, Any]) -> dict[str, Any]:
        found = self.get(plural, namespace, name)
        meta = found["metadata"]
        wanted = options.get("preconditions", {}).get("uid")
        if wanted and wanted != meta["uid"]:
            raise ApiError(
                409,
                "Conflict",
                f"Precondition failed: UID in precondition: {wanted}, UID in object meta: {meta['uid']}",
            )
        grace = options.get("gracePeriodSeconds")

        def mark(object: dict[str, Any]) -> None:
            object["metadata"].setdefault("deletionTimestamp", now())
            if options.get("propagationPolicy") == "Foreground" and FOREGROUND not in object["metadata"].get(
                "finalizers", []
            ):
                object["metadata"].setdefault("finalizers", []).append(FOREGROUND)
            if grace is not None:
                object["metadata"]["deletionGracePeriodSeconds"] = grace

        finished = plural == "pods" and (
            grace == 0
            or not found.get("spec", {}).get("nodeName")
            or found.get("status", {}).get("phase") in ("Succeeded", "Failed")
        )
        if (
            not meta.get("finalizers")
            and options.get("propagationPolicy") != "Foreground"
            and (finished or plural != "pods")
        ):
            self.remove(plural, found)
            return found
        self.update(plural, found, mark)
        return found

    def remove(self, plural: str, found: dict[str, Any]) -> None:
        meta = found["metadata"]
        if self.objects.pop((plural, meta.get("namespace", ""), meta["name"]), None) is not None:
            self._note("DELETED", plural, found)

    def dependents(self, uid: str) -> Iterator[tuple[str, dict[str, Any]]]:
        for (plural, _, _), found in list(self.objects.items()):
            if any(owner["uid"] == uid for owner in found["metadata"].get("ownerReferences", [])):
                yield plural, found

    def since(self, version: int) -> list[Change]:
        """Return what has happened after a version."""
        return self.history[bisect.bisect_right(self.history, version, key=lambda change: change.version) :]

    def compact(self) -> None:
        """Forget what has happened: whoever asks for it is told to list again."""
        self.compacted = self.version
        self.history.clear()

    def _note(self, kind: str, plural: str, found: dict[str, Any]) -> None:
        self.version += 1
        found["metadata"]["resourceVersion"] = str(self.version)
        meta = found["metadata"]
        line = json.dumps({"type": kind, "object": found})
        labels = dict(meta.get("labels", {}))
        self.history.append(Change(self.version, kind, plural, meta.get("namespace", ""), labels, line))
        self._wake = asyncio.ensure_future(self._tell())

    async def _tell(self) -> None:
        async with self.changed:
            self.changed.notify_all()


_known_shapes: set[str] = set()


def check(body: dict[str, Any]) -> None:
    """Refuse what a strict server refuses: unknown fields, wrong types. Each shape is looked at once: it takes long."""
    shape = repr(_shape(body))
    if shape in _known_shapes:
        return
    try:
        kubernetes_validate.validate(body, VERSION, strict=True)
    except kubernetes_validate.ValidationError as problem:
        raise ApiError(400, "BadRequest", f"strict decoding error: {problem}") from None
    except kubernetes_validate.SchemaNotFoundError:
        # Of somebody else's API, such as cert-manager's: only its own webhook would know.
        pass
    _known_shapes.add(shape)


def _shape(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _shape(inner) for key, inner in value.items()}
    return [_shape(inner) for inner in value] if isinstance(value, list) else type(value).__name__


def event(store: Store, about: dict[str, Any], reason: str, message: str, source: str) -> None:
    """Tell of something, once for each message."""
    meta = about["metadata"]
    for found in store.select("events", meta["namespace"]):
        if found["involvedObject"]["uid"] == meta["uid"] and found["message"] == message:
            return
    store.create(
        "events",
        meta["namespace"],
        {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"name": f"{meta['name'][:40]}.{uuid.uuid4().hex[:12]}"},
            "involvedObject": {
                "kind": about["kind"],
                "name": meta["name"],
                "namespace": meta["namespace"],
                "uid": meta["uid"],
            },
            "reason": reason,
            "message": message,
            "type": "Warning",
            "source": {"component": source},
            "lastTimestamp": now(),
        },
    )
