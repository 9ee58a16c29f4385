"""The base models that can be fine-tuned, and what of them bounds a job's settings.

A job is paid for before its worker loads a base model, and its adapter is served only afterwards: what the one could
not read, or the service could not hold, is refused in the plan.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import grpc

from murmura.api.trainer.v1 import trainer_pb2
from services.common.errors import MurmuraError, invalid

# What families call the number of their positions.
_POSITIONS = ("max_position_embeddings", "n_positions", "max_seq_len")


class BaseModels:
    """Base models by their public names.

    Args:
        locations: public name to a directory or a hub id.
        max_rank: greatest rank of an adapter that is served.
    """

    def __init__(self, locations: Mapping[str, str], max_rank: int) -> None:
        self._locations = locations
        self._max_rank = max_rank

    @property
    def names(self) -> list[str]:
        """Their names, sorted."""
        return sorted(self._locations)

    def location(self, base_model: str) -> str:
        """Return where a base model lies.

        Raises:
            MurmuraError: if no such base model is configured.
        """
        name = base_model.removeprefix("baseModels/")
        if name not in self._locations:
            known = ", ".join(self.names) or "none"
            raise MurmuraError(
                grpc.StatusCode.NOT_FOUND,
                "BASE_MODEL_UNKNOWN",
                f"There is no base model {name!r}; there are: {known}. An operator adds one: "
                "`murmura up --base-model NAME=PATH_OR_HUB_ID`.",
                {"base_model": name, "base_models": known},
            )
        return self._locations[name]

    def longest(self, base_model: str, chosen: trainer_pb2.Settings) -> int | None:
        """Return how many tokens a base model reads at once; None where it sets no bound, or its files are not here.

        Raises:
            MurmuraError: if no such base model is configured, or what was chosen goes beyond what it reads or what is
                served.
        """
        if chosen.lora_rank > self._max_rank:
            raise invalid(
                "spec.settings.lora_rank",
                f"must be at most {self._max_rank}: no more is served. An operator raises MURMURA_ENGINE_MAX_RANK of "
                "the inference service and MURMURA_MAX_LORA_RANK of the trainer",
            )
        longest = _positions(Path(self.location(base_model)))
        if longest is not None and chosen.max_length > longest:
            raise invalid("spec.settings.max_length", f"must be at most {longest}: {base_model} reads no more at once")
        return longest


def _positions(directory: Path) -> int | None:
    try:
        config = json.loads((directory / "config.json").read_bytes())
    except (OSError, ValueError):
        return None  # the worker will know
    # Of a model that also sees, what reads.
    parts = [config.get("text_config"), config] if isinstance(config, dict) else []
    numbers = (part.get(name) for part in parts if isinstance(part, dict) for name in _POSITIONS)
    return next((number for number in numbers if type(number) is int and number > 0), None)
