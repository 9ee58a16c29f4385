"""Every defence of verification refuses what it is for, by its own name."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from safetensors.torch import load_file

from services.inference.base_models import linear_shapes, skeleton
from services.inference.verification import Limits, Rejected, verify_adapter, verify_signature
from tests.support.random_models import edit

Q = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
B = Q.replace("lora_A", "lora_B")
Weights = dict[str, torch.Tensor]


@pytest.fixture
def adapter(tiny_adapters: list[Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_adapters[0], tmp_path / "adapter"))


@pytest.fixture(scope="session")
def shapes(tiny_base: Path) -> dict[str, tuple[int, int]]:
    return linear_shapes(skeleton(tiny_base))


def test_shapes_are_those_of_the_base_model(shapes: dict[str, tuple[int, int]]) -> None:
    assert len(shapes) == 14
    assert shapes["model.layers.1.self_attn.k_proj"] == (32, 64)
    assert shapes["model.layers.0.mlp.down_proj"] == (64, 96)


def test_a_sound_adapter_passes(adapter: Path, shapes: dict[str, tuple[int, int]]) -> None:
    verify_adapter(adapter, shapes, Limits())


def _poison(value: float) -> Callable[[Weights], None]:
    def change(weights: Weights) -> None:
        weights[B][3, 1] = value

    return change


def _set(name: str, tensor: torch.Tensor) -> Callable[[Weights], None]:
    return lambda weights: weights.update({name: tensor})


WEIGHTS: list[tuple[str, Callable[[Weights], object]]] = [
    ("finite", _poison(float("nan"))),
    ("finite", _poison(float("inf"))),
    ("finite", _poison(float("-inf"))),
    ("norm", _poison(1e30)),
    ("norm", _poison(1e5)),
    ("shapes", _set(Q, torch.zeros(4, 63))),
    ("shapes", _set(Q, torch.zeros(5, 64))),
    ("shapes", _set(Q, torch.zeros(64, 4))),
    ("shapes", _set(B, torch.zeros(32, 4))),
    ("types", _set(Q, torch.zeros(4, 64, dtype=torch.int64))),
    ("names", lambda weights: weights.pop(Q)),
    ("names", _set("base_model.model.lm_head.lora_A.weight", torch.zeros(4, 64))),
    ("names", _set("base_model.model.model.embed_tokens.weight", torch.zeros(4, 64))),
    ("names", _set(Q.replace("layers.0", "layers.2"), torch.zeros(4, 64))),
    ("names", _set(Q.replace(".lora_A.weight", ".lora_magnitude_vector"), torch.zeros(64))),
]


@pytest.mark.parametrize(("check", "change"), WEIGHTS)
def test_unsound_weights_are_rejected(
    check: str,
    change: Callable[[Weights], object],
    adapter: Path,
    shapes: dict[str, tuple[int, int]],
) -> None:
    weights = load_file(adapter / "adapter_model.safetensors")
    change(weights)
    edit(adapter, weights)
    with pytest.raises(Rejected) as rejected:
        verify_adapter(adapter, shapes, Limits())
    assert rejected.value.check == check


@pytest.mark.parametrize(
    ("check", "member", "value"),
    [
        ("config", "use_dora", True),
        ("config", "bias", "lora_only"),
        ("config", "lora_bias", True),
        ("config", "modules_to_save", ["lm_head"]),
        ("config", "peft_type", "IA3"),
        ("config", "init_lora_weights", "pissa"),
        ("config", "rank_pattern", {"q_proj": 64}),
        ("config", "alpha_pattern", {"q_proj": 640}),
        ("config", "layer_replication", [[0, 2]]),
        ("config", "trainable_token_indices", [1]),
        ("config", "auto_mapping", {"base_model_class": "os.system"}),
        ("config", "a_member_that_peft_will_invent", {"x": 1}),
        ("config", "lora_alpha", float("nan")),
        ("config", "lora_alpha", -8),
        ("config", "lora_alpha", True),
        ("norm", "lora_alpha", 1e9),
        ("rank", "r", 0),
        ("rank", "r", 128),
        ("rank", "r", True),
        ("shapes", "r", 8),
        ("config", "target_modules", ".*"),
        ("config", "target_modules", []),
        ("config", "target_modules", [""]),
        ("config", "target_modules", [1]),
        ("config", "peft_type", None),
        ("config", "lora_alpha", 0),
        ("config", "lora_alpha", float("-inf")),
        pytest.param("norm", "lora_alpha", 10**300, id="great"),
        pytest.param("config", "lora_alpha", 10**400, id="no double"),
        ("config", "lora_alpha", float("inf")),
        ("names", "target_modules", ["q_proj"]),
        ("names", "target_modules", ["q_proj", "lm_head"]),
        ("names", "target_modules", ["embed_tokens"]),
    ],
)
def test_other_than_plain_lora_is_rejected(
    check: str,
    member: str,
    value: object,
    adapter: Path,
    shapes: dict[str, tuple[int, int]],
) -> None:
    edit(adapter, **{member: value})
    with pytest.raises(Rejected) as rejected:
        verify_adapter(adapter, shapes, Limits())
    assert rejected.value.check == check


def test_a_file_that_is_no_safetensors_is_rejected(adapter: Path, shapes: dict[str, tuple[int, int]]) -> None:
    (adapter / "adapter_model.safetensors").write_bytes(b"\x80\x04" + b"pickle" * 10)
    with pytest.raises(Rejected) as rejected:
        verify_adapter(adapter, shapes, Limits())
    assert rejected.value.check == "format"


@pytest.mark.parametrize(
    ("check", "content"),
    [
        ("format", b"[]"),
        ("format", b"null"),
        ("format", b"{"),
        ("format", b"[" * 60_000),
        ("size", b" " * (1 << 16) + b"{}"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_config_that_is_no_small_object_is_rejected(
    check: str, content: bytes, adapter: Path, shapes: dict[str, tuple[int, int]]
) -> None:
    (adapter / "adapter_config.json").write_bytes(content)
    with pytest.raises(Rejected) as rejected:
        verify_adapter(adapter, shapes, Limits())
    assert rejected.value.check == check


def test_a_config_without_a_type_is_rejected(adapter: Path, shapes: dict[str, tuple[int, int]]) -> None:
    path = adapter / "adapter_config.json"
    config = json.loads(path.read_text())
    del config["peft_type"]
    path.write_text(json.dumps(config))
    with pytest.raises(Rejected) as rejected:
        verify_adapter(adapter, shapes, Limits())
    assert rejected.value.check == "config"


def test_the_norm_is_of_what_is_added_by_either_scaling(adapter: Path, shapes: dict[str, tuple[int, int]]) -> None:
    config = json.loads((adapter / "adapter_config.json").read_text())
    weights = load_file(adapter / "adapter_model.safetensors")
    norms = {name: tensor.double().norm().item() for name, tensor in weights.items()}
    most = max(norms[name] * norms[name.replace("lora_A", "lora_B")] for name in norms if "lora_A" in name)
    for rslora, scale in (
        (False, config["lora_alpha"] / config["r"]),
        (True, config["lora_alpha"] / config["r"] ** 0.5),
    ):
        edit(adapter, use_rslora=rslora)
        verify_adapter(adapter, shapes, Limits(norm_bound=scale * most * 1.001))
        with pytest.raises(Rejected) as rejected:
            verify_adapter(adapter, shapes, Limits(norm_bound=scale * most * 0.999))
        assert rejected.value.check == "norm"


def test_limits_bind(adapter: Path, shapes: dict[str, tuple[int, int]]) -> None:
    for limits, check in (
        (Limits(max_rank=3), "rank"),
        (Limits(max_bytes=1000), "size"),
        (Limits(norm_bound=0.1), "norm"),
    ):
        with pytest.raises(Rejected) as rejected:
            verify_adapter(adapter, shapes, limits)
        assert rejected.value.check == check


def test_a_problem_never_quotes_weights(adapter: Path, shapes: dict[str, tuple[int, int]]) -> None:
    weights = load_file(adapter / "adapter_model.safetensors")
    weights[B][0, 0] = 123456.0
    edit(adapter, weights)
    with pytest.raises(Rejected) as rejected:
        verify_adapter(adapter, shapes, Limits())
    assert "123456" not in json.dumps(rejected.value.problem)


def test_only_a_trusted_key_signs(trainer_key: Ed25519PrivateKey) -> None:
    other = Ed25519PrivateKey.generate()
    keys = [other.public_key(), trainer_key.public_key()]
    verify_signature(b"manifest", trainer_key.sign(b"manifest"), keys)
    for raw, signature, trusted in (
        (b"manifest ", trainer_key.sign(b"manifest"), keys),
        (b"manifest", b"", keys),
        (b"manifest", bytes(64), keys),
        (b"manifest", trainer_key.sign(b"manifest"), keys[:1]),
        (b"manifest", trainer_key.sign(b"manifest"), []),
    ):
        with pytest.raises(Rejected) as rejected:
            verify_signature(raw, signature, trusted)
        assert rejected.value.check == "signature"
