"""The base models' files: where they are, and the shapes that an adapter must fit.

Shapes come from the headers of the base model's own weights, not from the adapter's configuration:
an engine would accept a matrix of another shape and serve nonsense. Reading headers takes
milliseconds and no modelling code.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

from huggingface_hub import snapshot_download
from safetensors import safe_open

# Of Llama-like models, what LoRA may change: the matrices of the layers, neither embeddings nor the
# output head.
_LAYER_MATRIX = re.compile(r"(model\.layers\.\d+\.(?:self_attn|mlp)\.[a-z_]+_proj)\.weight")


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


def linear_shapes(directory: Path) -> dict[str, tuple[int, int]]:
    """Return what LoRA may change in a base model.

    Args:
        directory: a Hugging Face model directory with safetensors files.

    Returns:
        Module name, for example `model.layers.0.self_attn.q_proj`, to (out features, in features).

    Raises:
        ValueError: if the model is not Llama-like or has no safetensors files.
    """
    index = directory / "model.safetensors.index.json"
    if index.exists():
        files = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    else:
        files = ["model.safetensors"]
    shapes: dict[str, tuple[int, int]] = {}
    for file in files:
        if not (directory / file).exists():
            raise ValueError(f"The base model in {directory} has no {file}; this service reads safetensors only.")
        with safe_open(directory / file, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118  not a dictionary
                match = _LAYER_MATRIX.fullmatch(name)
                shape = tensors.get_slice(name).get_shape() if match else []
                if match and len(shape) == 2:
                    shapes[match[1]] = (shape[0], shape[1])
    if not shapes:
        raise ValueError(
            f"The base model in {directory} is not Llama-like: it has no model.layers.*.(self_attn|mlp).*_proj.weight."
        )
    return shapes
