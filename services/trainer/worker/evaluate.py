"""Perplexity of a base model, or of an adapter on it, for the owner of the texts.

A data-dependent number must not leave a worker unpaid, so no service computes this. The owner of the data runs it
offline, on rows that were held out:

    python -m services.trainer.worker.evaluate --base PATH [--adapter DIRECTORY] --texts FILE
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from services.trainer.worker.batches import micro_batches
from services.trainer.worker.data import Unit
from services.trainer.worker.loss import IGNORED, token_losses
from services.trainer.worker.model import load_adapter, load_base
from services.trainer.worker.text import TextFormat, encoder

_TOKEN_BUDGET = 2048


@dataclass(frozen=True)
class Evaluation:
    """How well a model predicts some texts.

    Attributes:
        perplexity: exp of the mean loss per predicted token, the end of the text included.
        tokens: predicted tokens.
        rows: texts with at least one token.
    """

    perplexity: float
    tokens: int
    rows: int


@torch.no_grad()
def perplexity(model: Any, tokenizer: Any, texts: Sequence[str], max_length: int = 1024) -> Evaluation:
    """Return the perplexity of `texts`, each read as `bos text eos`, weighted by tokens.

    Raises:
        ValueError: if no text has a token.
    """
    rows = tuple(row for row in encoder(tokenizer, TextFormat.PLAIN, max_length)(texts, ()) if row.trains)
    if not rows:
        raise ValueError("there is no text to evaluate")
    device = next(model.parameters()).device
    model.eval()
    nats, tokens = 0.0, 0
    for batch in micro_batches([Unit(rows)], _TOKEN_BUDGET, device):
        logits = model(input_ids=batch.input_ids, use_cache=False).logits
        nats += float(token_losses(logits, batch.targets).sum(dtype=torch.float64))
        tokens += int((batch.targets != IGNORED).sum())
    return Evaluation(math.exp(nats / tokens), tokens, len(rows))


def read_texts(path: Path, field: str = "text") -> list[str]:
    """Read texts from a file: JSON Lines (`.jsonl`: strings, or objects with `field`), else one text a line."""
    lines = [line for line in path.read_text(encoding="utf-8").split("\n") if line.strip()]
    if path.suffix != ".jsonl":
        return lines
    texts = []
    for number, line in enumerate(lines, 1):
        try:
            value = json.loads(line)
            texts.append(str(value if isinstance(value, str) else value[field]))
        except (ValueError, KeyError, TypeError):
            raise ValueError(
                f"entry {number} of {path.name} is neither a JSON string nor an object with {field!r}"
            ) from None
    return texts


def main() -> None:
    """Print one JSON line for the base model, and one for each adapter, in their order."""
    parser = argparse.ArgumentParser(description="Perplexity of held-out texts, computed offline.")
    parser.add_argument("--base", required=True, help="directory or hub id of the base model")
    parser.add_argument("--adapter", type=Path, action="append", default=[], help="a PEFT directory; may be repeated")
    parser.add_argument("--texts", type=Path, required=True, help="JSON Lines, or a text a line")
    parser.add_argument("--field", default="text", help="where a JSON object holds its text")
    parser.add_argument("--max-length", type=int, default=1024)
    options = parser.parse_args()
    texts = read_texts(options.texts, options.field)
    for adapter in (None, *options.adapter):
        base = load_base(options.base)  # Afresh: an adapter wraps the model it is put on.
        model = load_adapter(base, adapter) if adapter else base.model
        found = perplexity(model, base.tokenizer, texts, options.max_length)
        print(json.dumps({"adapter": str(adapter) if adapter else None} | asdict(found)))


if __name__ == "__main__":
    main()
