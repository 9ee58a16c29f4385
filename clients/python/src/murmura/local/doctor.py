"""`murmura doctor`: what this machine lacks, and how to get it.

Looks without importing: a package that is broken or takes ten seconds to load must not stop the examination.
"""

from __future__ import annotations

import importlib.util
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass

from murmura.local import processes
from murmura.local.layout import DEFAULT_BASE_PORT, SERVICES, Layout, default_base_models

LEAST_FREE_GB = 2
_PACKAGES = {
    "ledger": ("grpc", "dp_accounting", "scipy"),
    "dataset": ("grpc", "polars", "pyarrow", "fsspec", "cryptography"),
    "trainer": ("grpc", "psutil", "safetensors", "fsspec"),
    "worker": ("torch", "transformers", "peft", "randomgen", "pyarrow"),
}


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        what: what was looked at, and what was found.
        ok: whether it is as it should be.
        needed: whether Murmura cannot run here without it.
        remedy: the next step where it is not ok.
    """

    what: str
    ok: bool
    needed: bool = True
    remedy: str = ""


def examine(layout: Layout) -> list[Finding]:
    """Look at everything that `murmura up` needs."""
    return list(_examine(layout))


def _examine(layout: Layout) -> Iterator[Finding]:
    found = ".".join(map(str, sys.version_info[:3]))
    yield Finding(f"Python {found}", sys.version_info >= (3, 11), remedy="Install Python 3.11 or newer.")
    yield Finding(
        "the services' code",
        _has("services"),
        remedy="Run from a checkout of Murmura after `make setup`: the services are not in the client package.",
    )
    for part, packages in _PACKAGES.items():
        missing = [name for name in packages if not _has(name)]
        what = f"{part}: packages" + (f" ({', '.join(missing)} missing)" if missing else "")
        yield Finding(what, not missing, remedy="Run `make setup`.")
    engine = "vllm" if _has("vllm") else "transformers" if _has("transformers") else ""
    yield Finding(f"inference engine: {engine or 'none'}", bool(engine), remedy="Run `make setup`.")
    models = layout.base_models or default_base_models()
    yield Finding(
        f"base model: {', '.join(models) or 'none'}",
        bool(models),
        remedy="Name one: `murmura up --base-model NAME=PATH_OR_HUB_ID`.",
    )
    free = shutil.disk_usage(layout.directory if layout.directory.exists() else ".").free / 1e9
    yield Finding(f"disk: {free:.0f} GB free", free >= LEAST_FREE_GB, remedy=f"Free {LEAST_FREE_GB} GB here.")
    if layout.directory.exists():
        private = layout.directory.stat().st_mode & 0o077 == 0
        yield Finding(
            f"state directory {layout.directory}: {'yours only' if private else 'open to others'}",
            private,
            remedy=f"chmod 700 {layout.directory}",
        )
    try:
        processes.choose_endpoints(layout, SERVICES, DEFAULT_BASE_PORT)
        yield Finding("ports: free, or Murmura's own", ok=True)
    except processes.LocalError as problem:
        yield Finding("ports", ok=False, remedy=str(problem))


def _has(package: str) -> bool:
    return importlib.util.find_spec(package) is not None
