"""What the trainer is told of its cluster: `MURMURA_CLUSTER_*` variables."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from services.common.config import Settings

_NAME = r"^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$"
_QUANTITY = r"^[0-9]+(\.[0-9]+)?(m|k|M|G|T|Ki|Mi|Gi|Ti)?$"


class ClusterSettings(Settings):
    """Where workers run, and on what."""

    model_config = SettingsConfigDict(env_prefix="MURMURA_CLUSTER_", extra="ignore")

    image: str = Field(min_length=1, description="of the worker; pin it by digest")
    namespace: str = Field("murmura-workers", pattern=_NAME, description="of the workers, and of nothing else")
    deployment: str = Field("murmura", pattern=_NAME, description="tells this trainer's Jobs from another's")
    kubeconfig: Path | None = Field(None, description="by default the pod's own service account")
    context: str = Field("", description="of the kubeconfig; empty: its current one")
    image_pull_policy: str = Field("IfNotPresent", pattern="^(Always|IfNotPresent|Never)$")
    image_pull_secrets: list[str] = Field([], description="JSON list of names")
    service_account: str = Field("murmura-worker", pattern=_NAME, description="of the workers; it needs no rights")
    gpus: int = Field(1, ge=0, le=64, description="of each worker")
    gpu_resource: str = Field("nvidia.com/gpu", min_length=1, description="what a GPU is called")
    fake_gpu: bool = Field(default=False, description="ask for no GPU: for clusters that have none")
    cpu: str = Field("4", pattern=_QUANTITY, description="request")
    memory: str = Field("32Gi", pattern=_QUANTITY, description="request and limit")
    ephemeral_storage: str = Field("20Gi", pattern=_QUANTITY, description="request and limit")
    shared_memory: str = Field("2Gi", pattern=_QUANTITY, description="limit of /dev/shm; a part of the memory")
    node_selector: dict[str, str] = Field({}, description="JSON: labels of the pool's nodes")
    tolerations: list[dict[str, Any]] = Field([], description="JSON, besides the GPU's own taint")
    network_encrypted: bool = Field(
        default=False,
        description="the cluster encrypts what pods say to each other; workers of several nodes need that",
    )
    queue: str = Field("", description="Kueue's LocalQueue; empty: none")
    models_claim: str = Field("", description="PersistentVolumeClaim with base models, mounted read-only")
    models_path: str = Field("/models", pattern="^/", description="where it is mounted")
    authority_config_map: str = Field("", description="ConfigMap whose ca.crt is the authority of the services")
    image_wait_s: float = Field(300.0, gt=0, description="for an image that cannot be pulled")
    most_pods: int = Field(100, ge=1, description="of one attempt; evicted ones are replaced by the cluster")
    resync_s: float = Field(300.0, gt=0, description="between two full lists")
