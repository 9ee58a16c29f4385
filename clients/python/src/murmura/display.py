"""What a person sees: the plan, the budget, the result. Everything fits in 80 columns."""

from __future__ import annotations

from typing import IO, TYPE_CHECKING, cast

from rich.console import Console
from rich.table import Table
from rich.text import Text

from murmura.counts import counted, extent, grouped
from murmura.terminal import Output

if TYPE_CHECKING:
    from pathlib import Path

    from murmura.api.common.v1 import privacy_pb2
    from murmura.api.dataset.v1 import dataset_service_pb2
    from murmura.api.ledger.v1 import ledger_pb2
    from murmura.api.trainer.v1 import trainer_pb2
    from murmura.budget import Budget

console = Console(highlight=False, file=cast("IO[str]", Output()))
BAR_WIDTH = 40


def say(line: str) -> None:
    """Print a line."""
    console.print(line, markup=False)


def show_plan(plan: trainer_pb2.Plan, spec: trainer_pb2.JobSpec) -> None:
    """Print what would happen, before anything is spent."""
    console.print(plan_table(plan, spec))


def plan_table(plan: trainer_pb2.Plan, spec: trainer_pb2.JobSpec) -> Table:
    """Return the plan as a table."""
    from murmura.api.trainer.v1 import trainer_pb2

    table = plan_frame()
    chosen, statement = plan.settings, plan.statement
    table.add_row("data", f"{extent(plan.row_count, plan.unit_count)} of {spec.frame.dataset}")
    table.add_row("model", f"{spec.base_model.removeprefix('baseModels/')}, LoRA rank {chosen.lora_rank}")
    rate = f"learning rate {chosen.learning_rate:g}"
    if statement.unlimited:
        table.add_row("privacy", Text("none: this model may repeat what it read", style="bold red"))
        table.add_row("training", f"{plan.steps} steps of {chosen.batch_size} rows, {rate}")
        _add_cost(table, plan)
        _add_canaries(table, plan)
        _add_measurement(table, plan)
        return table
    mechanism = statement.mechanism
    add_promise(table, statement)
    clipping = trainer_pb2.Clipping.Name(chosen.clipping).removeprefix("CLIPPING_").lower()
    table.add_row(
        "noise",
        f"multiplier {mechanism.noise_multiplier:.4g}, {clipping} clipping at {chosen.clipping_norm:g}",
    )
    table.add_row(
        "training",
        f"{plan.steps} steps; each unit takes part with probability {mechanism.sampling_probability:.3g} "
        f"(about {chosen.batch_size} of {plan.unit_count}), at most {chosen.max_rows_per_unit} rows of at most "
        f"{chosen.max_length} tokens; {rate}",
    )
    for reason in plan.reasons:
        table.add_row("", Text(reason, style="dim"))
    _add_cost(table, plan)
    _add_canaries(table, plan)
    _add_measurement(table, plan)
    add_budget(table, plan, "this one and its measurement" if plan.HasField("evaluation") else "this one")
    return table


def plan_frame() -> Table:
    """Return an empty plan."""
    table = Table(title="Plan (nothing is spent yet)", title_justify="left", show_header=False, min_width=40)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    return table


def add_promise(table: Table, statement: privacy_pb2.PrivacyStatement) -> None:
    """Add to a plan what would be promised, and what the best attacker could do then."""
    risk = statement.risk
    promise = f"ε = {statement.epsilon:.4g} at δ = {statement.delta:.2g}"
    table.add_row("promise", promise + (f"  (μ = {statement.mu:.3g})" if statement.mu else ""))
    table.add_row(
        "attacker",
        f"at best finds {risk.true_positive_rate_at_0_1_percent:.1%} of the members at 0.1 % false alarms, "
        f"{risk.true_positive_rate_at_1_percent:.1%} at 1 %",
    )


def add_budget(table: Table, plan: trainer_pb2.Plan | dataset_service_pb2.StatisticPlan, what: str) -> None:
    """Add to a plan the budget before and after."""
    table.add_row("budget now", budget_bar(plan.spent_epsilon, plan.cap_epsilon))
    after = f"ε = {plan.left_epsilon:.4g} is left for a job; after {what} {plan.left_epsilon_after:.4g}"
    table.add_row("", Text(after, style="" if plan.affordable else "bold red"))


def _add_cost(table: Table, plan: trainer_pb2.Plan) -> None:
    if plan.HasField("cost"):
        cost = plan.cost
        table.add_row("machines", f"about {cost.node_hours:.2g} node hours, {cost.amount:.2f} {cost.currency}, at most")


def _add_canaries(table: Table, plan: trainer_pb2.Plan) -> None:
    if plan.HasField("canaries"):
        table.add_row(
            "canaries",
            Text(f"{plan.canaries.count}, about half of them planted; attacked at the end, at no cost:\n")
            + Text(plan.canaries.template, style="dim"),
        )


