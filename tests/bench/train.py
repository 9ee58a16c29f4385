"""`make bench-train`: what privacy costs in time and memory beside the same fine-tuning without it.

One model, the same rows, one run: plain LoRA (PEFT, padded batches, no privacy), this engine with padded and with
packed batches, and Opacus with its hooks and with ghost clipping. Contenders take turns, step by step, so that whatever
else the machine does hits all of them; ratios are medians over rounds. Memory is measured in a process of its own each.
Prints a table for people on standard error and one JSON line on standard output.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from opacus import PrivacyEngine
from opacus.utils.fast_gradient_clipping_utils import DPLossFastGradientClipping
from peft import LoraConfig, get_peft_model
from rich.console import Console
from rich.table import Table
from torch.utils.data import DataLoader, TensorDataset
from transformers import LlamaConfig, LlamaForCausalLM

from services.trainer.worker.data import Row, Unit, pad
from services.trainer.worker.engine import PrivateRun, TrainingSettings
from services.trainer.worker.execution import Execution, expect_any_shape, fitted
from services.trainer.worker.loss import sequence_losses
from services.trainer.worker.streams import RunKey

RANK, ROWS = 16, 16
LENGTHS = Path(__file__).with_name("phee_lengths.json")
PEERS = ("plain", "padded", "packed", "opacus hooks", "opacus ghost")
Rows = Sequence[Row]
Step = Callable[[Rows], None]


@dataclass(frozen=True)
class Case:
    """What is trained where.

    Attributes:
        device: cpu or cuda.
        dtype: of the frozen base.
        shape: of the Llama.
        length: tokens of a row in the even case.
        rounds: how often each contender takes its turn.
        sentences: rows of a step where they have the lengths of real sentences; with a few, a GPU is idle.
    """

    device: str
    dtype: torch.dtype
    shape: dict[str, int]
    length: int
    rounds: int
    sentences: int = ROWS


CPU = Case(
    "cpu",
    torch.float32,
    {"vocab_size": 8192, "hidden_size": 512, "intermediate_size": 1376, "num_hidden_layers": 6, "heads": 8},
    length=128,
    rounds=9,
)
# 1.2 billion parameters.
GPU = Case(
    "cuda",
    torch.bfloat16,
    {"vocab_size": 32_000, "hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 22, "heads": 32},
    length=512,
    rounds=15,
    sentences=64,
)


def model_of(case: Case) -> Any:
    """Return a random Llama with a fresh adapter on all linear layers; the same each time."""
    torch.manual_seed(0)
    shape = dict(case.shape)
    heads = shape.pop("heads")
    config = LlamaConfig(
        **shape,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        max_position_embeddings=2048,
        tie_word_embeddings=False,
    )
    # On a CPU the plain attention is the faster one, for every contender.
    config._attn_implementation = "eager" if case.device == "cpu" else "sdpa"
    with torch.device(case.device):
        base = LlamaForCausalLM(config).to(case.dtype).requires_grad_(False)
    return get_peft_model(base, LoraConfig(task_type="CAUSAL_LM", r=RANK, lora_alpha=32, target_modules="all-linear"))


def plain(case: Case) -> Step:
    """Plain LoRA: the customary loss and optimizer."""
    model = model_of(case).train()
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(trained, lr=1e-3)

    def step(rows: Rows) -> None:
        ids, labels = pad(rows, torch.device(case.device))
        model(input_ids=ids, labels=labels, use_cache=False).loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def murmura(case: Case, packed: bool) -> Step:
    """This engine: every row is a unit, all of them take part, real noise."""
    settings = TrainingSettings(
        steps=10**6, expected_batch_units=ROWS, sampling_probability=1.0, noise_multiplier=1.0, max_length=2048
    )
    model = model_of(case)
    units = [Unit((Row.of(range(8)),))] * max(ROWS, case.sentences)
    run = PrivateRun(model, units, settings, RunKey(bytes(32)), fitted(model, case.length, Execution(packed=packed)))
    if run._packed is not packed:
        raise RuntimeError("this model cannot be packed")

    def step(rows: Rows) -> None:
        run._units = [Unit((row,)) for row in rows] + [Unit(())] * (len(units) - len(rows))
        run.step()

    return step


def opacus(case: Case, ghost: bool) -> Step:
    """Opacus: hooks form per-sample gradients beside the ordinary ones; ghost clipping goes backward twice."""
    model = model_of(case).train()
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer: Any = torch.optim.Adam(trained, lr=1e-3)
    loader: Any = DataLoader(TensorDataset(torch.zeros(ROWS)), batch_size=ROWS)
    mode = {"grad_sample_mode": "ghost", "criterion": torch.nn.CrossEntropyLoss()} if ghost else {"wrap_model": True}
    made: Any = PrivacyEngine().make_private(
        module=model,
        optimizer=optimizer,
        data_loader=loader,
        noise_multiplier=1.0,
        max_grad_norm=1.0,
        poisson_sampling=False,
        **mode,
    )
    wrapped, optimizer = made[0], made[1]

    def losses(rows: Rows) -> torch.Tensor:
        ids, labels = pad(rows, torch.device(case.device))
        return sequence_losses(wrapped(input_ids=ids, use_cache=False).logits, labels)

    def hooks(rows: Rows) -> None:
        losses(rows).mean().backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    class PerRow(torch.nn.Module):
        """What ghost clipping asks a loss to be: one number a row."""

        reduction = "mean"

        def forward(self, found: torch.Tensor, _: Any) -> torch.Tensor:
            return found

    criterion = DPLossFastGradientClipping(wrapped, optimizer, PerRow(), loss_reduction="mean")

    def ghosts(rows: Rows) -> None:
        criterion(losses(rows), torch.zeros(len(rows))).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return ghosts if ghost else hooks


def contender(name: str, case: Case) -> Step:
    """Return one contender's step."""
    if name == "plain":
        return plain(case)
    if name in ("padded", "packed"):
        return murmura(case, name == "packed")
    return opacus(case, name == "opacus ghost")


