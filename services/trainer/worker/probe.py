"""What is tried on public tokens before any row is touched.

Three things would go wrong in silence, under the cover of the noise: an adapter that receives no gradient, a model in
which rows see each other (a normalisation over the batch, an attention that ignores what keeps packed rows apart), and
a model for which packed rows mean something else than padded ones.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from services.trainer.worker.data import Row, Unit

# Same shapes, other neighbours: only a leak, or a kernel that is not deterministic, makes a difference.
_LEAK = 1e-3
# Other shapes: rounding differs too.
_DIFFERENCE = 0.1

Collect = Callable[[Sequence[Unit]], list[Tensor]]


def public_units(neighbours: int = 0) -> list[Unit]:
    """Return three units of public tokens; the middle one is always the same, the others vary with `neighbours`."""

    def row(length: int, step: int) -> Unit:
        return Unit((Row.of([(step * k + step) % 8 for k in range(length)]),))

    return [row(9, 3 + 2 * neighbours), row(7, 1), row(5, 5 + 2 * neighbours)]


def rows_are_apart(collect: Collect) -> bool:
    """Say whether a unit's gradient stays the same when its neighbours change.

    Args:
        collect: returns per-unit gradients, one tensor (units, *parameter) per parameter.
    """
    return _distance(_middle(collect(public_units(0))), _middle(collect(public_units(1)))) <= _LEAK


def same_gradients(one: Collect, other: Collect) -> bool:
    """Say whether two ways to lay rows out give the same gradients, up to rounding."""
    return all(
        _distance(_unit(one(public_units()), index), _unit(other(public_units()), index)) <= _DIFFERENCE
        for index in range(3)
    )


def _middle(gradients: list[Tensor]) -> Tensor:
    return _unit(gradients, 1)


def _unit(gradients: list[Tensor], index: int) -> Tensor:
    # A copy: the next collection overwrites the buffers.
    return torch.cat([gradient[index].flatten().double() for gradient in gradients])


def _distance(one: Tensor, other: Tensor) -> float:
    """Return the distance relative to the first; infinite where either is not finite."""
    distance = float((one - other).norm() / one.norm().clamp(min=1e-300))
    return distance if distance == distance else float("inf")
