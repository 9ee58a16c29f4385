"""Bounding what one privacy unit can do to a step.

Everything here works on whole-unit gradients, after the rows of a unit were combined: clipping rows one by one would
let a unit with k rows weigh k times the norm that the ledger charges for.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum

import torch
from torch import Tensor

STABILITY = 0.01
# Sums in double precision that are taken in blocks, as torch does, err by less than this of themselves.
_ROUNDING = 1e-12


class Clipping(StrEnum):
    """How a unit's gradient g is bounded to the norm C.

    FLAT: g · min(1, C / |g|) (Abadi et al., arXiv 1607.00133).
    NORMALISED: g · C / (|g| + 0.01), always close to C (Bu et al., arXiv 2206.07136).
    """

    FLAT = "flat"
    NORMALISED = "normalised"


def clipped_sum(gradients: Sequence[Tensor], norm: float, clipping: Clipping) -> list[Tensor]:
    """Bound each unit's gradient and add the units up.

    Formal guarantee: leaving out one unit changes the result, all parameters taken together, by at most `norm` in L2,
    rounding included: norms, products and sums are in double precision, and factors err on the small side by more than
    all of them can. A unit with a
    NaN or infinite entry adds exactly zero: it is overwritten, not multiplied by 0, since 0 · NaN is NaN and would
    show that somebody's gradient was.

    Args:
        gradients: one tensor per parameter, shape (units, *parameter); float32 or better; non-finite units are
            overwritten in place.
        norm: C > 0.
        clipping: how to bound.

    Returns:
        One float64 tensor per parameter, of the parameter's shape.
    """
    if any(g.dtype not in (torch.float32, torch.float64) for g in gradients):
        raise TypeError("gradients are clipped in single precision or better")
    norms = unit_norms(gradients)
    finite = torch.isfinite(norms)
    factors = norm / norms.clamp(min=norm) if clipping is Clipping.FLAT else norm / (norms + STABILITY)
    factors = torch.where(finite, factors * (1 - _ROUNDING), torch.zeros_like(factors))
    sums: list[Tensor] = []
    for gradient in gradients:
        zeroed = gradient.masked_fill_(~finite.view(-1, *[1] * (gradient.dim() - 1)), 0.0)
        sums.append((factors @ zeroed.flatten(1).double()).view(gradient.shape[1:]))
    return sums


def unit_norms(gradients: Sequence[Tensor]) -> Tensor:
    """Return the L2 norm of each unit's gradient over all parameters; float64, shape (units,)."""
    parts = [torch.linalg.vector_norm(g.flatten(1).double(), dim=1) for g in gradients]
    norms: Tensor = torch.linalg.vector_norm(torch.stack(parts), dim=0)
    return norms
