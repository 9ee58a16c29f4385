"""The few calls that the trainer makes to a cluster, through the official client.

Objects travel as plain data both ways. The server validates strictly what is created, so that a field with a slip in
its name is refused and not dropped.
"""

from __future__ import annotations

import functools
import json
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import urllib3
from kubernetes import client
from kubernetes import config as kubernetes_config
from kubernetes.client.exceptions import ApiException

# Which rights the trainer's role needs, in the workers' namespace: (API group, resource, verbs).
RULES = (
    ("batch", "jobs", ("create", "get", "list", "watch", "delete", "patch")),
    ("", "pods", ("get", "list", "watch", "delete", "patch")),
    ("", "pods/log", ("get",)),
    ("", "events", ("list", "watch")),
    ("", "services", ("create", "get")),
    ("networking.k8s.io", "networkpolicies", ("create", "get")),
    ("coordination.k8s.io", "leases", ("create", "get", "update")),
)
# And in the whole cluster: to ask whose a pod's token is.
CLUSTER_RULES = (("authentication.k8s.io", "tokenreviews", ("create",)),)

_CONNECT_S, _READ_S = 3.05, 15.0
_TRIES = 4
_PAUSE_S, _MOST_PAUSE_S = 0.1, 5.0
_PAGE = 500
_PASSING = frozenset({429, 500, 502, 503, 504})
# More than jobs are started at once in the worst case; each waits for an answer of its own.
_CONNECTIONS = 32
# The client's class and noun, and the path, of each kind.
_KINDS: dict[str, tuple[Any, str, str]] = {
    "Job": (client.BatchV1Api, "job", "/apis/batch/v1/namespaces/{namespace}/jobs"),
    "Pod": (client.CoreV1Api, "pod", "/api/v1/namespaces/{namespace}/pods"),
    "Service": (client.CoreV1Api, "service", "/api/v1/namespaces/{namespace}/services"),
    "NetworkPolicy": (
        client.NetworkingV1Api,
        "network_policy",
        "/apis/networking.k8s.io/v1/namespaces/{namespace}/networkpolicies",
    ),
    "Event": (client.CoreV1Api, "event", "/api/v1/namespaces/{namespace}/events"),
    "Lease": (client.CoordinationV1Api, "lease", "/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases"),
}
Object = dict[str, Any]
_OPTIONS: Any = client.V1DeleteOptions


class ClusterError(Exception):
    """The cluster refuses, or does not answer.

    Attributes:
        code: HTTP status; 0 where there was no answer.
        words: the server's own, bounded; they are about objects of the trainer's and hold nothing private.
        pause_s: after which the server wishes to be asked again; 0 where it did not say.
    """

    def __init__(self, code: int, words: str, pause_s: float = 0.0) -> None:
        super().__init__(f"{code}: {words}")
        self.code, self.words, self.pause_s = code, words, pause_s


