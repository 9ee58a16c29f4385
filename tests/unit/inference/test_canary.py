"""What only shows when an adapter and its base model compute together."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file

from services.inference.base_models import linear_shapes, skeleton
from services.inference.canary import speak
from services.inference.verification import Limits, Rejected, verify_adapter
from tests.support.random_models import edit


def test_a_sound_adapter_speaks(tiny_base: Path, tiny_adapters: list[Path]) -> None:
    for adapter in tiny_adapters:
        speak(tiny_base, 8, adapter)


def test_one_that_overflows_with_the_base_model_is_rejected(
    tiny_base: Path, tiny_adapters: list[Path], tmp_path: Path
) -> None:
    adapter = Path(shutil.copytree(tiny_adapters[0], tmp_path / "adapter"))
    weights = {name: tensor * 1e20 for name, tensor in load_file(adapter / "adapter_model.safetensors").items()}
    edit(adapter, weights)
    # A bound that an operator set too high lets it pass.
    verify_adapter(adapter, linear_shapes(skeleton(tiny_base)), Limits(norm_bound=1e300))
    with pytest.raises(Rejected) as rejected:
        speak(tiny_base, 8, adapter)
    assert rejected.value.check == "canary"
