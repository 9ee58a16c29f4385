"""The `murmura` command: the platform on this machine, and the questions one asks of it.

Exit codes: 0 done, 1 refused or failed (the reason is on standard error), 2 wrong usage, 130 interrupted.
"""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from murmura.cli import budget, decisions, policy
from murmura.cli.console import console
from murmura.cli.register import register
from murmura.cli.resolve import resolve
from murmura.cli.shared import AsJson, Role, as_dict, client, print_json, print_messages
from murmura.cli.training import plan, train
from murmura.counts import extent
from murmura.errors import MurmuraError
from murmura.terminal import SPELT

app = typer.Typer(
    no_args_is_help=True,
    add_completion=True,
    help="Fine-tune on private text, with differential privacy.",
)
jobs = typer.Typer(no_args_is_help=True, help="Training jobs.")
budget.app.command()(resolve)
budget.app.command()(decisions.grant)
budget.app.command()(decisions.propose_cap)
budget.app.command()(decisions.approve_cap)
app.command()(register)
app.command()(plan)
app.command()(train)
app.command()(console)
app.add_typer(budget.app, name="budget")
app.add_typer(policy.app, name="policy")
app.add_typer(jobs, name="jobs")

State = Annotated[Path, typer.Option(help="State directory of the local Murmura.")]
DEFAULT_STATE = Path(".murmura")


@app.command()
def up(
    state: State = DEFAULT_STATE,
    base_port: Annotated[int, typer.Option(help="First of four ports; 0 takes free ones.")] = 7401,
    base_model: Annotated[
        list[str] | None,
        typer.Option(help="NAME=PATH or NAME=HUB-ID of a causal LM; may be repeated."),
    ] = None,
    engine: Annotated[str, typer.Option(help="Inference engine: auto, vllm or transformers.")] = "auto",
    worker_processes: Annotated[
        int,
        typer.Option(
            min=1,
            max=64,
            help="Processes of each worker: one for each GPU, or for each core where there is none. They share a "
            "private fine-tune, and each holds the base model.",
        ),
    ] = 1,
) -> None:
    """Start Murmura on this machine: four services, state in one directory. Run it again to restart what died."""
    from murmura.local import deployment
    from murmura.local.layout import Layout

    layout = Layout(state, _models(base_model or []), engine, worker_processes)
    statuses = deployment.up(layout, base_port, report=typer.echo)
    _show_status(statuses)
    typer.echo("Murmura is up. Next: `murmura datasets`, or Client() in Python; `murmura down` stops it.")


@app.command()
def status(state: State = DEFAULT_STATE, as_json: AsJson = False) -> None:
    """Say which services run, where, and whether they serve. Exit code 1 when one does not."""
    from murmura.local import deployment
    from murmura.local.layout import Layout

    statuses = deployment.status(Layout(state))
    if as_json:
        print_json([vars(item) for item in statuses])
    else:
        _show_status(statuses)
    if not all(item.serving for item in statuses):
        typer.echo("Not all services run. Next: `murmura up`.", err=True)
        raise typer.Exit(1)


@app.command()
def down(state: State = DEFAULT_STATE) -> None:
    """Stop the services on this machine. Nothing is lost: `murmura up` goes on from here."""
    from murmura.local import deployment
    from murmura.local.layout import Layout

    count = deployment.down(Layout(state), report=typer.echo)
    typer.echo("Murmura is down." if count else "Murmura was not running.")


@app.command()
def doctor(state: State = DEFAULT_STATE, as_json: AsJson = False) -> None:
    """Explain what is missing on this machine, and how to get it. Exit code 1 when something is needed."""
    from murmura.local import doctor as checks
    from murmura.local.layout import Layout

    findings = checks.examine(Layout(state))
    if as_json:
        print_json([vars(item) for item in findings])
    else:
        for item in findings:
            typer.echo(f"{'✓' if item.ok else '✗'} {item.what}" + ("" if item.ok else f"\n    {item.remedy}"))
    if any(not item.ok and item.needed for item in findings):
        raise typer.Exit(1)


@app.command()
def datasets(as_json: AsJson = False, role: Role = "analyst") -> None:
    """List the datasets that you may use."""
    found = [item.resource for item in client(role).datasets()]
    if as_json:
        print_messages(found)
        return
    for item in found:
        typer.echo(f"{item.name}: {extent(item.row_count, item.unit_count)}, cap ε = {item.policy.epsilon:g}")
    if not found:
        typer.echo("No dataset yet. A steward registers one: `murmura register --help`.")


