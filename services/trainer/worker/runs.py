"""What runs have in common, private or not: they go step by step, can be taken up again, and must move the adapter."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

OnStep = Callable[[int], None]


class AdapterUnmovedError(RuntimeError):
    """Training ended with an adapter where it began, or not finite: what was trained is not what would be saved."""


class Run(Protocol):
    """Training that goes step by step and can be taken up again where it was left.

    Attributes:
        steps: how many there will be.
        completed_steps: how many there were.
    """

    steps: int
    completed_steps: int

    def step(self) -> None:
        """Take the next step."""

    def check(self) -> None:
        """Raise AdapterUnmovedError if the adapter is unchanged or not finite."""

    def state_dict(self) -> dict[str, Any]:
        """Return all that a bit-exact resume needs, in tensors and plain values."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a saved state."""


def finish(run: Run, on_step: OnStep | None = None) -> None:
    """Take the steps that are left, and check that they moved the adapter.

    Args:
        run: in whatever state.
        on_step: called with the number of finished steps, and nothing else. What it raises stops the run.
    """
    while run.completed_steps < run.steps:
        run.step()
        if on_step is not None:
            on_step(run.completed_steps)
    run.check()


def restore(parameters: Sequence[nn.Parameter], saved: Sequence[Tensor]) -> None:
    """Put saved values into parameters.

    Raises:
        ValueError: if one is missing or has another shape: nothing is restored by halves.
    """
    if [p.shape for p in parameters] != [value.shape for value in saved]:
        raise ValueError("the saved adapter is not of this model")
    with torch.no_grad():
        for parameter, value in zip(parameters, saved, strict=True):
            parameter.copy_(value)


def snapshot(model: nn.Module) -> dict[str, Tensor]:
    """Copy the trainable parameters."""
    return {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}


def check_moved(model: nn.Module, before: dict[str, Tensor]) -> None:
    """Compare with an earlier snapshot.

    Raises:
        AdapterUnmovedError: names the first parameter that did not move or is not finite.
    """
    for name, parameter in model.named_parameters():
        if name in before and (torch.equal(parameter, before[name]) or not bool(torch.isfinite(parameter).all())):
            raise AdapterUnmovedError(f"{name} did not move, or is not finite, after training")