class Cluster:
    """One namespace of a cluster.

    Args:
        namespace: of the workers.
        kubeconfig: by default the pod's own service account is used.
        context: of the kubeconfig; empty: its current one.

    Raises:
        ClusterError: if there is neither.
    """

    def __init__(self, namespace: str, kubeconfig: Path | None = None, context: str = "") -> None:
        self.namespace = namespace
        settings = client.Configuration()
        load: Any = kubernetes_config
        try:
            if kubeconfig is None:
                load.load_incluster_config(client_configuration=settings)
            else:
                load.load_kube_config(str(kubeconfig), context=context or None, client_configuration=settings)
        except load.ConfigException as problem:
            raise ClusterError(0, f"{problem} Set MURMURA_CLUSTER_KUBECONFIG, or run in a pod.") from None
        except Exception as problem:  # so the library says of a file that is none: a TypeError, a YAML error, …
            raise ClusterError(0, f"{kubeconfig} cannot be used: {type(problem).__name__}.") from None
        settings.connection_pool_maxsize = _CONNECTIONS
        # Ours are counted in `_retrying`, with the server's own wish for a pause.
        settings.retries = urllib3.Retry(0)
        self._client: Any = client.ApiClient(settings)

    def create(self, body: Object) -> Object:
        """Create an object and return it.

        Raises:
            ClusterError: 409 where there is one of this name.
        """
        return self._sent("POST", "", body, [("fieldValidation", "Strict")])

    def get(self, kind: str, name: str) -> Object | None:
        """Return an object, or None."""
        call = self._call("read", kind)
        try:
            return self._retrying(lambda: call(name, self.namespace))
        except ClusterError as error:
            if error.code == 404:
                return None
            raise

    def replace(self, body: Object) -> Object:
        """Replace an object whose `resourceVersion` is still the one in the body.

        Raises:
            ClusterError: 409 where it has changed.
        """
        return self._sent("PUT", f"/{body['metadata']['name']}", body, [])

    def delete(self, kind: str, found: Object, grace_s: int | None = None) -> None:
        """Delete this very object, with all that it owns; does nothing where it is gone.

        Args:
            kind: its kind.
            found: as it was seen: another of the same name is left alone.
            grace_s: how long pods get to end; 0 takes a pod out of the cluster without asking its node.
        """
        options: Object = {"preconditions": {"uid": found["metadata"]["uid"]}, "propagationPolicy": "Foreground"}
        if grace_s is not None:
            options |= {"gracePeriodSeconds": grace_s, "propagationPolicy": "Background"}
        call, name = self._call("delete", kind), found["metadata"]["name"]
        try:
            self._retrying(lambda: call(name, self.namespace, body=_OPTIONS.model_validate(options)))
        except ClusterError as error:
            # 404: it is gone. 409: another one has its name.
            if error.code not in (404, 409):
                raise

    def release(self, kind: str, found: Object) -> None:
        """Take the finalizers off an object that is being deleted and stays; does nothing where they have changed."""
        finalizers = found["metadata"].get("finalizers")
        if not finalizers:
            return
        steps = [
            {"op": "test", "path": "/metadata/uid", "value": found["metadata"]["uid"]},
            {"op": "test", "path": "/metadata/finalizers", "value": finalizers},
            {"op": "remove", "path": "/metadata/finalizers"},
        ]
        call, name = self._call("patch", kind), found["metadata"]["name"]
        try:
            self._retrying(lambda: call(name, self.namespace, steps, _content_type="application/json-patch+json"))
        except ClusterError as error:
            if error.code not in (404, 409, 422):
                raise

    def log(self, pod: str, lines: int) -> str:
        """Return the end of a pod's log; empty where there is none."""
        try:
            read = client.CoreV1Api(self._client).read_namespaced_pod_log
            found = self._patiently(lambda: read(pod, self.namespace, tail_lines=lines, **_raw()))
            return found.decode(errors="replace")
        except ClusterError as error:
            if error.code in (400, 404):
                return ""
            raise

    def review(self, token: str, audience: str) -> Object:
        """Return what the cluster says of a token (`TokenReviewStatus`)."""
        model: Any = client.V1TokenReview
        body = model.model_validate(
            {
                "apiVersion": "authentication.k8s.io/v1",
                "kind": "TokenReview",
                "spec": {"token": token, "audiences": [audience]},
            }
        )
        call = client.AuthenticationV1Api(self._client).create_token_review
        status: Object = self._retrying(lambda: call(body, **_raw())).get("status", {})
        return status

    def listed(self, kind: str, selector: str = "") -> tuple[list[Object], str]:
        """Return all objects of a kind, and the version as of which they are so."""
        call, found, more = self._call("list", kind), list[Object](), ""
        while True:
            wanted = {"label_selector": selector} if selector else {}
            wanted |= {"_continue": more} if more else {}
            page = self._retrying(functools.partial(call, self.namespace, limit=_PAGE, **wanted))
            found += page["items"]
            more = page["metadata"].get("continue", "")
            if not more:
                return found, page["metadata"]["resourceVersion"]

    def watched(self, kind: str, version: str, selector: str, timeout_s: int) -> Iterator[Object]:
        """Yield events of a kind from a version on, until the server ends the watch.

        A server that has frozen sends nothing, not even the end: then reading stops a little after the time.

        Raises:
            ClusterError: if it cannot be watched, or breaks off.
        """
        wanted = {"label_selector": selector} if selector else {}
        call = self._call("list", kind, timeout=(_CONNECT_S, timeout_s + _READ_S))
        response = _answered(
            lambda: call(
                self.namespace,
                watch=True,
                resource_version=version,
                allow_watch_bookmarks=True,
                timeout_seconds=timeout_s,
                **wanted,
            )
        )
        try:
            kept = b""
            for part in response.stream(amt=None, decode_content=False):
                *lines, kept = (kept + part).split(b"\n")
                yield from (json.loads(line) for line in lines if line)
        except urllib3.exceptions.HTTPError as error:
            raise ClusterError(0, type(error).__name__) from None
        finally:
            response.close()

    def close(self) -> None:
        """Close all connections."""
        self._client.close()

    def _sent(self, method: str, under: str, body: Object, query: list[tuple[str, str]]) -> Object:
        """Send an object as the generated methods do, but for the models.

        To make a model of a Job takes as long as all else that starts one.
        """
        _, _, path = _KINDS[body["kind"]]
        request = self._client.param_serialize(
            method=method,
            resource_path=path + under,
            path_params={"namespace": self.namespace},
            query_params=query,
            header_params={"Accept": "application/json", "Content-Type": "application/json"},
            body=body,
            auth_settings=["BearerToken"],
        )
        return self._retrying(lambda: self._client.call_api(*request, _request_timeout=(_CONNECT_S, _READ_S)).response)

    def _call(self, verb: str, kind: str, timeout: tuple[float, float] = (_CONNECT_S, _READ_S)) -> Callable[..., Any]:
        api, noun, _ = _KINDS[kind]
        method = getattr(api(self._client), f"{verb}_namespaced_{noun}")
        return lambda *arguments, **wanted: method(*arguments, **wanted, **_raw(timeout))

    def _retrying(self, call: Callable[[], Any]) -> Object:
        """Make a call whose answer is an object, again where that may help."""
        answer: Object = json.loads(self._patiently(call))
        return answer

    def _patiently(self, call: Callable[[], Any]) -> bytes:
        """Make a call, again where that may help: every one of ours can be repeated without harm."""
        left = _TRIES
        while True:
            left -= 1
            try:
                return bytes(_answered(call).data)
            except ClusterError as error:
                if not left or (error.code and error.code not in _PASSING):
                    raise
                pause_s = error.pause_s or _PAUSE_S * 2 ** (_TRIES - left)
            time.sleep(min(pause_s, _MOST_PAUSE_S) * random.uniform(0.5, 1))  # noqa: S311 - spreads load, no secret


def _raw(timeout: tuple[float, float] = (_CONNECT_S, _READ_S)) -> dict[str, Any]:
    return {"_preload_content": False, "_request_timeout": timeout}


def _answered(call: Callable[[], Any]) -> Any:
    """Return a response with a good status.

    Raises:
        ClusterError: any other, or none.
    """
    try:
        response = call()
    except ApiException as error:
        raise _error(error.status or 0, error.body, error.headers) from None
    except urllib3.exceptions.HTTPError as error:
        raise ClusterError(0, type(error).__name__) from None
    if not 200 <= response.status < 300:
        raise _error(response.status, response.data, response.headers)
    return response


def _error(code: int, body: Any, headers: Any) -> ClusterError:
    try:
        words = json.loads(body)["message"]
    except (ValueError, KeyError, TypeError):
        words = f"HTTP {code}"
    pause = str((headers or {}).get("Retry-After", ""))
    return ClusterError(code, str(words)[:500], float(pause) if pause.isdigit() else 0.0)
