"""Per-unit gradients against a loop over units, and against Opacus."""

from __future__ import annotations

import warnings
from contextlib import nullcontext

import pytest
import torch
from opacus import GradSampleModule

from services.trainer.worker.batches import Layout, Rectangle, arranged, micro_batches
from services.trainer.worker.data import Row, Unit
from services.trainer.worker.execution import Checkpointing, use_checkpointing
from services.trainer.worker.lora import UnitGradients, UnsupportedModelError
from services.trainer.worker.loss import sequence_losses, weighted_loss
from services.trainer.worker.packing import PackedAttention

CPU = torch.device("cpu")
LENGTHS = [[5, 9, 2], [12], [], [7, 7], [30, 3, 4, 5]]


def collected(model, units, token_budget=64, packed=False, gradients=None):
    """Return the collected gradient of each unit with rows, arranged, shape (units, parameters)."""
    gradients, attention = gradients or UnitGradients(model), PackedAttention()
    units = arranged(units)
    gradients.begin(len(units))
    with gradients.attached(), attention.attached(model) if packed else nullcontext():
        for batch in micro_batches(units, token_budget, CPU, packed):
            gradients.layout = attention.layout = batch.layout
            positions = {"position_ids": batch.position_ids} if packed else {}
            logits = model(input_ids=batch.input_ids, use_cache=False, **positions).logits
            weighted_loss(logits, batch.targets, batch.weights).backward()
    return torch.cat([g.flatten(1) for g in gradients.complete()], dim=1).clone()


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("token_budget", [1, 20, 1000])
def test_unit_gradients_equal_a_loop_over_units_in_double_precision(
    make_model, make_units, unit_loop, family, packed, token_budget
):
    model, units = make_model(family), make_units(LENGTHS)
    expected = unit_loop(model, arranged(units))
    assert expected.norm(dim=1).min() > 1e-3
    torch.testing.assert_close(collected(model, units, token_budget, packed), expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("family", ["llama", "gpt_neox"])
def test_any_attention_gives_the_same_gradients(make_model, make_units, unit_loop, family, attention):
    model, units = make_model(family, torch.float32, attention=attention), make_units(LENGTHS)
    expected = unit_loop(model, arranged(units))
    for packed in (False, True):
        torch.testing.assert_close(collected(model, units, 40, packed), expected, rtol=1e-3, atol=1e-5)
    assert model.config._attn_implementation == attention


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("kind", list(Checkpointing))
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_activations_that_are_computed_again_give_the_same_gradients(make_model, make_units, family, kind, packed):
    model, units = make_model(family), make_units(LENGTHS)
    expected = collected(model, units, 20)
    use_checkpointing(model, kind)
    forwards = []
    layer = next(m for n, m in model.named_modules() if n.endswith("layers.0") or n.endswith("h.0"))
    layer.register_forward_pre_hook(lambda *_: forwards.append(1))
    found = collected(model, units, 20, packed)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
    batches = len(list(micro_batches(arranged(units), 20, CPU, packed)))
    assert len(forwards) == batches * (1 if kind is Checkpointing.NONE else 2)
    assert not any(m.training for m in model.modules() if isinstance(m, torch.nn.Dropout))


def test_buffers_hold_nothing_of_earlier_units(make_model, make_units):
    """Buffers are written, not zeroed: every unit's first row must overwrite what was there."""
    model = make_model()
    gradients = UnitGradients(model)
    first = collected(model, make_units(LENGTHS, seed=5), 20, gradients=gradients)
    for packed in (False, True):
        again = collected(model, make_units(LENGTHS[::-1], seed=6), 20, packed, gradients)
        torch.testing.assert_close(again, collected(model, make_units(LENGTHS[::-1], seed=6), 20, packed))
        assert not torch.equal(first, again)


def test_a_layer_that_skips_a_pass_is_refused(make_model, make_units):
    model = make_model()
    gradients = UnitGradients(model)
    inner = model.base_model.model.model.layers[1]
    calls = []

    def skipping(hidden, *args, **kwargs):
        calls.append(1)
        return hidden if len(calls) == 2 else type(inner).forward(inner, hidden, *args, **kwargs)

    inner.forward = skipping
    with pytest.raises(UnsupportedModelError, match=r"layers\.1.* does not take part in every pass"):
        collected(model, make_units(LENGTHS), 20, gradients=gradients)


def test_a_layer_that_is_used_twice_counts_twice(make_model, make_units, unit_loop):
    model, units = make_model(), make_units(LENGTHS)
    layers = model.base_model.model.model.layers
    layers[1] = layers[0]
    expected = unit_loop(model, arranged(units))
    torch.testing.assert_close(collected(model, units, 20, False), expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("packed", [False, True])
def test_a_row_that_is_not_finite_stays_in_its_unit(make_model, make_units, packed):
    units = make_units([[9], [7], [7], [5]], lowest=12)
    bad = Unit((Row.of([12, 11, 13, 14, 15, 16, 17]),))
    model = make_model()
    model.get_input_embeddings().weight.data[11] = torch.nan
    found = collected(model, [units[0], units[1], bad, units[3]], 1000, packed)
    expected = collected(make_model(), units, 1000, packed)
    assert found[2].isnan().any()
    torch.testing.assert_close(found[[0, 1, 3]], expected[[0, 1, 3]], rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(
    "family", ["llama", "mistral", "qwen2", "qwen3", "gemma3_text", "phi", "phi3", "gpt2", "gpt_neox"]
)
def test_row_gradients_equal_opacus_hooks(make_model, make_units, family, packed):
    units = make_units([[9], [9], [9], [9]])
    model = make_model(family, torch.float32)
    mine = collected(model, units, 1000, packed)

    model = make_model(family, torch.float32).train()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
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
    gradients.layout = Layout((Rectangle(0, 2, 6, 0, (0, 2)),), torch.tensor([0, 1]), (2, 6), False)
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
    mine = collected(model, make_units([[20, 9]]), packed=True)
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
    gradients.layout = Layout((Rectangle(0, 1, 12, 0, (0, 1)),), torch.tensor([0]), (1, 12), False)
    with gradients.attached(), pytest.raises(UnsupportedModelError, match="row by row"):
        model(input_ids=torch.arange(12).view(2, 6))


class Routed(torch.nn.Module):
    """Hands all tokens to its layer, in another order, as a mixture of experts may."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return self.inner(x.flatten(0, 1).flip(0)).flip(0).view_as(x)


def test_a_layer_that_sees_as_many_tokens_in_another_order_is_refused(make_model, make_units):
    model = make_model()
    layer = model.base_model.model.model.layers[0]
    layer.mlp = Routed(layer.mlp)
    with pytest.raises(UnsupportedModelError, match="row by row"):
        collected(model, make_units([[5], [5]]))
