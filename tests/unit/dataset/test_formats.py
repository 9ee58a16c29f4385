"""Files of three formats read alike, and what is broken in one is named without its content."""

from __future__ import annotations

import json
from pathlib import Path

import polars as pl
import pytest

from murmura.api.dataset.v1 import dataset_pb2
from services.dataset.columns import Unreadable
from services.dataset.sources import Sources
from services.dataset.vault import Vault

SECRET = "François Dupont suffers from pancreatic cancer"
ROWS = pl.DataFrame({"patient": ["p1", "p2"], "text": [SECRET, "ordinary"]})


def read(path: Path, unit: str = "text") -> pl.DataFrame:
    source = dataset_pb2.Source(file=dataset_pb2.FileSource(url=str(path)))
    items = list(Sources(["/"]).read(source, unit, {}, Vault(path.parent / "vault")))
    return pl.concat(item for item in items if not isinstance(item, int))


def test_three_formats_read_alike(tmp_path: Path) -> None:
    ROWS.write_csv(tmp_path / "r.csv")
    ROWS.write_parquet(tmp_path / "r.parquet")
    (tmp_path / "r.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS.to_dicts()))
    for name in ("r.csv", "r.parquet", "r.jsonl"):
        assert read(tmp_path / name).equals(ROWS)


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (f'{{"text": "a"}}\n{{"text": "{SECRET}\n', 2),
        (f'{{"text": "a"}}\n\n"{SECRET}"\n', 3),
        (f'{{"text": "{SECRET}"}}\n{{"text": 3}}\n', 2),
        ("", 0),
    ],
)
def test_a_broken_row_is_named_by_line_and_never_by_content(tmp_path: Path, content: str, line: int) -> None:
    path = tmp_path / "r.jsonl"
    path.write_text(content)
    with pytest.raises(Unreadable) as caught:
        read(path)
    assert caught.value.line == line
    assert "Dupont" not in f"{caught.value!r} {caught.value.__cause__!r}"


@pytest.mark.parametrize("name", ["r.parquet", "r.csv", "r.xyz", "absent.csv"])
def test_other_files_fail_as_plainly(tmp_path: Path, name: str) -> None:
    if not name.startswith("absent"):
        (tmp_path / name).write_text(f'a,b\n1,2,3,"{SECRET}\n')
    with pytest.raises(Unreadable) as caught:
        read(tmp_path / name)
    assert "Dupont" not in f"{caught.value!r}"


def test_json_is_read_or_refused_however_deep_it_is(tmp_path: Path) -> None:
    """What can just be read may be too deep to be written again."""
    path, refused = tmp_path / "r.jsonl", []
    for depth in range(900, 1010):
        path.write_text(f'{{"text": "a", "deep": {"[" * depth}{"]" * depth}}}\n')
        try:
            assert read(path)["deep"].to_list() == ["[" * depth + "]" * depth]
        except Unreadable as problem:
            assert str(problem) == "line 1: not JSON that this service reads"
            refused.append(depth)
    assert refused == list(range(refused[0], 1010))
