"""`murmura policy`: who may do what with a dataset, as a file; what a change would change; what someone could do."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from murmura.cli.shared import AsJson, as_dict, client, print_json, print_messages
from murmura.errors import InvalidInput

if TYPE_CHECKING:
    from collections.abc import Sequence

    from murmura.client import Client
    from murmura.policy import Change, PolicyFile

app = typer.Typer(no_args_is_help=True, help="Who may do what with a dataset. For stewards.")
Dataset = Annotated[str, typer.Argument(help="A dataset.")]
File = Annotated[Path, typer.Argument(help="A policy in YAML.")]
Named = Annotated[str, typer.Option(help="The dataset, where the file does not name it.")]
Role = Annotated[str, typer.Option(help="Whose token to use: steward, or for show also analyst or operator.")]


@app.command()
def show(dataset: Dataset, as_json: AsJson = False, role: Role = "steward") -> None:
    """Print a policy as the file that `apply` takes. The cap is as registered: see `murmura budget show`."""
    from murmura import policy as policies

    found = client(role).dataset(dataset).resource
    if as_json:
        print_json({"name": found.name, "policyVersion": found.policy_version, "policy": as_dict(found.policy)})
    else:
        typer.echo(policies.write(found.policy, found.name, found.policy_version), nl=False)


@app.command()
def diff(file: File, dataset: Named = "", as_json: AsJson = False, role: Role = "steward") -> None:
    """Show what a file would change. Exit code 1 when it would be refused."""
    asker = client(role)
    name, found, changes, version = _compared(asker, file, dataset)
    if as_json:
        print_json(_facts(name, version, changes))
    else:
        _show(name, version, changes)
    _require_possible(found, changes, version)


@app.command()
def apply(
    file: File,
    dataset: Named = "",
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    as_json: AsJson = False,
    role: Role = "steward",
) -> None:
    """Give a dataset the policy of a file: shows what changes, and asks."""
    asker = client(role)
    name, found, changes, version = _compared(asker, file, dataset)
    if not as_json:
        _show(name, version, changes)
    _require_possible(found, changes, version)
    if changes and not yes:
        if as_json:
            raise InvalidInput("With --json nobody is asked: look with `murmura policy diff`, then pass --yes.")
        typer.confirm("Apply?", abort=True)
    # What was shown is what is replaced: whoever changes it meanwhile is not undone.
    changed = asker.steward.update(name, found.policy, version) if changes else asker.dataset(name).resource
    if as_json:
        print_json(_facts(name, changed.policy_version, changes))
    elif changes:
        typer.echo(f"{name} has version {changed.policy_version} of its policy.")


@app.command()
def check(
    dataset: Dataset,
    who: Annotated[str, typer.Option("--as", help="A person, as their token names them.")],
    with_role: Annotated[list[str] | None, typer.Option(help="A role of theirs; may be repeated.")] = None,
    as_json: AsJson = False,
    role: Role = "steward",
) -> None:
    """Say what someone could do, and why or why not. The services decide it as they would if that person called."""
    from rich.table import Table
    from rich.text import Text

    from murmura import display
    from murmura.api.dataset.v1 import dataset_pb2

    found = client(role).steward.check(dataset, who, with_role or ())
    if as_json:
        # With `false` written out, which JSON of messages leaves away.
        print_json([{**as_dict(item), "allowed": item.allowed} for item in found])
        return
    table = Table.grid(padding=(0, 2))
    for item in found:
        name = dataset_pb2.Right.Name(item.right).removeprefix("RIGHT_").lower().replace("_", " ")
        mark = Text("✓ yes", style="green") if item.allowed else Text("✗ no", style="red")
        table.add_row(mark, _SAID.get(name, name), Text(item.reason))
    display.say(f"{who} as {', '.join(with_role or ('analyst',))}, on {dataset}:")
    display.console.print(table)


@app.command()
def history(dataset: Dataset, as_json: AsJson = False, role: Role = "steward") -> None:
    """List every version, newest first: who, when, and what it changed."""
    from murmura import policy as policies

    versions = client(role).steward.history(dataset)
    if as_json:
        print_messages(versions)
        return
    earlier = [*versions[1:], None]
    for version, before in zip(versions, earlier, strict=True):
        when = version.create_time.ToDatetime()
        typer.echo(f"version {version.version}  {when:%Y-%m-%d %H:%M} UTC  {version.author}")
        if before is None:
            typer.echo("  the first that is known")
        else:
            _print(policies.differences(before.policy, version.policy))


@app.command()
def schema() -> None:
    """Print the JSON schema of a policy file."""
    from murmura import policy_schema

    typer.echo(policy_schema.SCHEMA_FILE.read_text(encoding="utf-8"), nl=False)


_SAID = {
    "see": "see the dataset",
    "train unlimited": "train without privacy",
    "train private": "train privately",
    "statistics": "ask for statistics",
}


def _compared(asker: Client, file: Path, dataset: str) -> tuple[str, PolicyFile, list[Change], int]:
    """Return the dataset's name, the file, in what it differs from what stands, and the version that stands."""
    from murmura import policy as policies

    found = policies.read(file)
    name = policies.for_dataset(found, dataset)
    stands = asker.dataset(name).resource
    return name, found, policies.differences(stands.policy, found.policy), stands.policy_version


def _require_possible(found: PolicyFile, changes: Sequence[Change], version: int) -> None:
    """Refuse what the service would refuse, once it was shown.

    Raises:
        InvalidInput: if the ledger keeps what changes.
        Conflict: if the file was made from another version.
    """
    from murmura.errors import Conflict

    if kept := [change.term for change in changes if change.term.instead]:
        told = "\n".join(f"  {term.name}: {term.instead}" for term in kept)
        raise InvalidInput(f"The ledger keeps this, and no policy changes it. Nothing was changed.\n{told}")
    if changes and found.version and found.version != version:
        raise Conflict(
            f"The file was made from version {found.version}, and version {version} stands. Nothing was changed. "
            "`murmura policy history` says who changed what; put your change into `murmura policy show`."
        )


def _facts(name: str, version: int, changes: Sequence[Change]) -> dict[str, Any]:
    """Return a comparison as JSON."""
    told = [
        {"term": change.term.name, "before": change.before, "after": change.after, "possible": not change.term.instead}
        for change in changes
    ]
    return {"name": name, "policyVersion": version, "changes": told}


def _show(name: str, version: int, changes: Sequence[Change]) -> None:
    typer.echo(f"{name}, version {version}" + ("" if changes else ": nothing changes"))
    _print(changes)


def _print(changes: Sequence[Change]) -> None:
    """Print what changes, in colour where there is any."""
    from rich.text import Text

    from murmura import display

    for change in changes:
        note = "  (kept by the ledger)" if change.term.instead else ""
        display.console.print(Text(f"  {change.term.name}{note}", style="bold"))
        for sign, items, style in (("-", change.removed, "red"), ("+", change.added, "green")):
            for item in items:
                display.console.print(Text(f"    {sign} {item}", style=style))
