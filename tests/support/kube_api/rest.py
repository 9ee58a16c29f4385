"""The HTTP face: paths, selectors, patches, watches, who may do what."""

from __future__ import annotations

import asyncio
import copy
import json
import time
from typing import TYPE_CHECKING, Any

from aiohttp import web

from tests.support.kube_api import discovery, protobuf
from tests.support.kube_api.store import ApiError, Change

if TYPE_CHECKING:
    from tests.support.kube_api.server import KubeApi

KINDS = {
    "jobs": ("batch", "batch/v1", "Job"),
    "pods": ("", "v1", "Pod"),
    "services": ("", "v1", "Service"),
    "secrets": ("", "v1", "Secret"),
    "configmaps": ("", "v1", "ConfigMap"),
    "events": ("", "v1", "Event"),
    "nodes": ("", "v1", "Node"),
    "networkpolicies": ("networking.k8s.io", "networking.k8s.io/v1", "NetworkPolicy"),
    "leases": ("coordination.k8s.io", "coordination.k8s.io/v1", "Lease"),
    "namespaces": ("", "v1", "Namespace"),
}
_VERBS = {"POST": "create", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}


def application(api: KubeApi) -> web.Application:
    """Return the server's routes."""
    rest = Rest(api)
    app = web.Application(middlewares=[rest.guard])
    app.router.add_routes(discovery.routes(api.kinds))
    for base in ("/api/v1", "/apis/{group}/{version}"):
        for path in ("/namespaces/{namespace}", ""):
            for tail in ("/{plural}", "/{plural}/{name}", "/{plural}/{name}/{sub}"):
                app.router.add_route("*", base + path + tail, rest.handle)
    return app


class Rest:
    """Handles requests."""

    def __init__(self, api: KubeApi) -> None:
        self._api = api
        self._store = api.store

    @web.middleware
    async def guard(self, request: web.Request, handler: Any) -> web.StreamResponse:
        try:
            await self._api.faults.before()
            return await handler(request)
        except ConnectionError:
            raise asyncio.CancelledError from None  # whoever asked has gone away
        except ApiError as problem:
            return web.json_response(
                problem.status(), status=problem.code, headers=self._api.faults.headers(problem.code)
            )

    async def handle(self, request: web.Request) -> web.StreamResponse:
        info = request.match_info
        plural, name, sub = info["plural"], info.get("name", ""), info.get("sub", "")
        namespace = info.get("namespace", "")
        watching = request.query.get("watch") in ("true", "True", "1")
        verb = _VERBS.get(request.method) or ("watch" if watching else "get" if name else "list")
        self._authorise(request, info.get("group", ""), f"{plural}/{sub}" if sub else plural, verb)
        self._api.requests.append((verb, f"{plural}/{sub}" if sub else plural, name))
        if plural == "tokenreviews":
            return web.json_response(self._review(await request.json()), status=201)
        if plural not in self._api.kinds:
            raise ApiError(404, "NotFound", f"the server could not find {plural}")
        if sub == "log":
            return web.Response(text=self._api.kubelet.log(namespace, name, request.query.get("tailLines")))
        if request.method == "POST":
            strict = request.query.get("fieldValidation") == "Strict"
            return web.json_response(self._store.create(plural, namespace, await _object(request), strict), status=201)
        if request.method == "DELETE":
            options = json.loads(await request.text() or "{}")
            return web.json_response(self._store.delete(plural, namespace, name, options))
        if request.method == "PUT":
            return web.json_response(self._store.replace(plural, namespace, name, await request.json()))
        if request.method == "PATCH":
            return web.json_response(self._patch(plural, namespace, name, json.loads(await request.text())))
        if watching:
            return await self._watch(request, plural, namespace)
        if name:
            return web.json_response(self._store.get(plural, namespace, name))
        return web.json_response(self._list(request, plural, namespace))

    def _authorise(self, request: web.Request, group: str, resource: str, verb: str) -> None:
        token = request.headers.get("authorization", "").removeprefix("Bearer ")
        rules = self._api.users.get(token)
        if rules is None:
            raise ApiError(401, "Unauthorized", "Unauthorized")
        if rules != "all" and (group, resource, verb) not in rules:
            raise ApiError(
                403,
                "Forbidden",
                f'{resource} is forbidden: User cannot {verb} resource "{resource}" in API group "{group}"',
            )

    def _list(self, request: web.Request, plural: str, namespace: str) -> dict[str, Any]:
        found = [o for o in self._store.select(plural, namespace or None) if _matches(o, request)]
        _, version, kind = self._api.kinds[plural]
        limit, skipped = int(request.query.get("limit") or 0), int(request.query.get("continue") or 0)
        meta = {"resourceVersion": str(self._store.version)}
        if limit and len(found) > skipped + limit:
            meta["continue"] = str(skipped + limit)
        page = found[skipped : skipped + limit] if limit else found
        return {"apiVersion": version, "kind": f"{kind}List", "metadata": meta, "items": page}

    async def _watch(self, request: web.Request, plural: str, namespace: str) -> web.StreamResponse:
        faults, store = self._api.faults, self._store
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        await response.prepare(request)
        seen = int(request.query.get("resourceVersion") or store.version)
        end = time.monotonic() + float(request.query.get("timeoutSeconds") or 300)
        bookmark = time.monotonic() + self._api.bookmark_s
        lives = faults.watches

        async def send(kind: str, what: dict[str, Any]) -> None:
            await response.write(json.dumps({"type": kind, "object": what}).encode() + b"\n")

        while time.monotonic() < end and faults.watches == lives:
            await faults.stalled()
            if seen < store.compacted:
                await send("ERROR", ApiError(410, "Expired", f"too old resource version: {seen}").status())
                break
            for change in store.since(seen):
                seen = change.version
                if _concerns(change, plural, namespace) and _labelled(change.labels, request):
                    await response.write(change.text.encode() + b"\n")
            seen = max(seen, store.version)
            if time.monotonic() > bookmark and request.query.get("allowWatchBookmarks"):
                bookmark = time.monotonic() + self._api.bookmark_s
                _, version, kind = self._api.kinds[plural]
                await send(
                    "BOOKMARK", {"apiVersion": version, "kind": kind, "metadata": {"resourceVersion": str(seen)}}
                )
            async with store.changed:
                try:
                    async with asyncio.timeout(0.25):
                        await store.changed.wait_for(lambda seen=seen: store.version > seen)
                except TimeoutError:
                    pass
        return response

    def _patch(self, plural: str, namespace: str, name: str, patch: Any) -> dict[str, Any]:
        found = self._store.get(plural, namespace, name)
        if isinstance(patch, list):
            changed = copy.deepcopy(found)
            for step in patch:
                _step(changed, step)
        else:
            changed = _merge(copy.deepcopy(found), patch)

        def change(object: dict[str, Any]) -> None:
            object.clear()
            object.update(changed)

        return self._store.update(plural, found, change)

    def _review(self, body: dict[str, Any]) -> dict[str, Any]:
        spec = body["spec"]
        known = self._api.kubelet.tokens.get(spec["token"])
        pod = known and self._store.objects.get(("pods", known.namespace, known.pod))
        audiences = spec.get("audiences", ["https://kubernetes.default.svc"])
        if not known or not pod or pod["metadata"]["uid"] != known.uid or known.audience not in audiences:
            body["status"] = {"authenticated": False, "error": "invalid bearer token"}
            return body
        body["status"] = {
            "authenticated": True,
            "audiences": [known.audience],
            "user": {
                "username": f"system:serviceaccount:{known.namespace}:{known.account}",
                "extra": {
                    "authentication.kubernetes.io/pod-name": [known.pod],
                    "authentication.kubernetes.io/pod-uid": [known.uid],
                },
            },
        }
        return body


