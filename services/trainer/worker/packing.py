"""Attention for packed rows: each row attends to itself alone.

Models of the transformers library look their attention up by name. This module gives them one that takes the flat
tensor apart into its rectangles and runs causal attention on each, where rows are a batch dimension like any other.
Compared with one long row under a block-diagonal mask it computes nothing for pairs of different rows, and nothing of a
row, not even a NaN, can pass the mask, because there is none.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AttentionInterface

from services.trainer.worker.batches import Layout

NAME = "murmura_packed"


class PackedAttention:
    """Causal attention on the rectangles of a layout.

    Attributes:
        layout: of the micro-batch that is being computed, forward and backward.
    """

    def __init__(self) -> None:
        self.layout: Layout | None = None

    @contextmanager
    def attached(self, model: Any) -> Iterator[None]:
        """Use this attention inside; the model has its own again afterwards.

        Raises:
            ValueError: if the model does not look its attention up.
        """
        before = model.config._attn_implementation
        AttentionInterface.register(NAME, self)
        model.set_attn_implementation(NAME)
        try:
            yield
        finally:
            model.set_attn_implementation(before)

    def __call__(
        self,
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        *,
        scaling: float | None = None,
        sliding_window: int | None = None,
        softcap: float | None = None,
        **_: Any,
    ) -> tuple[Tensor, None]:
        """Attend.

        Args:
            module: the attention layer.
            query: shape (1, heads, tokens, width).
            key: shape (1, heads or fewer, tokens, width).
            value: like `key`.
            attention_mask: not used: rows are apart already.
            scaling: of the scores; the default is one over the root of the width.
            sliding_window: how far back a token sees.
            softcap: scores are bounded smoothly to this.

        Returns:
            Shape (1, tokens, heads, width), and None for the weights.
        """
        if self.layout is None:
            raise ValueError("the attention of packed rows needs their layout")
        scale = query.shape[-1] ** -0.5 if scaling is None else scaling
        groups = query.shape[1] // key.shape[1]
        places, parts = self.layout.rectangles, []
        # One split instead of many slices, each of which would go back through a tensor of zeros.
        sizes = [place.rows * place.length for place in places]
        for place, *heads in zip(places, *(x[0].split(sizes, dim=1) for x in (query, key, value)), strict=True):
            q, k, v = (x.unflatten(1, (place.rows, place.length)) for x in heads)
            if groups > 1:
                k, v = k.repeat_interleave(groups, dim=0), v.repeat_interleave(groups, dim=0)
            window = sliding_window if sliding_window is not None and sliding_window < place.length else None
            if q.device.type == "cpu" or window is not None or softcap is not None:
                # On a CPU the backward of the fused attention takes many times as long as the plain one's.
                found = _attend(q, k, v, scale, window, softcap)
            else:
                found = functional.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale)
            parts.append(found.flatten(1, 2))
        return torch.cat(parts, dim=1).transpose(0, 1)[None], None


def _attend(q: Tensor, k: Tensor, v: Tensor, scale: float, window: int | None, softcap: float | None) -> Tensor:
    """Return softmax(q kᵀ) v, causal; all (heads, rows, length, width)."""
    shape, length = q.shape, q.shape[-2]
    q, k, v = (part.reshape(-1, *part.shape[-2:]) for part in (q, k, v))
    hidden = q.new_full((length, length), float("-inf")).triu(1)
    if window is not None:
        hidden += q.new_full((length, length), float("-inf")).tril(-window)
    if softcap is None:
        scores = torch.baddbmm(hidden, q, k.mT, alpha=scale)
    else:
        scores = torch.tanh(q @ k.mT * (scale / softcap)) * softcap + hidden
    # Single precision or better: the sum of many small weights would be lost in less.
    weights = scores.softmax(-1, dtype=torch.promote_types(q.dtype, torch.float32)).to(v.dtype)
    return (weights @ v).view(shape)
