"""The story of the README at a small scale, while each of the four services is killed once.

A random base model of a few thousand weights stands in for the bundled one: what it writes means nothing, but all
that happens around it is what happens in the demo: services, worker, ledger, journal, artifacts, and the secret.
"""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

import murmura
from deploy.local.demo import records
from deploy.local.demo.story import preprocess
from murmura import Client, trace
from murmura.api.common.v1 import privacy_pb2
from murmura.api.ledger.v1 import ledger_pb2, ledger_service_pb2
from murmura.api.trainer.v1 import trainer_pb2, trainer_service_pb2
from murmura.errors import BudgetExhausted, MurmuraError
from murmura.llm import LLM
from murmura.local import deployment, processes
from murmura.local.layout import SERVICES, Layout

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(420)]

EPSILON = 22.0
SECRETS = (b"Dupont", records.DIAGNOSIS.encode())
SMALL: dict[str, Any] = {"lora_rank": 2, "max_length": 48}
# So long that the job still runs when the last service is killed.
PRIVATE_EPOCHS = 40
# The dataset service first: the worker is about to read its rows.
KILLED = ("dataset", "trainer", "ledger", "inference")


@pytest.fixture
def layout(murmura_up: Callable[[str], Layout]) -> Layout:
    return murmura_up("tiny")


@dataclass
class Outages:
    """Kills each service once while a job runs, and brings it back.

    Attributes:
        layout: the deployment.
        known: the jobs that were there before.
        states: the state of the job when a service was killed.
        problem: what went wrong in the thread.
    """

    layout: Layout
    known: set[str]
    states: dict[str, str] = field(default_factory=dict)
    problem: BaseException | None = None

    def run(self) -> None:
        """Wait for the job, then kill and restart service after service."""
        try:
            self._run()
        except BaseException as problem:
            self.problem = problem

    def _run(self) -> None:
        client = Client(profile=self.layout.profile)
        name = self._running(client)
        for service in KILLED:
            request = trainer_service_pb2.GetTrainingJobRequest(name=name)
            job = client.stub("trainer").call("GetTrainingJob", request).training_job
            self.states[service] = trainer_pb2.JobState.Name(job.state)
            pid = processes.find(self.layout, service).pid
            assert pid is not None
            os.kill(pid, signal.SIGKILL)
            while processes.find(self.layout, service).pid is not None:
                time.sleep(0.02)
            deployment.up(self.layout)
        client.close()

    def _running(self, client: Client) -> str:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            for job in client.jobs():
                if job.name not in self.known and job.state == trainer_pb2.JOB_STATE_RUNNING:
                    return str(job.name)
            time.sleep(0.1)
        raise AssertionError("the job never ran")