async def _object(request: web.Request) -> dict[str, Any]:
    if "protobuf" not in request.content_type:
        found: dict[str, Any] = await request.json()
        return found
    try:
        return protobuf.read(await request.read())
    except ValueError as problem:
        raise ApiError(415, "UnsupportedMediaType", str(problem)) from None


def _concerns(change: Change, plural: str, namespace: str) -> bool:
    return change.plural == plural and namespace in ("", change.namespace)


def _labelled(labels: dict[str, str], request: web.Request) -> bool:
    terms = [term.partition("=") for term in request.query.get("labelSelector", "").split(",") if term]
    return all(labels.get(key) == value.lstrip("=") for key, _, value in terms)


def _matches(found: dict[str, Any], request: web.Request) -> bool:
    if not _labelled(found["metadata"].get("labels", {}), request):
        return False
    for term in filter(None, request.query.get("fieldSelector", "").split(",")):
        path, _, value = term.partition("=")
        at: Any = found
        for part in path.split("."):
            at = at.get(part, {}) if isinstance(at, dict) else {}
        if at != value.lstrip("="):
            return False
    return True


def _step(document: Any, step: dict[str, Any]) -> None:
    *path, last = [part.replace("~1", "/").replace("~0", "~") for part in step["path"].lstrip("/").split("/")]
    try:
        for part in path:
            document = document[int(part)] if isinstance(document, list) else document[part]
        key: Any = int(last) if isinstance(document, list) and last != "-" else last
        if step["op"] == "test":
            if document[key] != step["value"]:
                raise ApiError(422, "Invalid", "the server rejected our request due to an error: testing value failed")
        elif step["op"] == "remove":
            del document[key]
        elif isinstance(document, list) and step["op"] == "add":
            document.insert(len(document) if last == "-" else key, step["value"])
        else:
            document[key] = step["value"]
    except (KeyError, IndexError):
        raise ApiError(422, "Invalid", f"the path {step['path']} does not exist") from None


def _merge(target: Any, patch: Any) -> Any:
    if not isinstance(patch, dict):
        return patch
    target = target if isinstance(target, dict) else {}
    for key, value in patch.items():
        if value is None:
            target.pop(key, None)
        else:
            target[key] = _merge(target.get(key), value)
    return target
