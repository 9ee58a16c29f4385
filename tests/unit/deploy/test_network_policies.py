"""Who reaches whom: the network policies, read as Kubernetes reads them, open the way of the data and nothing else."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from tests.support.manifests import RENDERED, SERVICES, kinds, needs_kubectl

pytestmark = needs_kubectl

PLACES: dict[str, tuple[dict[str, str], dict[str, str]]] = {
    # Labels of the namespace, and of the pod.
    **{
        name: ({"kubernetes.io/metadata.name": "murmura"}, {"app.kubernetes.io/name": name})
        for name in (*SERVICES, "redis")
    },
    "worker": ({"kubernetes.io/metadata.name": "murmura-workers"}, {"app.kubernetes.io/name": "murmura-worker"}),
    "gateway": ({"kubernetes.io/metadata.name": "ingress", "murmura.dev/gateway": "true"}, {}),
    "monitoring": ({"kubernetes.io/metadata.name": "monitoring", "murmura.dev/monitoring": "true"}, {}),
    "provider": ({"kubernetes.io/metadata.name": "keycloak", "murmura.dev/identity-provider": "true"}, {}),
    "warehouse": ({"kubernetes.io/metadata.name": "postgres", "murmura.dev/sources": "true"}, {}),
    "stranger": ({"kubernetes.io/metadata.name": "default"}, {"app.kubernetes.io/name": "worker"}),
}
PORTS = (8443, 9443, 9090, 6379, 443, 5432, 8200)
MINE = (*SERVICES, "redis", "worker")
OTHERS = ("provider", "warehouse", "stranger")
# The way of the data (DESIGN 2), and who watches over it.
ALLOWED = {
    ("gateway", "ledger", 8443),
    ("gateway", "dataset", 8443),
    ("gateway", "trainer", 8443),
    ("gateway", "inference", 8443),
    ("worker", "dataset", 8443),
    ("worker", "trainer", 8443),
    ("trainer", "dataset", 9443),
    ("trainer", "ledger", 9443),
    ("dataset", "ledger", 9443),
    ("ledger", "redis", 6379),
    *(("monitoring", service, 9090) for service in SERVICES),
    # Without the provider's keys nobody can sign in.
    *((service, "provider", port) for service in SERVICES for port in (443, 8443)),
    *(("dataset", "warehouse", port) for port in (443, 5432, 8200)),
    # The cluster's API is no pod, so at its port the trainer may go anywhere.
    *(("trainer", place, 443) for place in OTHERS),
}


def matches(selector: dict[str, Any] | None, labels: dict[str, str]) -> bool:
    if selector is None:
        return False
    named = selector.get("matchLabels", {}).items() <= labels.items()
    return named and all(
        one["operator"] == "In" and labels.get(one["key"]) in one["values"]
        for one in selector.get("matchExpressions", [])
    )


def peer(rule: dict[str, Any], where: str, home: dict[str, str]) -> bool:
    namespace, pod = PLACES[where]
    if "ipBlock" in rule:
        return False
    if "namespaceSelector" in rule:
        return matches(rule["namespaceSelector"], namespace) and matches(rule.get("podSelector", {}), pod)
    return namespace == home and matches(rule["podSelector"], pod)


def opens(policies: list[dict[str, Any]], way: str, of: str, other: str, port: int) -> bool:
    """Say whether the policies on a pod let it exchange with another; as Kubernetes reads them."""
    namespace, labels = PLACES[of]
    on = [
        policy["spec"]
        for policy in policies
        if policy["metadata"]["namespace"] == namespace["kubernetes.io/metadata.name"]
        and matches(policy["spec"]["podSelector"], labels)
        and way.capitalize() in policy["spec"]["policyTypes"]
    ]
    if not on:
        return True
    side = "from" if way == "ingress" else "to"
    return any(
        (side not in rule or any(peer(one, other, namespace) for one in rule[side]))
        and ("ports" not in rule or any(one["port"] == port for one in rule["ports"]))
        for spec in on
        for rule in spec.get(way, [])
    )


def reached(policies: list[dict[str, Any]]) -> set[tuple[str, str, int]]:
    return {
        (source, target, port)
        for source, target, port in itertools.product(PLACES, (*MINE, *OTHERS), PORTS)
        if source != target
        and (source in MINE or target in MINE)
        and opens(policies, "egress", source, target, port)
        and opens(policies, "ingress", target, source, port)
    }


@pytest.mark.parametrize("place", RENDERED)
def test_the_way_of_the_data_is_the_only_one(place: str) -> None:
    assert reached(kinds(place, "NetworkPolicy")) == ALLOWED


@pytest.mark.parametrize(
    "left_out", ["nothing", "dataset", "redis", "workers", "ledger", "identity-provider", "sources"]
)
def test_each_policy_is_needed(left_out: str) -> None:
    policies = [one for one in kinds("base", "NetworkPolicy") if one["metadata"]["name"] != left_out]
    assert reached(policies) != ALLOWED


def test_a_worker_reaches_nothing_outside() -> None:
    """No rule of a worker's is without a destination: the internet is none."""
    for policy in kinds("base", "NetworkPolicy"):
        if policy["metadata"]["namespace"] == "murmura-workers":
            assert all(rule.get("to") for rule in policy["spec"].get("egress", []))


@pytest.mark.parametrize("place", RENDERED)
def test_outside_the_cluster_nobody_is_reached_before_an_operator_names_him(place: str) -> None:
    """Addresses are in overlays only, and theirs is one that is kept free for documents."""
    blocks = [
        (policy["metadata"]["name"], peer["ipBlock"]["cidr"])
        for policy in kinds(place, "NetworkPolicy")
        for rule in policy["spec"].get("egress", [])
        for peer in rule.get("to", [])
        if "ipBlock" in peer
    ]
    assert blocks == ([] if place == "base" else [("identity-provider", "192.0.2.1/32")])
