"""`import murmura` costs little, and a failure names what made it slow."""

from __future__ import annotations

import subprocess
import sys

import pytest

ATTEMPTS = 5
LIMIT_S = 0.3
# Each of these costs more than all of the limit leaves, or is not there without an extra.
HEAVY = ("grpc", "google.protobuf", "numpy", "rich", "typer", "yaml", "jsonschema", "pyarrow", "pandas")


def seconds(program: str) -> float:
    timed = f"import time; t = time.perf_counter(); {program}; print(time.perf_counter() - t)"
    return float(subprocess.check_output([sys.executable, "-c", timed]))


def worst(program: str, count: int = 8) -> str:
    """Return the modules that took longest, as `-X importtime` has them."""
    told = subprocess.run([sys.executable, "-X", "importtime", "-c", program], capture_output=True, text=True).stderr
    rows = [line.removeprefix("import time:").split("|") for line in told.splitlines() if line.count("|") == 2]
    times = [(int(row[0]), row[2].strip()) for row in rows if row[0].strip().isdigit()]
    return "\n".join(f"{own / 1000:8.1f} ms  {module}" for own, module in sorted(times, reverse=True)[:count])


def test_importing_is_quick() -> None:
    best = min(seconds("import murmura") for _ in range(ATTEMPTS))
    assert best < LIMIT_S, f"import murmura takes {best:.3f} s; the slowest:\n{worst('import murmura')}"


@pytest.mark.parametrize("module", HEAVY)
def test_importing_takes_no_library_along(module: str) -> None:
    program = f"import sys, murmura; assert {module!r} not in sys.modules"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True).returncode == 0


def test_the_slowest_are_named() -> None:
    assert "ms  json" in worst("import json", 1000)
