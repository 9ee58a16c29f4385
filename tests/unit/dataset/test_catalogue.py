"""What is public of a dataset, who may know of it, and how units are numbered."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest

from murmura.api.dataset.v1 import expressions_pb2 as frames_pb2
from services.common.errors import MurmuraError
from services.common.tokens import Principal
from services.dataset import expressions as ex
from services.dataset import mock
from services.dataset.catalogue import Catalogue, may_use
from services.dataset.registry import Registry
from services.dataset.units import Units, unpack
from services.dataset.vault import Vault
from tests.support.notes import cut, frame_of, split
from tests.support.registered import add, resource

ANALYST = Principal("ann@local", frozenset({"analyst"}))


@pytest.fixture
def catalogue(tmp_path: Path) -> Catalogue:
    registry = Registry(tmp_path / "registry.sqlite3")
    add(registry, resource())
    return Catalogue(registry, Vault(tmp_path))


def frame(*operations: frames_pb2.Operation) -> frames_pb2.Frame:
    return frame_of(resource(), *operations)


def split_by_bar(index: int) -> frames_pb2.Operation:
    return split(index, "|")


def test_describing_opens_no_row(catalogue: Catalogue) -> None:
    # The vault of this catalogue holds no row of the dataset at all: describing must do without.
    described = catalogue.describe(frame(cut(1), split_by_bar(1)), ANALYST)
    assert (len(described.shape.slots), described.unit_count) == (2, 2)
    assert described.units.tolist() == [0, 1]
    assert catalogue.describe(frame(cut(stop=2)), ANALYST).unit_count == 1
    assert catalogue.describe(frame(cut(stop=0)), ANALYST).unit_count == 0


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