def even_rows(case: Case, number: int) -> list[Row]:
    """Return rows of one length."""
    generator = np.random.default_rng(number)
    return [Row.of(generator.integers(8, case.shape["vocab_size"], case.length)) for _ in range(ROWS)]


def phee_rows(case: Case, number: int) -> list[Row]:
    """Return rows with the lengths of real sentences, drawn at random, as a shuffled batch would be."""
    generator = np.random.default_rng(number)
    histogram = {int(length): count for length, count in json.loads(LENGTHS.read_text())["lengths"].items()}
    chances = np.array(list(histogram.values()), float)
    drawn = generator.choice(list(histogram), case.sentences, p=chances / chances.sum())
    return [Row.of(generator.integers(8, case.shape["vocab_size"], length)) for length in drawn]


def race(steps: dict[str, Step], rows_of: Callable[[int], list[Row]], case: Case) -> dict[str, list[float]]:
    """Let contenders take turns on the same rows; returns each one's tokens per second, round by round."""
    rates: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(-2, case.rounds):
        rows = rows_of(number % 1000)
        for name, step in steps.items():
            _wait(case)
            started = time.perf_counter()
            step(rows)
            _wait(case)
            if number >= 0:  # before that, memory and threads are being made
                rates[name].append(sum(map(len, rows)) / (time.perf_counter() - started))
    return rates


def _wait(case: Case) -> None:
    if case.device == "cuda":
        torch.cuda.synchronize()


def peak_bytes(name: str, case: Case) -> int:
    """Return what training takes at its peak, the model included and the libraries not."""
    if case.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    before = psutil.Process().memory_info().rss
    step = contender(name, case)
    for number in range(3):
        if number == 1 and case.device == "cpu":
            gc.collect()
            Path("/proc/self/clear_refs").write_text("5")  # forget the peak of making the model
        step(even_rows(case, number))
    if case.device == "cuda":
        return int(torch.cuda.max_memory_allocated())
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["VmHWM"].split()[0]) * 1024 - before


def _measured_apart(name: str) -> int:
    command = [sys.executable, "-m", "tests.bench.train", "--peak", name]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


def _ratio(rates: dict[str, list[float]], one: str, other: str) -> float:
    pairs = zip(rates[one], rates[other], strict=True)
    return round(statistics.median(a / b for a, b in pairs), 3)


def main() -> int:
    """Measure and print."""
    warnings.simplefilter("ignore")
    parser = argparse.ArgumentParser(description=__doc__.partition(":")[0])
    parser.add_argument("--peak", choices=PEERS, help="print the peak memory of one contender, in bytes")
    options = parser.parse_args()
    case = GPU if torch.cuda.is_available() else CPU
    expect_any_shape(torch.device(case.device))  # as a worker does; for all contenders alike
    if options.peak:
        print(peak_bytes(options.peak, case))
        return 0
    peaks = {name: _measured_apart(name) for name in PEERS}
    steps = {name: contender(name, case) for name in PEERS}
    even = race(steps, lambda number: even_rows(case, number), case)
    phee = race(steps, lambda number: phee_rows(case, number), case)
    device = torch.cuda.get_device_name() if case.device == "cuda" else f"cpu, {torch.get_num_threads()} threads"
    table = Table(title=f"LoRA fine-tuning, {device}, {case.dtype}, {ROWS} rows a step")
    table.add_column("")
    for title in (
        f"tokens/s, {case.length} each",
        "÷ plain",
        f"tokens/s, {case.sentences} of PHEE's",
        "÷ plain",
        "peak MiB",
        "÷ plain",
    ):
        table.add_column(title, justify="right")
    for name in PEERS:
        table.add_row(
            name,
            f"{statistics.median(even[name]):,.0f}",
            f"{_ratio(even, name, 'plain'):.3f}",
            f"{statistics.median(phee[name]):,.0f}",
            f"{_ratio(phee, name, 'plain'):.3f}",
            f"{peaks[name] / 2**20:,.0f}",
            f"{peaks[name] / peaks['plain']:.3f}",
        )
    Console(stderr=True, width=120).print(table)
    print(
        json.dumps(
            {
                "device": device,
                "plain_tokens_per_s": round(statistics.median(even["plain"]), 1),
                "padded_over_plain": _ratio(even, "padded", "plain"),
                "padded_over_opacus_hooks": _ratio(even, "padded", "opacus hooks"),
                "padded_over_opacus_ghost": _ratio(even, "padded", "opacus ghost"),
                "memory_over_plain": round(peaks["padded"] / peaks["plain"], 3),
                "packed_over_plain_on_phee": _ratio(phee, "packed", "plain"),
            }
        )
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
