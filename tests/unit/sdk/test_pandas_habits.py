"""What is written for a pandas frame means the same on a remote one: each line here runs on both."""

from datetime import datetime

import pandas as pd
import pytest

from murmura import errors
from murmura.api.dataset.v1 import expressions_pb2 as pb
from murmura.frame import RemoteFrame
from tests.support.remote_frames import ROWS, Client, run


def without(frame, column):
    del frame[column]
    return frame


SERIES = {
    "attribute": lambda X: X.age + 1,
    "arithmetic": lambda X: X["age"] * 2 + 1 - X["age"] // 3 % 4,
    "a constant first": lambda X: 100 - X["age"] / 2,
    "negative": lambda X: abs(-X["age"]),
    "round": lambda X: (X["dose"] / 3).round(2),
    "compare": lambda X: (X["age"] > 60) & ~(X["age"] == 61) | (X["age"] < 21),
    "not equal to what is missing": lambda X: (X["dose"] != 1.5) & (X["text"] != X["text"]),
    "not what cannot be compared": lambda X: ~(X["dose"] < 1) & ~(X["text"] == "x"),
    "not among them": lambda X: ~X["text"].isin(["bo,x"]),
    "not what does not match": lambda X: ~X["text"].str.contains("A") & ~X["text"].str.startswith("b"),
    "one or the other": lambda X: (X["age"] > 60) ^ (X["age"] > 65),
    "where it is compared with what is missing": lambda X: X["age"].where(X["dose"] > 1, 0),
    "a truth value first": lambda X: True & (X["age"] > 60),
    "between": lambda X: X["age"].between(20, 61),
    "between, one included": lambda X: X["age"].between(20, 61, inclusive="right"),
    "between, none included": lambda X: X["age"].between(20, 61, inclusive="neither"),
    "isin": lambda X: X["age"].isin([20, 61]),
    "isna": lambda X: X["dose"].isna(),
    "notna": lambda X: X["text"].notna(),
    "fillna": lambda X: X["dose"].fillna(9.0),
    "where": lambda X: X["age"].where(X["age"] > 60, 0),
    "mask": lambda X: X["age"].mask(X["age"] > 60, 0),
    "map": lambda X: X["age"].map({70: "old", 20: "young", 5: "a child"}),
    "map of some, else": lambda X: X["text"].map({"Ann,7": 1}).fillna(0),
    "map of none": lambda X: X["age"].map({1: 2}),
    "map of many": lambda X: X["age"].map({age: age / 4 for age in range(150)}),
    "clip": lambda X: X["age"].clip(30, 65) + X["age"].clip(lower=61) + X["age"].clip(upper=20),
    "clip of what is missing": lambda X: X["dose"].clip(0.5, 1.0),
    "astype": lambda X: X["age"].astype(str) + "!",
    "astype of floats": lambda X: X["dose"].fillna(-2.7).astype(int) + (X["age"] - 20).astype(bool).astype(int),
    "astype of texts": lambda X: X["age"].astype(str).astype(float) + X["age"].astype(str).astype(int),
    "below zero": lambda X: (X["age"] - 60) % 7 + (X["age"] - 60) // 7,
    "of floats below zero": lambda X: X["dose"].fillna(-2.5) % 2 + X["dose"].fillna(-2.5) // 2,
    "case": lambda X: X["text"].str.lower() + X["text"].str.upper() + X["text"].str.title(),
    "strip": lambda X: X["text"].str.strip("A7x").str.lstrip("n").str.rstrip(","),
    "contains": lambda X: X["text"].str.contains("^A.n"),
    "contains in any case": lambda X: X["text"].str.contains("^a.n|B", case=False),
    "contains a text": lambda X: X["text"].str.contains(".", regex=False),
    "contains a text in any case": lambda X: X["text"].str.contains("O,", case=False, regex=False),
    "contains, else": lambda X: X["text"].str.contains("n", na=True),
    "match": lambda X: X["text"].str.match("o|b"),
    "match in any case": lambda X: X["text"].str.match("N|B", case=False),
    "fullmatch": lambda X: X["text"].str.fullmatch(r"\w+,\d"),
    "fullmatch of a part": lambda X: X["text"].str.fullmatch("Ann|bo,x"),
    "startswith, else": lambda X: X["text"].str.startswith("A", na=False),
    "endswith": lambda X: X["text"].str.endswith("x"),
    "count": lambda X: X["text"].str.count("n"),
    "count an escaped text": lambda X: X["note"].str.count(r"\.") + X["note"].str.count(r"\)\."),
    "find": lambda X: X["text"].str.find(","),
    "len": lambda X: X["text"].str.len(),
    "replace": lambda X: X["note"].str.replace(".", "!"),
    "replace a pattern": lambda X: X["text"].str.replace("[a-z]+", "$1", regex=True),
    "replace in any case": lambda X: X["text"].str.replace("N", "m", case=False, regex=True),
    "split": lambda X: X["note"].str.split(".").str.get(1),
    "split at several": lambda X: X["note"].str.split(r"\)\.").str[0],
    "split at a text": lambda X: X["note"].str.split(").", regex=False).str[-1],
    "range": lambda X: X["text"].str[1:3] + X["text"].str[-2:] + X["text"].str.slice(0, 1),
    "time": lambda X: X["at"].dt.year * 100 + X["at"].dt.month + X["at"].dt.day_of_week,
    "strftime": lambda X: X["at"].dt.strftime("%d/%m"),
    "later": lambda X: X["at"] > datetime(2000, 1, 1),
}
FRAMES = {
    "assign": lambda X: X.assign(made=X["age"] + 1, label="x", age=X.dose.fillna(1.0)),
    "assign in turn": lambda X: X.assign(made=X["age"] + 1, age=lambda X: X["made"] * 2),
    "dropna": lambda X: X.assign(made=X.age).dropna(subset=["dose"]),
    "dropna of a name": lambda X: X.assign(made=X.age).dropna(subset="text"),
    "filter": lambda X: X.rename(columns={"age": "made"})[lambda X: X.made > 60],
    "filter by text": lambda X: X[X["text"].str.len() > 4].rename(columns={"age": "made"}),
    "rename": lambda X: X.rename(columns={"age": "made"}),
    "drop": lambda X: X.rename(columns={"age": "made"}).drop(columns=["text", "at"]),
    "del": lambda X: without(X.rename(columns={"age": "made"}), "text"),
    "fillna": lambda X: X.fillna({"dose": 2.5}).rename(columns={"dose": "made"}),
}
NOTES = ["a.b", "c).d)."]


