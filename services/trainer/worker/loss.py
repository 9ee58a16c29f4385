"""The loss of one sequence, untouched by its neighbours in the batch.

The customary loss of a causal LM is a mean over all tokens of a batch. It couples examples: a long row shrinks the
weight of every other, so removing one unit changes the gradients of all of them, and the sensitivity is up to 28 times
what clipping promises. Here each row has its own mean over its own tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

IGNORED = -100


def token_losses(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the cross-entropy of every predicted token in single precision or better; ignored positions are 0.

    Args:
        logits: shape (rows, length, vocabulary).
        labels: shape (rows, length), not shifted; `IGNORED` where nothing is predicted.

    Returns:
        Shape (rows, length - 1), in nats.
    """
    predicted = logits[:, :-1]
    predicted = predicted.to(torch.promote_types(predicted.dtype, torch.float32))
    losses = functional.cross_entropy(
        predicted.flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORED, reduction="none"
    )
    return losses.view(labels.shape[0], -1)


def sequence_losses(logits: Tensor, labels: Tensor) -> Tensor:
    """Return each row's mean over its own predicted tokens.

    Formal guarantee: entry i is a function of row i of both arguments alone.

    Args:
        logits: shape (rows, length, vocabulary).
        labels: shape (rows, length), not shifted.

    Returns:
        Shape (rows,), in nats; 0 for a row that predicts nothing.
    """
    predicted = (labels[:, 1:] != IGNORED).sum(dim=1).clamp(min=1)
    return token_losses(logits, labels).sum(dim=1) / predicted
