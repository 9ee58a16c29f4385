"""The measurement of a trained adapter on held-out rows: the one number about rows that may leave a worker.

It is a mechanism of its own that the ledger has been charged for: one step of the Gaussian mechanism over all units of
the held-out frame.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from services.trainer.evaluation import UNIT_NORM, share
from services.trainer.worker.batches import micro_batches
from services.trainer.worker.data import Unit
from services.trainer.worker.loss import IGNORED, token_losses
from services.trainer.worker.noise import GaussianNoise
from services.trainer.worker.streams import NormalLanes


@torch.no_grad()
def noisy_sums(
    model: Any,
    units: Sequence[Unit],
    bound: float,
    noise_multiplier: float,
    normals: NormalLanes,
    micro_batch_tokens: int = 2048,
    pause: Callable[[], None] = lambda: None,
) -> tuple[float, float]:
    """Return the sums over units of `evaluation.share`, with noise.

    Formal guarantee: for frames that differ in one unit being zeroed out, one Gaussian mechanism with the given noise
    multiplier. Each unit goes through the model by itself, so that what it adds can depend on no other one, through no
    kernel and no layer.

    Args:
        model: the trained model.
        units: every slot of the held-out frame.
        bound: where a unit's loss is cut, in nats per token.
        noise_multiplier: standard deviation of the noise over `evaluation.UNIT_NORM`.
        normals: of the noise; used by nothing else.
        micro_batch_tokens: tokens of one forward.
        pause: called after each unit; what it raises ends the measurement, of which nothing is then released.
    """
    model.eval()
    total = torch.zeros(2, dtype=torch.float64)
    for unit in units:
        total += torch.tensor(share(unit_loss(model, unit, micro_batch_tokens), bound), dtype=torch.float64)
        pause()
    loss, count = GaussianNoise(normals, noise_multiplier * UNIT_NORM).add_(total).tolist()
    return float(loss), float(count)


@torch.no_grad()
def unit_loss(model: Any, unit: Unit, micro_batch_tokens: int = 2048) -> float | None:
    """Return the mean loss of the predicted tokens of a unit's rows, in nats; None if there are none."""
    device = next(model.parameters()).device
    nats, tokens = 0.0, 0
    for batch in micro_batches([unit], micro_batch_tokens, device):
        logits = model(input_ids=batch.input_ids, use_cache=False).logits
        nats += float(token_losses(logits, batch.targets).sum(dtype=torch.float64))
        tokens += int((batch.targets != IGNORED).sum())
    return nats / tokens if tokens else None
