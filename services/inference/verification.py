"""What an adapter must prove before it may touch the engine.

An adapter shares the engine's memory with every tenant: one NaN in it corrupts cached keys and
values that others read, and a matrix of the wrong shape is served without complaint. So whatever is
not known to be harmless is refused: the signature, the digests, the configuration member by member,
names and shapes of all tensors, and their size. The norm bound is a promise of finite arithmetic,
not of quality: the layers' inputs are normalised, so a bounded change to a matrix cannot overflow
float32 or bfloat16.
"""

from __future__ import annotations

import hashlib
import json
import math
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from safetensors import SafetensorError
from safetensors.torch import load_file

WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"
_PREFIX = "base_model.model."
_MOST_CONFIG_BYTES = 1 << 16
_TYPES = (torch.float32, torch.bfloat16, torch.float16)
# Members that say where an adapter comes from, or matter in training only.
_WITHOUT_EFFECT = frozenset(
    [
        "task_type",
        "peft_version",
        "base_model_name_or_path",
        "revision",
        "inference_mode",
        "lora_dropout",
        "megatron_core",
        "fan_in_fan_out",  # which way the base's own matrices lie; A and B are not touched by it
        "qalora_group_size",
    ]
)
_READ = frozenset(["r", "lora_alpha", "target_modules"])
_ALLOWED: dict[str, tuple[object, ...]] = {
    "peft_type": ("LORA",),
    "bias": ("none",),
    "use_rslora": (False, True),
    "init_lora_weights": (False, True, "gaussian"),
}


class Rejected(Exception):
    """An adapter fails a check.

    Args:
        check: its name, for programs.
        problem: what is wrong, for a person; nothing of the weights' content.
    """

    def __init__(self, check: str, problem: str) -> None:
        super().__init__(problem)
        self.check = check
        self.problem = problem


@dataclass(frozen=True)
class Limits:
    """What an adapter may be at most.

    Attributes:
        max_rank: greatest LoRA rank.
        norm_bound: bound on scale * ‖A‖ * ‖B‖ (Frobenius) of each module.
        max_bytes: greatest size of the weights.
    """

    max_rank: int = 64
    norm_bound: float = 1e4
    max_bytes: int = 4 << 30


def verify_signature(manifest: bytes, signature: bytes, keys: Iterable[Ed25519PublicKey]) -> None:
    """Check that a trainer's key signed exactly these bytes (Ed25519, RFC 8032).

    Raises:
        Rejected: if none did.
    """
    for key in keys:
        try:
            key.verify(signature, manifest)
            return
        except InvalidSignature:
            continue
    raise Rejected("signature", "no trusted trainer key signed its manifest")


def verify_digest(path: Path, expected: str) -> None:
    """Check a file against its SHA-256 in the manifest.

    Raises:
        Rejected: if it differs.
    """
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != expected:
        raise Rejected("digest", f"{path.name} is not the file that its manifest names")


def verify_adapter(directory: Path, shapes: dict[str, tuple[int, int]], limits: Limits) -> None:
    """Check a PEFT directory against the base model it is for.

    Args:
        directory: holds adapter_config.json and adapter_model.safetensors.
        shapes: module name to (out features, in features), of the base model.
        limits: what is allowed.

    Raises:
        Rejected: at the first check that fails.
    """
    rank, scale, modules = _verify_config(directory / CONFIG, shapes, limits)
    weights = directory / WEIGHTS
    if weights.stat().st_size > limits.max_bytes:
        raise Rejected("size", f"its weights are larger than {limits.max_bytes} bytes")
    try:
        tensors = load_file(weights)
    except (SafetensorError, ValueError):
        raise Rejected("format", "its weights are not a safetensors file") from None
    expected = {
        f"{_PREFIX}{module}.lora_{half}.weight": (rank, shapes[module][1]) if half == "A" else (shapes[module][0], rank)
        for module in modules
        for half in "AB"
    }
    if tensors.keys() != expected.keys():
        missing, extra = (
            len(expected.keys() - tensors.keys()),
            len(tensors.keys() - expected.keys()),
        )
        raise Rejected(
            "names",
            f"its tensors are not those of its target modules: {missing} missing, {extra} extra",
        )
    for name, tensor in tensors.items():
        if tuple(tensor.shape) != expected[name]:
            raise Rejected(
                "shapes",
                f"{name} has shape {tuple(tensor.shape)}; the base model needs {expected[name]}",
            )
        if tensor.dtype not in _TYPES:
            raise Rejected(
                "types",
                f"{name} is of type {tensor.dtype}; float32, float16 and bfloat16 are served",
            )
        if not bool(torch.isfinite(tensor).all()):
            raise Rejected("finite", f"{name} holds values that are not finite numbers")
    for module in modules:
        a, b = (tensors[f"{_PREFIX}{module}.lora_{half}.weight"].double().norm().item() for half in "AB")
        if not scale * a * b <= limits.norm_bound:
            raise Rejected("norm", f"what it adds to {module} exceeds the norm bound {limits.norm_bound:g}")


def _verify_config(path: Path, shapes: dict[str, tuple[int, int]], limits: Limits) -> tuple[int, float, list[str]]:
    """Return rank, scale and the modules that are changed."""
    if path.stat().st_size > _MOST_CONFIG_BYTES:
        raise Rejected("size", f"{CONFIG} is larger than {_MOST_CONFIG_BYTES} bytes")
    try:
        config: Any = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        config = None
    if not isinstance(config, dict):
        raise Rejected("format", f"{CONFIG} is not a JSON object")
    for member, value in config.items():
        if member in _ALLOWED:
            if not any(value is one or (isinstance(one, str) and value == one) for one in _ALLOWED[member]):
                raise Rejected("config", f"{CONFIG}: this value of {member} is not served")
        elif member not in _READ | _WITHOUT_EFFECT and value:
            # DoRA, biases, saved modules, patterns, and whatever PEFT will invent.
            raise Rejected("config", f"{CONFIG}: {member} is set; only plain LoRA is served")
    if config.get("peft_type") != "LORA":
        raise Rejected("config", f"{CONFIG}: peft_type must be LORA")
    rank: Any = config.get("r")
    alpha: Any = config.get("lora_alpha")
    targets: Any = config.get("target_modules")
    if type(rank) is not int or not 1 <= rank <= limits.max_rank:
        raise Rejected("rank", f"its rank must be from 1 to {limits.max_rank}")
    if type(alpha) not in (int, float) or not 0 < alpha <= sys.float_info.max:
        raise Rejected("config", f"{CONFIG}: lora_alpha must be a positive number")
    if not isinstance(targets, list) or not targets or not all(isinstance(t, str) and t for t in targets):
        raise Rejected("config", f"{CONFIG}: target_modules must be a list of names")
    modules: list[str] = []
    for target in sorted(set(targets)):
        matched = [name for name in shapes if name == target or name.endswith(f".{target}")]
        if not matched:
            raise Rejected("names", f"{CONFIG}: the base model has no linear layer {target[:80]}")
        modules += matched
    scale = alpha / math.sqrt(rank) if config.get("use_rslora") else alpha / rank
    return rank, scale, sorted(set(modules))
