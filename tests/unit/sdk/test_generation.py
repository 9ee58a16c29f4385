"""Synthetic datasets: every record, in order, with what is promised; and what there is when it ends early."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from murmura import display, errors, generation
from murmura.api.common.v1 import errors_pb2
from murmura.api.inference.v1 import inference_service_pb2 as pb
from murmura.calls import Call
from murmura.sampler import Served


class Service:
    """Stands for the inference service: answers in reverse, each with the seed that it was to use."""

    def __init__(self) -> None:
        self.requests: list[pb.BatchGenerateRequest] = []
        self.epsilon: float | None = 2.5
        self.outages: dict[int, Exception] = {}

    def stream(self, method: str, request: pb.BatchGenerateRequest) -> Any:
        assert method == "BatchGenerate"
        self.requests.append(request)
        for index in reversed(range(len(request.prompts))):
            problem = self.outages.pop(len(self.requests), None) if index == 0 else None
            if problem is not None:
                raise problem
            answer = pb.BatchGenerateResponse(index=index)
            answer.completion.text = f" [{request.options.seed + index}]"
            if self.epsilon is not None:
                answer.completion.statement.epsilon = self.epsilon
                answer.completion.statement.unlimited = self.epsilon == 0
            yield answer


class Client:
    """As much of a client as sampling takes."""

    class connection:  # noqa: N801
        patience_s = 5.0

    def __init__(self) -> None:
        self.service = Service()

    def follow(self, call: Call) -> Any:
        return self.service.stream(call.method, call.request)


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> Client:
    monkeypatch.setattr(generation, "BATCH", 4)
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    return Client()


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    lines: list[str] = []
    monkeypatch.setattr(display.console, "print", lambda line, **_: lines.append(str(line)))
    return lines


def model(client: Client) -> Served:
    return Served("adapters/one", client)  # type: ignore[arg-type]


EXPECTED = [(prompt, f"{prompt} [{7 + index}]") for index, prompt in zip(range(10), ["A", "B", "C"] * 4, strict=False)]


def test_parquet_holds_every_record_in_order_and_its_promise(client: Client, tmp_path: Path, said: list[str]) -> None:
    path = model(client).generate_dataset(10, prompt=["A", "B", "C"], to=tmp_path / "notes.parquet", seed=7)
    table = pq.read_table(path)
    assert [(row["prompt"], row["text"]) for row in table.to_pylist()] == EXPECTED
    facts = json.loads(table.schema.metadata[b"murmura"])
    assert (facts["model"], facts["statement"]["epsilon"], facts["options"]["seed"]) == ("adapters/one", 2.5, "7")
    assert [len(request.prompts) for request in client.service.requests] == [4, 4, 2]
    assert [path.name for path in tmp_path.iterdir()] == ["notes.parquet"]
    assert said[-1].startswith("✓ 10 records in ") and "ε = 2.5" in said[-1]


def test_json_lines_have_their_promise_beside_them(client: Client, tmp_path: Path) -> None:
    model(client).generate_dataset(10, prompt=["A", "B", "C"], to=tmp_path / "notes.jsonl", seed=7)
    records = [json.loads(line) for line in (tmp_path / "notes.jsonl").read_text().splitlines()]
    assert [(record["prompt"], record["text"]) for record in records] == EXPECTED
    assert json.loads((tmp_path / "notes.jsonl.privacy.json").read_text())["statement"]["epsilon"] == 2.5
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize(("epsilon", "words"), [(0.0, "no privacy"), (None, "public base model")])
def test_what_is_not_private_is_said_to_be_so(
    client: Client, tmp_path: Path, said: list[str], epsilon: float | None, words: str
) -> None:
    client.service.epsilon = epsilon
    path = model(client).generate_dataset(2, to=tmp_path / "notes.parquet")
    assert words in said[-1]
    statement = json.loads(pq.read_schema(path).metadata[b"murmura"])["statement"]
    assert statement == (None if epsilon is None else {"unlimited": True})


def test_a_service_that_is_restarted_costs_a_batch_and_no_record(client: Client, tmp_path: Path) -> None:
    client.service.outages[2] = errors.Unreachable("away")
    path = model(client).generate_dataset(10, prompt=["A", "B", "C"], to=tmp_path / "notes.parquet", seed=7)
    assert [row["text"] for row in pq.read_table(path).to_pylist()] == [text for _, text in EXPECTED]
    assert len(client.service.requests) == 4


@pytest.mark.parametrize("problem", [KeyboardInterrupt(), errors.MurmuraError("no more")])
@pytest.mark.parametrize("name", ["notes.parquet", "notes.jsonl"])
def test_what_was_done_is_kept(
    client: Client, tmp_path: Path, said: list[str], problem: BaseException, name: str
) -> None:
    client.service.outages[3] = problem  # type: ignore[assignment]
    with pytest.raises(type(problem)):
        model(client).generate_dataset(10, prompt=["A", "B", "C"], to=tmp_path / name, seed=7)
    path = tmp_path / name
    kept = (
        [row["text"] for row in pq.read_table(path).to_pylist()]
        if path.suffix == ".parquet"
        else [json.loads(line)["text"] for line in path.read_text().splitlines()]
    )
    assert kept == [text for _, text in EXPECTED[:8]]
    assert said[-1].startswith("stopped early: 8 of 10 records")
    assert not list(tmp_path.glob(".*"))


def test_a_record_that_fails_ends_it_with_the_services_words(client: Client, tmp_path: Path) -> None:
    def refuse(method: str, request: pb.BatchGenerateRequest) -> Any:
        yield pb.BatchGenerateResponse(index=0, error=errors_pb2.ItemError(message="The prompt is too long."))

    client.service.stream = refuse  # type: ignore[method-assign]
    with pytest.raises(errors.MurmuraError, match="too long"):
        model(client).generate_dataset(1, to=tmp_path / "notes.jsonl")
    assert not list(tmp_path.iterdir())


def test_wishes_that_make_no_sense_are_refused_before_anything_is_made(client: Client, tmp_path: Path) -> None:
    (tmp_path / "old.jsonl").write_text("kept")
    for wish, words in (
        ({"n": 0, "to": tmp_path / "a.jsonl"}, "at least one record"),
        ({"n": 1, "to": tmp_path / "a.jsonl", "prompt": []}, "one prompt"),
        ({"n": 1, "to": tmp_path / "a.csv"}, "parquet"),
        ({"n": 1, "to": tmp_path / "old.jsonl"}, "overwrite=True"),
        ({"n": 1, "to": tmp_path / "nowhere" / "a.jsonl"}, "Make it first"),
    ):
        with pytest.raises(errors.InvalidInput, match=words):
            model(client).generate_dataset(**wish)  # type: ignore[arg-type]
    assert not client.service.requests
    assert (tmp_path / "old.jsonl").read_text() == "kept"
    model(client).generate_dataset(1, to=tmp_path / "old.jsonl", overwrite=True)
    assert "kept" not in (tmp_path / "old.jsonl").read_text()
