"""What public tokens find out: silent adapters, rows that see each other, packing that means something else."""

from __future__ import annotations

import pytest
import torch
from transformers import AttentionInterface

from services.trainer.worker import engine
from services.trainer.worker.batches import Layout
from services.trainer.worker.engine import PrivateRun
from services.trainer.worker.execution import Execution
from services.trainer.worker.lora import UnsupportedModelError
from services.trainer.worker.packing import PackedAttention
from tests.support import families

FAMILIES = [family for family in families.FAMILIES if family not in families.NEVER_PACKED]


# Of three, that small and at random, bfloat16's rounding alone moves gradients by more than the probe lets pass.
@pytest.mark.parametrize(
    ("family", "dtype"),
    [(family, torch.float32) for family in FAMILIES]
    + [(family, torch.bfloat16) for family in FAMILIES if family not in ("granite", "olmo2", "opt")],
)
def test_every_family_can_be_packed(make_model, make_units, make_settings, key, family, dtype):
    model = make_model(family, dtype)
    assert PrivateRun(model, make_units([[4]]), make_settings(), key)._packed
    assert not PrivateRun(model, make_units([[4]]), make_settings(), key, Execution(packed=False))._packed


class MeanOverBatch(torch.nn.Module):
    """A normalisation over the batch, as BatchNorm in training would be."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x - 0.1 * x.mean(dim=(0, 1), keepdim=True)


def test_a_model_in_which_rows_see_each_other_is_refused(make_model, make_units, make_settings, key):
    model = make_model()
    model.base_model.model.model.norm = MeanOverBatch()
    with pytest.raises(UnsupportedModelError, match="rows of a batch see each other"):
        PrivateRun(model, make_units([[4]]), make_settings(), key)


def test_a_model_that_ignores_our_attention_is_padded(
    make_model, make_units, make_settings, update_of, key, monkeypatch
):
    """Then packed rows would attend to each other; what is trained must be what padding gives."""
    units = make_units([[9, 4], [7], [5]])
    expected = update_of(PrivateRun(make_model(), units, make_settings(), key, Execution(packed=False)))
    monkeypatch.setattr(AttentionInterface, "register", classmethod(lambda cls, name, function: None))
    AttentionInterface._global_mapping.pop("murmura_packed", None)
    run = PrivateRun(make_model(), units, make_settings(), key)
    assert not run._packed
    assert torch.equal(update_of(run), expected)


def test_packed_rows_that_see_each_other_are_padded(make_model, make_units, make_settings, key, monkeypatch):
    attend = PackedAttention.__call__

    def as_one_row(self, module, query, *args, **kwargs):
        layout = self.layout
        whole = type(layout.rectangles[0])(0, 1, query.shape[2], 0, (0, 1))
        self.layout = Layout((whole,), layout.unit_of_row, layout.shape, True)
        try:
            return attend(self, module, query, *args, **kwargs)
        finally:
            self.layout = layout

    monkeypatch.setattr(PackedAttention, "__call__", as_one_row)
    assert not PrivateRun(make_model(), make_units([[4]]), make_settings(), key)._packed


def test_packing_that_means_something_else_is_not_used(make_model, make_units, make_settings, key, monkeypatch):
    """Rows are apart, but their attention is another one: only the comparison with padding can tell."""
    attend = PackedAttention.__call__
    monkeypatch.setattr(
        PackedAttention, "__call__", lambda self, *args, **kwargs: attend(self, *args, **(kwargs | {"scaling": 3.0}))
    )
    assert not PrivateRun(make_model(), make_units([[4]]), make_settings(), key)._packed
    monkeypatch.setattr(engine, "same_gradients", lambda *_: True)
    assert PrivateRun(make_model(), make_units([[4]]), make_settings(), key)._packed
