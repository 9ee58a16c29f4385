"""Canaries, and what an attacker found out about them: how private a model is, shown and not only promised."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from murmura.errors import InvalidInput, MurmuraError

if TYPE_CHECKING:
    from murmura.api.trainer.v1 import trainer_pb2


@dataclass(frozen=True)
class Canaries:
    """Made-up texts to plant among the real rows; a coin decides of each whether the model learns it.

    Attributes:
        template: a text with the holes {name}, {word} and {number}. One bar separates what an attacker types from the
            secret that he is after: "{name} suffers from |a {word} form of {word}".
        count: for how many a coin is thrown.
        rows: of one canary, all alike.
    """

    template: str
    count: int = 500
    rows: int = 1

    def spec(self) -> trainer_pb2.CanarySpec:
        """Return what the contracts call it.

        Raises:
            InvalidInput: if it is no template.
        """
        from murmura.api.trainer.v1 import trainer_pb2

        if not isinstance(self.template, str) or not self.template.strip():
            raise InvalidInput("Canaries take a template, such as '{name} suffers from |a {word} form of {word}'.")
        return trainer_pb2.CanarySpec(template=self.template, count=self.count, rows=self.rows)


class Audit:
    """What an attacker who holds the adapter found out about its canaries.

    Attributes:
        message: all of it, as the contracts say it.
        promised: the epsilon that was promised; None for a model without privacy.
        estimated_epsilon: what epsilon is at least, with 95 % confidence, if canaries are independent of each other.
        refuted_epsilon: the same without any assumption; small even where everything leaks.
        extracted: of the canaries that were asked for their secret, how many told it.

    Raises:
        MurmuraError: if the job planted no canaries.
    """

    def __init__(self, job: trainer_pb2.TrainingJob) -> None:
        if not job.HasField("audit"):
            raise MurmuraError(
                "It was trained without canaries, so there is nothing to attack. murmura.eval(…, canaries="
                "murmura.Canaries('{name} suffers from |a {word} form of {word}')) plants some; they cost nothing."
            )
        self.message = job.audit
        self.promised = None if job.plan.statement.unlimited else float(job.plan.statement.epsilon)
        self.estimated_epsilon: float = job.audit.estimated_epsilon
        self.refuted_epsilon: float = job.audit.refuted_epsilon
        self.extracted = max(job.audit.extracted_greedily, job.audit.extracted_by_sampling)

    @property
    def kept(self) -> bool:
        """Whether nothing that was found speaks against the promise; never so where nothing was promised."""
        return self.promised is not None and max(self.estimated_epsilon, self.refuted_epsilon) <= self.promised

    def lines(self) -> list[str]:
        """Return it in a few lines."""
        found = self.message
        beside = "nothing was promised" if self.promised is None else f"promised {self.promised:.4g}"
        said = [
            f"attacker's ε ≥ {self.estimated_epsilon:.3g} ({beside}; {found.confidence:.0%} confidence, "
            f"{found.planted} of {found.canaries} canaries planted)",
            f"finds {found.true_positive_rate_at_1_percent:.1%} of the planted canaries at 1 % false alarms; exposure "
            f"{found.median_exposure:.1f} bits in the median, {found.highest_exposure:.1f} at most "
            f"(of {found.exposure_limit:.1f}; 1 is none)",
        ]
        if found.attacked:
            said.append(
                f"of {found.attacked} secrets it completes {found.extracted_greedily} greedily, and "
                f"{found.extracted_by_sampling} in {found.samples} samples each"
            )
        return said

    def __str__(self) -> str:
        return "\n".join(self.lines())

    def __repr__(self) -> str:
        return f"<audit: {self.lines()[0]}>"
