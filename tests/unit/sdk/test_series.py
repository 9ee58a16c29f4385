"""Pandas habits and traced functions do on the service's engine what they do in Python."""

from datetime import datetime

import polars as pl
import pytest

import murmura
from murmura import errors, trace
from murmura.api.dataset.v1 import dataset_service_pb2 as messages
from murmura.api.dataset.v1 import expressions_pb2 as pb
from murmura.frame import RemoteFrame
from services.dataset import execution, frames, mock
from services.dataset import expressions as ex

SCHEMA = {"text": "STRING", "age": "INTEGER", "dose": "FLOAT", "sick": "BOOLEAN", "at": "TIMESTAMP"}
ROWS = pl.DataFrame(
    {
        "text": ["Ann,7", "bo,x", None],
        "age": [70, 20, 61],
        "dose": pl.Series([1.5, None, 0.0], dtype=pl.Float64),
        "sick": [True, False, None],
        "at": [datetime(2020, 2, 29, 13, 5), datetime(1999, 1, 1), None],
    }
)


class Service:
    """The checker and the mock rows of the dataset service, without the network."""

    def call(self, method, request, timeout_s=0):
        shape = ex.Shape(SCHEMA, range(ROWS.height))
        operations = frames.operations(request.frame)
        for operation in operations:
            shape = ex.after(shape, operation)
        answer = messages.DescribeFrameResponse(row_count=len(shape.slots), unit_count=3)
        for name, kind in shape.schema.items():
            answer.schema.columns.add(name=name, type=f"VALUE_TYPE_{kind}")
        for values in mock.rows(SCHEMA, {}, operations, shape.schema, 2):
            answer.mock_rows.add(values=values)
        return answer


class Client:
    subject = "ann"

    def stub(self, service, interface=""):
        return Service()


@pytest.fixture
def frame():
    return RemoteFrame(Client(), pb.Frame(dataset="datasets/d"))


def run(frame, column):
    columns, alive = execution.apply(ROWS, frames.operations(frame.proto))
    return [value if lives else None for value, lives in zip(columns[column], alive, strict=True)]


CASES = {
    "arithmetic": (lambda X: X["age"] * 2 + 1 - X["age"] // 3 % 4, [138, 39, 123]),
    "reflected": (lambda X: 100 - X["age"], [30, 80, 39]),
    "divide": (lambda X: X["age"] / X["dose"], [70 / 1.5, None, None]),
    "round": (lambda X: (X["dose"] + 1).round(), [2.0, None, 1.0]),
    "abs": (lambda X: abs(-X["age"]), [70, 20, 61]),
    "compare": (lambda X: (X["age"] > 60) & ~(X["age"] == 61) | (X["age"] < 21), [True, True, False]),
    "between": (lambda X: X["age"].between(20, 61), [False, True, True]),
    "isin": (lambda X: X["age"].isin([20, 61]), [False, True, True]),
    "isna": (lambda X: X["dose"].isna(), [False, True, False]),
    "notna": (lambda X: X["text"].notna(), [True, True, False]),
    "fillna": (lambda X: X["dose"].fillna(9.0), [1.5, 9.0, 0.0]),
    "where": (lambda X: X["age"].where(X["age"] > 60, 0), [70, 0, 61]),
    "mask": (lambda X: X["age"].mask(X["age"] > 60), [None, 20, None]),
    "astype": (lambda X: X["age"].astype(str) + "!", ["70!", "20!", "61!"]),
    "extract": (lambda X: X["text"].str.extract(r",(\d)").astype(int), [7, None, None]),
    "extract then fill": (lambda X: X["text"].str.extract(r",(\d)").fillna("0"), ["7", "0", "0"]),
    "contains": (lambda X: X["text"].str.contains("^A.n"), [True, False, None]),
    "match": (lambda X: X["text"].str.match("o|b"), [False, True, None]),
    "replace": (lambda X: X["text"].str.replace("[a-z]+", "$1", regex=True), ["A$1,7", "$1,$1", None]),
    "split": (lambda X: X["text"].str.split(",").str.get(0).str.title(), ["Ann", "Bo", None]),
    "len": (lambda X: X["text"].str.len() + X["text"].str.find(","), [8, 6, None]),
    "dt": (lambda X: X["at"].dt.year * 100 + X["at"].dt.hour, [202013, 199900, None]),
    "weekday": (lambda X: X["at"].dt.weekday, [5, 4, None]),
    "strftime": (lambda X: X["at"].dt.strftime("%d/%m"), ["29/02", "01/01", None]),
    "time": (lambda X: X["at"] > datetime(2000, 1, 1), [True, False, None]),
    "f-string": (
        lambda X: X["text"].apply(trace(lambda s: f"Name: {s.split(',')[0]} ({s.len()})" + "!")),
        ["Name: Ann (5)!", "Name: bo (4)!", None],
    ),
    "where in trace": (
        lambda X: X["age"].apply(trace(lambda age: f"{murmura.where(age > 60, 'old', 'young')}: {age}")),
        ["old: 70", "young: 20", "old: 61"],
    ),
    "f-string as argument": (
        lambda X: X["text"].apply(trace(lambda s: s + f" <{s.lower()}>")),
        ["Ann,7 <ann,7>", "bo,x <bo,x>", None],
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_a_series_gives_what_pandas_would(frame, case):
    make, expected = CASES[case]
    frame["made"] = make(frame)
    assert run(frame, "made") == expected


def test_a_filter_empties_slots_and_counts_stay(frame):
    kept = frame[frame["age"] > 60]
    assert kept.shape == frame.shape
    assert run(kept, "age") == [70, None, 61]


def test_constants_and_fillna_of_a_frame(frame):
    frame["label"] = "x"
    filled = frame.fillna({"dose": 2.5, "text": "none"})
    assert run(filled, "dose") == [1.5, 2.5, 0.0]
    assert run(filled, "text") == ["Ann,7", "bo,x", "none"]
    assert run(filled, "label") == ["x"] * 3


def test_the_example_of_the_readme_runs(frame):
    X = frame.rename(columns={"at": "seen"})[["text", "age", "seen"]].fillna({"text": ""})
    X = X[(X["age"] > 60) & X["text"].str.contains(r"\bAnn\b")]
    X["year"], X["source"] = X["seen"].dt.year, "ward 3"
    X["text"] = X["text"].apply(trace(lambda s: f"{murmura.where(s.len() > 80, 'Long', 'Short')}: {s.strip().title()}"))
    assert X.columns == ["text", "age", "seen", "year", "source"]
    assert run(X, "text") == ["Short: Ann,7", None, None]


def test_what_cannot_be_combined_is_refused(frame):
    other = frame.iloc[:2]
    with pytest.raises(errors.InvalidInput, match="different states"):
        frame["age"] + other["age"]
    with pytest.raises(errors.InvalidInput, match="another state"):
        frame[other["age"] > 3]
    with pytest.raises(errors.NotSupported, match=r"& \| ~"):
        bool(frame["age"] > 3)
    with pytest.raises(errors.NotSupported, match=r"str\.lower"):
        frame["age"].str.lower()
