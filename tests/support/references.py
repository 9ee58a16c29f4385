"""What transformers and PEFT make of a base model and an adapter: the reference for every engine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from services.trainer.worker.model import LoraSettings, add_adapter, load_base, save_adapter

# Logits of the two likeliest tokens that are so close: which of them is taken depends on the order of additions.
TIE = 1e-3


def greedy(base: Path, adapter: Path | None, prompt: str, most: int) -> str:
    """Return greedy text by `generate`, in single precision, to the first tie.

    Args:
        base: directory of the base model.
        adapter: a PEFT directory; None for the base model alone.
        prompt: the text to continue.
        most: tokens to make.
    """
    tokenizer = AutoTokenizer.from_pretrained(base)
    model: Any = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    if adapter:
        model = PeftModel.from_pretrained(model, adapter)
    ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
    with torch.inference_mode():
        out = model.eval().generate(
            input_ids=ids, max_new_tokens=most, do_sample=False, output_logits=True, return_dict_in_generate=True
        )
    likeliest = [logits[0].topk(2).values for logits in out.logits]
    clear = next((n for n, (one, two) in enumerate(likeliest) if one - two < TIE), most)
    made = out.sequences[0, ids.shape[1] :][:clear]
    return str(tokenizer.decode(made, skip_special_tokens=True))


def trained(base: Path, directory: Path) -> Path:
    """Write an adapter as a worker leaves it, but for its weights, which are random and change every output."""
    loaded = load_base(str(base), torch.device("cpu"), torch.float32)
    model = add_adapter(loaded, LoraSettings(rank=4, alpha=8))
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.2
    save_adapter(model, directory, "tiny")
    return directory
