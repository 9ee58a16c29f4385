"""What vLLM is told of a base model, and which of its implementations takes adapters of one.

vLLM has implementations of its own, not all of which take adapters, and one that runs transformers' code for a model
and takes them; that one needs attention that can be exchanged in every layer, and knows no linear layers like GPT-2's.
A mixture of experts with adapters needs Triton, which vLLM does not use on a CPU.
"""

from __future__ import annotations

import json
import os
import secrets
from pathlib import Path
from typing import Any

from services.inference.base_models import has_transposed_layers
from services.inference.engine import EngineSettings, EngineUnfit

# Kinds of layers that vLLM runs with transformers' code.
_ATTENTION = frozenset({"full_attention", "sliding_attention", "chunked_attention"})
_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)


def configuration(model: str, base: Any, settings: EngineSettings, *, on_cpu: bool) -> Any:
    """Make vLLM's configuration for a base model.

    Args:
        model: a directory, or a hub id whose files are on this machine.
        base: its skeleton.
        settings: limits and types.
        on_cpu: whether there is no GPU.

    Raises:
        EngineUnfit: if no implementation takes adapters of it.
    """
    from vllm import AsyncEngineArgs

    arguments = _arguments(model, settings, on_cpu=on_cpu)
    config = AsyncEngineArgs(**arguments, model_impl=_implementation(base)).create_engine_config()
    if on_cpu and config.model_config.is_moe:
        raise EngineUnfit(f"on a CPU vLLM takes no adapters of {type(base).__name__}, a mixture of experts")
    return config


def _implementation(base: Any) -> str:
    """Return which of vLLM's implementations takes adapters: `auto` is the one that it would choose."""
    from vllm.model_executor.models import ModelRegistry, supports_lora

    name = type(base).__name__
    why = f"vLLM takes no adapters of {name}"
    if name in ModelRegistry.models:
        try:
            if supports_lora(ModelRegistry.models[name].load_model_cls()):
                return "auto"
        except ImportError as missing:
            why = f"vLLM cannot load its code for {name} here ({missing})"
    exchangeable = base.is_backend_compatible() or base._can_set_attn_implementation()
    attention_alone = set(getattr(base.config, "layer_types", None) or ()) <= _ATTENTION
    text_alone = base.config.get_text_config() is base.config
    if exchangeable and attention_alone and text_alone and not has_transposed_layers(base):
        return "transformers"
    raise EngineUnfit(why)


def _arguments(model: str, settings: EngineSettings, *, on_cpu: bool) -> dict[str, Any]:
    from vllm.config import StructuredOutputsConfig

    dtype = settings.dtype
    if dtype == "auto":
        dtype = "float32" if on_cpu else "bfloat16"
    arguments: dict[str, Any] = {
        "model": model,
        "dtype": dtype,
        "enable_lora": True,
        "max_loras": settings.max_adapters,
        "max_cpu_loras": max(settings.max_resident_adapters, settings.max_adapters),
        "max_lora_rank": next(rank for rank in _RANKS if rank >= settings.max_rank),
        "max_logprobs": settings.max_logprobs,
        # That in which structures are tried out; else vLLM would choose another for some of them.
        "structured_outputs_config": StructuredOutputsConfig(backend="xgrammar", disable_any_whitespace=True),
        "enable_prefix_caching": True,
        "enable_log_requests": False,
        "disable_log_stats": True,
        "max_num_seqs": settings.max_running,
        "max_num_queued_reqs": settings.max_queue or None,
        "max_model_len": settings.max_context or None,
        # Else sampling without a seed would repeat itself after each restart.
        "seed": secrets.randbits(31),
    }
    if on_cpu:
        arguments |= {"enforce_eager": True, "distributed_executor_backend": "uni"}
        arguments["max_loras"] += 1  # the zeros
        arguments["max_cpu_loras"] += 1
    else:
        arguments["gpu_memory_utilization"] = settings.gpu_memory
    return arguments


def write_zeros(directory: Path, shapes: dict[str, tuple[int, int]]) -> None:
    """Write an adapter that changes nothing; vLLM puts zeros where it has no matrices."""
    import numpy as np
    from safetensors.numpy import save_file

    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    module, (rows, columns) = next(iter(sorted(shapes.items())))
    config = {"peft_type": "LORA", "r": 1, "lora_alpha": 1, "bias": "none"}
    config["target_modules"] = [module.rpartition(".")[2]]
    (directory / "adapter_config.json").write_text(json.dumps(config))
    tensors = {"A": np.zeros((1, columns), np.float32), "B": np.zeros((rows, 1), np.float32)}
    save_file(
        {f"base_model.model.{module}.lora_{half}.weight": t for half, t in tensors.items()},
        directory / "adapter_model.safetensors",
    )


def set_environment(settings: EngineSettings) -> None:
    """Set what vLLM reads from the environment; what the operator set stays."""
    for name, value in {
        "VLLM_CPU_KVCACHE_SPACE": str(settings.cpu_cache_gib),
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "VLLM_LOGGING_LEVEL": "WARNING",
        # What tenants constrain outputs to is kept for all of them together; as little of that as can be set.
        "VLLM_XGRAMMAR_CACHE_MB": "0",
        # Threads that spin while they wait make tokens thirty times slower on a busy machine.
        "GOMP_SPINCOUNT": "3000",
        # One engine process instead of two; the asynchronous engine does not use the in-process
        # mode this names.
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    }.items():
        os.environ.setdefault(name, value)
