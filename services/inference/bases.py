"""A base model that is served: its engine, and what stands before that."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from services.common.turns import Turns
from services.inference.engine import Engine
from services.inference.structures import Structures


@dataclass(frozen=True)
class Base:
    """A base model that is served.

    Attributes:
        engine: makes its tokens.
        shapes: module name to (out features, in features).
        turns: at the engine.
        structures: tries out what an output must satisfy; None where the engine takes no such thing.
        canary: lets an adapter speak outside the engine, and raises Rejected; None where memory is too small for that.
    """

    engine: Engine
    shapes: Mapping[str, tuple[int, int]]
    turns: Turns = field(default_factory=Turns)
    structures: Structures | None = None
    canary: Callable[[Path], None] | None = None
