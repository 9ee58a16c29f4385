"""The bound on one unit's influence, in all weathers."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from services.trainer.worker.clipping import Clipping, clipped_sum, unit_norms


def some(units: int, scale: float = 1.0, seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [scale * torch.randn(units, *shape, generator=generator) for shape in ((3, 5), (7,))]


def flat(parts: list[torch.Tensor]) -> torch.Tensor:
    return torch.cat([part.flatten() for part in parts])


@given(
    scale=st.floats(1e-12, 1e15),
    norm=st.floats(1e-3, 1e3),
    clipping=st.sampled_from(list(Clipping)),
    seed=st.integers(0, 1000),
)
def test_leaving_out_one_unit_moves_the_sum_by_at_most_the_norm(scale, norm, clipping, seed):
    gradients = some(4, scale, seed)
    gradients[0][0] *= 1e6
    everyone = flat(clipped_sum([g.clone() for g in gradients], norm, clipping))
    for left_out in range(4):
        rest = [i for i in range(4) if i != left_out]
        others = flat(clipped_sum([g[rest] for g in gradients], norm, clipping))
        assert (everyone - others).norm() <= norm * (1 + 1e-9)  # the subtraction rounds
        alone = flat(clipped_sum([g[left_out : left_out + 1].clone() for g in gradients], norm, clipping))
        assert alone.norm() <= norm


def test_flat_clipping_keeps_short_gradients_and_shortens_long_ones():
    gradients = [torch.tensor([[0.3, 0.4], [3.0, 4.0]])]
    short = clipped_sum([gradients[0][:1].clone()], 1.0, Clipping.FLAT)[0]
    long = clipped_sum([gradients[0][1:].clone()], 1.0, Clipping.FLAT)[0]
    torch.testing.assert_close(short, torch.tensor([0.3, 0.4], dtype=torch.float64))
    torch.testing.assert_close(long, torch.tensor([0.6, 0.8], dtype=torch.float64))


@pytest.mark.parametrize("length", [1e-3, 1.0, 1e6])
def test_normalised_clipping_brings_gradients_near_the_norm(length):
    gradient = [torch.tensor([[length, 0.0]])]
    found = clipped_sum(gradient, 2.0, Clipping.NORMALISED)[0].norm()
    assert found == pytest.approx(2.0 * length / (length + 0.01), rel=1e-6)
    assert found <= 2.0


@pytest.mark.parametrize("clipping", list(Clipping))
@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf])
def test_a_unit_that_is_not_finite_adds_exactly_zero(clipping, poison):
    gradients = some(3)
    expected = clipped_sum([g[[0, 2]] for g in gradients], 1.0, clipping)
    gradients[0][1, 2, 3] = poison
    found = clipped_sum(gradients, 1.0, clipping)
    torch.testing.assert_close(flat(found), flat(expected))


@pytest.mark.parametrize("clipping", list(Clipping))
def test_a_unit_without_gradient_adds_exactly_zero(clipping):
    assert not flat(clipped_sum([torch.zeros(2, 5)], 1.0, clipping)).any()


def test_gradients_whose_squares_overflow_are_clipped_and_not_dropped():
    found = clipped_sum([torch.tensor([[3e30, 4e30]])], 1.0, Clipping.FLAT)[0]
    torch.testing.assert_close(found, torch.tensor([0.6, 0.8], dtype=torch.float64))


def test_norms_span_all_parameters_and_are_double():
    found = unit_norms([torch.full((2, 2, 2), 1.0), torch.full((2, 5), 2.0)])
    assert found.dtype == torch.float64
    assert found.tolist() == pytest.approx([math.sqrt(4 + 20)] * 2)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_gradients_are_refused(dtype):
    with pytest.raises(TypeError, match="single precision"):
        clipped_sum([torch.ones(1, 2, dtype=dtype)], 1.0, Clipping.FLAT)


def test_the_sum_is_in_double_precision():
    assert clipped_sum(some(2), 1.0, Clipping.FLAT)[0].dtype == torch.float64
