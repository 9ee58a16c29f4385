"""`murmura budget grant`, `propose-cap` and `approve-cap`: what a steward decides about a budget."""

from __future__ import annotations

from typing import Annotated

import typer

from murmura.cli.shared import AsJson, as_dict, client, print_json

Dataset = Annotated[str, typer.Argument(help="A dataset, or accounts/….")]
Role = Annotated[str, typer.Option(help="Whose token to use: only a steward may decide.")]


def grant(
    dataset: Dataset,
    person: Annotated[str, typer.Argument(help="As their token names them.")],
    epsilon: Annotated[float, typer.Argument(help="What the share alone may reach at the budget's delta.")],
    as_json: AsJson = False,
    role: Role = "steward",
) -> None:
    """Give someone a share of a budget. From the first share on, who has none may spend nothing."""
    given = client(role).steward.grant(dataset, person, epsilon)
    if as_json:
        print_json(as_dict(given))
    else:
        typer.echo(f"{person} may spend up to ε = {epsilon:g} of {given.name.partition('/grants/')[0]}.")


def propose_cap(
    dataset: Dataset,
    epsilon: Annotated[float, typer.Argument(help="The new cap, at the budget's delta.")],
    why: Annotated[str, typer.Option(help="The reason; anyone who reads the journal reads it.")],
    as_json: AsJson = False,
    role: Role = "steward",
) -> None:
    """Propose another cap. Nothing changes before another steward approves it."""
    proposal = client(role).steward.propose_cap(dataset, epsilon, why)
    if as_json:
        print_json(as_dict(proposal))
    else:
        typer.echo(f"{proposal.name} proposes ε = {epsilon:g}; the cap is as it was.")
        typer.echo(f"Next: another steward runs `murmura budget approve-cap {proposal.name}`.")


def approve_cap(
    proposal: Annotated[str, typer.Argument(help="As `murmura budget propose-cap` printed it.")],
    as_json: AsJson = False,
    role: Role = "steward",
) -> None:
    """Approve a cap that another steward proposed."""
    account = client(role).steward.approve_cap(proposal)
    if as_json:
        print_json(as_dict(account))
    else:
        typer.echo(f"{account.name} has its new cap. See `murmura budget show {account.name}`.")
