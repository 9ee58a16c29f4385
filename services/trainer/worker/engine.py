"""DP-LoRA: the steps of a private run.

A run binds sampler, per-unit gradients, clipping, noise and optimizer into the one mechanism that the ledger has been
charged for: `steps` compositions of the Poisson-subsampled Gaussian. Its only output is the model. No loss, norm,
batch size or clipped fraction is computed for anyone to see: each is a function of private rows that nobody paid for.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from services.trainer.worker.batches import arranged, micro_batches
from services.trainer.worker.clipping import Clipping, clipped_sum
from services.trainer.worker.data import Unit
from services.trainer.worker.execution import Execution, use_checkpointing
from services.trainer.worker.lora import UnitGradients, UnsupportedModelError
from services.trainer.worker.loss import weighted_loss
from services.trainer.worker.noise import GaussianNoise
from services.trainer.worker.packing import PackedAttention
from services.trainer.worker.probe import public_units, rows_are_apart, same_gradients
from services.trainer.worker.ranks import Ranks
from services.trainer.worker.runs import OnStep, check_moved, finish, restore, snapshot
from services.trainer.worker.sampling import PoissonSampler
from services.trainer.worker.streams import NormalLanes, RunKey


@dataclass(frozen=True)
class TrainingSettings:
    """A private run. All of it is public.

    Attributes:
        steps: T, fixed; nothing ends a run early.
        expected_batch_units: the sum of a step is divided by this, whatever the true batch; q times the slots.
        sampling_probability: q.
        noise_multiplier: standard deviation of the noise over the clipping norm.
        clipping_norm: C, the L2 bound on a unit's gradient.
        clipping: how it is bounded.
        learning_rate: constant.
        max_rows_per_unit: most rows of a unit that take part.
        max_length: longest row in tokens.
        adam_betas: decay of Adam's two moments.
    """

    steps: int
    expected_batch_units: float
    sampling_probability: float
    noise_multiplier: float
    clipping_norm: float = 1.0
    clipping: Clipping = Clipping.NORMALISED
    learning_rate: float = 2e-3
    max_rows_per_unit: int = 4
    max_length: int = 256
    adam_betas: tuple[float, float] = (0.9, 0.999)

    def __post_init__(self) -> None:
        object.__setattr__(self, "clipping", Clipping(self.clipping))  # from its name, if need be
        positive = {
            name: getattr(self, name)
            for name in (
                "steps",
                "expected_batch_units",
                "sampling_probability",
                "clipping_norm",
                "learning_rate",
                "max_rows_per_unit",
                "max_length",
            )
        }
        for name, value in positive.items():
            if not 0 < value < float("inf"):
                raise ValueError(f"{name} must be positive and finite, not {value}")
        if not 0 <= self.noise_multiplier < float("inf"):
            raise ValueError(f"noise_multiplier must be finite and not negative: {self.noise_multiplier}")
        if self.sampling_probability > 1:
            raise ValueError(f"sampling_probability must be at most 1: {self.sampling_probability}")


class PrivateRun:
    """The state of a private run between steps.

    Formal guarantee: for datasets that differ in one unit being zeroed out, the sequence of models after each step is
    `steps` adaptive compositions of the Gaussian mechanism with the given noise multiplier on a Poisson sample with
    the given probability.

    Args:
        model: a PEFT model with a LoRA adapter; trained in place.
        units: every slot of the dataset, each with at most `max_rows_per_unit` rows.
        settings: the run.
        key: its randomness.
        execution: how the machine is used; changes nothing but speed and memory.
        ranks: the processes that share the work, of which this is one.

    Raises:
        ValueError: if a unit holds more rows, or longer ones, than the settings allow.
        UnsupportedModelError: if an adapter would receive no gradient, or if the model lets rows see each other; found
            on public sequences, before any row.
    """

    def __init__(
        self,
        model: Any,
        units: Sequence[Unit],
        settings: TrainingSettings,
        key: RunKey,
        execution: Execution | None = None,
        ranks: Ranks | None = None,
    ) -> None:
        if any(len(unit.rows) > settings.max_rows_per_unit for unit in units):
            raise ValueError("a unit holds more rows than max_rows_per_unit")
        if any(len(row) > settings.max_length for unit in units for row in unit.rows):
            raise ValueError("a row is longer than max_length")
        self._model = model.eval()  # dropout, if the base has any, would only add noise of no worth
        self._execution = execution or Execution()
        use_checkpointing(model, self._execution.checkpointing)
        self._ranks = ranks or Ranks()
        self._units = units
        self._settings = settings
        self._gradients = UnitGradients(model)
        self._attention = PackedAttention()
        self._sampler = PoissonSampler(key.stream("sampling"), len(units), settings.sampling_probability)
        self._noise = GaussianNoise(NormalLanes(key, "noise"), settings.noise_multiplier * settings.clipping_norm)
        self._optimizer = torch.optim.Adam(
            self._gradients.parameters, lr=settings.learning_rate, betas=settings.adam_betas
        )
        self._packed = self._probe()
        self._before = snapshot(model)
        self.steps, self.completed_steps = settings.steps, 0

    def step(self) -> None:
        """Take one logical step. An empty sample adds its noise and moves the model like any other."""
        if self._ranks.first:
            self._noise.begin(sum(parameter.numel() for parameter in self._gradients.parameters))
        # Every rank draws the whole sample and takes its share: the draw does not depend on how many ranks there are.
        sampled = arranged(self._units[index] for index in self._sampler.draw() if self._ranks.owns(index))
        totals = self._ranks.total(self._sum_of_clipped(sampled), self._noise.add_)
        for parameter, total in zip(self._gradients.parameters, totals, strict=True):
            parameter.grad = (total / self._settings.expected_batch_units).to(parameter.dtype)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        self.completed_steps += 1

    def _sum_of_clipped(self, sampled: Sequence[Unit]) -> list[Tensor]:
        """Return the sum over arranged units of bounded gradients, one float64 tensor per parameter."""
        totals = [torch.zeros_like(p, dtype=torch.float64) for p in self._gradients.parameters]
        settings = self._settings
        together = max(1, self._execution.gradient_bytes // self._gradients.bytes_per_unit)
        for start in range(0, len(sampled), together):
            gradients = self._collect(sampled[start : start + together], self._packed)
            bounded = clipped_sum(gradients, settings.clipping_norm, settings.clipping)
            torch._foreach_add_(totals, bounded)
        return totals

    def _collect(self, units: Sequence[Unit], packed: bool) -> list[Tensor]:
        """Return the gradient of each unit's mean row loss, before any clipping; valid until the next collection."""
        execution, device = self._execution, self._gradients.parameters[0].device
        self._gradients.begin(len(units))
        batches = micro_batches(units, execution.micro_batch_tokens, device, packed, execution.rectangle_tokens)
        with self._gradients.attached(), self._attention.attached(self._model) if packed else nullcontext():
            for batch in batches:
                self._gradients.layout = self._attention.layout = batch.layout
                positions = {"position_ids": batch.position_ids} if packed else {}
                logits = self._model(input_ids=batch.input_ids, use_cache=False, **positions).logits
                weighted_loss(logits, batch.targets, batch.weights).backward()
        return self._gradients.complete()

    def _probe(self) -> bool:
        """Try the model on public sequences; returns whether rows can be packed.

        Packing is an economy: where a model does not take it well, rows are padded. The other findings are refusals,
        since noise would hide them.
        """
        padded, packed = partial(self._collect, packed=False), partial(self._collect, packed=True)
        padded(public_units())
        silent = self._gradients.silent_layers()
        if silent:
            raise UnsupportedModelError(f"{len(silent)} adapters get no gradient, first {silent[0]}")
        if not rows_are_apart(padded):
            raise UnsupportedModelError("the model lets the rows of a batch see each other, so units cannot be bounded")
        try:
            return self._execution.packed and rows_are_apart(packed) and same_gradients(padded, packed)
        except (UnsupportedModelError, ValueError, TypeError, RuntimeError) as error:
            if isinstance(error, torch.OutOfMemoryError):
                raise
            return False

    def check(self) -> None:
        """Raise AdapterUnmovedError if the adapter is unchanged or not finite."""
        check_moved(self._model, self._before)

    def state_dict(self) -> dict[str, Any]:
        """Return all that a bit-exact resume needs, randomness included. Secret: only ever stored encrypted."""
        return {
            "completed_steps": self.completed_steps,
            "parameters": [p.detach().clone() for p in self._gradients.parameters],
            "optimizer": self._optimizer.state_dict(),
            "sampler": self._sampler.state_dict(),
            "noise": self._noise.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a saved state: the following steps repeat bit by bit what would have followed."""
        restore(self._gradients.parameters, state["parameters"])
        self._optimizer.load_state_dict(state["optimizer"])
        self._sampler.load_state_dict(state["sampler"])
        self._noise.load_state_dict(state["noise"])
        self.completed_steps = int(state["completed_steps"])


def train_private(
    model: Any,
    units: Sequence[Unit],
    settings: TrainingSettings,
    key: RunKey,
    on_step: OnStep | None = None,
    execution: Execution | None = None,
    ranks: Ranks | None = None,
) -> None:
    """Train the model's adapters privately, for exactly `settings.steps` steps.

    Args:
        model: a PEFT model (`model.load_for_training`); trained in place.
        units: every slot of the dataset (`data.group_units`).
        settings: the run.
        key: fresh randomness, used for this run only.
        on_step: called with the number of finished steps, and nothing else. What it raises stops the run.
        execution: how the machine is used.
        ranks: the processes that share the work.

    Raises:
        AdapterUnmovedError: if an adapter is unchanged or not finite at the end.
    """
    finish(PrivateRun(model, units, settings, key, execution, ranks), on_step)
