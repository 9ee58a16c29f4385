"""The privacy report of an adapter: one page that a data-protection officer can read, print and check.

Everything on it is public: what was promised, what an attacker did to canaries, and what the ledger wrote down. Nothing
is fetched when the page is opened, and nothing runs on it.
"""

from __future__ import annotations

import html
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from murmura.audit import Audit
from murmura.calls import budgets, jobs
from murmura.errors import InvalidInput
from murmura.figures import Bound, exposure_figure, roc_figure

if TYPE_CHECKING:
    from murmura.api.common.v1 import privacy_pb2
    from murmura.api.ledger.v1 import ledger_pb2
    from murmura.api.trainer.v1 import trainer_pb2
    from murmura.client import Client

_STYLE = """
:root { --ink: #1a1a1a; --dim: #5c5c5c; --paper: #fff; --line: #d5d5d5; --good: #1b7f4b; --bad: #b3261e;
  --own: #1f5fbf; }
@media (prefers-color-scheme: dark) { :root { --ink: #ececec; --dim: #a8a8a8; --paper: #16181b; --line: #3a3d42;
  --good: #5fce94; --bad: #ff8a80; --own: #8ab4f8; } }
@media print { :root { --ink: #000; --dim: #444; --paper: #fff; --line: #bbb; --good: #1b7f4b; --bad: #b3261e;
  --own: #1f5fbf; } section { break-inside: avoid; } }
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); max-width: 46rem;
  margin: 2rem auto; padding: 0 1rem; overflow-wrap: anywhere; }
h1 { font-size: 1.6rem; margin-bottom: .2rem; } h2 { font-size: 1.15rem; margin-top: 2.2rem; }
table { border-collapse: collapse; width: 100%; }
th, td { text-align: left; vertical-align: top; padding: .3rem .8rem .3rem 0; border-bottom: 1px solid var(--line); }
th { font-weight: 600; min-width: 9rem; } code { font-size: .85em; }
.dim, figcaption { color: var(--dim); font-size: .9rem; }
.verdict { border-left: .4rem solid; padding: .4rem .9rem; font-size: 1.1rem; }
.good { border-color: var(--good); } .bad { border-color: var(--bad); }
figure { margin: 1rem 0; } svg { width: 100%; height: auto; }
"""


