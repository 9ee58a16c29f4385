"""Rows at rest, lineages, and what the registry remembers."""

from __future__ import annotations

import hmac
import sqlite3
from pathlib import Path

import polars as pl
import pytest

from murmura.api.dataset.v1 import dataset_pb2
from murmura.api.dataset.v1 import expressions_pb2 as frames_pb2
from services.common.errors import MurmuraError
from services.common.tokens import Principal
from services.dataset import batches, mock
from services.dataset import expressions as ex
from services.dataset.catalogue import Catalogue, may_use
from services.dataset.registry import OtherLineage, Outdated, Registry
from services.dataset.sealing import Sealed
from services.dataset.units import Units, unpack
from services.dataset.vault import Vault

ROWS = pl.DataFrame(
    {"patient": ["Quillfeather", "Quillfeather", "Brambleworth"], "n": [1, 2, 3], "text": ["x", "y", ""]}
)
ANALYST = Principal("ann@local", frozenset({"analyst"}))


def everything_in(directory: Path) -> bytes:
    return b"".join(path.read_bytes() for path in sorted(directory.rglob("*")) if path.is_file())


def store(vault: Vault, name: str, rows: pl.DataFrame) -> None:
    incoming = vault.incoming(name)
    incoming.add(rows)
    incoming.keep()


def load(vault: Vault, name: str) -> pl.DataFrame:
    return pl.concat(vault.read(name))


def fingerprint(vault: Vault, *pieces: pl.DataFrame) -> str:
    made = vault.fingerprint()
    for rows in pieces:
        made.add(rows)
    return made.hexdigest()


# ---------------------------------------------------------------- vault


def test_rows_rest_encrypted_and_private(tmp_path: Path) -> None:
    vault = Vault(tmp_path)
    store(vault, "one", ROWS)
    assert load(vault, "one").equals(ROWS)
    held = everything_in(tmp_path)
    assert b"Quillfeather" not in held
    assert b"PAR1" not in held
    assert all(path.stat().st_mode & 0o077 == 0 for path in tmp_path.rglob("*") if path.is_file())


def test_erasing_the_key_erases_the_rows_even_from_a_backup(tmp_path: Path) -> None:
    vault = Vault(tmp_path)
    store(vault, "one", ROWS)
    backup = (tmp_path / "rows" / "one.rows.aes").read_bytes()
    vault.erase("one")
    (tmp_path / "rows" / "one.rows.aes").write_bytes(backup)
    with pytest.raises(Sealed):
        load(vault, "one")


def test_changed_and_exchanged_rows_are_noticed(tmp_path: Path) -> None:
    vault = Vault(tmp_path)
    store(vault, "one", ROWS)
    store(vault, "two", ROWS.reverse())
    one, two = (tmp_path / "rows" / f"{name}.rows.aes" for name in ("one", "two"))
    sealed = one.read_bytes()
    one.write_bytes(two.read_bytes())
    with pytest.raises(Sealed):
        load(vault, "one")
    one.write_bytes(sealed[:-1] + bytes([sealed[-1] ^ 1]))
    with pytest.raises(Sealed):
        load(vault, "one")


@pytest.mark.parametrize("missing", ["master.key", "lineage.key"])
def test_a_lost_key_is_not_made_anew(tmp_path: Path, missing: str) -> None:
    store(Vault(tmp_path), "one", ROWS)
    (tmp_path / missing).unlink()
    with pytest.raises(Sealed, match=missing):
        Vault(tmp_path)


def test_sweeping_leaves_only_what_is_known(tmp_path: Path) -> None:
    vault = Vault(tmp_path)
    for name in ("kept", "orphan"):
        store(vault, name, ROWS)
    (tmp_path / "rows" / "kept.rows.aes.new").write_bytes(b"half")
    vault.sweep({"kept"})
    assert sorted(path.name for path in (tmp_path / "rows").iterdir()) == ["kept.key", "kept.rows.aes"]
    assert load(Vault(tmp_path), "kept").equals(ROWS)


