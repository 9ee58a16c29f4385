"""`make bench`: run every bench, or those that are named, and write what they showed to RESULTS.md.

    python -m tests.bench.results [NAME …] [--write-only]

What a bench printed is kept in `results.json` beside it, with the machine and the day, so that one bench can be run
again without the others. What a machine with a GPU showed is kept beside what one without showed.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tests.bench.bars import BENCHES, Figure

HERE = Path(__file__).parent
KEPT, PAGE = HERE / "results.json", HERE / "RESULTS.md"
_ON_GPU = " on a GPU"
_HEAD = """# What the benches showed

`make bench` runs all of them and writes this page; `make bench ONLY="ledger train"` runs some and keeps the rest. Each
figure is a ratio to a peer in the same run, unless it says otherwise.
"""


def main() -> int:
    """Run what was asked for; returns 1 where a bench failed."""
    names = [word for word in sys.argv[1:] if not word.startswith("-")] or list(BENCHES)
    if unknown := [name for name in names if name not in BENCHES]:
        print(f"There is no bench {', '.join(unknown)}; there are {', '.join(BENCHES)}.", file=sys.stderr)
        return 2
    kept = json.loads(KEPT.read_text()) if KEPT.exists() else {}
    failed = []
    for name in [] if "--write-only" in sys.argv else names:
        print(f"bench: {name}", file=sys.stderr, flush=True)
        began = time.monotonic()
        done = subprocess.run([sys.executable, "-m", f"tests.bench.{name}"], stdout=subprocess.PIPE, text=True)
        lines = done.stdout.strip().splitlines()
        if done.returncode or not lines:
            failed.append(name)
            continue
        kept[name + _ON_GPU * _has_gpu()] = {
            "figures": json.loads(lines[-1]),
            "date": f"{datetime.now(UTC):%Y-%m-%d}",
            "minutes": round((time.monotonic() - began) / 60, 1),
            "machine": machine(),
        }
        KEPT.write_text(json.dumps(kept, indent=1, sort_keys=True) + "\n")
    PAGE.write_text(page(kept))
    print(f"{PAGE} is written" + (f"; failed: {', '.join(failed)}" if failed else ""), file=sys.stderr)
    return int(bool(failed))


def machine() -> str:
    """Return what this machine is, in a few words."""
    name = platform.machine()
    if Path("/proc/cpuinfo").exists():
        models = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
        name = models[0].partition(":")[2].strip() if models else name
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{len(os.sched_getaffinity(0))} cores of {name}, {memory:.0f} GiB, {accelerator()}, {platform.system()}"


def accelerator() -> str:
    """Return the name of this machine's GPU, or that it has none."""
    import torch

    return torch.cuda.get_device_name(0) if _has_gpu() else "no GPU"


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def page(kept: dict[str, Any]) -> str:
    """Return the page; what falls short of its bar comes first."""
    short, tables = [], []
    runs = [(name, where) for name in BENCHES for where in ("", _ON_GPU) if name + where in kept]
    for name, where in runs:
        figures, run, rows = BENCHES[name], kept[name + where], []
        for figure in figures:
            value = figure.of(run["figures"])
            met = figure.met(value)
            rows.append(_row(figure.title, figure.peer, _shown(value), figure.bar(), "yes" if met else "**no**"))
            if not met:
                short.append(_short(name + where, figure, value))
        minutes = f"{run['minutes']:g} minutes" if run["minutes"] else "minutes not noted"
        tables.append(
            f"\n## `make bench-{name}`{where}\n\n{run['date']}, {minutes}, {run['machine']}.\n\n"
            + _row("figure", "beside", "measured", "bar", "met")
            + _row("---", "---", "---", "---", "---")
            + "".join(rows)
        )
    missing = [name for name in BENCHES if name not in kept]
    first = "".join(short) or "Nothing.\n"
    first += f"- Never run here: {', '.join(missing)}.\n" if missing else ""
    return f"{_HEAD}\n## Short of its bar\n\n{first}{''.join(tables)}"


def _short(name: str, figure: Figure, value: float) -> str:
    tried = figure.tried or "Nobody has looked into it yet."
    return f"- **{name}: {figure.title}** beside {figure.peer}: {_shown(value)}, bar {figure.bar()}. {tried}\n"


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |\n"


def _shown(value: float) -> str:
    return f"{value:.0f}" if value == int(value) else f"{value:.4g}" if value < 100 else f"{value:,.0f}"


if __name__ == "__main__":
    sys.exit(main())
