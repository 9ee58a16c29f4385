"""Sources: the same rows whatever the format, and what is broken named by line and column, never by content."""

from __future__ import annotations

import gzip
import json
import tempfile
import tracemalloc
from pathlib import Path

import polars as pl
import pyarrow as pa
import pytest

from murmura.api.dataset.v1 import dataset_pb2
from services.dataset import expressions as ex
from services.dataset import formats
from services.dataset.columns import Unreadable, type_of
from services.dataset.sources import Sources, locate
from services.dataset.vault import Vault

SECRET = "Zanzibar"
ROWS = [
    {"patient": f"p{number // 2}", "age": 30 + number, "weight": 60.5 + number, "text": f"note, “{number}”\nmore"}
    for number in range(5)
]


def items(url: str, declared: dict[str, str] | None = None, unit: str = "patient") -> list[int | pl.DataFrame]:
    source = dataset_pb2.Source(file=dataset_pb2.FileSource(url=url))
    with tempfile.TemporaryDirectory() as directory:
        return list(Sources(["/"]).read(source, unit, declared or {}, Vault(Path(directory))))


def table(path: Path, declared: dict[str, str] | None = None, unit: str = "patient") -> pl.DataFrame:
    return pl.concat(item for item in items(str(path), declared, unit) if isinstance(item, pl.DataFrame))


def problem(path: Path, declared: dict[str, str] | None = None, unit: str = "patient") -> Unreadable:
    with pytest.raises(Unreadable) as caught:
        table(path, declared, unit)
    assert SECRET not in str(caught.value)
    # Nothing that quotes the source hangs on it either.
    assert caught.value.__suppress_context__ or caught.value.__context__ is None
    return caught.value


def write(directory: Path, ending: str) -> Path:
    path = directory / f"rows.{ending}"
    if ending == "jsonl":
        path.write_text("\n".join(json.dumps(row) for row in ROWS))
    elif ending == "csv":
        pl.DataFrame(ROWS).write_csv(path)
    else:
        pl.DataFrame(ROWS).write_parquet(path)
    return path


@pytest.mark.parametrize("ending", ["jsonl", "csv", "parquet"])
def test_every_format_gives_the_same_rows_and_types(tmp_path: Path, ending: str) -> None:
    rows = table(write(tmp_path, ending))
    assert rows.to_dicts() == ROWS
    assert [type_of(series) for series in rows.get_columns()] == [ex.STRING, ex.INTEGER, ex.FLOAT, ex.STRING]


def compressed(path: Path, last: str) -> Path:
    out = path.with_name(f"{path.name}.{last}")
    with pa.CompressedOutputStream(str(out), {"gz": "gzip", "bz2": "bz2", "zst": "zstd"}[last]) as stream:
        stream.write(path.read_bytes())
    return out


@pytest.mark.parametrize("last", ["gz", "bz2", "zst"])
@pytest.mark.parametrize("ending", ["jsonl", "csv"])
def test_a_compressed_file_gives_the_same_rows(tmp_path: Path, ending: str, last: str) -> None:
    assert table(compressed(write(tmp_path, ending), last)).to_dicts() == ROWS


