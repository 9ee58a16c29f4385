"""The tiny base model and adapters of the unit tests, here too."""

from __future__ import annotations

import importlib.util
from pathlib import Path

_path = Path(__file__).parents[2] / "unit" / "inference" / "conftest.py"
_spec = importlib.util.spec_from_file_location("inference_fixtures", _path)
assert _spec is not None
assert _spec.loader is not None
_module = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_module)

tiny_base = _module.tiny_base
tiny_adapters = _module.tiny_adapters
trainer_key = _module.trainer_key
tools = _module.tools
