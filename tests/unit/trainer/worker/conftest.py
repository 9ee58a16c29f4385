"""Tiny random models and units: small enough that a one-at-a-time loop in double precision is cheap."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from peft import LoraConfig, get_peft_model

from services.trainer.worker.data import Row, Unit
from services.trainer.worker.engine import PrivateRun, TrainingSettings
from services.trainer.worker.model import linear_layers
from services.trainer.worker.streams import RunKey
from tests.support import families

VOCABULARY = 61
# `make test-gpu` says cuda: what is proven of the engine is then proven of it on a GPU.
DEVICE = torch.device(os.environ.get("MURMURA_TEST_DEVICE", "cpu"))

SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "intermediate_size": 24,
    "max_position_embeddings": 64,
    "tie_word_embeddings": False,
    "pad_token_id": None,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "sliding_window": 6,
}


def _base(family: str, attention: str) -> Any:
    torch.manual_seed(1)
    return transformers.AutoModelForCausalLM.from_config(
        families.configuration(family, **SIZES), attn_implementation=attention
    )


class _Exact(torch.nn.Module):
    """A root-mean-square norm that stays in double precision, made from one that does not."""

    def __init__(self, norm: Any) -> None:
        super().__init__()
        self.weight = norm.weight
        self.epsilon = getattr(norm, "variance_epsilon", None) or norm.eps
        self.offset = 1.0 if type(norm).__name__.startswith("Gemma") else 0.0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.epsilon) * (self.weight + self.offset)


def _keep_double(model: Any) -> None:
    """Such norms round to single precision on the way, whatever the model's precision."""
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if type(child).__name__.endswith("RMSNorm"):
                setattr(module, name, _Exact(child).double())


@pytest.fixture
def make_model() -> Callable[..., Any]:
    """Make a PEFT model whose B is not zero, so that A has a gradient too."""

    def make(
        family: str = "llama",
        dtype: torch.dtype = torch.float64,
        fresh: bool = False,
        attention: str = "sdpa",
        **lora: Any,
    ) -> Any:
        base = _base(family, "eager" if family in families.OWN_ATTENTION else attention).to(dtype)
        if dtype == torch.float64:
            _keep_double(base)
        base.requires_grad_(False).to(DEVICE)
        options = {"r": 3, "lora_alpha": 6, "target_modules": linear_layers(base), **lora}
        model = get_peft_model(base, LoraConfig(task_type="CAUSAL_LM", **options)).eval()
        if not fresh:
            torch.manual_seed(2)
            for name, parameter in model.named_parameters():
                if "lora_B" in name:
                    torch.nn.init.normal_(parameter, std=0.2)
        return model

    return make


@pytest.fixture
def make_units() -> Callable[..., list[Unit]]:
    """Make units with the given row lengths, for example `[[5, 9], [3]]`."""

    def make(lengths: Sequence[Sequence[int]], seed: int = 3, lowest: int = 10) -> list[Unit]:
        generator = np.random.default_rng(seed)
        return [
            Unit(tuple(Row.of(generator.integers(lowest, VOCABULARY, length)) for length in rows)) for rows in lengths
        ]

    return make


@pytest.fixture
def key() -> RunKey:
    return RunKey(bytes(range(32)))


@pytest.fixture
def make_settings() -> Callable[..., TrainingSettings]:
    """Make settings of a run in which every unit takes part and there is no noise, unless told otherwise."""

    def make(**changes: Any) -> TrainingSettings:
        plain: dict[str, Any] = {
            "steps": 3,
            "expected_batch_units": 1.0,
            "sampling_probability": 1.0,
            "noise_multiplier": 0.0,
            "clipping_norm": 0.5,
            "clipping": "flat",
            "max_length": 64,
        }
        return TrainingSettings(**{**plain, **changes})

    return make


@pytest.fixture
def update_of() -> Callable[[PrivateRun], torch.Tensor]:
    """Take one step and return what the optimizer was given, flattened: (sum of clipped + noise) / expected."""

    def update(run: PrivateRun) -> torch.Tensor:
        given: list[torch.Tensor] = []
        parameters = run._gradients.parameters
        run._optimizer.step = lambda: given.extend(p.grad.flatten() for p in parameters)  # type: ignore[method-assign,assignment]
        run.step()
        return torch.cat(given).cpu()

    return update


@pytest.fixture
def unit_loop() -> Callable[..., torch.Tensor]:
    """The reference: the gradient of each unit by ordinary autograd, one unit and one row at a time, no padding."""

    def loop(model: Any, units: Sequence[Unit]) -> torch.Tensor:
        parameters = [p for p in model.parameters() if p.requires_grad]
        found = []
        for unit in units:
            total = [torch.zeros_like(p) for p in parameters]
            for row in unit.rows:
                ids = torch.from_numpy(row.ids)[None].to(DEVICE)
                logits = model(input_ids=ids, use_cache=False).logits[0, :-1]
                loss = torch.nn.functional.cross_entropy(logits, ids[0, 1:])
                for part, gradient in zip(total, torch.autograd.grad(loss, parameters), strict=True):
                    part += gradient / len(unit.rows)
            found.append(torch.cat([part.flatten() for part in total]))
        return torch.stack(found).cpu()

    return loop
