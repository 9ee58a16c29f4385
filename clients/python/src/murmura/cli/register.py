"""`murmura register`: private rows become a dataset."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from murmura.cli.shared import AsJson, as_dict, client, print_json
from murmura.counts import extent
from murmura.errors import InvalidInput


def register(
    name: Annotated[str, typer.Argument(help="The dataset becomes datasets/NAME.")],
    privacy_unit: Annotated[str, typer.Option(help="Column whose equal values make one privacy unit: the patient.")],
    source: Annotated[
        str, typer.Argument(help="A .parquet, .csv or .jsonl file, also .csv.gz; or its s3:// or gs:// URL.")
    ] = "",
    table: Annotated[str, typer.Option(help="In place of a file: a table or view; with --connection.")] = "",
    connection: Annotated[str, typer.Option(help="The operator's name of the database (MURMURA_DATABASES).")] = "",
    policy: Annotated[Path | None, typer.Option(help="A policy file; see `murmura policy schema`.")] = None,
    epsilon: Annotated[float | None, typer.Option(help="The cap, where there is no policy file.")] = None,
    delta: Annotated[float | None, typer.Option(help="The delta of the cap.")] = None,
    display_name: Annotated[str, typer.Option(help="A name for people.")] = "",
    derived_from: Annotated[str, typer.Option(help="The dataset whose budget this one shares.")] = "",
    as_json: AsJson = False,
    role: Annotated[str, typer.Option(help="Whose token to use: only a steward may register.")] = "steward",
) -> None:
    """Register a file or a database's table. The same command again changes nothing.

    murmura register notes notes.parquet --privacy-unit patient --epsilon 8 --delta 1e-6

    murmura register notes --table notes --connection warehouse --privacy-unit patient --policy notes.policy.yaml
    """
    from murmura.calls import registration

    if bool(source) == bool(table):
        raise InvalidInput("Say where the rows are: either a file, or --table with --connection.")
    if connection and not table:
        raise InvalidInput("--connection goes with --table; a file needs none.")
    found = client(role).register(
        name,
        registration.table(table, connection=connection) if table else source,
        privacy_unit=privacy_unit,
        policy=policy,
        epsilon=epsilon,
        delta=delta,
        display_name=display_name,
        derived_from=derived_from,
    )
    if as_json:
        print_json(as_dict(found.resource))
        return
    kept = found.resource
    typer.echo(f"{kept.name}: {extent(kept.row_count, kept.unit_count)}.")
    typer.echo(f"Next: `murmura policy show {name}`, `murmura budget show {name}`.")
