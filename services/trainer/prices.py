"""What a job's machines cost: before it runs an estimate, afterwards what was held.

The operator owns the numbers. An estimate follows from public counts and settings alone: how long earlier jobs took
would tell of how long private rows are, so no number here is ever learned from one.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, fields
from pathlib import Path

from murmura.api.trainer.v1 import trainer_pb2

_HOUR_S = 3600.0


class UnsoundPrices(ValueError):
    """The file of prices says something that cannot be."""


@dataclass(frozen=True)
class Prices:
    """What the operator says.

    Attributes:
        currency: three letters.
        node_hour: what a node costs for an hour that it is held.
        tokens_per_second: that a node trains, padding included; measured on public text.
        start_minutes: for which a node is held besides: until it is ready, and until it is gone.
    """

    currency: str
    node_hour: float
    tokens_per_second: float
    start_minutes: float = 5.0

    @classmethod
    def read(cls, path: Path) -> Prices:
        """Read a TOML file.

        Raises:
            UnsoundPrices: says what is wrong with it.
        """
        try:
            found = tomllib.loads(path.read_text())
        except (OSError, ValueError) as error:
            raise UnsoundPrices(f"{path}: {error}") from None
        known = {field.name for field in fields(cls)}
        if unknown := sorted(set(found) - known):
            raise UnsoundPrices(f"{path}: {unknown[0]} is unknown; known are {', '.join(sorted(known))}")
        if missing := sorted({"currency", "node_hour", "tokens_per_second"} - set(found)):
            raise UnsoundPrices(f"{path}: {missing[0]} must be given")
        for name, value in found.items():
            if name == "currency":
                if not (isinstance(value, str) and len(value) == 3 and value.isupper()):
                    raise UnsoundPrices(f"{path}: currency must be three capital letters")
            elif isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < float("inf"):
                raise UnsoundPrices(f"{path}: {name} must be a number that is not negative")
        if not found["tokens_per_second"]:
            raise UnsoundPrices(f"{path}: tokens_per_second must be positive")
        return cls(**found)

    def of_plan(self, plan: trainer_pb2.Plan, nodes: int = 1) -> trainer_pb2.Cost:
        """Return about what a job will cost, if every row were as long as it may be.

        Args:
            plan: with its settings filled in.
            nodes: that share the work; each of them is started, and works its share.
        """
        settings = plan.settings
        rows = float(settings.batch_size)
        if not plan.statement.unlimited:
            rows *= min(settings.max_rows_per_unit, max(1.0, plan.row_count / max(1, plan.unit_count)))
        tokens = plan.steps * rows * settings.max_length
        return self.of_seconds(tokens / self.tokens_per_second + 60 * nodes * self.start_minutes)

    def of_seconds(self, node_seconds: float) -> trainer_pb2.Cost:
        """Return what machines cost that were held for so long."""
        hours = node_seconds / _HOUR_S
        return trainer_pb2.Cost(node_hours=hours, amount=hours * self.node_hour, currency=self.currency)
