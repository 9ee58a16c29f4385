"""The manifests, rendered: valid for the API, shut by default, and telling each service what it needs and no more."""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest

from deploy.kubernetes import keys
from services.common.tokens import TrustedKeys, load_signing_key, mint
from services.dataset.__main__ import DatasetSettings
from services.inference.settings import InferenceSettings
from services.ledger.settings import LedgerSettings
from services.trainer.__main__ import TrainerSettings
from services.trainer.cluster.client import CLUSTER_RULES, RULES
from services.trainer.cluster.settings import ClusterSettings
from tests.support.manifests import KUBERNETES, RENDERED, ROOT, SERVICES, kinds, needs_kubectl, render, workload

VERSIONS = ("1.31", "1.34", "1.37")
SETTINGS: dict[str, list[Any]] = {
    "ledger": [LedgerSettings],
    "dataset": [DatasetSettings],
    "trainer": [TrainerSettings, ClusterSettings],
    "inference": [InferenceSettings],
}
# What an operator makes, as README.md says, or cert-manager does.
GIVEN = {"trusted-keys", "redis", "trainer-signing"} | {f"{service}-tls" for service in SERVICES}

pytestmark = needs_kubectl


@pytest.mark.parametrize("place", RENDERED)
@pytest.mark.parametrize("version", VERSIONS)
def test_the_api_takes_every_object_strictly(place: str, version: str) -> None:
    checked = 0
    for found in render(place):
        if _known(found):
            kubernetes_validate.validate(found, version, strict=True)
            checked += 1
    assert checked > 40


def _builtin(found: dict[str, Any]) -> bool:
    return found["apiVersion"].split("/")[0] in ("rbac.authorization.k8s.io", "networking.k8s.io", "policy")


def test_what_is_not_the_apis_own_is_of_a_known_kind() -> None:
    own = {f"{found['apiVersion']} {found['kind']}" for found in render("overlays/production") if not _known(found)}
    assert own == {
        "cert-manager.io/v1 Certificate",
        "cert-manager.io/v1 Issuer",
        "gateway.networking.k8s.io/v1 BackendTLSPolicy",
        "gateway.networking.k8s.io/v1 GRPCRoute",
        "gateway.networking.k8s.io/v1 Gateway",
        "karpenter.sh/v1 NodePool",
        "monitoring.coreos.com/v1 PrometheusRule",
        "monitoring.coreos.com/v1 ServiceMonitor",
    }


def _known(found: dict[str, Any]) -> bool:
    return "." not in found["apiVersion"] or _builtin(found)


# ---------------------------------------------------------------- what runs


@pytest.mark.parametrize(("place", "name"), list(itertools.product(RENDERED, (*SERVICES, "redis"))))
def test_a_workload_is_restricted_and_bounded(place: str, name: str) -> None:
    spec = workload(place, name)["spec"]
    assert spec["replicas"] == 1
    pod = spec["template"]["spec"]
    assert pod["automountServiceAccountToken"] is (name == "trainer")
    assert pod["serviceAccountName"] == name
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    [container] = pod["containers"]
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert {"memory", "ephemeral-storage"} <= set(container["resources"]["limits"])
    assert "cpu" in container["resources"]["requests"]
    assert re.fullmatch(r".+:\d+\.\d+\.\d+", container["image"])
    assert {"readinessProbe", "livenessProbe"} <= set(container)
    mounted = {mount["name"] for mount in container["volumeMounts"]}
    there = {volume["name"] for volume in pod["volumes"]} | {
        claim["metadata"]["name"] for claim in spec["volumeClaimTemplates"]
    }
    assert mounted == there


@pytest.mark.parametrize("place", RENDERED)
def test_namespaces_take_restricted_pods_only(place: str) -> None:
    for namespace in kinds(place, "Namespace"):
        assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"


@pytest.mark.parametrize("place", RENDERED)
def test_no_secret_is_in_the_repository_and_every_reference_is_known(place: str) -> None:
    assert kinds(place, "Secret") == []
    maps = {found["metadata"]["name"] for found in kinds(place, "ConfigMap")}
    claims = {found["metadata"]["name"] for found in kinds(place, "PersistentVolumeClaim")}
    for found in kinds(place, "StatefulSet"):
        pod = found["spec"]["template"]["spec"]
        for volume in pod["volumes"]:
            for kind, key, known in (
                ("secret", "secretName", GIVEN),
                ("configMap", "name", GIVEN | maps),
                ("persistentVolumeClaim", "claimName", claims),
            ):
                if kind in volume:
                    assert volume[kind][key] in known, volume
        for source in pod["containers"][0].get("envFrom", []):
            assert source["configMapRef"]["name"] in maps


def environment(place: str, service: str) -> dict[str, str]:
    """Return what a service is told."""
    maps = {found["metadata"]["name"]: found["data"] for found in kinds(place, "ConfigMap") if "data" in found}
    told: dict[str, str] = {}
    for source in workload(place, service)["spec"]["template"]["spec"]["containers"][0]["envFrom"]:
        told |= maps[source["configMapRef"]["name"]]
    return told


