"""Ordinary LoRA fine-tuning, without privacy, for the jobs that a steward's policy allows it to.

It exists to be compared with: same adapter, same data, the customary recipe (shuffled mini-batches of rows of similar
length, AdamW, a learning rate that rises briefly and falls to nothing).
What it trains remembers rows and can recite them, which is why the ledger calls such a job unlimited.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from services.trainer.worker.data import Row, pad
from services.trainer.worker.engine import OnStep, check_moved, snapshot
from services.trainer.worker.loss import sequence_losses

WARMUP = 0.05
# So many mini-batches are filled from one lot of rows sorted by length: little padding, and still a good shuffle.
_LOT = 50


@dataclass(frozen=True)
class PlainSettings:
    """A run without privacy.

    Attributes:
        steps: number of optimizer steps; passes over the rows are ceil(rows / batch_rows) steps each.
        batch_rows: rows of a mini-batch.
        learning_rate: the highest; reached after `WARMUP` of the steps, then falling linearly to nothing.
        weight_decay: AdamW's.
        max_length: longest row in tokens, as the rows were encoded.
        seed: of the shuffling.
    """

    steps: int
    batch_rows: int = 12
    learning_rate: float = 6e-3
    weight_decay: float = 0.0
    max_length: int = 256
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.steps, self.batch_rows) < 1 or not self.learning_rate > 0:
            raise ValueError("steps, batch_rows and learning_rate must be positive")


def train_plain(
    model: Any,
    rows: Sequence[Row],
    settings: PlainSettings,
    on_step: OnStep | None = None,
) -> None:
    """Train the model's adapters on shuffled mini-batches of rows. Gives no privacy whatsoever.

    Args:
        model: from `model.add_adapter`; trained in place.
        rows: tokenised rows (`data.encode_rows`); those that train nothing are left out.
        settings: the run.
        on_step: called with the number of finished steps, and nothing else. What it raises stops the run.

    Raises:
        ValueError: if there are no rows.
        AdapterUnmovedError: if an adapter is unchanged or not finite at the end.
    """
    kept = [row for row in rows if row.trains]
    if not kept:
        raise ValueError("there are no rows to train on")
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=settings.learning_rate, weight_decay=settings.weight_decay)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda done: _share_of_rate(done, settings.steps))
    before = snapshot(model)
    batches = _shuffled_batches(kept, settings)
    model.eval()  # dropout is 0 in the adapter and of no use in a frozen base
    for step in range(1, settings.steps + 1):
        input_ids, labels = pad(next(batches), trained[0].device)
        logits = model(input_ids=input_ids, use_cache=False).logits
        sequence_losses(logits, labels).mean().backward()
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)
        if on_step is not None:
            on_step(step)
    check_moved(model, before)


def _share_of_rate(done: int, steps: int) -> float:
    """Return the share of the learning rate that the step after `done` steps takes."""
    return min(1.0, (done + 1) / max(1.0, WARMUP * steps)) * (1.0 - done / steps)


def _shuffled_batches(rows: Sequence[Row], settings: PlainSettings) -> Iterator[list[Row]]:
    """Yield mini-batches for ever, every row once per pass, neighbours in length together."""
    generator = np.random.default_rng(settings.seed)
    size, lot = settings.batch_rows, settings.batch_rows * _LOT
    while True:
        order = generator.permutation(len(rows))
        batches = []
        for begin in range(0, len(order), lot):
            by_length = sorted(order[begin : begin + lot], key=lambda index: len(rows[index]))
            batches += [by_length[start : start + size] for start in range(0, len(by_length), size)]
        for chosen in generator.permutation(len(batches)):
            yield [rows[index] for index in batches[chosen]]
