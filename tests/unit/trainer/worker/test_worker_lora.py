"""Per-unit gradients against a loop over units, and against Opacus."""

from __future__ import annotations

import warnings

import pytest
import torch
from opacus import GradSampleModule

from services.trainer.worker.data import micro_batches
from services.trainer.worker.lora import UnitGradients, UnsupportedModelError
from services.trainer.worker.loss import sequence_losses

CPU = torch.device("cpu")


def collected(model, units, token_budget=64):
    """Return the collected gradient of each unit, shape (units, parameters)."""
    gradients = UnitGradients(model)
    gradients.begin(len(units))
    with gradients.attached():
        for batch in micro_batches(units, token_budget, CPU):
            gradients.rows(batch.unit_of_row)
            losses = sequence_losses(model(input_ids=batch.input_ids).logits, batch.labels)
            (losses * batch.weights).sum().backward()
    return torch.cat([g.flatten(1) for g in gradients.gradients], dim=1)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("token_budget", [1, 20, 1000])
def test_unit_gradients_equal_a_loop_over_units_in_double_precision(
    make_model, make_units, unit_loop, family, token_budget
):
    model = make_model(family)
    units = make_units([[5, 9, 2], [12], [], [7, 7], [30, 3, 4, 5]])
    expected = unit_loop(model, units)
    assert expected.norm(dim=1)[[0, 1, 3, 4]].min() > 1e-3
    torch.testing.assert_close(collected(model, units, token_budget), expected, rtol=1e-10, atol=1e-12)


def test_row_gradients_equal_opacus_hooks(make_model, make_units):
    units = make_units([[9], [9], [9], [9]])
    model = make_model(dtype=torch.float32)
    mine = collected(model, units, 1000)

    model = make_model(dtype=torch.float32).train()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        reference = GradSampleModule(model, loss_reduction="sum")
        ids = torch.stack([torch.from_numpy(unit.rows[0].ids) for unit in units])
        sequence_losses(reference(input_ids=ids).logits, ids).sum().backward()
        parameters = [p for p in model.parameters() if p.requires_grad]
        theirs = torch.cat([p.grad_sample.flatten(1) for p in parameters], dim=1)
    torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-6)


def test_the_batch_gradient_never_exists(make_model, make_units):
    model = make_model()
    collected(model, make_units([[5], [6]]))
    assert all(p.grad is None for p in model.parameters())


def test_attaching_changes_no_output_and_leaves_no_trace(make_model):
    model = make_model()
    ids = torch.arange(12).view(2, 6)
    before = model(input_ids=ids).logits
    gradients = UnitGradients(model)
    gradients.begin(2)
    gradients.rows(torch.tensor([0, 1]))
    with gradients.attached():
        inside = model(input_ids=ids).logits
    after = model(input_ids=ids).logits
    torch.testing.assert_close(inside, before, rtol=1e-12, atol=1e-12)
    assert torch.equal(after, before)
    assert not any("forward" in vars(module) for module in model.modules())


def test_gradients_of_a_bfloat16_base_are_collected_in_single_precision(make_model, make_units):
    model = make_model(dtype=torch.bfloat16)
    gradients = UnitGradients(model)
    gradients.begin(1)
    assert {p.dtype for p in gradients.parameters} == {torch.float32}
    assert {g.dtype for g in gradients.gradients} == {torch.float32}
    mine = collected(model, make_units([[20, 9]]))
    exact = collected(make_model(dtype=torch.float32), make_units([[20, 9]]))
    assert (mine - exact).norm() < 0.05 * exact.norm()


@pytest.mark.parametrize(
    ("lora", "what"),
    [
        ({"lora_dropout": 0.1}, "only one plain LoRA"),
        ({"use_dora": True}, "only one plain LoRA"),
        ({"lora_bias": True}, "only one plain LoRA"),
        ({"bias": "all", "family": "gpt2"}, "requires a gradient but is not part"),
        ({"modules_to_save": ["lm_head"], "target_modules": ["q_proj"]}, "requires a gradient"),
        ({"target_modules": ["embed_tokens"]}, "no LoRA layer"),
    ],
)
def test_what_cannot_be_trained_privately_is_refused(make_model, lora, what):
    family = lora.pop("family", "llama")
    with pytest.raises(UnsupportedModelError, match=what):
        UnitGradients(make_model(family, torch.float32, **lora))


def test_a_frozen_adapter_is_refused(make_model):
    model = make_model()
    next(p for p in model.parameters() if p.requires_grad).requires_grad_(False)
    with pytest.raises(UnsupportedModelError, match="is frozen"):
        UnitGradients(model)


def test_a_layer_that_does_not_see_rows_is_refused(make_model):
    model = make_model()
    gradients = UnitGradients(model)
    gradients.begin(1)
    gradients.rows(torch.tensor([0]))
    with gradients.attached(), pytest.raises(UnsupportedModelError, match="row by row"):
        model(input_ids=torch.arange(12).view(2, 6))