# ---------------------------------------------------------------- lineage


@pytest.mark.parametrize(
    "copy",
    [
        ROWS,
        ROWS.reverse(),
        ROWS.select("text", "n", "patient"),
        ROWS.rename({"patient": "person"}),
        ROWS.with_columns(pl.col("n").cast(pl.String)),
        ROWS.with_columns(pl.col("n").cast(pl.Float64)),
        ROWS.with_columns(pl.when(pl.col("text") != "").then(pl.col("text"))),
    ],
)
def test_the_same_content_has_the_same_fingerprint(tmp_path: Path, copy: pl.DataFrame) -> None:
    vault = Vault(tmp_path)
    assert fingerprint(vault, copy) == fingerprint(vault, ROWS)
    assert fingerprint(Vault(tmp_path), copy) == fingerprint(vault, ROWS)


@pytest.mark.parametrize("other", [ROWS.head(2), pl.concat([ROWS, ROWS]), ROWS.with_columns(text=pl.lit("z"))])
def test_other_content_has_another_fingerprint(tmp_path: Path, other: pl.DataFrame) -> None:
    vault = Vault(tmp_path)
    assert fingerprint(vault, other) != fingerprint(vault, ROWS)


def test_a_fingerprint_needs_the_service_s_key(tmp_path: Path) -> None:
    assert fingerprint(Vault(tmp_path / "one"), ROWS) != fingerprint(Vault(tmp_path / "two"), ROWS)


# ---------------------------------------------------------------- registry


def resource(name: str = "datasets/notes", lineage: str = "aaaa") -> dataset_pb2.Dataset:
    made = dataset_pb2.Dataset(name=name, lineage=lineage, row_count=3, unit_count=2, privacy_unit_column="patient")
    made.policy_version = 1
    for column, kind in (("patient", "STRING"), ("n", "INTEGER"), ("text", "STRING")):
        made.schema.columns.add(name=column, type=frames_pb2.ValueType.Value(f"VALUE_TYPE_{kind}"))
    made.schema.columns[2].public_values.extend(["a|b", "c|d"])
    return made


def pack(*numbers: int) -> bytes:
    units = Units()
    units.add(pl.Series(numbers))
    return units.packed()


PACKED = pack(0, 0, 1)


def add(registry: Registry, made: dataset_pb2.Dataset, request: str = "r1", fingerprint: str = "f") -> None:
    registry.add(made, f"storage-{made.name[9:]}", PACKED, fingerprint, (request, "body", b"answer"))


def test_a_dataset_and_its_answer_outlive_the_process(tmp_path: Path) -> None:
    first = Registry(tmp_path / "registry.sqlite3")
    add(first, resource())
    first.close()
    again = Registry(tmp_path / "registry.sqlite3")
    assert again.get("datasets/notes") == (resource(), "storage-notes")
    assert again.answer("r1") == ("body", b"answer")
    assert again.units("storage-notes").tolist() == [0, 0, 1]
    assert again.storage_ids() == {"storage-notes"}


def test_content_keeps_its_lineage_when_its_datasets_are_gone(tmp_path: Path) -> None:
    registry = Registry(tmp_path / "registry.sqlite3")
    add(registry, resource())
    registry.delete("datasets/notes", ("r2", "body", b""))
    assert registry.get("datasets/notes") is None
    assert registry.lineage("f") == "aaaa"


def test_the_same_content_cannot_get_a_second_account_in_a_race(tmp_path: Path) -> None:
    registry = Registry(tmp_path / "registry.sqlite3")
    add(registry, resource())
    with pytest.raises(OtherLineage):
        add(registry, resource("datasets/other", lineage="bbbb"), request="r2")
    assert registry.get("datasets/other") is None
    assert registry.answer("r2") is None


