"""What the server says of itself, so that `kubectl` knows what there is and that fields are checked here."""

from __future__ import annotations

from typing import Any

from aiohttp import web

CLUSTER_WIDE = {"Namespace", "Node", "ClusterRole", "ClusterRoleBinding", "NodePool", "PriorityClass"}
VERBS = ["create", "delete", "get", "list", "patch", "update", "watch"]
# Plural to (group, apiVersion, kind), as in `rest.KINDS`.
Kinds = dict[str, tuple[str, str, str]]


def plural_of(kind: str) -> str:
    """Return the plural of a kind, as Kubernetes makes them."""
    name = kind.lower()
    if name.endswith("y") and name[-2] not in "aeiou":
        return f"{name[:-1]}ies"
    return f"{name}es" if name.endswith("s") else f"{name}s"


def routes(kinds: Kinds) -> list[web.RouteDef]:
    """Return the routes of discovery and of the schema, over the kinds as they stand when asked."""

    async def api(request: web.Request) -> web.Response:
        return web.json_response({"kind": "APIVersions", "versions": ["v1"]})

    async def groups(request: web.Request) -> web.Response:
        found = []
        for group in sorted({group for group, _, _ in kinds.values() if group}):
            versions = sorted({version for other, version, _ in kinds.values() if other == group})
            listed = [{"groupVersion": version, "version": version.partition("/")[2]} for version in versions]
            found.append({"name": group, "versions": listed, "preferredVersion": listed[-1]})
        return web.json_response({"kind": "APIGroupList", "apiVersion": "v1", "groups": found})

    async def resources(request: web.Request) -> web.Response:
        version = _version(request)
        found = [
            {
                "name": plural,
                "singularName": kind.lower(),
                "namespaced": kind not in CLUSTER_WIDE,
                "kind": kind,
                "verbs": VERBS,
            }
            for plural, (_, its, kind) in kinds.items()
            if its == version
        ]
        return web.json_response({"kind": "APIResourceList", "groupVersion": version, "resources": found})

    async def schemas(request: web.Request) -> web.Response:
        places = {
            version: f"api/{version}" if "/" not in version else f"apis/{version}" for _, version, _ in kinds.values()
        }
        listed = {place: {"serverRelativeURL": f"/openapi/v3/{place}"} for place in places.values()}
        return web.json_response({"paths": listed})

    async def schema(request: web.Request) -> web.Response:
        """Say of each kind that a write may ask for strict fields; what they are, the server knows."""
        version = _version(request)
        return web.json_response({"openapi": "3.0.0", "paths": _writes(kinds, version)})

    return [
        web.get("/api", api),
        web.get("/apis", groups),
        web.get("/api/v1", resources),
        web.get("/apis/{group}/{version}", resources),
        web.get("/openapi/v3", schemas),
        web.get("/openapi/v3/api/v1", schema),
        web.get("/openapi/v3/apis/{group}/{version}", schema),
    ]


def _version(request: web.Request) -> str:
    info = request.match_info
    return f"{info['group']}/{info['version']}" if "group" in info else "v1"


def _writes(kinds: Kinds, version: str) -> dict[str, Any]:
    parameters = [{"name": "fieldValidation", "in": "query", "schema": {"type": "string"}}]
    paths = {}
    for plural, (group, its, kind) in kinds.items():
        if its == version:
            gvk = {"group": group, "version": version.rpartition("/")[2], "kind": kind}
            write = {"x-kubernetes-group-version-kind": gvk, "parameters": parameters, "responses": {}}
            paths[f"/{plural}/{{name}}"] = {"patch": {**write, "x-kubernetes-action": "patch"}}
    return paths
