"""A row's loss is its own."""

from __future__ import annotations

import torch

from services.trainer.worker.loss import IGNORED, sequence_losses, token_losses


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 40, 11, generator=generator)
    labels = torch.randint(0, 11, (3, 40), generator=generator)
    labels[0, 4:] = IGNORED
    labels[1, 9:] = IGNORED
    return logits, labels


def test_each_row_is_the_mean_over_its_own_tokens():
    logits, labels = batch()
    found = sequence_losses(logits, labels)
    for row, length in enumerate((4, 9, 40)):
        expected = torch.nn.functional.cross_entropy(logits[row, : length - 1], labels[row, 1:length])
        torch.testing.assert_close(found[row], expected)


def test_a_long_neighbour_does_not_change_a_row_or_its_gradient():
    logits, labels = batch()
    logits.requires_grad_()
    together = torch.autograd.grad(sequence_losses(logits, labels).sum(), logits)[0][0]
    alone = torch.autograd.grad(sequence_losses(logits[:1], labels[:1]).sum(), logits)[0][0]
    torch.testing.assert_close(together, alone)
    # The customary mean over the tokens of the batch shrinks the row by 3 / (3 + 8 + 39).
    mean = token_losses(logits[:, :-1], labels[:, 1:]).sum() / (labels[:, 1:] != IGNORED).sum()
    coupled = torch.autograd.grad(mean, logits)[0][0]
    assert coupled.norm() < 0.1 * alone.norm()


def test_a_row_without_predictions_has_no_loss():
    logits, labels = batch()
    labels[0] = IGNORED
    assert sequence_losses(logits, labels)[0] == 0


def test_losses_are_in_single_precision():
    logits, labels = batch()
    assert sequence_losses(logits.bfloat16(), labels).dtype == torch.float32
    assert sequence_losses(logits.double(), labels).dtype == torch.float64