def test_a_request_id_is_written_once_and_nothing_with_it(tmp_path: Path) -> None:
    registry = Registry(tmp_path / "registry.sqlite3")
    add(registry, resource())
    with pytest.raises(sqlite3.IntegrityError):
        add(registry, resource("datasets/other"), request="r1")
    assert registry.get("datasets/other") is None


def test_a_file_of_another_version_is_not_touched(tmp_path: Path) -> None:
    path = tmp_path / "registry.sqlite3"
    with sqlite3.connect(path) as old:
        old.execute("CREATE TABLE datasets (name TEXT)")
    with pytest.raises(Outdated):
        Registry(path)


# ---------------------------------------------------------------- what is public


@pytest.fixture
def catalogue(tmp_path: Path) -> Catalogue:
    registry = Registry(tmp_path / "registry.sqlite3")
    add(registry, resource())
    return Catalogue(registry, Vault(tmp_path))


def frame(*operations: frames_pb2.Operation) -> frames_pb2.Frame:
    return frames_pb2.Frame(dataset="datasets/notes", operations=operations)


def split_by_bar(index: int) -> frames_pb2.Operation:
    text = frames_pb2.Expression(column="text")
    bar = frames_pb2.Expression(literal=frames_pb2.Literal(string_value="|"))
    number = frames_pb2.Expression(literal=frames_pb2.Literal(integer_value=index))
    split = frames_pb2.Expression(
        call=frames_pb2.Call(function=frames_pb2.FUNCTION_STRING_SPLIT, arguments=[text, bar])
    )
    item = frames_pb2.Call(function=frames_pb2.FUNCTION_LIST_GET, arguments=[split, number])
    return frames_pb2.Operation(assign=frames_pb2.Assign(column="text", expression=frames_pb2.Expression(call=item)))


def test_describing_opens_no_row(catalogue: Catalogue) -> None:
    # The vault of this catalogue holds no row of the dataset at all: describing must do without.
    cut = frames_pb2.Operation(slice=frames_pb2.Slice(start=1))
    described = catalogue.describe(frame(cut, split_by_bar(1)), ANALYST)
    assert (len(described.shape.slots), described.unit_count) == (2, 2)
    assert described.units.tolist() == [0, 1]
    assert catalogue.describe(frame(frames_pb2.Operation(slice=frames_pb2.Slice(stop=2))), ANALYST).unit_count == 1
    assert catalogue.describe(frame(frames_pb2.Operation(slice=frames_pb2.Slice(stop=0))), ANALYST).unit_count == 0


def test_mock_rows_are_public_values_through_the_frame(catalogue: Catalogue) -> None:
    described = catalogue.describe(frame(split_by_bar(1)), ANALYST)
    rows = catalogue.mock_rows(described, 3)
    assert [row[2] for row in rows] == ["b", "d", "b"]
    assert rows == catalogue.mock_rows(described, 3)
    assert rows[0][:2] == ["mock patient 1", "0"]


def test_a_mock_row_on_which_the_frame_fails_is_made_up(catalogue: Catalogue) -> None:
    described = catalogue.describe(frame(split_by_bar(5)), ANALYST)
    assert [row[2] for row in catalogue.mock_rows(described, 2)] == ["mock text 1", "mock text 2"]


def test_mock_rows_know_every_type() -> None:
    schema = {"t": ex.TIMESTAMP, "b": ex.BOOLEAN, "f": ex.FLOAT}
    made = mock.rows(schema, {"f": ["2.5"]}, [ex.Drop(("t",))], {"b": ex.BOOLEAN, "f": ex.FLOAT}, 2)
    assert made == [["false", "2.5"], ["true", "2.5"]]
    assert mock.rows(schema, {}, [], {"t": ex.TIMESTAMP}, 1) == [["2000-01-01T00:00:00Z"]]


