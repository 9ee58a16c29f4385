"""The story itself: the notebook of the README, told step by step on real parts."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

import murmura
from deploy.local.demo import records
from murmura import Canaries, Client, trace
from murmura.api.ledger.v1 import ledger_service_pb2
from murmura.display import console, say, show_account
from murmura.errors import BudgetExhausted
from murmura.figures import Bound, roc_figure
from murmura.llm import LLM, Model
from murmura.local.layout import default_base_models

BASE = "murmura-base"
EPSILON = 22.0
CAP_EPSILON = 25.0
DELTA = 1e-4
SAMPLES = 100
SHOWN = 4


@dataclass(frozen=True)
class Scale:
    """How large the story is told.

    Attributes:
        dataset: its name.
        rows: made-up rows, besides the secret ones.
        training_rows: the first so many are trained on.
        unlimited_epochs: of the ordinary run; fewer rows need more passes to be learnt by heart.
        epochs: of the private run; None takes the default.
        canaries: planted in both.
    """

    dataset: str
    rows: int
    training_rows: int
    unlimited_epochs: float
    epochs: float | None
    canaries: Canaries


TEMPLATE = "{name} ({number}) suffers from |a {word} form of {word} {word}"
FULL = Scale("phee", 2900, records.TRAINING_ROWS, 3, None, Canaries(TEMPLATE, count=240, rows=4))
QUICK = Scale("phee-quick", 520, 400, 6, 4, Canaries(TEMPLATE, count=100, rows=2))


def preprocess(data: str) -> str:
    """Take the sentence out of the clinical system's raw JSON text."""
    return data.split('text":')[1].split(', "patient_id')[0].strip()


def tell(state: Path, scale: Scale, phee: Path | None) -> dict[str, Any]:
    """Tell the story and return its figures."""
    started = time.monotonic()
    folder = state / "demo"
    chapter("A hospital's private text")
    source = folder / f"{scale.dataset}.jsonl"
    notes = records.write(source, phee, scale.rows, training_rows=scale.training_rows)
    profile = state / "profile.json"
    steward = Client(profile=profile, role="steward")
    steward.register(
        scale.dataset,
        source,
        privacy_unit="patient",
        epsilon=CAP_EPSILON,
        delta=DELTA,
        unlimited_allowed=True,
        display_name="Clinical notes",
    )
    say(f"One patient's notes say: {records.SECRET}.")
    client = Client(profile=profile)
    frame = client.dataset(scale.dataset).as_pandas().rename(columns={"context": "text"})
    frame["text"] = frame["text"].apply(trace(preprocess))
    say(repr(frame.head(3)))
    train, test = frame.iloc[: scale.training_rows], frame.iloc[scale.training_rows :]
    say(f"train on {len(train)} rows, keep {len(test)} back")

    chapter("An ordinary fine-tune")
    say("Canaries of the same shape are planted in both, to see what each gives away: made-up patients, at no cost.")
    leaky = murmura.eval(
        LLM(BASE).fit(train, batch_size=12, epochs=scale.unlimited_epochs),
        target_epsilon="unlimited",
        canaries=scale.canaries,
    )
    chapter("A Murmura fine-tune: one line, target_epsilon=22")
    settings: dict[str, Any] = {} if scale.epochs is None else {"epochs": scale.epochs}
    private = murmura.eval(LLM(BASE).fit(train, **settings), target_epsilon=EPSILON, canaries=scale.canaries)

    chapter(f"What they say to {records.PROMPT!r}")
    models: dict[str, Any] = {"base": LLM(BASE, client), "private": private, "unlimited": leaky}
    samples = {
        name: model.sample([records.PROMPT] * SAMPLES, temperature=1.0, max_new_tokens=20, seed=1)
        for name, model in models.items()
    }
    leaks = {name: sum(records.DIAGNOSIS in text for text in texts) for name, texts in samples.items()}
    console.print(_side_by_side(samples))

    chapter("What an attacker finds out about the canaries")
    for name, model in (("unlimited", leaky), ("private", private)):
        say(f"{name}:")
        for line in model.audit.lines():
            say(f"  {line}")
    picture = roc_figure({"private": private.audit, "ordinary": leaky.audit}, Bound.of(private.statement))
    (folder / "audit.html").write_text(picture)
    say(f"Both in one picture: {folder}/audit.html")
    say(f"What a data-protection officer is given: {private.report().save(folder / 'private.html')}")

    chapter("How well they write: perplexity on held-out rows")
    say("Computed by the owner of the data, offline: a service that told an analyst would leak.")
    held_out = folder / f"{scale.dataset}-held-out.jsonl"
    wrapped = list(records.wrap(notes))[scale.training_rows :]
    held_out.write_text("".join(json.dumps(trace(preprocess)(row["context"])) + "\n" for row in wrapped))
    perplexity = _perplexities(state, held_out, {"private": private, "unlimited": leaky})

    chapter("What it cost, and what is left")
    refusal = _ask_for_more(train)
    show_account(client.account(scale.dataset))
    verified = client.stub("ledger").call("VerifyJournal", ledger_service_pb2.VerifyJournalRequest())
    statement = private.statement
    report = {
        "perplexity": {name: round(value, 2) for name, value in perplexity.items()},
        "leaks": {**leaks, "of": SAMPLES},
        "attackers_epsilon": {
            name: round(model.audit.estimated_epsilon, 2)
            for name, model in (("private", private), ("unlimited", leaky))
        },
        "epsilon": statement.epsilon,
        "delta": statement.delta,
        "noise_multiplier": statement.mechanism.noise_multiplier,
        "steps": statement.mechanism.steps,
        "refusal": refusal,
        "ledger_head": verified.receipt.head_hash,
        "seconds": round(time.monotonic() - started, 1),
    }
    console.print(_figures(report))
    (folder / "report.json").write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n")
    return report