@pytest.mark.parametrize("last", ["gz", "bz2", "zst"])
def test_a_compressed_file_that_is_no_whole_one_is_refused(tmp_path: Path, last: str) -> None:
    plain = tmp_path / "rows.jsonl"
    plain.write_text("".join(json.dumps({"patient": f"p{row}", "text": f"{SECRET} {row}"}) + "\n" for row in range(99)))
    packed = compressed(plain, last)
    whole = packed.read_bytes()
    for content in (whole[: len(whole) // 2], whole[:-3], whole + b"more", plain.read_bytes()):
        packed.write_bytes(content)
        assert "is no whole" in str(problem(packed))


def test_two_compressed_files_behind_each_other_are_one(tmp_path: Path) -> None:
    """As `cat` leaves them, and as tools that compress block by block write them."""
    plain = write(tmp_path, "jsonl")
    plain.write_text(plain.read_text() + "\n")
    packed = compressed(plain, "gz")
    packed.write_bytes(packed.read_bytes() * 2)
    assert table(packed).to_dicts() == ROWS * 2


def test_compressed_parquet_is_refused_with_what_to_do(tmp_path: Path) -> None:
    assert "register it without .gz" in str(problem(compressed(write(tmp_path, "parquet"), "gz")))


@pytest.mark.parametrize("name", ["rows.gz", "rows.txt.gz", "rows.gz.csv.zip"])
def test_a_compressed_file_of_unknown_format_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"")
    assert "the format is unknown" in str(problem(tmp_path / name))


def test_a_compressed_file_comes_out_piece_by_piece(tmp_path: Path) -> None:
    """Fifty megabytes in fifty kilobytes are never in memory together."""
    packed = tmp_path / "rows.csv.gz"
    with gzip.open(packed, "wb") as out:
        for _ in range(50):
            out.write(b"a" * 1_000_000)
    before, most, size = pa.total_allocated_bytes(), 0, 0
    tracemalloc.start()
    try:
        with packed.open("rb") as file:
            stream = formats.inflated(file, "gzip")
            while piece := stream.read(formats.READ_BYTES):
                size += len(piece)
                most = max(most, pa.total_allocated_bytes() - before)
        most += tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert size == 50_000_000
    assert most < 8 * formats.READ_BYTES


def test_a_file_url_is_a_path(tmp_path: Path) -> None:
    assert items(write(tmp_path, "csv").as_uri())[-1].height == 5  # type: ignore[union-attr]


@pytest.mark.parametrize("ending", ["jsonl", "csv", "parquet"])
def test_progress_is_told(tmp_path: Path, ending: str) -> None:
    frame = pl.DataFrame({"patient": ["p"] * 2500, "text": ["t"] * 2500})
    path = tmp_path / f"rows.{ending}"
    {"jsonl": frame.write_ndjson, "csv": frame.write_csv, "parquet": frame.write_parquet}[ending](path)
    assert [item for item in items(str(path)) if isinstance(item, int)][:2] == [1000, 2000]


@pytest.mark.parametrize(
    ("name", "content", "line", "column"),
    [
        ("a.jsonl", b'{"patient": "p"}\n{"patient": "p", "text": Zanzibar}\n', 2, "character 26"),
        ("b.jsonl", b'{"patient": "p"}\n\n["Zanzibar"]\n', 3, ""),
        ("c.jsonl", b'{"patient": "p", "text": "Zanzibar \xff"}\n', 1, ""),
        ("d.jsonl", b'{"patient": "p", "n": 1}\n{"patient": "p", "n": "Zanzibar"}\n', 2, "column 'n'"),
        ("e.jsonl", b'{"patient": "p", "t": "Zanzibar\\ud800"}\n', 1, "column 't'"),
        ("f.jsonl", b'{"patient": "p", "n": ' + b"9" * 40 + b"}\n", 1, "column 'n'"),
        ("g.jsonl", b'{"patient": "p", "n": NaN}\n', 1, ""),
        ("h.jsonl", b'{"patient": "p"}\n' + b"[" * 100_000, 2, ""),
        ("i.jsonl", b'{"patient": "p"}\n{"text": "Zanzibar"}\n', 2, "column 'patient'"),
        ("j.jsonl", b'{"patient": "p", "n": ' + b"9" * 5000 + b"}\n", 1, ""),
        ("k.jsonl", b'{"patient": "p", "text": "Zanzibar' + b"x" * (1 << 20) + b'"}\n', 1, "column 'text'"),
        ("l.jsonl", b'{"patient": "p", "n": 1e999, "text": "Zanzibar"}\n', 1, ""),
        ("l.csv", b"patient,text\np,x\np,Zanzibar,more\n", 3, ""),
        ("m.csv", b'patient,text\np,"Zanzibar\n', 2, ""),
        ("n.csv", b"patient,text\np,Zanzibar\xff\n", 2, ""),
        ("o.csv", b'patient,text\np,"two\nlines"\n,Zanzibar\n', 4, "column 'patient'"),
        ("p.csv", b"patient,patient\nZanzibar,x\n", 1, ""),
        ("q.csv", b'patient,text\np,"Zanzibar"x\n', 2, ""),
    ],
)
def test_a_broken_row_is_named_by_line_and_column_only(
    tmp_path: Path, name: str, content: bytes, line: int, column: str
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    found = problem(path)
    assert found.line == line
    assert f"line {line}" in str(found)
    assert column in str(found)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", b'{"patient": "p", "half \\ud800": 1}'),
        ("b.jsonl", b'{"patient": "p", "nul \\u0000": 1}'),
        ("c.jsonl", b'{"patient": "p", "": 1}'),
        ("d.csv", b"patient,nul \x00\np,1\n"),
        ("e.csv", b"patient," + b"n" * 201 + b"\np,1\n"),
        ("f.csv", b",".join(b"%d" % number for number in range(1001))),
    ],
)
def test_columns_are_of_a_number_and_have_names(tmp_path: Path, name: str, content: bytes) -> None:
    path = tmp_path / name
    path.write_bytes(content + (b"\n" + b"," * 1000 if name.startswith("f") else b""))
    assert str(problem(path)).startswith("it must have at most 1000 columns with names of 1 to 200 characters")


