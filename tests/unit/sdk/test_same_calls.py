"""Both clients offer the same calls, and both say at once what cannot be a source."""

from __future__ import annotations

import inspect

import pytest

import murmura
from murmura.aio import AsyncClient
from murmura.client import Client
from murmura.errors import InvalidInput
from murmura.stewardship import Stewardship
from murmura.stewardship_aio import AsyncStewardship

# The building blocks of the blocking client's objects, which the other has no objects for.
ONLY_BLOCKING = {"all", "each", "follow", "request_id", "run", "stub"}
# What the blocking client has on those objects: models, jobs, frames.
ONLY_ASYNC = {"cancel", "fit", "job", "load", "plan", "sample", "spec", "statistic", "stream", "wait", "watch"}


def public(kind: type) -> set[str]:
    return {name for name in vars(kind) if not name.startswith("_")}


def test_the_clients_have_the_same_calls() -> None:
    assert public(Client) - ONLY_BLOCKING == public(AsyncClient) - ONLY_ASYNC


def test_a_steward_decides_the_same() -> None:
    assert public(Stewardship) == public(AsyncStewardship)
    for name in public(Stewardship):
        blocking, waiting = (inspect.signature(getattr(kind, name)) for kind in (Stewardship, AsyncStewardship))
        assert blocking.parameters == waiting.parameters, name


@pytest.mark.parametrize("name", ["SELECT * FROM notes", "with a as (select 1) select * from a", " "])
def test_a_query_is_no_table(name: str) -> None:
    with pytest.raises(InvalidInput, match="CREATE VIEW"):
        murmura.table(name, connection="clinic")


def test_a_url_is_no_connection_and_is_not_repeated() -> None:
    with pytest.raises(InvalidInput, match="MURMURA_DATABASES") as refused:
        murmura.table("notes", connection="postgresql://me:Quillfeather@db/clinic")
    assert "Quillfeather" not in str(refused.value)
