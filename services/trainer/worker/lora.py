"""Per-unit gradients of LoRA adapters, formed inside the one ordinary backward pass.

DP-SGD needs every unit's own gradient. For a LoRA layer that is small, rank x (d_in + d_out) numbers, and costs the
same multiplications as the batch gradient that autograd would compute: only the sum over the batch is left out. So
each adapted layer is given a backward that computes the per-row products, adds each row to its unit's buffer, and
returns nothing for A and B. No second backward (ghost clipping), no hooks around the layer (Opacus), and the batch
gradient never exists, so that no code can use it unclipped by mistake.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, cast

import torch
from peft.tuners.lora.layer import Linear as LoraLinear
from torch import Tensor, nn

from services.trainer.worker.batches import Layout

ADAPTER = "default"
# Of these, linear layers get the tokens of all rows in one line, row by row; their code says so. Others are not taken
# at their number of tokens: a mixture of experts may hand as many to a layer in another order.
_IN_ONE_LINE = frozenset({"OPTDecoderLayer"})


class UnsupportedModelError(RuntimeError):
    """The model has something to train whose per-unit gradients are not known. Its message names public facts only."""


class _Layer:
    """One adapted layer: its A and B, and the buffers that hold their per-unit gradients."""

    def __init__(self, name: str, module: Any, *, in_one_line: bool) -> None:
        self.name = name
        self.module = module
        self.in_one_line = in_one_line
        self.a: nn.Parameter = module.lora_A[ADAPTER].weight
        self.b: nn.Parameter = module.lora_B[ADAPTER].weight
        self.scaling: float = module.scaling[ADAPTER]
        self.gradients: list[Tensor] = []
        self._room: list[Tensor] = []  # kept between steps: fresh pages cost more than the sums
        self._last: Layout | None = None
        self.captures = 0

    def reset(self, units: int) -> None:
        """Make room for `units` units, in single precision or better; what is in it is written before it is read."""
        if not self._room or self._room[0].shape[0] < units:
            self._room = [
                parameter.new_empty(
                    (units, *parameter.shape),
                    dtype=torch.promote_types(parameter.dtype, torch.float32),
                )
                for parameter in (self.a, self.b)
            ]
        self.gradients = [room[:units] for room in self._room]
        self._last = None
        self.captures = 0

    def add(self, layout: Layout, factors: Sequence[tuple[Tensor, Tensor]]) -> None:
        """Add per-row gradients to the buffers of the rows' units; the first of a unit is written, not added.

        Args:
            layout: of the micro-batch.
            factors: for A and for B, what came back from the output and what went in, each (*layout.shape, features);
                a row's gradient is the product of its parts.
        """
        for buffer, (back, went_in) in zip(self.gradients, factors, strict=True):
            back, went_in = back.flatten(0, 1), went_in.flatten(0, 1)
            for place in layout.rectangles:
                left, right = place.of(back).mT, place.of(went_in)
                # A layer that is used twice in one pass adds to what it wrote the first time.
                fresh = buffer[slice(*place.fresh)] if layout is not self._last else buffer[:0]
                if len(fresh) == place.rows and left.dtype == fresh.dtype:
                    torch.bmm(left, right, out=fresh)
                elif len(fresh) == place.rows:
                    fresh.copy_(left @ right)
                else:
                    fresh.zero_()
                    buffer.index_add_(0, layout.units(place), (left @ right).to(buffer.dtype))
        self.captures += layout is not self._last
        self._last = layout


class _CapturingLora(torch.autograd.Function):
    """(base output, x) -> base output + scaling · x Aᵀ Bᵀ; its backward adds per-row gradients to the layer's buffers.

    The scaling is applied to the small tensors, and the sum is part of the multiplication: on a CPU the passes over
    memory that this saves cost as much as the adapter itself.
    """

    @staticmethod
    def forward(ctx: Any, base: Tensor, x: Tensor, a: Tensor, b: Tensor, layer: _Layer, layout: Layout) -> Tensor:
        a = a.to(x.dtype)
        scaled_b = (b * layer.scaling).to(x.dtype)
        hidden = x @ a.T
        ctx.save_for_backward(x, hidden, a, scaled_b)
        ctx.layer, ctx.layout = layer, layout
        # No view is returned: models such as Falcon add to a layer's output in place.
        adapted = torch.empty_like(base, memory_format=torch.contiguous_format)
        torch.addmm(base.flatten(0, 1), hidden.flatten(0, 1), scaled_b.T, out=adapted.view(-1, base.shape[-1]))
        return adapted

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, hidden, a, scaled_b = ctx.saved_tensors
        outer = gradients[0]
        inner = outer @ scaled_b
        ctx.layer.add(ctx.layout, [(inner, x), (outer, hidden * ctx.layer.scaling)])
        return outer, (inner @ a if ctx.needs_input_grad[1] else None), None, None, None, None


class UnitGradients:
    """Collects the gradient of each privacy unit for every adapter of a PEFT model.

    Formal guarantee: after `begin(units)` and any number of forward and backward passes, each under its `layout`,
    buffer u of each parameter holds the gradient, with respect to that parameter, of the sum of the back-propagated
    losses of unit u's rows, and nothing of another unit's, provided that the losses are per row (`loss.weighted_loss`)
    and the model computes each row from that row alone (`probe` sees to that). Parameters' own `.grad` is never set.

    Attributes:
        layout: of the micro-batch that is being computed; set before each forward.

    Args:
        model: a PEFT model with one LoRA adapter on linear layers; everything that requires a gradient must belong
            to it.

    Raises:
        UnsupportedModelError: if something trainable is not a plain LoRA on a linear layer.
    """

    def __init__(self, model: nn.Module) -> None:
        modules = dict(model.named_modules())
        self._layers = [
            _Layer(name, module, in_one_line=type(modules[name.rpartition(".")[0]]).__name__ in _IN_ONE_LINE)
            for name, module in modules.items()
            if isinstance(module, LoraLinear)
        ]
        self.layout: Layout | None = None
        _check_supported(model, self._layers)

    @property
    def parameters(self) -> list[nn.Parameter]:
        """The trained parameters, in the order of `gradients`."""
        return [parameter for layer in self._layers for parameter in (layer.a, layer.b)]

    @property
    def gradients(self) -> list[Tensor]:
        """Per-unit gradients, one tensor (units, *parameter) per parameter."""
        return [gradient for layer in self._layers for gradient in layer.gradients]

    @property
    def bytes_per_unit(self) -> int:
        """Memory that one unit's gradient takes."""
        return sum(p.numel() * max(4, p.element_size()) for p in self.parameters)

    def begin(self, units: int) -> None:
        """Forget what was collected and make room for `units` units."""
        for layer in self._layers:
            layer.reset(units)

    def complete(self) -> list[Tensor]:
        """Return the gradients, after the last pass.

        Raises:
            UnsupportedModelError: if a layer took no part in a pass: its buffer would still hold earlier units.
        """
        passes = max(layer.captures for layer in self._layers)
        for layer in self._layers:
            if layer.captures != passes:
                raise UnsupportedModelError(f"layer {layer.name} does not take part in every pass")
        return self.gradients

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Collect while inside: the layers' forward is ours. The model is as before afterwards."""
        for layer in self._layers:
            layer.module.forward = partial(self._forward, layer)
        try:
            yield
        finally:
            for layer in self._layers:
                del layer.module.forward

    def silent_layers(self) -> list[str]:
        """Return the names of layers whose gradient of B is zero, missing or not finite since `begin`."""
        return [
            layer.name
            for layer in self._layers
            if not layer.captures
            or not bool(torch.isfinite(layer.gradients[1]).all())
            or not bool(layer.gradients[1].any())
        ]

    def _forward(self, layer: _Layer, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        layout = self.layout
        flat = layer.in_one_line and layout is not None and x.shape[:-1] == (math.prod(layout.shape),)
        if flat and layout is not None:
            x = x.view(*layout.shape, x.shape[-1])
        if layout is None or x.dim() != 3 or x.shape[:2] != layout.shape:
            raise UnsupportedModelError(
                f"layer {layer.name} does not see its input row by row, so units cannot be told apart"
            )
        base = layer.module.base_layer(x, *args, **kwargs)
        adapted = _CapturingLora.apply(base, x.to(base.dtype), layer.a, layer.b, layer, layout)  # type: ignore[no-untyped-call]
        return cast(Tensor, adapted.flatten(0, 1) if flat else adapted)


def _check_supported(model: nn.Module, layers: list[_Layer]) -> None:
    if not layers:
        raise UnsupportedModelError("the model has no LoRA layer; nothing would be trained")
    for layer in layers:
        module = layer.module
        plain = (
            list(module.lora_A) == [ADAPTER]
            and not module.lora_variant
            and not module.merged
            and isinstance(module.lora_dropout[ADAPTER], nn.Identity)
            and module.lora_B[ADAPTER].bias is None
        )
        if not plain:
            raise UnsupportedModelError(
                f"layer {layer.name}: only one plain LoRA (no DoRA, bias, dropout or merge) can be trained privately"
            )
    known = {id(p) for layer in layers for p in (layer.a, layer.b)}
    unknown = [n for n, p in model.named_parameters() if p.requires_grad and id(p) not in known]
    if unknown:
        raise UnsupportedModelError(f"{unknown[0]} requires a gradient but is not part of a LoRA layer")
    frozen = [layer.name for layer in layers if not (layer.a.requires_grad and layer.b.requires_grad)]
    if frozen:
        raise UnsupportedModelError(f"the adapter of {frozen[0]} is frozen")