def _add_measurement(table: Table, plan: trainer_pb2.Plan) -> None:
    if plan.HasField("evaluation"):
        wanted = plan.evaluation
        table.add_row(
            "measurement",
            f"mean loss of {counted(wanted.unit_count, 'held-out unit')}, each cut at {wanted.loss_bound:g} nats "
            f"a token: noise for ε = {wanted.statement.epsilon:.4g} moves it by about {wanted.standard_error:.2g} at "
            "most",
        )


def budget_bar(spent: float, cap: float) -> Text:
    """Return a coloured bar of a budget."""
    share = min(1.0, spent / cap) if cap > 0 else 1.0
    filled = round(share * BAR_WIDTH)
    colour = "green" if share < 0.6 else "yellow" if share < 0.9 else "red"
    bar = Text("█" * filled, style=colour)
    bar.append("░" * (BAR_WIDTH - filled), style="dim")
    bar.append(f" ε {spent:.3g} of {cap:.3g}")
    return bar


def bar(budget: Budget, width: int = BAR_WIDTH) -> Text:
    """Return a bar that tells spent, pending and left apart, by colour and by pattern. It counts units."""
    spent, pending, left = budget.parts(width)
    units = budget.units
    share = (units.spent + units.pending) / units.cap if units.cap else 1.0
    text = Text().append("█" * spent, style="green" if share < 0.6 else "yellow" if share < 0.9 else "red")
    text.append("▒" * pending, style="cyan")
    text.append("░" * left, style="dim")
    return text


def show_account(account: ledger_pb2.Account, parts: str = "") -> None:
    """Print a budget.

    Args:
        account: what the ledger says of it.
        parts: spent and pending apart, where that is known: the ledger's own epsilon is of both together.
    """
    from murmura.budget import Budget

    budget = Budget(account)
    noise, probability = account.unit.noise_multiplier, account.unit.sampling_probability
    pool = Text(f"{100 * budget.pool_used:.0f} % used of the δ that is set aside; each job takes a little")
    if budget.pool_used >= 1:
        pool = Text("used up: no more jobs, whatever is left; ask a steward", style="bold red")
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True, style="dim")
    table.add_column(overflow="fold")
    table.add_row("  used", Text(f"ε = {budget.spent_epsilon:.4g} of {budget.epsilon:g} at δ = {budget.delta:.2g}"))
    if parts:
        table.add_row("", Text(parts))
    table.add_row("  left", Text(f"ε = {budget.left_epsilon:.4g} for one more job"))
    table.add_row("  units", Text(f"{budget.shares()} of {grouped(budget.units.cap)}"))
    table.add_row("  one unit", Text(f"a step with noise multiplier {noise:g}, sampling probability {probability:g}"))
    table.add_row("  attacker", Text(budget.attacker()))
    table.add_row("  pool", pool)
    table.add_row("  no privacy", Text(_without_privacy(account)))
    console.print(Text(budget.account, style="bold"))
    console.print(Text("  ") + bar(budget) + Text("  counts units; ε does not add up", style="dim"))
    console.print(table)


def _without_privacy(account: ledger_pb2.Account) -> str:
    count, principals = account.unlimited_jobs, ", ".join(account.unlimited_principals)
    allowed = ("allowed" + (f" for {principals}" if principals else "")) if account.unlimited_allowed else "not allowed"
    return f"{counted(count, 'job')} recorded, {allowed}"


def show_result(job: trainer_pb2.TrainingJob) -> None:
    """Print the end of a successful job and what can be done with it."""
    statement = job.statement
    promise = "no privacy" if statement.unlimited else f"ε = {statement.epsilon:.4g}, δ = {statement.delta:.2g}"
    console.print(Text("✓ ", style="bold green") + Text(f"{job.adapter} is served: {promise}"))
    if job.HasField("audit"):
        from murmura.audit import Audit

        for line in Audit(job).lines():
            say(f"  {line}")
    if job.HasField("evaluation"):
        from murmura.metrics import Evaluation

        say(f"  {Evaluation(job.evaluation)}")
    say("  model.sample(prompts=[…])   model.statement   " + f"murmura sample {job.adapter} '…'")


def show_dataset(path: Path, done: int, n: int, statement: privacy_pb2.PrivacyStatement | None) -> None:
    """Print what a generated file holds."""
    if statement is None:
        promise = Text("from a public base model")
    elif statement.unlimited:
        promise = Text("no privacy: it may repeat what the model read", style="bold red")
    else:
        promise = Text(f"ε = {statement.epsilon:.4g}, δ = {statement.delta:.2g}, as its model; sampling is free")
    mark = Text("✓ ", style="bold green") if done == n else Text("stopped early: ", style="bold red")
    count = f"{done:,}" if done == n else f"{done:,} of {n:,}"
    console.print(mark + Text(f"{count} records in {path}: ") + promise)


def state_name(job: trainer_pb2.TrainingJob) -> str:
    """Return a job's state as a word."""
    from murmura.api.trainer.v1 import trainer_pb2

    return trainer_pb2.JobState.Name(job.state).removeprefix("JOB_STATE_").lower()
