"""A small private run that can be a process of its own, or several: started by torchrun it is one rank of many.

python -m tests.support.private_run OUT '{"sampling_probability": 0.2}'
"""

from __future__ import annotations

import json
import sys
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

from services.trainer.worker.data import Row, Unit
from services.trainer.worker.engine import PrivateRun, TrainingSettings
from services.trainer.worker.ranks import Ranks
from services.trainer.worker.streams import RunKey

LENGTHS = [[5, 9, 2], [12], [], [7, 7], [30, 3, 4, 5], [40], [6]]


def model() -> Any:
    """Return a tiny Llama with an adapter whose B is not zero."""
    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=61,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        tie_word_embeddings=False,
        initializer_range=0.3,
    )
    base = LlamaForCausalLM(config).double().requires_grad_(False)
    made = get_peft_model(base, LoraConfig(task_type="CAUSAL_LM", r=3, lora_alpha=6, target_modules="all-linear"))
    for name, parameter in made.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    return made


def updates(ranks: Ranks, **changes: Any) -> torch.Tensor:
    """Train; returns what the optimizer was given in each step, shape (steps, parameters)."""
    generator = np.random.default_rng(3)
    units = [Unit(tuple(Row.of(generator.integers(10, 61, n)) for n in lengths)) for lengths in LENGTHS]
    chosen = {"steps": 8, "expected_batch_units": 2.0, "sampling_probability": 0.3, "noise_multiplier": 0.7}
    settings = TrainingSettings(**{**chosen, "max_length": 64, "learning_rate": 0.01, **changes})
    run = PrivateRun(model(), units, settings, RunKey(bytes(range(32))), ranks=ranks)
    given = []
    take = run._optimizer.step

    def step() -> None:
        given.append(torch.cat([p.grad.flatten() for p in run._gradients.parameters]))
        take()

    run._optimizer.step = step  # type: ignore[method-assign,assignment]
    for _ in range(settings.steps):
        run.step()
    return torch.stack(given)


def main() -> None:
    """Leave the updates that this rank saw in OUT.<rank>."""
    ranks = Ranks.join()
    torch.save(updates(ranks, **json.loads(sys.argv[2])), f"{sys.argv[1]}.{ranks.index}")


if __name__ == "__main__":
    main()
