"""A canary sits in the private rows through a whole story, bad requests included, and is in nothing that comes out.

What comes out is all that the services print, write and answer: logs, audit files, journals, databases, artifacts,
metrics, temporary files, every message and every error with its metadata, and what the SDK prints of them.
"""

from __future__ import annotations

import collections
import json
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

import murmura
from murmura import Client, trace
from murmura.api.dataset.v1 import dataset_service_pb2 as messages
from murmura.api.dataset.v1 import expressions_pb2
from murmura.connection import Connection
from murmura.errors import MurmuraError
from murmura.llm import LLM
from murmura.local import deployment
from murmura.local.layout import SERVICES, Layout
from tests.support import canary
from tests.support.canary import Canary
from tests.support.ports import free_port

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(420)]

SMALL: dict[str, Any] = {"lora_rank": 2, "max_length": 48}
POLICY = "epsilon: 25\ndelta: 1e-3\nunlimited: {allowed: true}\n"


class Recorder(grpc.UnaryUnaryClientInterceptor, grpc.UnaryStreamClientInterceptor):  # type: ignore[misc]
    """Keeps all that the services answer.

    Attributes:
        heard: the method of each answer or refusal, and its bytes.
    """

    def __init__(self) -> None:
        self.heard: list[tuple[str, bytes]] = []

    def intercept_unary_unary(self, continuation: Any, details: Any, request: Any) -> Any:
        call = continuation(details, request)
        self._keep(details.method, call)
        if call.exception() is None:
            self.heard.append((details.method, call.result().SerializeToString()))
        return call

    def intercept_unary_stream(self, continuation: Any, details: Any, request: Any) -> Any:
        return self._listening(details.method, continuation(details, request))

    def _listening(self, method: str, call: Any) -> Iterator[Any]:
        try:
            for answer in call:
                self.heard.append((method, answer.SerializeToString()))
                yield answer
        finally:
            if call.done():
                self._keep(method, call)

    def _keep(self, method: str, call: Any) -> None:
        for said in (call.initial_metadata(), call.trailing_metadata(), call.details()):
            self.heard.append((method, repr(said).encode()))


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    """Listen to every channel of the SDK."""
    made, plain = Recorder(), Connection.channel
    monkeypatch.setattr(Connection, "channel", lambda self, name: grpc.intercept_channel(plain(self, name), made))
    return made


@pytest.fixture
def metrics(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """Give every service a port for its metrics."""
    ports, plain = {service: free_port() for service in SERVICES}, Layout.environment

    def environment(self: Layout, service: str, *rest: Any) -> dict[str, str]:
        return plain(self, service, *rest) | {"MURMURA_METRICS_PORT": str(ports[service])}

    monkeypatch.setattr(Layout, "environment", environment)
    return ports


def rows(bird: Canary) -> list[dict[str, Any]]:
    """Twenty patients with two notes: the canary is who they are, what is written, and in a third it breaks a rule."""
    made = []
    for unit in range(20):
        text = f'{{"text": "{bird.text} was seen", "patient_id": {unit}}}'
        # No expression of the story gets a sentence, a number or an object out of this.
        broken = bird.text
        made += [
            {"patient": f"{bird.word}-{unit}", "context": text, "age": str(30 + unit)},
            {"patient": f"{bird.word}-{unit}", "context": broken if unit % 3 == 0 else text, "age": bird.word},
        ]
    return made


def preprocess(data: str) -> str:
    return data.split('text":')[1].split(', "patient_id')[0].strip()


def test_the_canary_is_in_nothing_that_comes_out(
    murmura_up: Callable[[str], Layout],
    recorder: Recorder,
    metrics: dict[str, int],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    bird, told = Canary(), []
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    layout = murmura_up("tiny")
    steward, client = Client(profile=layout.profile, role="steward"), Client(profile=layout.profile)

    told += _broken_registrations(steward, bird, tmp_path)
    source, policy = tmp_path / "notes.jsonl", tmp_path / "notes.policy.yaml"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows(bird)))
    policy.write_text(POLICY)
    dataset = steward.register("notes", source, privacy_unit="patient", policy=policy)
    told += _bad_requests(client, bird)

    frame = client.dataset("notes").as_pandas().rename(columns={"context": "text"})
    frame["text"] = frame["text"].apply(trace(preprocess))
    told += [repr(frame.head(20)), frame.head()._repr_html_(), repr(dataset), dataset._repr_html_()]
    private = murmura.eval(LLM("tiny", client).fit(frame, epochs=1, batch_size=4, **SMALL), target_epsilon=8)
    murmura.eval(LLM("tiny", client).fit(frame, epochs=1, **SMALL), target_epsilon="unlimited")
    # On every row this fails, so there is nothing to learn; that, too, is not told.
    nothing = client.dataset("notes").as_pandas()
    nothing["text"] = nothing["context"].apply(trace(lambda text: text.split("|")[7]))
    told += _refusal(
        lambda: murmura.eval(LLM("tiny", client).fit(nothing, epochs=1, batch_size=4, **SMALL), target_epsilon=2)
    )
    murmura.eval(frame.count(), target_epsilon=0.5)
    told += private.sample(["Zo", "canary"], max_new_tokens=8, seed=1)
    steward.steward.check("notes", "ana@local")

    told += [_scraped(port) for port in metrics.values()]
    printed = capfd.readouterr()
    told += [printed.out, printed.err]
    deployment.down(layout)

    assert bird.found_in(source.read_bytes()), "the canary is not in the rows: this test would see nothing"
    assert "Plan" in printed.out and len(recorder.heard) > 50
    _check_that_all_was_heard(layout, recorder)
    assert not bird.leaks(recorder.heard), "answers and refusals"
    assert not bird.leaks((text[:200], text.encode()) for text in told), "what the SDK shows, metrics"
    assert not bird.leaks(canary.files(layout.directory)), "files of the services"
    assert not bird.leaks(canary.files(temporary)), "temporary files"


