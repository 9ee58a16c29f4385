"""What is measured of a model, with noise: the only numbers computed from rows that anybody sees."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from murmura.api.common.v1 import privacy_pb2
    from murmura.api.trainer.v1 import trainer_pb2


class Evaluation:
    """How well an adapter predicts held-out rows: one measurement with noise, at its own price.

    Attributes:
        perplexity: exponential of the mean loss.
        mean_loss: mean over privacy units of their loss per token, in nats, each cut at the bound of the plan.
        standard_error: of `mean_loss`, as far as it comes of the noise.
        units: how many units had rows, noise included.
        statement: what is promised about these numbers.
    """

    def __init__(self, message: trainer_pb2.Evaluation) -> None:
        self.perplexity: float = message.perplexity
        self.mean_loss: float = message.mean_loss
        self.standard_error: float = message.standard_error
        self.units: float = message.unit_count
        self.statement: privacy_pb2.PrivacyStatement = message.statement

    def __str__(self) -> str:
        low, high = (math.exp(self.mean_loss + sign * 2 * self.standard_error) for sign in (-1, 1))
        return (
            f"perplexity {self.perplexity:.1f} on held-out rows of about {max(0.0, self.units):.0f} units "
            f"({low:.1f} to {high:.1f}, with noise for ε = {self.statement.epsilon:.4g})"
        )

    def __repr__(self) -> str:
        return f"<{self}>"