def test_story_with_every_service_killed_once(layout: Layout, tmp_path: Path) -> None:
    source = tmp_path / "hospital" / "notes.jsonl"
    written = records.write(source, rows=60, training_rows=90)
    steward = Client(profile=layout.profile, role="steward")
    steward.register("notes", source, privacy_unit="patient", epsilon=25.0, delta=1e-3, unlimited_allowed=True)
    client = Client(profile=layout.profile)
    frame = client.dataset("notes").as_pandas().rename(columns={"context": "text"})
    frame["text"] = frame["text"].apply(trace(preprocess))
    assert client.dataset("notes").resource.row_count == len(written) == 90

    leaky = murmura.eval(LLM("tiny", client).fit(frame, epochs=1, **SMALL), target_epsilon="unlimited")
    outages = Outages(layout, {job.name for job in client.jobs()})
    thread = threading.Thread(target=outages.run)
    thread.start()
    wish = {"epochs": PRIVATE_EPOCHS, "batch_size": 2, **SMALL}
    try:
        private = murmura.eval(LLM("tiny", client).fit(frame, **wish), target_epsilon=EPSILON)
    finally:
        thread.join(120)
        # What went wrong there explains what went wrong here.
        print("outages:", outages.states, repr(outages.problem))
    assert not thread.is_alive()
    assert outages.problem is None, outages.problem
    # Otherwise this test has not tested what it is for.
    assert outages.states == dict.fromkeys(KILLED, "JOB_STATE_RUNNING")

    assert private.job is not None and leaky.job is not None
    assert private.job.state == trainer_pb2.JOB_STATE_SUCCEEDED
    assert private.job.completed_steps == private.job.plan.steps
    assert 0 < private.statement.epsilon <= EPSILON
    assert not private.statement.unlimited and leaky.statement.unlimited
    _check_books(client, private.job, leaky.job)

    for model in (leaky, private):
        texts = model.sample([records.PROMPT] * 4, max_new_tokens=8, seed=1)
        assert len(texts) == 4 and all(isinstance(text, str) for text in texts)
    assert private.sample(records.PROMPT, max_new_tokens=8, seed=1) == private.sample(
        records.PROMPT, max_new_tokens=8, seed=1
    )

    spent = client.account("notes")
    synthetic = pq.read_table(private.generate_dataset(9, to=tmp_path / "synthetic.parquet", max_new_tokens=8))
    assert synthetic.column_names == ["prompt", "text"] and synthetic.num_rows == 9
    promised = json.loads(synthetic.schema.metadata[b"murmura"])["statement"]
    assert promised["epsilon"] == private.statement.epsilon
    assert client.account("notes") == spent

    shared = steward.allow(private.job.adapter, users=["colleague@local"])
    assert list(shared.policy.users) == ["colleague@local"] and shared.owner == client.subject

    before, jobs = client.account("notes"), {job.name for job in client.jobs()}
    again = murmura.eval(LLM("tiny", client).fit(frame, **wish), target_epsilon=EPSILON)
    assert again.job is not None
    assert (again.job.name, again.job.adapter) == (private.job.name, private.job.adapter)
    with pytest.raises(BudgetExhausted) as refusal:
        murmura.eval(LLM("tiny", client).fit(frame, epochs=3, **SMALL), target_epsilon=EPSILON)
    assert f"{before.left_epsilon:.2f} is left" in str(refusal.value)
    assert client.account("notes") == before
    assert {job.name for job in client.jobs()} == jobs

    assert all(secret in source.read_bytes() for secret in SECRETS)
    _check_nothing_leaked(layout)
    deployment.down(layout)
    _check_nothing_leaked(layout)
    for service in SERVICES:
        log = layout.log(service).read_text()
        assert log.strip(), f"{service} logged nothing: this check would see nothing"
        assert "Traceback" not in log, f"{service}: {log[log.index('Traceback') - 500 :][:3000]}"


def _check_books(client: Client, private: trainer_pb2.TrainingJob, leaky: trainer_pb2.TrainingJob) -> None:
    """Exactly one private and one unlimited reservation, both committed; the account says the same."""
    account = client.account("notes")
    request = ledger_service_pb2.ListReservationsRequest(account=account.name)
    reservations = client.stub("ledger").call("ListReservations", request).reservations
    found = sorted((item.kind, item.state, item.job) for item in reservations)
    committed = ledger_pb2.RESERVATION_STATE_COMMITTED
    assert found == [
        (ledger_pb2.RESERVATION_KIND_PRIVATE, committed, private.name),
        (ledger_pb2.RESERVATION_KIND_UNLIMITED, committed, leaky.name),
    ]
    assert private.plan.statement.price.units > 0
    assert account.spent == private.plan.statement.price
    assert account.pending == privacy_pb2.Price()
    assert account.unlimited_jobs == 1
    verify = ledger_service_pb2.VerifyJournalRequest()
    try:
        verified = client.stub("ledger").call("VerifyJournal", verify)
    except MurmuraError as problem:
        pytest.fail(f"the journal does not verify: {problem}")
    # One account, and two reservations of two entries each.
    assert verified.entries >= 5


def _check_nothing_leaked(layout: Layout) -> None:
    """No file that the services wrote (databases, journals, logs, caches, artifacts) holds a patient's text."""
    files = [path for path in layout.directory.rglob("*") if path.is_file()]
    assert {path.suffix for path in files} >= {".log", ".json", ".safetensors"}
    leaks = {str(path.relative_to(layout.directory)) for path in files for secret in SECRETS if secret in _read(path)}
    assert not leaks


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:  # A journal beside a database comes and goes while its service lives.
        return b""