# ---------------------------------------------------------------- what goes wrong on purpose


def _broken_registrations(steward: Client, bird: Canary, folder: Path) -> list[str]:
    """Register what cannot be read: the steward learns line and column, and no more than that."""
    good = json.dumps({"patient": "p", "text": "fine", "age": 3}) + "\n"
    sources = {
        "cut.jsonl": (f'{good}{good}{{"patient": "{bird.word}", "text": "{bird.word}', "3", ""),
        "kind.jsonl": (good + json.dumps({"patient": "p", "text": "x", "age": bird.text}) + "\n", "2", "age"),
        "list.jsonl": (f'{good}["{bird.word}"]\n', "2", ""),
        "unit.jsonl": (good + json.dumps({"patient": None, "text": bird.text, "age": 3}) + "\n", "2", "patient"),
        "wide.csv": (f"patient,text\np,fine\n{bird.word},{bird.word},{bird.word}\n", "3", ""),
        "no.parquet": (f"PAR1{bird.text}PAR1", "", ""),
    }
    told = []
    for name, (content, line, column) in sources.items():
        path = folder / name
        path.write_text(content)
        with pytest.raises(MurmuraError) as refusal:
            steward.register(f"broken-{len(told)}", path, privacy_unit="patient", epsilon=8.0, delta=1e-5)
        assert refusal.value.reason == "SOURCE_UNREADABLE", name
        assert line in refusal.value.metadata["line"] and column in str(refusal.value), name
        told.append(str(refusal.value) + repr(refusal.value.metadata))
    return told


def _bad_requests(client: Client, bird: Canary) -> list[str]:
    """Ask for what is not allowed, does not type-check or cannot be; returns the refusals."""
    text = client.dataset("notes").as_pandas()
    operation, call = expressions_pb2.Operation, expressions_pb2.Call
    column = expressions_pb2.Expression(column="context")
    frames = [
        [operation(drop=expressions_pb2.Drop(columns=["nobody"]))],
        [operation(assign=expressions_pb2.Assign(column="x", expression=expressions_pb2.Expression(call=call())))],
        [operation(filter=expressions_pb2.Filter(predicate=column))],
        [operation(slice=expressions_pb2.Slice(start=9, stop=1))],
        [operation()],
    ]
    told = []
    for operations in frames:
        request = messages.DescribeFrameRequest()
        request.frame.dataset = "datasets/notes"
        request.frame.operations.extend(operations)
        told += _refusal(lambda sent=request: client.stub("dataset").call("DescribeFrame", sent))
    read = messages.ReadRowsRequest(frame=text.proto, text_column="context")
    told += _refusal(lambda: list(client.stub("dataset").stream("ReadRows", read)))
    for statistic in (messages.STATISTIC_COUNT, messages.STATISTIC_MEAN):
        query = messages.QueryStatisticRequest(request_id=str(uuid.uuid4()), statistic=statistic, target_epsilon=0.5)
        query.frame.CopyFrom(text.proto)
        query.column, query.lower, query.upper = "age", 0, 100
        told += _refusal(lambda sent=query: client.stub("dataset").call("QueryStatistic", sent))
    for wish in (
        lambda: murmura.eval(LLM("absent", client).fit(text, "context"), target_epsilon=1),
        lambda: murmura.eval(LLM("tiny", client).fit(text, "context", **SMALL), target_epsilon=1000),
        lambda: client.register("mine", "/etc/hostname", privacy_unit="patient", epsilon=1.0, delta=1e-5),
        lambda: client.steward.check("notes", "ana@local"),
        lambda: client.dataset("absent"),
    ):
        told += _refusal(wish)
    assert sum(bool(line) for line in told) >= 10
    return told


def _refusal(call: Callable[[], Any]) -> list[str]:
    """Return what a refusal says; nothing where there is none."""
    try:
        call()
    except MurmuraError as refusal:
        assert refusal.reason != "INTERNAL", refusal
        return [f"{refusal} {refusal.metadata!r}"]
    return []


def _check_that_all_was_heard(layout: Layout, recorder: Recorder) -> None:
    """Where a service said nothing, there is nothing to find, and this test would prove nothing."""
    found = dict(canary.files(layout.directory))
    endings = collections.Counter(Path(name).suffix for name in found)
    assert endings[".log"] >= len(SERVICES) and endings[".safetensors"] >= 1
    for service in SERVICES:
        assert layout.log(service).read_text().strip()
    methods = {method.rpartition("/")[2] for method, _ in recorder.heard}
    assert methods >= {"RegisterDataset", "DescribeFrame", "WatchTrainingJob", "BatchGenerate", "CheckPolicy"}
    said = b"".join(data for _, data in recorder.heard)
    assert b"SOURCE_UNREADABLE" in said


def _scraped(port: int) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        text: str = answer.read().decode()
    assert "# TYPE" in text
    return text
