"""What pandas has otherwise or not at all, and traced functions, on the service's engine."""

import pytest

import murmura
from murmura import errors, trace
from murmura.api.dataset.v1 import expressions_pb2 as pb
from murmura.frame import RemoteFrame
from tests.support.remote_frames import Client, run


@pytest.fixture
def frame():
    return RemoteFrame(Client(), pb.Frame(dataset="datasets/d"))


CASES = {
    "divide": (lambda X: X["age"] / X["dose"], [70 / 1.5, None, None]),
    "round": (lambda X: (X["dose"] + 1).round(), [2.0, None, 1.0]),
    "mask": (lambda X: X["age"].mask(X["age"] > 60), [None, 20, None]),
    "extract": (lambda X: X["text"].str.extract(r",(\d)").astype(int), [7, None, None]),
    "extract then fill": (lambda X: X["text"].str.extract(r",(\d)").fillna("0"), ["7", "0", "0"]),
    "extract by name": (lambda X: X["text"].str.extract(r"(?P<name>\w+),"), ["Ann", "bo", None]),
    "extract without a group": (lambda X: X["text"].str.extract(r"[(,](?:\d|\(|x)"), [",7", ",x", None]),
    "split": (lambda X: X["text"].str.split(",").str.get(0).str.title(), ["Ann", "Bo", None]),
    "dt": (lambda X: X["at"].dt.year * 100 + X["at"].dt.hour, [202013, 199900, None]),
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
def test_a_series_gives_what_it_says(frame, case):
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
    X = X[(X.age > 60) & X.text.str.contains(r"\bann\b", case=False)]
    X["year"], X["source"] = X["seen"].dt.year, "ward 3"
    X = X.assign(start=X.text.str[:20]).dropna(subset=["year"])
    X["text"] = X["text"].apply(trace(lambda s: f"{murmura.where(s.len() > 80, 'Long', 'Short')}: {s.strip().title()}"))
    assert X.columns == ["text", "age", "seen", "year", "source", "start"]
    kinds = ["string", "integer", "timestamp", "integer", "string", "string"]
    assert X.dtypes == dict(zip(X.columns, kinds, strict=True))
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
