"""How budgets and the journal look in a terminal: at most 80 columns. In a pipe, one line for each entry."""

from __future__ import annotations

import typer
from rich.table import Table
from rich.text import Text

from murmura import display, journal
from murmura.api.ledger.v1 import ledger_pb2
from murmura.budget import Budget
from murmura.cli.amounts import Amounts
from murmura.counts import grouped, percent
from murmura.narration import Narrator, plain, short_job

NEWEST = 10
SHORT_BAR = 16
_STATES = {
    ledger_pb2.RESERVATION_STATE_PENDING: ("pending", "yellow"),
    ledger_pb2.RESERVATION_STATE_COMMITTED: ("charged", ""),
    ledger_pb2.RESERVATION_STATE_RELEASED: ("given back", "dim"),
}


def show_all(accounts: list[ledger_pb2.Account]) -> None:
    """Print a line for each account."""
    table = Table.grid(padding=(0, 2))
    for account in accounts:
        budget = Budget(account)
        words = f"ε {budget.spent_epsilon:.3g} of {budget.epsilon:g} used, {budget.left_epsilon:.3g} left"
        table.add_row(Text(account.name, overflow="fold"), display.bar(budget, SHORT_BAR), words)
    display.console.print(table)
    if not accounts:
        display.say(
            "No budget yet. It is opened when a steward registers a dataset: Client(role='steward').register(…)."
        )


def show_one(
    budget: Budget, grants: list[ledger_pb2.Grant], reservations: list[ledger_pb2.Reservation], amounts: Amounts
) -> None:
    """Print all about one account."""
    spent, pending = amounts.full(budget.units.spent), amounts.full(budget.units.pending)
    display.show_account(budget.message, f"spent {spent}, pending {pending}")
    if grants:
        display.console.print(Text("\nshares", style="bold"))
        display.console.print(_shares(budget, grants, amounts))
    if reservations:
        resolved = [item for item in reservations if item.state != ledger_pb2.RESERVATION_STATE_PENDING]
        waiting = [item for item in reservations if item.state == ledger_pb2.RESERVATION_STATE_PENDING]
        shown = waiting[-NEWEST:] + resolved[-NEWEST:]
        display.console.print(Text.assemble(("\njobs", "bold"), f"  times in UTC{_hidden(reservations, shown)}"))
        display.console.print(_jobs(shown, amounts))


def show_history(entries: list[ledger_pb2.Entry], account: str, amounts: Amounts) -> None:
    """Print an account's entries: laid out in a terminal, else one line for each."""
    terminal = display.console.is_terminal
    narrator = Narrator(account, amounts, short=terminal)
    amounts.learn(entries)
    table = Table.grid(padding=(0, 2))
    table.add_column(justify="right", no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True, style="dim")
    table.add_column(overflow="fold")
    for entry in entries:
        moment, hashed, words = entry.create_time.ToDatetime(), entry.hash[:8], narrator.tell(entry)
        if terminal:
            table.add_row(str(entry.sequence), f"{moment:%Y-%m-%d %H:%M}", hashed, Text(words))
        else:
            typer.echo(f"{entry.sequence:>6}  {moment:%Y-%m-%dT%H:%M:%SZ}  {hashed}  {words}")
    if terminal:
        display.console.print(Text("entry, time in UTC, hash, what happened", style="dim"))
        display.console.print(table)


def show_verified(receipt: journal.Receipt, what: str, *, error: bool = False) -> None:
    """Print how many entries are sound, and the receipt to write down."""
    count = f"{grouped(receipt.sequence)} {'entry' if receipt.sequence == 1 else 'entries'}"
    typer.echo(f"✓ {count}{what}.", err=error)
    typer.echo(f"  Write this receipt down, and give it to `budget verify --witness` next time:\n{receipt}", err=error)


def show_witness(known: journal.Receipt, on_chain: bool) -> None:
    """Print that a receipt was found."""
    if on_chain:
        typer.echo(f"✓ The receipt of entry {known.sequence} lies on the chain.")
    else:
        typer.echo(
            f"✓ The ledger accepts the receipt of entry {known.sequence}: it lies on the chain, or a steward\n"
            "  has given up what it knew. `murmura budget verify --role steward` can tell which."
        )


def _shares(budget: Budget, grants: list[ledger_pb2.Grant], amounts: Amounts) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(overflow="fold")
    for grant in grants:
        share, charged = grant.share.units, grant.charged.units
        table.add_row(
            Text(f"  {plain(grant.principal)}"),
            f"{amounts.short(share)} ({percent(share, budget.units.cap)} of the cap)",
            f"charged {amounts.short(charged)} ({percent(charged, share)} of it)",
        )
    return table


def _jobs(reservations: list[ledger_pb2.Reservation], amounts: Amounts) -> Table:
    table = Table.grid(padding=(0, 2))
    for wraps in (False, False, False, False, True):
        table.add_column(no_wrap=not wraps, overflow="fold")
    for item in reversed(reservations):
        word, style = _STATES.get(item.state, ("unknown", "red"))
        if item.kind == ledger_pb2.RESERVATION_KIND_UNLIMITED:
            price = "no privacy"
        elif item.state == ledger_pb2.RESERVATION_STATE_COMMITTED:
            price = amounts.short(item.committed.units)
        else:
            price = amounts.short(item.price.units)
        when, job = item.create_time.ToDatetime(), short_job(plain(item.job)).removeprefix("trainingJobs/")
        state = Text(f"  {word}", style=style)
        table.add_row(state, f"{when:%Y-%m-%d %H:%M}", price, Text(job), Text(plain(item.principal)))
    return table


def _hidden(reservations: list[ledger_pb2.Reservation], shown: list[ledger_pb2.Reservation]) -> str:
    hidden = len(reservations) - len(shown)
    return f"; {hidden} older ones: `murmura budget history`" if hidden else ""
