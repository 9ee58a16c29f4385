"""Murmura: fine-tune language models on private text with differential privacy.

import murmura
from murmura import Client, trace
from murmura.llm import LLM

The names below load what they need at first use, so that `import murmura` costs milliseconds.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from murmura.aio import AsyncClient
    from murmura.audit import Canaries
    from murmura.calls.registration import table
    from murmura.client import Client
    from murmura.evaluation import eval
    from murmura.llm import LLM, Model
    from murmura.tracing import trace, where

__version__ = "0.1.0"
__all__ = ["LLM", "AsyncClient", "Canaries", "Client", "Model", "__version__", "eval", "table", "trace", "where"]

_PLACES = {
    "AsyncClient": "murmura.aio",
    "Canaries": "murmura.audit",
    "Client": "murmura.client",
    "LLM": "murmura.llm",
    "Model": "murmura.llm",
    "eval": "murmura.evaluation",
    "table": "murmura.calls.registration",
    "trace": "murmura.tracing",
    "where": "murmura.tracing",
}


def __getattr__(name: str) -> Any:
    if name in _PLACES:
        return getattr(importlib.import_module(_PLACES[name]), name)
    raise AttributeError(f"module 'murmura' has no attribute {name!r}; it has {', '.join(__all__)}")
