"""The base models' files: where they are, and the shapes that an adapter must fit.

Shapes are those of the model that its configuration describes, not of the adapter's: an engine would accept a matrix of
another shape and serve nonsense. The model is built without memory for its weights, so the greatest takes a second.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download


def locate(model: str) -> Path:
    """Return the directory of a base model; a hub id must have been downloaded before.

    Raises:
        FileNotFoundError: if its files are not on this machine.
    """
    if Path(model).is_dir():
        return Path(model)
    try:
        return Path(snapshot_download(model, local_files_only=True))
    except (OSError, ValueError):
        raise FileNotFoundError(
            f"The base model {model} is neither a directory nor downloaded. Download it first; this service never does."
        ) from None


@cache
def skeleton(directory: Path) -> Any:
    """Build a base model without memory for its weights.

    Once for each directory: a large one takes half a second, and the engine and the service want it.

    Args:
        directory: a Hugging Face model directory.

    Raises:
        ValueError: if there is no causal language model in it that transformers knows.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        config = AutoConfig.from_pretrained(directory, local_files_only=True)
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(config)
    except (OSError, ValueError) as error:
        raise ValueError(f"There is no causal language model in {directory} that transformers knows: {error}") from None


def linear_shapes(model: Any) -> dict[str, tuple[int, int]]:
    """Return what LoRA may change in a base model: every linear layer of what reads text, but the output head.

    The trainer adapts the same ones.

    Args:
        model: its skeleton.

    Returns:
        Module name, for example `model.layers.0.self_attn.q_proj`, to (out features, in features).
    """
    import torch
    from transformers.pytorch_utils import Conv1D

    head, inside = model.get_output_embeddings(), set(model.get_decoder().modules())
    shapes: dict[str, tuple[int, int]] = {}
    for name, module in model.named_modules():
        if module is head or module not in inside:
            continue
        if isinstance(module, torch.nn.Linear):
            shapes[name] = (module.out_features, module.in_features)
        elif isinstance(module, Conv1D):
            shapes[name] = (module.nf, module.nx)
    return shapes


def has_transposed_layers(model: Any) -> bool:
    """Say whether linear layers are GPT-2's, whose weights lie the other way."""
    from transformers.pytorch_utils import Conv1D

    return any(isinstance(module, Conv1D) for module in model.modules())
