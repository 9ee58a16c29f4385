"""`murmura budget resolve`: what a steward decides about a ledger that was restored from an older backup."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table
from rich.text import Text

from murmura.cli.budget import PATIENCE_S
from murmura.cli.shared import AsJson, as_dict, client, print_json
from murmura.errors import InvalidInput

# As in the ledger: what a job takes of the pool unless it asks for another part.
JOBS_PER_POOL = 10

if TYPE_CHECKING:
    from collections.abc import Sequence

    from murmura.api.ledger.v1 import ledger_pb2
    from murmura.client import Client


def resolve(
    reason: Annotated[str, typer.Argument(help="What was decided and why; anyone who reads the journal reads it.")],
    charge: Annotated[
        list[str] | None,
        typer.Option(help="ACCOUNT=UNITS/JOBS: what the lost entries had spent, in how many jobs. May be repeated."),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    as_json: AsJson = False,
    role: Annotated[str, typer.Option(help="Whose token to use: only a steward may decide.")] = "steward",
) -> None:
    """Give up the entries that a restored ledger lacks, so that it spends again. Shows first what that charges.

    Put the newest journal back instead if there is one. An account that no --charge names loses all it has left; 0/0
    says that nothing of it was spent.
    """
    from murmura.api.ledger.v1 import ledger_service_pb2 as messages

    asker = client(role)
    stated = [_stated(text) for text in charge or []]
    found = asker.stub("ledger").call("VerifyJournal", messages.VerifyJournalRequest(), PATIENCE_S)
    if not found.HasField("rollback"):
        raise InvalidInput("There is nothing to resolve: no receipt is known that this ledger lacks.")
    request = messages.ResolveWitnessRequest(known=found.rollback.known, justification=reason)
    request.charges.extend(_charge(asker, *parts) for parts in stated)
    request.request_id = asker.request_id(request)
    if not yes:
        request.validate_only = True
        plan = asker.stub("ledger").call("ResolveWitness", request)
        request.validate_only = False
        _show(found.rollback, plan.charges, asker)
        typer.confirm("Give the lost entries up, and charge this?", abort=True, err=True)
    answer = asker.stub("ledger").call("ResolveWitness", request)
    if as_json:
        print_json(as_dict(answer))
    else:
        typer.echo(f"✓ Recorded as entry {answer.receipt.sequence}. The ledger spends again.")


def _stated(text: str) -> tuple[str, int, int]:
    found = re.fullmatch(r"(?:accounts/)?([a-z0-9-]{1,63})=([0-9]{1,18})/([0-9]{1,9})", text)
    if not found or (int(found[2]) > 0) != (int(found[3]) > 0):
        raise typer.BadParameter(
            f"{text!r} is not ACCOUNT=UNITS/JOBS, for example accounts/notes=300/2, or accounts/notes=0/0",
            param_hint="--charge",
        )
    return f"accounts/{found[1]}", int(found[2]), int(found[3])


def _charge(asker: Client, account: str, units: int, jobs: int) -> ledger_pb2.Charge:
    """Return what one account is charged: the units, and for each job the truncation that a job takes by default."""
    from murmura.api.ledger.v1 import ledger_pb2
    from murmura.errors import NotFound

    charge = ledger_pb2.Charge(account=account)
    charge.price.units = units
    try:
        pool = asker.account(account).capacity.truncation_delta_e18
    except NotFound:
        # It was lost itself; its pool is not known before it is opened again.
        pool = 0
    charge.price.truncation_delta_e18 = jobs * -(-pool // JOBS_PER_POOL)
    return charge


def _show(rollback: ledger_pb2.Rollback, charges: Sequence[ledger_pb2.Charge], asker: Client) -> None:
    from murmura import display
    from murmura.cli.amounts import Amounts
    from murmura.counts import counted
    from murmura.errors import NotFound

    since = rollback.ledger_time.ToDatetime()
    display.say(
        f"The ledger was seen at entry {rollback.known.sequence}. What was recorded after entry "
        f"{rollback.ledger_sequence} of {since:%Y-%m-%d %H:%M} UTC may be missing. To be charged for it:"
    )
    table = Table.grid(padding=(0, 2))
    for charge in charges:
        try:
            account = asker.account(charge.account)
        except NotFound:
            price = counted(charge.price.units, "unit")
            table.add_row(Text(f"  {charge.account}"), f"{price}, once it is opened again")
            continue
        left = account.capacity.units - account.spent.units - account.pending.units
        rest = "nothing is left" if charge.price.units >= left else f"{counted(left - charge.price.units, 'unit')} left"
        table.add_row(Text(f"  {charge.account}"), f"{Amounts(asker, account).full(charge.price.units)}; {rest}")
    display.console.print(table)
