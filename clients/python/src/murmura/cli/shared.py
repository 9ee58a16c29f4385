"""What the parts of the `murmura` command have in common."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated, Any

import typer

from murmura.terminal import knows_everything

if TYPE_CHECKING:
    from murmura.client import Client

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Role = Annotated[str, typer.Option(help="Whose token to use: analyst, steward or operator.")]


def client(role: str) -> Client:
    """Return a client of the Murmura that the environment or the profile names."""
    from murmura.client import Client

    return Client(role=role)


def as_dict(message: Any) -> dict[str, Any]:
    """Return a message as its JSON."""
    from google.protobuf.json_format import MessageToDict

    found: dict[str, Any] = MessageToDict(message)
    return found


def print_json(found: Any) -> None:
    """Print what is JSON already, on one line."""
    typer.echo(json.dumps(found, ensure_ascii=not knows_everything(sys.stdout)))


def print_messages(found: Iterable[Any]) -> None:
    """Print messages as a JSON array."""
    print_json([as_dict(item) for item in found])
