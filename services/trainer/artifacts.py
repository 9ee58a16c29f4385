"""The artifact store: finished adapters, each with a signed manifest that binds its files to its privacy statement.

<store>/<adapter id>/adapter/adapter_model.safetensors, adapter_config.json
                     statement.json    the privacy statement, for people
                     manifest.json     digests, base model, owner, job, statement
                     manifest.sig      Ed25519 over the exact bytes of manifest.json
"""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from google.protobuf.json_format import MessageToDict
from safetensors import SafetensorError, safe_open

from murmura.api.common.v1 import privacy_pb2
from services.common.files import sync

FILES = ("adapter_model.safetensors", "adapter_config.json")
MOST_BYTES = 4 << 30
# Of that, what names, shapes and the configuration take.
HEADROOM_BYTES = 16 << 20


class UnsoundAdapter(ValueError):
    """An upload that is no adapter. Says which check failed, nothing of the content."""


@dataclass(frozen=True)
class Provenance:
    """Where an adapter comes from.

    Attributes:
        adapter: `adapters/<id>`.
        base_model: `baseModels/<id>`.
        owner: who may use it.
        training_job: `trainingJobs/<id>`.
        create_time: RFC 3339.
        statement: what is promised about it.
    """

    adapter: str
    base_model: str
    owner: str
    training_job: str
    create_time: str
    statement: privacy_pb2.PrivacyStatement


def check(directory: Path) -> None:
    """Check that a directory holds the two files of an adapter and that its weights are finite.

    Raises:
        UnsoundAdapter: says which check failed.
    """
    if sorted(path.name for path in directory.iterdir()) != sorted(FILES):
        raise UnsoundAdapter("files")
    try:
        config = json.loads((directory / FILES[1]).read_text())
        with safe_open(directory / FILES[0], framework="numpy") as tensors:
            names = list(tensors.keys())
            finite = all(bool(np.isfinite(tensors.get_tensor(name)).all()) for name in names)
    except (SafetensorError, ValueError, OSError):
        raise UnsoundAdapter("format") from None
    if not names or config.get("peft_type") != "LORA":
        raise UnsoundAdapter("format")
    if not finite:
        raise UnsoundAdapter("finite")


class ArtifactStore:
    """Publishes adapters.

    Args:
        directory: the store, shared with the inference service.
        key: signs manifests.
    """

    def __init__(self, directory: Path, key: Ed25519PrivateKey) -> None:
        self._directory = directory
        self._key = key
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)

    def publish(self, staged: Path, provenance: Provenance) -> None:
        """Move a checked adapter into the store, whole or not at all. Publishing it again is no harm."""
        target = self._directory / provenance.adapter.removeprefix("adapters/")
        if target.exists():
            return
        building = target.with_name(f".{target.name}.building")
        shutil.rmtree(building, ignore_errors=True)
        shutil.copytree(staged, building / "adapter")
        statement = MessageToDict(provenance.statement)
        manifest = {
            "adapter": provenance.adapter,
            "base_model": provenance.base_model,
            "owner": provenance.owner,
            "training_job": provenance.training_job,
            "create_time": provenance.create_time,
            "files": {name: _sha256(building / "adapter" / name) for name in FILES},
            "statement": statement,
        }
        encoded = (json.dumps(manifest, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode()
        (building / "statement.json").write_text(json.dumps(statement, indent=2, sort_keys=True) + "\n")
        (building / "manifest.json").write_bytes(encoded)
        (building / "manifest.sig").write_bytes(self._key.sign(encoded))
        for path in building.rglob("*"):
            if path.is_file():
                sync(path)
        building.rename(target)
        sync(self._directory)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
