"""Families of base models that an analyst may bring; what is said of one is told of a small random one."""

from __future__ import annotations

import importlib.util
from typing import Any

import torch
from transformers import AutoConfig

# What a family needs besides the sizes that all of them have, or has no small default for.
_OWN: dict[str, dict[str, Any]] = {
    "bloom": {},
    "falcon": {},
    "gemma": {"head_dim": None},
    "gemma2": {"head_dim": None, "query_pre_attn_scalar": 8, "attn_logit_softcapping": 2.0},
    "gemma3": {},  # sees as well; its text is the next one's
    "gemma3_text": {"head_dim": None, "query_pre_attn_scalar": 8},
    "glm": {"head_dim": None},
    "glm4_moe": {"head_dim": None, "moe_intermediate_size": 8, "n_routed_experts": 4, "num_experts_per_tok": 2},
    "gpt2": {},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "gpt_neox": {},
    "gptj": {"rotary_dim": 4},
    "granite": {},
    "llama": {},
    "mistral": {},
    "mixtral": {"num_local_experts": 4},
    "olmo2": {},
    "opt": {"ffn_dim": 96, "init_std": 0.3},
    "phi": {},
    "phi3": {},
    "qwen2": {},
    "qwen3": {"head_dim": None},
    "qwen3_5_text": {
        "head_dim": None,
        "layer_types": ["linear_attention", "full_attention"],
        **{f"linear_{of}_head_dim": 8 for of in ("key", "value")},
        **{f"linear_num_{of}_heads": 2 for of in ("key", "value")},
    },
    "smollm3": {},
    "stablelm": {},
    "starcoder2": {},
}
FAMILIES = tuple(_OWN)
# They have an attention of their own and no other; it rounds to single precision, whatever the model's precision.
OWN_ATTENTION = ("bloom", "gemma2", "gpt_neo", "gptj")
# Packed rows would mean something else to them, which the worker's probe finds out.
NEVER_PACKED = ("bloom", "falcon", "qwen3_5_text")
# Some of their products exist in single precision at most.
SINGLE_PRECISION = ("glm4_moe", "mixtral", "qwen3_5_text")
# None of vLLM's implementations takes adapters of these.
WITHOUT_VLLM = [
    *("bloom", "falcon", "gpt2", "gpt_neo", "gptj"),
    *([] if torch.cuda.is_available() else ["glm4_moe", "mixtral"]),
    *([] if importlib.util.find_spec("torchvision") else ["gemma3", "qwen3_5_text"]),
]
_EYES = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "image_size": 28}


def configuration(family: str, *, sliding_window: int, **sizes: Any) -> Any:
    """Return the configuration of a model of two layers with two heads that share one of keys and values.

    Args:
        family: one of `FAMILIES`.
        sliding_window: how far layers look that do not look everywhere, where a family has such.
        **sizes: `hidden_size` and whatever else differs.
    """
    if family == "gemma3":
        text = configuration("gemma3_text", sliding_window=sliding_window, **sizes).to_dict()
        tokens = {name: sizes[name] for name in sizes if name.endswith("_token_id")}
        return AutoConfig.for_model(family, text_config=text, vision_config=_EYES, mm_tokens_per_image=4, **tokens)
    chosen = {
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "initializer_range": 0.3,  # so that a frozen head says something
        "sliding_window": sliding_window,
        "window_size": sliding_window,
    }
    own = dict(_OWN[family])
    if "head_dim" in own:
        own["head_dim"] = sizes["hidden_size"] // 2
    # An engine believes whatever a configuration says, also what the family does not know.
    known = AutoConfig.for_model(family)
    members = chosen | own | sizes
    return AutoConfig.for_model(family, **{name: members[name] for name in members if hasattr(known, name)})