@pytest.mark.parametrize(("place", "service"), list(itertools.product(RENDERED, SERVICES)))
def test_a_service_is_told_what_it_needs_and_nothing_it_does_not_know(
    place: str, service: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = environment(place, service)
    known = {
        f"{settings.model_config['env_prefix']}{name}".upper()
        for settings in SETTINGS[service]
        for name in settings.model_fields
    }
    assert set(told) <= known
    # Files are where the pod mounts them; here they lie elsewhere.
    pod = workload(place, service)["spec"]["template"]["spec"]
    mounts = [mount["mountPath"] for mount in pod["containers"][0]["volumeMounts"]]
    for name, value in told.items():
        if value.startswith("/"):
            assert any(value.startswith(mount) for mount in mounts), (name, value)
    from tests.support.certificates import Authority

    certificate = Authority(tmp_path).issue(f"{service}.murmura.svc", file=service)
    keys.make(tmp_path / "keys")
    told |= {
        "MURMURA_TLS_CERTIFICATE": str(certificate.certificate),
        "MURMURA_TLS_KEY": str(certificate.key),
        "MURMURA_TLS_AUTHORITY": str(certificate.authority),
        "MURMURA_TRUSTED_KEYS": str(tmp_path / "keys" / "trusted.json"),
    }
    if "MURMURA_SIGNING_KEY_FILE" in told:
        told["MURMURA_SIGNING_KEY_FILE"] = str(tmp_path / "keys" / "trainer.pem")
    if "MURMURA_REDIS_PASSWORD_FILE" in told:
        (tmp_path / "password").write_text("a")
        told["MURMURA_REDIS_PASSWORD_FILE"] = str(tmp_path / "password")
    for name, value in told.items():
        monkeypatch.setenv(name, value)
    for settings in SETTINGS[service]:
        settings.load()


def test_keys_are_made_once_and_open_no_more_than_they_should(tmp_path: Path) -> None:
    keys.make(tmp_path)
    with pytest.raises(FileExistsError):
        keys.make(tmp_path)
    token = mint(load_signing_key(tmp_path / "trainer.pem"), "trainer", "worker:1", ["worker"], 60)
    trusted = TrustedKeys(tmp_path / "trusted.json")
    assert trusted.verify(token).roles == {"worker"}
    assert {key["kid"]: key["may_issue"] for key in json.loads((tmp_path / "trusted.json").read_text())["keys"]} == {
        "trainer": ["worker"]
    }
    assert (tmp_path / "trainer.pem").stat().st_mode & 0o077 == 0


# ---------------------------------------------------------------- rights


def test_the_trainer_may_do_what_it_does_and_nothing_else() -> None:
    [role] = kinds("base", "Role")
    [cluster_role] = kinds("base", "ClusterRole")

    def rules(found: dict[str, Any]) -> set[tuple[str, str, frozenset[str]]]:
        return {
            (group, resource, frozenset(rule["verbs"]))
            for rule in found["rules"]
            for group in rule["apiGroups"]
            for resource in rule["resources"]
        }

    assert rules(role) == {(group, resource, frozenset(verbs)) for group, resource, verbs in RULES}
    assert rules(cluster_role) == {(group, resource, frozenset(verbs)) for group, resource, verbs in CLUSTER_RULES}
    assert role["metadata"]["namespace"] == "murmura-workers"
    for binding in kinds("base", "RoleBinding", "ClusterRoleBinding"):
        assert binding["subjects"] == [{"kind": "ServiceAccount", "name": "trainer", "namespace": "murmura"}]


# ---------------------------------------------------------------- the rest


def test_people_find_every_service_of_theirs_at_one_address_and_workers_none() -> None:
    routed = {
        match["method"]["service"]: rule["backendRefs"][0]
        for route in kinds("overlays/production", "GRPCRoute")
        for rule in route["spec"]["rules"]
        for match in rule["matches"]
    }
    named = set()
    for path in (ROOT / "protos").rglob("*.proto"):
        package = re.findall(r"^package ([\w.]+);", path.read_text(), re.M)[0]
        named |= {f"{package}.{name}" for name in re.findall(r"^service (\w+)", path.read_text(), re.M)}
    assert set(routed) == named - {"murmura.api.trainer.v1.WorkerService"}
    assert {backend["port"] for backend in routed.values()} == {8443}


def test_what_is_watched_and_shown_exists() -> None:
    code = "".join(path.read_text() for path in (ROOT / "services").rglob("*.py"))
    shown = (KUBERNETES / "components/monitoring/dashboard.json").read_text()
    alerts = (KUBERNETES / "components/monitoring/alerts.yaml").read_text()
    named = set(re.findall(r"murmura_\w+", shown + alerts))
    assert named
    for metric in named:
        assert f'"{re.sub("_(bucket|sum|count)$", "", metric)}"' in code, metric


def test_certificates_name_one_service_each() -> None:
    names = {
        found["metadata"]["name"]: found["spec"]["dnsNames"]
        for found in kinds("overlays/production", "Certificate")
        if not found["spec"].get("isCA")
    }
    assert names == {service: [f"{service}.murmura.svc"] for service in SERVICES}


def test_a_node_lives_longer_than_the_longest_job_and_goes_when_it_is_empty() -> None:
    [pool] = kinds("overlays/production", "NodePool")
    hours = int(pool["spec"]["template"]["spec"]["expireAfter"].removesuffix("h"))
    assert hours * 3600 > TrainerSettings.model_fields["running_limit_s"].default
    assert pool["spec"]["disruption"]["consolidationPolicy"] == "WhenEmpty"
    told = json.loads(environment("overlays/production", "trainer")["MURMURA_CLUSTER_NODE_SELECTOR"])
    assert told.items() <= pool["spec"]["template"]["metadata"]["labels"].items()


def test_redis_keeps_what_it_acknowledges() -> None:
    from services.common.redis_checks import NEEDED

    [text] = [
        found["data"]["redis.conf"] for found in kinds("base", "ConfigMap") if found["metadata"]["name"] == "redis"
    ]
    configured = dict(line.split(" ", 1) for line in text.splitlines() if line)
    for name, (needed, _) in NEEDED.items():
        assert configured[name] == needed