def test_a_parquet_row_is_named_too(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    pl.DataFrame(
        {"patient": ["p", "q"], "n": [1, 2**64 - 1]}, schema={"patient": pl.String, "n": pl.UInt64}
    ).write_parquet(path)
    found = problem(path)
    assert (found.line, "column 'n'" in str(found)) == (2, True)


@pytest.mark.parametrize("content", [b"", b"Zanzibar", b"PAR1 Zanzibar PAR1"])
def test_a_damaged_parquet_file_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "rows.parquet"
    path.write_bytes(content)
    problem(path)


def test_a_file_without_a_header_does_not_show_its_first_row(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text(f"{SECRET},45\nother,46\n")
    assert "there is no column 'patient'" in str(problem(path))


@pytest.mark.parametrize("ending", ["jsonl", "csv", "parquet"])
def test_a_promised_type_is_kept(tmp_path: Path, ending: str) -> None:
    path = write(tmp_path, ending)
    assert type_of(table(path, {"age": ex.INTEGER}).get_column("age")) == ex.INTEGER
    assert "text" in str(problem(path, {"text": ex.FLOAT}))
    assert "nobody" in str(problem(path, {"nobody": ex.STRING}))


def test_texts_that_are_no_plain_numbers_stay_texts(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text(
        "patient,zip,word,flag,vast,mixed\n007,01234,nan,true,1e999,1\n008,1,2,FALSE,2,true\n9,3,4,,5,1.5\n"
    )
    rows = table(path)
    kinds = {series.name: type_of(series) for series in rows.get_columns()}
    assert kinds == dict.fromkeys(rows.columns, ex.STRING) | {"flag": ex.BOOLEAN}
    assert rows["mixed"].to_list() == ["1", "true", "1.5"]


@pytest.mark.parametrize("other", ["12345678901234567891", "1.5"])
def test_numbers_of_many_digits_are_names_and_stay_apart(tmp_path: Path, other: str) -> None:
    """As doubles, two patients would be one unit."""
    path = tmp_path / "rows.csv"
    numbers = ["12345678901234567890" if other != "1.5" else "9007199254740993", other]
    path.write_text("patient\n" + "\n".join(numbers))
    assert table(path)["patient"].to_list() == numbers
    assert "column 'patient'" in str(problem(path, {"patient": ex.FLOAT}))


@pytest.mark.parametrize(("mark", "ending"), [(",", "csv"), (";", "csv"), ("\t", "tsv"), (";", "tsv")])
def test_fields_lie_between_what_the_header_has_between_names(tmp_path: Path, mark: str, ending: str) -> None:
    path = tmp_path / f"rows.{ending}"
    named = mark.join(["patient", '"text, or note; or what"', "weight"])
    path.write_text(f"{named}\n" + mark.join(["p", '"one, two; three\tfour"', "60.5"]))
    assert table(path).row(0) == ("p", "one, two; three\tfour", 60.5)


def test_an_index_without_a_name_gets_one(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text(",patient\n0,p\n1,q\n")
    assert table(path).to_dict(as_series=False) == {"column_0": [0, 1], "patient": ["p", "q"]}
    path.write_text(",patient,column_0\n0,p,1\n")
    assert "two columns have the same name" in str(problem(path))


def test_a_unit_that_is_no_number_is_none(tmp_path: Path) -> None:
    """Pandas writes so what is missing: rows of several people, or of one who has other rows too."""
    path = tmp_path / "rows.parquet"
    pl.DataFrame({"patient": [1.0, float("nan")]}).write_parquet(path)
    assert str(problem(path)) == "line 2, column 'patient': empty, and every row needs its privacy unit"


# ---------------------------------------------------------------- what may be read


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1/rows.csv",
        "simplecache::file:///x.csv",
        "rows.csv",
        "file://elsewhere/x.csv",
        "s3://bucket/../other/x.csv",
        "s3://bucket//x.csv",
        "s3://bucket/x.csv::file:///x.csv",
        "memory://x.csv",
    ],
)
def test_other_kinds_of_urls_are_refused(url: str) -> None:
    with pytest.raises(Unreadable, match="URL"):
        locate(url)


def test_only_what_the_operator_allows_is_read(tmp_path: Path) -> None:
    inside, outside = tmp_path / "data", tmp_path / "data-of-others"
    for place in (inside, outside, inside / "own"):
        place.mkdir()
        write(place, "csv")
    (inside / "link.csv").symlink_to(outside / "rows.csv")
    (inside / "own link.csv").symlink_to(inside / "own" / "rows.csv")
    allowed = Sources([str(inside), "s3://bucket/data"], kept_out=[inside / "own"])
    vault = Vault(tmp_path / "vault")

    def read(url: str) -> int:
        source = dataset_pb2.Source(file=dataset_pb2.FileSource(url=url))
        return sum(item.height for item in allowed.read(source, "patient", {}, vault) if isinstance(item, pl.DataFrame))

    assert read(f"{inside}/rows.csv") == read(f"{inside}/own/../rows.csv") == 5
    for url in (
        f"{outside}/rows.csv",
        f"{inside}/../data-of-others/rows.csv",
        f"file://{inside}/%2E%2E/data-of-others/rows.csv",
        f"{inside}/link.csv",
        f"{inside}/own/rows.csv",
        f"{inside}/own link.csv",
        f"{inside}/own/absent.csv",
        "/etc/passwd",
        "s3://bucket/data-of-others/rows.csv",
        "s3://bucket/rows.csv",
        "gs://bucket/data/rows.csv",
    ):
        with pytest.raises(Unreadable, match="MURMURA_SOURCES"):
            read(url)
    with pytest.raises(Unreadable, match="MURMURA_SOURCES"):
        list(Sources().read(dataset_pb2.Source(file=dataset_pb2.FileSource(url=f"{inside}/rows.csv")), "p", {}, vault))


@pytest.mark.parametrize("url", ["/nowhere/rows.csv", "/nowhere/rows.xlsx", "/"])
def test_a_file_that_is_not_there_is_refused(url: str) -> None:
    with pytest.raises(Unreadable):
        items(url)
