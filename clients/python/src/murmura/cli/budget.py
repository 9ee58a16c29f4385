"""`murmura budget`: what a dataset may give away, what it has, and whether the ledger's books are true."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from murmura import journal
from murmura.cli.shared import AsJson, Role, as_dict, client, print_json, print_messages
from murmura.errors import InvalidInput, MurmuraError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from murmura.api.ledger.v1 import ledger_pb2, ledger_service_pb2
    from murmura.client import Client

PATIENCE_S = 600.0
app = typer.Typer(no_args_is_help=True, help="What a dataset may give away, and what it has.")
Dataset = Annotated[str, typer.Argument(help="A dataset, or accounts/….")]


@app.command()
def show(
    dataset: Annotated[str, typer.Argument(help="A dataset, or accounts/…; none: all that you may see.")] = "",
    as_json: AsJson = False,
    role: Role = "analyst",
) -> None:
    """Show a budget: cap, spent, pending, left, shares, jobs. Without a name: a line for each."""
    from murmura.calls import budgets
    from murmura.cli import budget_view
    from murmura.cli.amounts import Amounts

    asker = client(role)
    if not dataset:
        accounts = asker.accounts()
        if as_json:
            print_json({"accounts": [as_dict(account) for account in accounts]})
        else:
            budget_view.show_all(accounts)
        return
    found = asker.budget(dataset)
    grants = asker.all(budgets.list_grants(found.account), "grants")
    reservations = asker.all(budgets.list_reservations(found.account), "reservations")
    if as_json:
        parts = {"grants": grants, "reservations": reservations}
        lists = {name: [as_dict(item) for item in items] for name, items in parts.items()}
        print_json({"account": as_dict(found.message), **lists})
    else:
        budget_view.show_one(found, grants, reservations, Amounts(asker, found.message))


@app.command()
def history(dataset: Dataset, as_json: AsJson = False, role: Role = "analyst") -> None:
    """List all that ever happened to a budget, oldest first."""
    from murmura.calls import budgets
    from murmura.cli import budget_view
    from murmura.cli.amounts import Amounts

    asker = client(role)
    account = asker.account(dataset)
    entries = [_whole(asker, entry) for entry in asker.all(budgets.list_entries(account.name), "entries")]
    if as_json:
        print_messages(entries)
    else:
        budget_view.show_history(entries, account.name, Amounts(asker, account))


@app.command()
def verify(
    file: Annotated[Path | None, typer.Option(help="Check a file of `murmura budget export`; asks no server.")] = None,
    witness: Annotated[str, typer.Option(help="A receipt that must lie on the chain: SEQUENCE:HASH.")] = "",
    as_json: AsJson = False,
    role: Role = "analyst",
) -> None:
    """Check the hash chain from the first entry to the last, and print a receipt. Exit code 1 when it is broken."""
    from murmura.cli import budget_view

    known = journal.Receipt.parse(witness) if witness else None
    answer = _verified_file(file, known) if file else _verified(client(role), known)
    if as_json:
        print_json(as_dict(answer))
    elif file:
        budget_view.show_verified(_receipt(answer), f" in {file}, each following from the one before")
    else:
        budget_view.show_verified(_receipt(answer), ", each following from the one before; budgets are their sum")
    if answer.HasField("rollback"):
        lost = answer.rollback
        raise MurmuraError(
            f"The chain holds, but its end is missing: the ledger was seen at entry {lost.known.sequence}, and what "
            f"was recorded after entry {lost.ledger_sequence} may be lost. Nothing is spent until the newest journal "
            "is restored, or a steward decides."
        )
    if known and not as_json:
        on_chain = bool(file) or known.epoch == answer.receipt.epoch or _names(client(role), known)
        budget_view.show_witness(known, on_chain)


@app.command()
def export(
    file: Annotated[str, typer.Argument(help="The file to write; - for standard output.")],
    role: Role = "steward",
) -> None:
    """Write the whole journal as JSON Lines, checked on the way. Never overwrites. For stewards and operators."""
    from murmura.cli import budget_view

    entries = _journal(client(role))
    if file == "-":
        receipt = journal.copy(typer.get_text_stream("stdout", encoding="utf-8"), entries)
    else:
        receipt = journal.write(file, entries)
    budget_view.show_verified(
        receipt, f" checked and written to {'standard output' if file == '-' else file}", error=file == "-"
    )


def _verified(asker: Client, known: journal.Receipt | None) -> ledger_service_pb2.VerifyJournalResponse:
    from murmura.api.ledger.v1 import ledger_service_pb2 as messages

    request = messages.VerifyJournalRequest()
    if known:
        request.witness.sequence, request.witness.head_hash, request.witness.epoch = (
            known.sequence,
            known.hash,
            known.epoch,
        )
    try:
        answer: messages.VerifyJournalResponse = asker.stub("ledger").call("VerifyJournal", request, PATIENCE_S)
    except MurmuraError as refusal:
        if known and refusal.reason == "LEDGER_BEHIND_WITNESS":
            # The ledger's own sentence is for those whose spending it stops.
            raise journal.NotOnChain(
                f"The receipt of entry {known.sequence} does not lie on the chain: the ledger holds another entry "
                "there, or ends before. Check that it was copied right. If it was, the ledger was restored from an "
                "older backup or its journal was made anew: tell a steward before anything else is spent."
            ) from None
        raise
    return answer


def _verified_file(file: Path, known: journal.Receipt | None) -> ledger_service_pb2.VerifyJournalResponse:
    """Check a file; returns what the ledger would answer."""
    from murmura.api.ledger.v1 import ledger_service_pb2 as messages

    end = journal.verify(file, known)
    answer = messages.VerifyJournalResponse(entries=end.sequence)
    answer.receipt.sequence, answer.receipt.head_hash, answer.receipt.epoch = end.sequence, end.hash, end.epoch
    return answer


def _receipt(answer: ledger_service_pb2.VerifyJournalResponse) -> journal.Receipt:
    return journal.Receipt(answer.receipt.sequence, answer.receipt.head_hash, answer.receipt.epoch)


def _names(asker: Client, known: journal.Receipt) -> bool:
    """Say whether the caller can see that a receipt lies on the chain; the ledger also lets pass what was given up."""
    return any(entry.hash == known.hash for entry in _at(asker, known.sequence))


def _at(asker: Client, sequence: int) -> list[ledger_pb2.Entry]:
    """Return the entry at a place, if the caller may see all accounts' entries."""
    from murmura.calls import budgets

    try:
        return list(asker.run(budgets.list_entries(after=max(0, sequence - 1), most=1)).entries)
    except InvalidInput:
        return []


def _whole(asker: Client, entry: ledger_pb2.Entry) -> ledger_pb2.Entry:
    """Return an entry with its payload, which readers of one account lack for what concerns the whole ledger."""
    return entry if entry.payload else next(iter(_at(asker, entry.sequence)), entry)


def _journal(asker: Client) -> Iterator[journal.Link]:
    from murmura.calls import budgets

    for entry in asker.each(budgets.list_entries(), "entries"):
        yield journal.Link(entry.sequence, entry.previous_hash, entry.hash, entry.payload)
