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


def token_losses(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the cross-entropy of each prediction in single precision or better, in nats; 0 at ignored positions.

    Args:
        logits: shape (rows, length, vocabulary).
        targets: the token that follows each position; `IGNORED` where nothing is predicted; shape (rows, length).

    Returns:
        Shape (rows, length).
    """
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    losses = functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORED, reduction="none")
    return losses.view(targets.shape)


def weighted_loss(logits: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    """Return the sum of all predictions' losses by weight; a scalar to be differentiated.

    Formal guarantee: the gradient with respect to a position's logits is a function of that position's arguments alone.

    Args:
        logits: shape (rows, length, vocabulary).
        targets: as for `token_losses`.
        weights: shape (rows, length); each a function of its own unit (`batches.MicroBatch`).
    """
    losses = token_losses(logits, targets)
    return (losses * weights.to(losses.dtype)).sum()


def sequence_losses(logits: Tensor, labels: Tensor) -> Tensor:
    """Return each row's mean over its own predicted tokens.

    Formal guarantee: entry i is a function of row i of both arguments alone.

    Args:
        logits: shape (rows, length, vocabulary).
        labels: shape (rows, length), not shifted.

    Returns:
        Shape (rows,), in nats; 0 for a row that predicts nothing.
    """
    targets = functional.pad(labels[:, 1:], (0, 1), value=IGNORED)
    predicted = (targets != IGNORED).sum(dim=1).clamp(min=1)
    return token_losses(logits, targets).sum(dim=1) / predicted