@dataclass(frozen=True)
class Report:
    """What can be said about the privacy of an adapter.

    Attributes:
        job: that made it.
        account: the budget, as it stands now.
        entries: of the ledger that concern the job.
    """

    job: trainer_pb2.TrainingJob
    account: ledger_pb2.Account
    entries: tuple[ledger_pb2.Entry, ...]

    def save(self, path: str | Path) -> Path:
        """Write it as `.html` or `.json`.

        Raises:
            InvalidInput: if the name says neither.
        """
        path = Path(path)
        if path.suffix not in (".html", ".json"):
            raise InvalidInput(f"A report is written as .html or .json, not {path.suffix or 'without a suffix'}.")
        as_json = json.dumps(self.as_dict(), indent=2, ensure_ascii=False) + "\n" if path.suffix == ".json" else ""
        path.write_text(as_json or self.html(), encoding="utf-8")
        return path

    def as_dict(self) -> dict[str, Any]:
        """Return it as plain values: messages of the contracts."""
        from google.protobuf.json_format import MessageToDict

        job = self.job
        found: dict[str, Any] = {
            "adapter": job.adapter,
            "job": job.name,
            "dataset": job.spec.frame.dataset,
            "statement": MessageToDict(job.statement),
            "plan": MessageToDict(job.plan),
            "account": MessageToDict(self.account),
            "entries": [MessageToDict(entry) for entry in self.entries],
        }
        if job.HasField("audit"):
            found["audit"] = MessageToDict(job.audit)
        return found

    def html(self) -> str:
        """Return it as one self-contained page."""
        job = self.job
        parts = [self._verdict(), self._promise(), self._risk()]
        if job.HasField("audit"):
            parts.append(self._audit(Audit(job)))
        else:
            parts.append(
                _section(
                    "What an attacker did",
                    "<p>Nothing was tried: the model was trained without canaries. <code>murmura.eval(…, canaries="
                    "murmura.Canaries('…'))</code> plants some, at no cost.</p>",
                )
            )
        parts += [self._budget(), self._ledger()]
        title = f"Privacy report of {job.adapter}"
        return (
            f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>'
            '<meta name="viewport" content="width=device-width, initial-scale=1">'
            "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">"
            f"<style>{_STYLE}</style></head><body><main><h1>{html.escape(title)}</h1>"
            f'<p class="dim">{html.escape(_made(job))}</p>{"".join(parts)}</main></body></html>\n'
        )

    def _verdict(self) -> str:
        statement = self.job.statement
        if statement.unlimited:
            words, mood = "No privacy was promised: this model may repeat what it read, word for word.", "bad"
        else:
            words = (
                f"ε = {statement.epsilon:.4g} at δ = {statement.delta:.2g} for each {_unit(statement)}, proven before "
                "the model was trained, and paid for from a budget that is kept in a ledger."
            )
            mood = "good"
        return f'<p class="verdict {mood}">{html.escape(words)}</p>'

    def _promise(self) -> str:
        statement, mechanism = self.job.statement, self.job.statement.mechanism
        rows = [("dataset", self.job.spec.frame.dataset), ("base model", self.job.spec.base_model)]
        rows.append(("steps", f"{self.job.plan.steps}"))
        if not statement.unlimited:
            mu = f", μ = {statement.mu:.4g}" if statement.mu else ""
            most = statement.max_rows_per_unit
            rows += [
                ("promise", f"ε = {statement.epsilon:.6g}, δ = {statement.delta:.2g}{mu}"),
                (
                    "who is protected",
                    f"each {_unit(statement)}: all of its rows together, at most {most} of them",
                ),
                (
                    "neighbouring",
                    "two datasets are neighbours when one unit's rows are replaced by empty ones; how many rows and "
                    "units there are is public",
                ),
                (
                    "mechanism",
                    f"{mechanism.steps} steps of the Poisson-subsampled Gaussian mechanism: sampling probability "
                    f"{mechanism.sampling_probability:.4g}, noise multiplier {mechanism.noise_multiplier:.4g}, "
                    f"clipping norm {statement.clipping_norm:g}",
                ),
            ]
        return _section("What was promised", _table(rows))

    def _risk(self) -> str:
        statement = self.job.statement
        if statement.unlimited:
            return ""
        risk = statement.risk
        few, more = risk.true_positive_rate_at_0_1_percent, risk.true_positive_rate_at_1_percent
        words = (
            f"Take the strongest attacker there can be, who knows everything except whether one {_unit(statement)} was "
            f"among the data. If he may accuse one innocent in a thousand, he finds at most {few:.1%} of those who "
            f"were; if one in a hundred, at most {more:.1%}. Without any model he would find 0.1 % and 1 %. This bound "
            "is proven; what real attackers reach is usually far below it."
        )
        return _section("What it means", f"<p>{html.escape(words)}</p>")

    def _audit(self, audit: Audit) -> str:
        found = audit.message
        bound = None if audit.promised is None else Bound.of(self.job.statement)
        words = (
            f"{found.planted} of {found.canaries} made-up texts took part in training, as a coin decided of each, and "
            "an attacker with the finished model guessed how the coins fell. What he found speaks for an ε of at least "
            f"{audit.estimated_epsilon:.3g} ({found.confidence:.0%} confidence, if canaries are independent of each "
            f"other; {audit.refuted_epsilon:.3g} without that assumption)."
        )
        if audit.promised is None:
            verdict, mood = "Nothing was promised, and this is what it means.", "bad"
        elif audit.kept:
            verdict, mood = "That is within what was promised.", "good"
        else:
            verdict, mood = "That is more than was promised.", "bad"
        few, more = found.true_positive_rate_at_0_1_percent, found.true_positive_rate_at_1_percent
        rows = [
            ("finds", f"{few:.1%} of the planted canaries at 0.1 % false alarms, {more:.1%} at 1 %"),
            (
                "exposure",
                f"{found.median_exposure:.1f} bits in the median, {found.highest_exposure:.1f} at most; 1 is none, "
                f"{found.exposure_limit:.1f} the most that can be seen",
            ),
        ]
        if found.attacked:
            told = f"{found.extracted_greedily} of {found.attacked} when asked once, {found.extracted_by_sampling} in "
            rows.append(("secrets told", f"{told}{found.samples} tries each"))
        rows.append(("canaries look like", self.job.plan.canaries.template))
        figures = roc_figure({"this model": audit}, bound) + exposure_figure(audit)
        body = f'<p>{html.escape(words)}</p><p class="verdict {mood}">{html.escape(verdict)}</p>{figures}{_table(rows)}'
        return _section("What an attacker did", body)

    def _budget(self) -> str:
        plan, account = self.job.plan, self.account
        rows = [
            ("cap", f"ε = {account.epsilon:g} at δ = {account.delta:.2g}, for all jobs on these data together"),
            ("used before this job", f"ε = {plan.spent_epsilon:.4g}"),
            ("used now", f"ε = {account.spent_epsilon:.4g}"),
            ("left for one more job", f"ε = {account.left_epsilon:.4g}"),
        ]
        return _section("The budget", _table(rows))

    def _ledger(self) -> str:
        rows = []
        for entry in self.entries:
            when = f"{entry.create_time.ToDatetime():%Y-%m-%d %H:%M} UTC"
            rows.append((f"entry {entry.sequence}", f"{entry.kind}, {when}, hash {entry.hash}"))
        how = (
            "<p>Each entry of the ledger covers the one before it, so none can be changed or taken out unnoticed. A "
            "steward checks it without trusting anybody: <code>murmura budget export journal.jsonl</code>, then "
            "<code>murmura budget verify --file journal.jsonl</code>, which must know these hashes.</p>"
        )
        return _section("What the ledger says", how + _table(rows))


def of_adapter(client: Client, name: str) -> Report:
    """Gather the report of an adapter.

    Args:
        client: who asks.
        name: `adapters/…`, or its last part.
    """
    job = client.run(jobs.get_job_of(name)).training_job
    jobs.require_adapter(job)
    account = client.run(budgets.get_account(job.plan.account)).account
    about = (job.reservation, job.evaluation_reservation)
    entries = client.all(budgets.list_entries(account.name), "entries")
    return Report(job, account, tuple(one for one in entries if any(name and name in one.payload for name in about)))


def _unit(statement: privacy_pb2.PrivacyStatement) -> str:
    return f"value of {statement.privacy_unit_column!r}"


def _made(job: trainer_pb2.TrainingJob) -> str:
    return f"made by {job.name} for {job.owner}, {job.end_time.ToDatetime():%Y-%m-%d %H:%M} UTC"


def _section(title: str, body: str) -> str:
    return f"<section><h2>{html.escape(title)}</h2>{body}</section>"


def _table(rows: list[tuple[str, str]]) -> str:
    cells = "".join(
        f'<tr><th scope="row">{html.escape(name)}</th><td>{html.escape(value)}</td></tr>' for name, value in rows
    )
    return f"<table>{cells}</table>"
