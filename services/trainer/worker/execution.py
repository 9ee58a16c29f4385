"""How a private run uses its machine. Nothing in here changes what is computed, only how fast and in how much memory.

All of it follows from the machine, the model and public settings, never from rows: how much memory a token takes is
measured on public tokens.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

import psutil
import torch
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer


class Checkpointing(StrEnum):
    """Whether activations are kept for the backward pass or computed again in it.

    NONE: kept; fastest.
    NON_REENTRANT: computed again; what torch recommends.
    REENTRANT: computed again, by torch's older way; some models know no other.
    """

    NONE = "none"
    NON_REENTRANT = "non-reentrant"
    REENTRANT = "reentrant"


@dataclass(frozen=True)
class Execution:
    """How a run uses its machine.

    Attributes:
        packed: lay rows of all lengths out in one, where the model allows it.
        micro_batch_tokens: tokens of one forward.
        gradient_bytes: memory for per-unit gradients; at least one unit's is always held.
        rectangle_tokens: what one more rectangle costs, in tokens (`batches.rectangles`).
        checkpointing: of activations.
    """

    packed: bool = True
    micro_batch_tokens: int = 2048
    gradient_bytes: int = 1 << 29
    rectangle_tokens: int = 24
    checkpointing: Checkpointing = Checkpointing.NONE

    def __post_init__(self) -> None:
        object.__setattr__(self, "checkpointing", Checkpointing(self.checkpointing))
        if min(self.micro_batch_tokens, self.gradient_bytes) < 1 or self.rectangle_tokens < 0:
            raise ValueError("micro_batch_tokens and gradient_bytes must be positive, rectangle_tokens not negative")


# More tokens at once than this make no processor faster.
_MOST_TOKENS = {"cpu": 2048, "cuda": 32_768}
# On a GPU a rectangle costs its launches, some 25 ms for 22 layers, in which an H200 computes a thousand tokens.
_RECTANGLE_TOKENS = {"cpu": 24, "cuda": 1024}
# Of the free memory; the rest is for what backward holds for a moment, and for fragmentation.
_ACTIVATION_SHARE, _GRADIENT_SHARE = 0.4, 0.2
_PROBE_TOKENS = 64


def fitted(model: nn.Module, longest: int, wish: Execution | None = None) -> Execution:
    """Return how a model is best run on the machine that it lies on.

    Args:
        model: on its device.
        longest: tokens that a row may have. Where not even one such row fits, activations are computed again.
        wish: what to keep of; its sizes are replaced by what fits.
    """
    wish = wish or Execution()
    device = next(model.parameters()).device
    free = free_bytes(device)
    tokens = int(free * _ACTIVATION_SHARE / bytes_per_token(model, wish.checkpointing))
    if tokens < longest and wish.checkpointing is Checkpointing.NONE:
        wish = replace(wish, checkpointing=Checkpointing.NON_REENTRANT)
        tokens = int(free * _ACTIVATION_SHARE / bytes_per_token(model, wish.checkpointing))
    return replace(
        wish,
        micro_batch_tokens=max(1, min(tokens, _MOST_TOKENS.get(device.type, _MOST_TOKENS["cpu"]))),
        gradient_bytes=max(1, int(free * _GRADIENT_SHARE)),
        rectangle_tokens=_RECTANGLE_TOKENS.get(device.type, _RECTANGLE_TOKENS["cpu"]),
    )


def expect_any_shape(device: torch.device) -> None:
    """Prepare this process for batches that nearly always have a shape not seen before, as sampled ones do.

    Where torch prefers cuDNN's attention (on Hopper), each new shape is planned first, which takes longer than a step
    of a small model. Its other fused attentions plan nothing.
    """
    if device.type == "cuda":
        torch.backends.cuda.enable_cudnn_sdp(False)


def free_bytes(device: torch.device) -> int:
    """Return the memory that a device has left."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    # Processes of one worker share the machine's memory, and each its own GPU.
    return int(psutil.virtual_memory().available) // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def bytes_per_token(model: nn.Module, checkpointing: Checkpointing = Checkpointing.NONE) -> int:
    """Return what a token of a micro-batch takes: activations kept for the backward pass, and its logits.

    Measured on a public sequence by what autograd keeps; under checkpointing that is little, but one layer's
    activations are there again while it is computed once more.
    """
    kept: dict[int, int] = {p.untyped_storage().data_ptr(): 0 for p in model.parameters()}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept.setdefault(storage.data_ptr(), storage.nbytes())
        return tensor

    ids = torch.arange(_PROBE_TOKENS, device=next(model.parameters()).device)[None] % 8
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        logits = model(input_ids=ids, use_cache=False).logits
    layers = max(1, sum(isinstance(module, GradientCheckpointingLayer) for module in model.modules()))
    activations = sum(kept.values()) // _PROBE_TOKENS
    if checkpointing is not Checkpointing.NONE:
        activations = 2 * activations // layers
    # In single precision: the logits, their logarithms, and the gradient of both.
    return int(activations + 3 * 4 * logits.shape[-1])


def use_checkpointing(model: Any, kind: Checkpointing) -> None:
    """Let a model compute its activations again in the backward pass."""
    if kind is Checkpointing.NONE:
        return
    reentrant = kind is Checkpointing.REENTRANT
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
    if reentrant:
        model.enable_input_require_grads()  # else the older way finds nothing to differentiate
    for module in model.modules():
        if isinstance(module, GradientCheckpointingLayer):
            # Only these: transformers checkpoints nothing in evaluation, and training would turn dropout on.
            module.training = True