def test_who_may_know_of_a_dataset() -> None:
    dataset = resource()
    worker = frozenset({"worker"})
    assert may_use(dataset, ANALYST)
    dataset.policy.analysts.append("bob@local")
    assert not may_use(dataset, ANALYST)
    assert may_use(dataset, Principal("bob@local", frozenset({"analyst"})))
    assert may_use(dataset, Principal("ann@local", frozenset({"steward"})))
    assert may_use(dataset, Principal("worker:1", worker, {"dataset": dataset.name}))
    assert not may_use(dataset, Principal("worker:1", worker, {"dataset": "datasets/other"}))


def test_foreign_and_missing_are_the_same(catalogue: Catalogue) -> None:
    foreign = resource("datasets/foreign")
    foreign.policy.analysts.append("bob@local")
    add(catalogue.registry, foreign, request="r2")
    said = []
    for name in ("datasets/foreign", "datasets/missing"):
        with pytest.raises(MurmuraError) as caught:
            catalogue.visible(name, ANALYST)
        said.append((caught.value.code, caught.value.reason, caught.value.message.replace(name, "")))
    assert said[0] == said[1]


def test_units_are_numbered_by_first_slot() -> None:
    units = Units()
    assert units.add(pl.Series(["q", "a", "q", "b"])).tolist() == [0, 1, 0, 2]
    assert units.add(pl.Series(["b", "c", "a"])).tolist() == [2, 3, 1]
    assert (units.count, units.slots) == (4, 7)
    assert unpack(units.packed()).tolist() == [0, 1, 0, 2, 2, 3, 1]
    # What is no number is one unit, and both zeros are another: two units for one would be one budget too many.
    assert Units().add(pl.Series([float("nan"), 0.0, -0.0, float("nan")])).tolist() == [0, 1, 1, 0]


# ---------------------------------------------------------------- pieces


def test_a_dataset_of_many_pieces_opens_only_those_of_its_slots(tmp_path: Path) -> None:
    vault = Vault(tmp_path)
    many = pl.DataFrame({"n": range(40), "text": ["x" * 100_000 + str(n) for n in range(40)]})
    incoming = vault.incoming("many")
    for start in range(0, 40, 7):
        incoming.add(many.slice(start, 7))
    incoming.keep()
    pieces = list(vault.read("many"))
    assert [piece.height for piece in pieces] == [10, 10, 10, 10]
    assert max(batches.sizes(piece).sum() for piece in pieces) <= batches.PIECE_BYTES
    assert pl.concat(pieces).equals(many)
    for slots in (range(0, 1), range(9, 10), range(5, 33), range(39, 40), range(40, 40)):
        assert sum(piece.height for piece in vault.read("many", slots)) == len(slots)
        assert pl.concat([many.clear(), *vault.read("many", slots)]).equals(many[slots.start : slots.stop])


def test_rows_that_were_not_kept_leave_nothing(tmp_path: Path) -> None:
    vault = Vault(tmp_path)
    incoming = vault.incoming("one")
    incoming.add(ROWS)
    incoming.discard()
    assert not list((tmp_path / "rows").iterdir())
    with pytest.raises(Sealed):
        load(vault, "one")


def test_a_fingerprint_is_the_one_that_content_has_always_had(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.dataset.lineage._RUN", 7)
    monkeypatch.setattr("services.dataset.lineage._READ_AT_ONCE", 3)
    vault = Vault(tmp_path)
    many = pl.DataFrame({"n": range(50), "text": [f"{n * 7919 % 50}" for n in range(50)]})
    key = vault._lineage_key
    digests = sorted(hmac.digest(key, "\0".join(sorted(map(str, row))).encode(), "sha256") for row in many.iter_rows())
    assert fingerprint(vault, many) == hmac.digest(key, b"".join(digests), "sha256").hex()
    assert fingerprint(vault, many[20:], many[:20].reverse()) == fingerprint(vault, many)
    assert fingerprint(vault, many, many[:1]) != fingerprint(vault, many)