@jobs.command("list")
def jobs_list(as_json: AsJson = False, role: Role = "analyst") -> None:
    """List jobs, newest first."""
    from murmura import display

    found = client(role).jobs()
    if as_json:
        print_messages(found)
        return
    for job in found:
        promise = "no privacy" if job.plan.statement.unlimited else f"ε {job.plan.statement.epsilon:.4g}"
        steps = f"{job.completed_steps}/{job.plan.steps}"
        typer.echo(f"{job.name}  {display.state_name(job):<12} {steps:>9}  {promise:<11} {job.spec.frame.dataset}")


@jobs.command("watch")
def jobs_watch(name: str, role: Role = "analyst") -> None:
    """Watch a job to its end. Ctrl-C lets go of it; it goes on."""
    from murmura import display
    from murmura.calls import qualified
    from murmura.evaluation import follow

    asker = client(role)
    display.show_result(follow(asker, _job(asker, qualified("trainingJobs", name))))


@jobs.command("cancel")
def jobs_cancel(name: str, role: Role = "analyst") -> None:
    """Stop a job. What its worker has already run is charged."""
    from murmura import display
    from murmura.calls import jobs

    asker = client(role)
    job = asker.run(jobs.cancel_job(name, asker.subject)).training_job
    typer.echo(f"{job.name}: {display.state_name(job)}; {job.stage}".rstrip("; "))


@app.command()
def sample(
    model: Annotated[str, typer.Argument(help="adapters/… or baseModels/….")],
    prompt: str,
    count: Annotated[int, typer.Option("-n", help="How many.")] = 1,
    temperature: float = 1.0,
    max_new_tokens: int = 64,
    as_json: AsJson = False,
    role: Role = "analyst",
) -> None:
    """Continue a prompt. Costs no privacy."""
    from murmura.sampler import Served

    texts = Served(model, client(role)).sample([prompt] * count, temperature=temperature, max_new_tokens=max_new_tokens)
    if as_json:
        print_json(texts)
    else:
        typer.echo("\n".join(prompt + text for text in texts))


@app.command()
def audit(
    adapter: Annotated[str, typer.Argument(help="adapters/….")], as_json: AsJson = False, role: Role = "analyst"
) -> None:
    """Say what an attacker found out about an adapter's canaries. Exit code 1 where that is more than was promised."""
    from murmura.audit import Audit
    from murmura.calls import jobs

    found = Audit(client(role).run(jobs.get_job_of(adapter)).training_job)
    if as_json:
        print_json(as_dict(found.message) | {"promised": found.promised, "kept": found.kept})
    else:
        typer.echo(str(found))
    if found.promised is not None and not found.kept:
        raise typer.Exit(1)


@app.command()
def report(
    adapter: Annotated[str, typer.Argument(help="adapters/….")],
    to: Annotated[Path, typer.Option(help="*.html, for people; or *.json.")] = Path("report.html"),
    role: Role = "analyst",
) -> None:
    """Write the privacy report of an adapter: one page to read, print and check."""
    from murmura.report import of_adapter

    typer.echo(f"{of_adapter(client(role), adapter).save(to)}: what was promised, what an attacker did, what was paid")


@app.command()
def generate(
    model: Annotated[str, typer.Argument(help="adapters/… or baseModels/….")],
    to: Annotated[Path, typer.Option(help="*.parquet or *.jsonl.")],
    n: Annotated[int, typer.Option("-n", help="How many records.")] = 1000,
    prompt: Annotated[list[str] | None, typer.Option(help="What records begin with; may be repeated.")] = None,
    temperature: float = 1.0,
    max_new_tokens: int = 128,
    seed: int | None = None,
    role: Role = "analyst",
) -> None:
    """Write a synthetic dataset. Costs no privacy."""
    from murmura.sampler import Served

    Served(model, client(role)).generate_dataset(
        n, to=to, prompt=prompt or "", temperature=temperature, max_new_tokens=max_new_tokens, seed=seed
    )


@app.command()
def version() -> None:
    """Print the version."""
    from murmura import __version__

    typer.echo(__version__)


def main() -> None:
    """Run the command; a refusal is a sentence, not a traceback."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=SPELT)
    try:
        app()
    except MurmuraError as error:
        typer.echo(f"murmura: {error}", err=True)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)


def _job(asker: Any, name: str) -> Any:
    from murmura.calls import jobs

    return asker.run(jobs.get_job(name)).training_job


def _models(options: list[str]) -> dict[str, str]:
    models = {}
    for option in options:
        name, separator, location = option.partition("=")
        if not separator or not name or not location:
            raise typer.BadParameter(f"{option!r} is not NAME=PATH or NAME=HUB-ID", param_hint="--base-model")
        path = Path(location)
        models[name] = str(path.resolve()) if path.exists() else location
    return models


def _show_status(statuses: Any) -> None:
    for item in statuses:
        word = "serving" if item.serving else "starting" if item.pid else "stopped"
        typer.echo(f"  {item.service:<10} {word:<9} {item.endpoint:<22} {'pid ' + str(item.pid) if item.pid else ''}")
