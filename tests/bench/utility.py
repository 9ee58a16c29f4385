"""`make bench-utility`: how well private models write, for several ε, with default settings.

The demo's rows (or PHEE, where a file is given) are divided by position, as in the demo; each model is trained with
what the planner would choose and the noise that the ledger would ask for, and judged by its perplexity on the rows that
were kept back. This runs the worker's engine in this process: no service, no budget, no wait. Prints a table on
standard error and one JSON line on standard output, and draws a picture: `--png FILE`.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from deploy.local.demo import records
from services.ledger import accounting
from services.ledger.accounting import E18, Cap
from services.trainer import defaults
from services.trainer.worker.data import group_units
from services.trainer.worker.engine import TrainingSettings, train_private
from services.trainer.worker.evaluate import perplexity
from services.trainer.worker.execution import fitted
from services.trainer.worker.model import LoraSettings, add_adapter, load_base
from services.trainer.worker.plain import PlainSettings, train_plain
from services.trainer.worker.streams import RunKey
from services.trainer.worker.text import plain_rows

EPSILONS = (1.0, 3.0, 8.0, 22.0)
DELTA = 1e-5
BASE = Path(__file__).parents[2] / "deploy" / "local" / "base_model" / "weights"
_console = Console(stderr=True, width=110)


@dataclass(frozen=True)
class Data:
    """Rows to train on, with their units, and rows that were kept back."""

    texts: list[str]
    units: list[int]
    held_out: list[str]

    @property
    def unit_count(self) -> int:
        """Number of privacy units."""
        return len(set(self.units))


def data_of(phee: Path | None) -> Data:
    """Return the demo's rows, divided as in the demo, without its secret."""
    everything = records.phee_records(phee) if phee else records.synthetic_records(2900, seed=7)
    train, held_out = everything[: records.TRAINING_ROWS], everything[records.TRAINING_ROWS :]
    number: dict[str, int] = {}
    units = [number.setdefault(record.patient, len(number)) for record in train]
    return Data([record.text for record in train], units, [record.text for record in held_out])


def noise_multiplier(epsilon: float, probability: float, steps: int) -> float:
    """Return the noise that the ledger would ask for in an account with the usual δ and currency."""
    delta = round(DELTA * E18)
    cap = Cap(1000.0, delta, delta // 10, accounting.Unit())
    mechanism, _ = accounting.calibrate(cap, epsilon, probability, steps, delta / 10 / E18 / 10)
    return float(mechanism.noise_multiplier)


def measure(data: Data, epsilon: float | None, **chosen: float) -> tuple[float, dict[str, Any]]:
    """Train with default settings, but for what is chosen; returns the perplexity and the settings."""
    settings = defaults.fill(defaults.Public(data.unit_count, len(data.texts), epsilon), chosen).settings
    base = load_base(str(BASE))
    model = add_adapter(base, LoraSettings(int(settings["lora_rank"]), settings["lora_alpha"]))
    rows = plain_rows(base.tokenizer, data.texts, int(settings["max_length"]))
    steps = defaults.steps(defaults.Public(data.unit_count, len(data.texts), epsilon), settings)
    if epsilon is None:
        plain = PlainSettings(
            steps=steps, batch_rows=int(settings["batch_size"]), learning_rate=settings["learning_rate"]
        )
        train_plain(model, rows, plain)
    else:
        # Fixed, so that two runs of the bench agree; a job draws its own.
        key, limit = RunKey(bytes(32)), int(settings["max_rows_per_unit"])
        probability = settings["batch_size"] / data.unit_count
        private = TrainingSettings(
            steps=steps,
            expected_batch_units=settings["batch_size"],
            sampling_probability=probability,
            noise_multiplier=noise_multiplier(epsilon, probability, steps),
            clipping_norm=settings["clipping_norm"],
            learning_rate=settings["learning_rate"],
            max_rows_per_unit=limit,
            max_length=int(settings["max_length"]),
        )
        units = group_units(rows, data.units, data.unit_count, limit, key.stream("rows"))
        train_private(model, units, private, key, execution=fitted(model, private.max_length))
    return perplexity(model, base.tokenizer, data.held_out).perplexity, settings | {"steps": steps}


def draw(path: Path, found: dict[str, float], epsilons: Sequence[float]) -> None:
    """Draw perplexity against ε."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6.4, 3.6), layout="constrained")
    axes.plot(epsilons, [found[f"{e:g}"] for e in epsilons], "o-", label="Murmura, default settings")
    axes.axhline(found["base"], linestyle=":", color="grey", label="base model, untrained")
    axes.axhline(found["unlimited"], linestyle="--", color="grey", label="ordinary fine-tune, no privacy")
    axes.set(xscale="log", yscale="log", xlabel="ε (δ = 1e-5)", ylabel="perplexity, rows kept back")
    axes.set_xticks(list(epsilons), [f"{e:g}" for e in epsilons])
    axes.set_yticks([2, 5, 10, 20, 50, 100], ["2", "5", "10", "20", "50", "100"])
    axes.minorticks_off()
    axes.legend(frameon=False)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    figure.savefig(path, dpi=150)


def main() -> int:
    """Train, judge, print."""
    parser = argparse.ArgumentParser(description="Perplexity on rows kept back, for several epsilons.")
    parser.add_argument("--phee", type=Path, help="PHEE's train.jsonl, instead of made-up rows of its shape")
    parser.add_argument("--png", type=Path, help="where the picture goes")
    options = parser.parse_args()
    data = data_of(options.phee)
    base = load_base(str(BASE))
    found = {"base": perplexity(base.model, base.tokenizer, data.held_out).perplexity}
    table = Table(title=f"{len(data.texts)} rows of {data.unit_count} patients; {len(data.held_out)} rows kept back")
    for heading in ("", "perplexity", "batch", "steps", "learning rate", "rank", "seconds"):
        table.add_column(heading, justify="right")
    table.add_row("base", f"{found['base']:.2f}")
    for epsilon in (*EPSILONS, None):
        name = "unlimited" if epsilon is None else f"{epsilon:g}"
        started = time.monotonic()
        found[name], settings = measure(data, epsilon)
        shown = (f"{settings[key]:g}" for key in ("batch_size", "steps", "learning_rate", "lora_rank"))
        label = "no privacy" if epsilon is None else f"ε = {name}"
        table.add_row(label, f"{found[name]:.2f}", *shown, f"{time.monotonic() - started:.0f}")
        _console.print(f"{label}: {found[name]:.2f}", style="dim")
    _console.print(table)
    if options.png:
        draw(options.png, found, EPSILONS)
    print(json.dumps({name: round(value, 3) for name, value in found.items()}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
