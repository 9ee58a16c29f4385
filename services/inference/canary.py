"""An adapter says a few tokens outside the engine before it may say any inside.

The checks of the files promise that nothing in an adapter is harmful by itself; this one looks at what comes of it
together with the base model, where a number that is not finite hurts nobody.
"""

from __future__ import annotations

import threading
from pathlib import Path

import torch

from services.inference.verification import Rejected

_PROMPT_TOKENS = 16
_one = threading.Lock()  # each holds the base model once more


def speak(base: Path, tokens: int, adapter: Path) -> None:
    """Let transformers and PEFT continue a fixed prompt, greedily.

    Args:
        base: directory of the base model.
        tokens: how many to make.
        adapter: a PEFT directory that passed the other checks.

    Raises:
        Rejected: if a logit is not a finite number.
    """
    from peft import PeftModel
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    with _one, torch.inference_mode():
        model = AutoModelForCausalLM.from_pretrained(base, dtype="auto", local_files_only=True)
        vocabulary = model.get_input_embeddings().num_embeddings
        peft = PeftModel.from_pretrained(model, str(adapter)).eval()
        # Tokens from all over the vocabulary: whatever a text may hold.
        feed = torch.linspace(0, vocabulary - 1, _PROMPT_TOKENS).long()[None]
        cache = None
        for _ in range(tokens):
            output = peft(input_ids=feed, past_key_values=cache, use_cache=True)
            if not bool(torch.isfinite(output.logits).all()):
                raise Rejected("canary", "with the base model it computes values that are not finite numbers")
            cache, feed = output.past_key_values, output.logits[:, -1:].argmax(-1)