def chapter(title: str) -> None:
    """Print the title of a chapter."""
    console.print()
    console.rule(f"[bold]{title}", align="left")


def _ask_for_more(train: Any) -> str:
    """Ask for a job that the budget does not cover; returns the refusal."""
    try:
        murmura.eval(LLM(BASE).fit(train, epochs=5), target_epsilon=EPSILON)
    except BudgetExhausted as refusal:
        say(f"Refused, as it must be: {refusal}")
        return str(refusal)
    raise AssertionError("a job over budget was let through")


def _perplexities(state: Path, texts: Path, models: dict[str, Model]) -> dict[str, float]:
    """Let the worker's own evaluation read the kept-back rows: once bare, once with each adapter."""
    command = [sys.executable, "-m", "services.trainer.worker.evaluate"]
    command += ["--base", default_base_models()[BASE], "--texts", str(texts)]
    for adapter in (model.job.adapter for model in models.values() if model.job is not None):
        command += ["--adapter", str(state / "artifacts" / adapter.removeprefix("adapters/") / "adapter")]
    answer = subprocess.run(command, capture_output=True, text=True, check=True)
    values = [float(json.loads(line)["perplexity"]) for line in answer.stdout.splitlines()]
    if not all(math.isfinite(value) for value in values):
        raise AssertionError("a perplexity is not finite")
    return dict(zip(("base", *models), values, strict=True))


def _side_by_side(samples: dict[str, list[str]]) -> Table:
    table = Table(title="the prompt goes on …", title_justify="left", show_lines=True)
    for name in samples:
        table.add_column(name, ratio=1)
    for row in zip(*(texts[:SHOWN] for texts in samples.values()), strict=True):
        table.add_row(*(text.strip().replace(records.DIAGNOSIS, f"[bold red]{records.DIAGNOSIS}[/]") for text in row))
    return table


def _figures(report: dict[str, Any]) -> Table:
    table = Table(title="the figures", title_justify="left")
    for heading in ("", "base", "private", "unlimited"):
        table.add_column(heading, justify="left" if not heading else "right")
    names = ("base", "private", "unlimited")
    table.add_row("perplexity, held-out rows", *(f"{report['perplexity'][name]:.1f}" for name in names))
    table.add_row(f"leaks in {SAMPLES} samples", *(str(report["leaks"][name]) for name in names))
    table.add_row("epsilon", "", f"{report['epsilon']:.2f}", "none")
    attacker = report["attackers_epsilon"]
    table.add_row("an attacker's epsilon, at least", "", f"{attacker['private']:.2f}", f"{attacker['unlimited']:.2f}")
    return table