@pytest.fixture
def remote():
    frame = RemoteFrame(Client(), pb.Frame(dataset="datasets/d"))
    frame["note"] = frame["age"].where(frame["age"] > 60).isna().astype(str).str.replace("True", NOTES[1])
    frame["note"] = frame["note"].str.replace("False", NOTES[0])
    return frame


@pytest.fixture
def local():
    frame = pd.DataFrame({name: ROWS[name].to_list() for name in ROWS.columns})
    frame["note"] = [NOTES[age <= 60] for age in frame["age"]]
    return frame


def same(found, expected):
    """Compare; a row that is left out has no value in pandas."""
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert one == pytest.approx(other) if one is not None else pd.isna(other)


@pytest.mark.parametrize("case", SERIES)
def test_a_series_is_what_pandas_makes_of_it(remote, local, case):
    remote["made"] = SERIES[case](remote)
    same(run(remote, "made"), list(SERIES[case](local)))


@pytest.mark.parametrize("case", FRAMES)
def test_a_frame_is_what_pandas_makes_of_it(remote, local, case):
    expected = FRAMES[case](local)
    found = FRAMES[case](remote)
    assert sorted(found.columns) == sorted(expected.columns)
    # Slots of rows that are left out stay, and are empty.
    same(run(found, "made"), list(expected["made"].reindex(local.index)))


@pytest.mark.parametrize(
    ("line", "spelling"),
    [
        (lambda X: X["text"].str.split(r"\s+"), r"regex=False"),
        (lambda X: X["text"].str.split("||"), r"regex=False"),
        (lambda X: X["text"].str.split(r"\d", regex=True), r"str\.replace"),
        (lambda X: X["text"].str.split(), "separator"),
        (lambda X: X["text"].str.count("."), "Escape"),
        (lambda X: X["text"].str.count("\\"), "Escape"),
        (lambda X: X["text"].str.replace(r"(\w)", r"\1\1", regex=True), "extract"),
        (lambda X: X["text"].str[0], "slices"),
        (lambda X: X["text"].map({}), "empty table"),
        (lambda X: X["text"].astype(bool), "s == 'True'"),
        (lambda X: X.median_age, "df.median_age"),
        (lambda X: setattr(X, "columns", ["a", "b"]), r"df\.rename"),
        (lambda X: setattr(X, "text", X["text"].str.lower()), r"df\['text'\] = "),
    ],
)
def test_what_would_mean_something_else_is_refused_with_the_spelling(remote, line, spelling):
    with pytest.raises(errors.NotSupported, match=spelling):
        line(remote)


def test_a_column_that_reads_one_set_before_it_must_say_which_it_means(remote):
    with pytest.raises(errors.InvalidInput, match="made=lambda X"):
        remote.assign(age=1, made=remote["age"] + 1)
