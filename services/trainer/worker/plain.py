"""Ordinary LoRA fine-tuning, without privacy, for the jobs that a steward's policy allows it to.

It exists to be compared with: same adapter, same data, the customary recipe (shuffled mini-batches of rows of similar
length, AdamW, gradients of at most norm 1, a learning rate that rises briefly and falls to nothing). What it trains
remembers rows and can recite them, which is why the ledger calls such a job unlimited.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from services.trainer.worker.data import Row, pad
from services.trainer.worker.loss import sequence_losses
from services.trainer.worker.runs import OnStep, check_moved, finish, restore, snapshot

WARMUP = 0.05
# Of a mini-batch, not of a row: this is for stability and bounds nothing that a row can do.
LARGEST_NORM = 1.0
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


class PlainRun:
    """The state of a run without privacy between steps. Gives no privacy whatsoever.

    Args:
        model: from `model.add_adapter`; trained in place.
        rows: tokenised rows; those that train nothing are left out.
        settings: the run.

    Raises:
        ValueError: if there are no rows.
    """

    def __init__(self, model: Any, rows: Sequence[Row], settings: PlainSettings) -> None:
        kept = [row for row in rows if row.trains]
        if not kept:
            raise ValueError("there are no rows to train on")
        self._model = model.eval()  # dropout is 0 in the adapter and of no use in a frozen base
        self._trained = [p for p in model.parameters() if p.requires_grad]
        self._optimizer = torch.optim.AdamW(
            self._trained, lr=settings.learning_rate, weight_decay=settings.weight_decay
        )
        self._schedule = torch.optim.lr_scheduler.LambdaLR(
            self._optimizer, lambda done: _share_of_rate(done, settings.steps)
        )
        self._before = snapshot(model)
        self._batches = _shuffled_batches(kept, settings)
        self.steps, self.completed_steps = settings.steps, 0

    def step(self) -> None:
        """Take a step on the next mini-batch."""
        input_ids, labels = pad(next(self._batches), self._trained[0].device)
        logits = self._model(input_ids=input_ids, use_cache=False).logits
        sequence_losses(logits, labels).mean().backward()
        torch.nn.utils.clip_grad_norm_(self._trained, LARGEST_NORM)
        self._optimizer.step()
        self._schedule.step()
        self._optimizer.zero_grad(set_to_none=True)
        self.completed_steps += 1

    def check(self) -> None:
        """Raise AdapterUnmovedError if the adapter is unchanged or not finite."""
        check_moved(self._model, self._before)

    def state_dict(self) -> dict[str, Any]:
        """Return all that a bit-exact resume needs."""
        return {
            "completed_steps": self.completed_steps,
            "parameters": [p.detach().clone() for p in self._trained],
            "optimizer": self._optimizer.state_dict(),
            "schedule": self._schedule.last_epoch,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a saved state; only a run that has not begun can."""
        restore(self._trained, state["parameters"])
        self._optimizer.load_state_dict(state["optimizer"])
        self._schedule.last_epoch = int(state["schedule"])
        self.completed_steps = int(state["completed_steps"])
        for _ in range(self.completed_steps):
            next(self._batches)  # the shuffle follows from the seed


def train_plain(model: Any, rows: Sequence[Row], settings: PlainSettings, on_step: OnStep | None = None) -> None:
    """Train the model's adapters on shuffled mini-batches of rows. Gives no privacy whatsoever.

    Args:
        model: from `model.add_adapter`; trained in place.
        rows: tokenised rows; those that train nothing are left out.
        settings: the run.
        on_step: called with the number of finished steps, and nothing else. What it raises stops the run.

    Raises:
        ValueError: if there are no rows.
        AdapterUnmovedError: if an adapter is unchanged or not finite at the end.
    """
    finish(PlainRun(model, rows, settings), on_step)


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
