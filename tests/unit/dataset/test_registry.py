"""What the registry remembers: datasets, answers, which content has which lineage."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from services.dataset.registry import OtherLineage, Outdated, Registry
from tests.support.registered import add, resource


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
