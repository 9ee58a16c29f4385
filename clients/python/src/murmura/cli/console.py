"""`murmura console`: the page on which a steward sees what there is, what it cost, and who did what."""

from __future__ import annotations

from typing import Annotated

import typer


def console(
    port: Annotated[int, typer.Option(help="On this machine; 0 takes a free one.")] = 7410,
    browse: Annotated[bool, typer.Option("--open/--no-open", help="Open it in the browser.")] = True,
    role: Annotated[str, typer.Option(help="Whose token to use; a steward sees all.")] = "steward",
) -> None:
    """Serve a page of datasets, budgets, jobs, adapters and audits, on this machine. It changes nothing."""
    from murmura.console.reader import Reader
    from murmura.console.server import serve

    def ready(address: str) -> None:
        typer.echo(f"The console is at {address}")
        typer.echo("Keep the address to yourself: it shows what you may see. Ctrl-C ends it.")
        if browse:
            typer.launch(address)

    serve(Reader(role=role), port, ready)
