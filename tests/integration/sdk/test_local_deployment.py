"""The embedded default through its front door: the real command line, which starts real services as processes.

One deployment serves the module; its tests run in the order in which they stand here, as a person's day would go.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from murmura import Client
from murmura.local.layout import default_base_models

SERVICES = {"ledger", "dataset", "trainer", "inference"}


@dataclass(frozen=True)
class Shell:
    """A person's terminal, in a directory with no Murmura of its own.

    Attributes:
        state: the state directory.
        base_model: where the tiny base model lies.
        directory: the working directory.
    """

    state: Path
    base_model: Path
    directory: Path

    def run(self, *arguments: str, exits: int = 0) -> subprocess.CompletedProcess[str]:
        """Run `murmura` and insist on its exit code."""
        environment = os.environ | {
            "MURMURA_PROFILE": str(self.state / "profile.json"),
            "OMP_NUM_THREADS": "1",
            "HF_HUB_OFFLINE": "1",
        }
        done = subprocess.run(
            [sys.executable, "-c", "from murmura.cli import main; main()", *arguments],
            env=environment,
            cwd=self.directory,
            capture_output=True,
            text=True,
            timeout=200,
        )
        assert done.returncode == exits, f"{arguments}\n{done.stdout}\n{done.stderr}"
        assert "Traceback" not in done.stderr
        return done

    def up(self) -> subprocess.CompletedProcess[str]:
        """Run `murmura up` with the tiny base model."""
        model = f"tiny={self.base_model}"
        options = ["--base-port", "0", "--engine", "transformers", "--base-model", model]
        return self.run("up", "--state", str(self.state), *options)

    def status(self, exits: int = 0) -> dict[str, dict[str, Any]]:
        """Run `murmura status --json`; returns each service's line."""
        found = json.loads(self.run("status", "--state", str(self.state), "--json", exits=exits).stdout)
        return {item["service"]: item for item in found}


@pytest.fixture(scope="module")
def shell(tmp_path_factory: pytest.TempPathFactory, tiny_base_model: Path) -> Iterator[Shell]:
    directory = tmp_path_factory.mktemp("local").resolve()
    made = Shell(directory / "state", tiny_base_model, directory)
    try:
        made.up()
        yield made
    finally:
        made.run("down", "--state", str(made.state))


def test_up_serves_and_again_starts_nothing_new(shell: Shell) -> None:
    before = shell.status()
    assert set(before) == SERVICES
    assert all(item["serving"] for item in before.values())
    again = shell.up()
    assert "starting" not in again.stdout
    assert shell.status() == before


def test_state_is_its_owners_only(shell: Shell) -> None:
    tokens, keys = shell.state / "tokens", shell.state / "keys"
    for folder in (shell.state, tokens, keys, *(shell.state / "services" / name for name in SERVICES)):
        assert folder.stat().st_mode & 0o777 == 0o700, folder
    files = [*tokens.iterdir(), *keys.iterdir(), shell.state / "profile.json"]
    assert {path.name for path in files} >= {"analyst", "service-trainer", "deployment.pem", "trainer.pem"}
    for path in files:
        assert path.stat().st_mode & 0o777 == 0o600, path


def test_questions_about_a_registered_dataset(shell: Shell) -> None:
    assert "No dataset yet" in shell.run("datasets").stdout
    source = shell.directory / "notes.jsonl"
    source.write_text("".join(json.dumps({"patient": f"p{i // 2}", "text": f"note {i}"}) + "\n" for i in range(40)))
    steward = Client(profile=shell.state / "profile.json", role="steward")
    try:
        steward.register("notes", source, privacy_unit="patient", epsilon=3.0, delta=1e-3)
    finally:
        steward.close()

    assert "datasets/notes: 40 rows of 20 privacy units, cap ε = 3" in shell.run("datasets").stdout
    account = json.loads(shell.run("budget", "show", "notes", "--json").stdout)["account"]
    assert account["epsilon"] == 3.0
    assert account.get("spentEpsilon", 0.0) == 0.0
    # What is left is the cap, rounded down to whole units of the account.
    assert 2.5 < account["leftEpsilon"] <= 3.0
    verified = shell.run("budget", "verify").stdout
    assert verified.startswith("✓ 1 entry, ")
    assert "accounts/" in shell.run("budget", "show").stdout
    assert json.loads(shell.run("jobs", "list", "--json").stdout) == []
    refused = shell.run("budget", "show", "no-such-dataset", exits=1)
    assert "no-such-dataset" in refused.stderr


def test_doctor_finds_what_is_wrong(shell: Shell) -> None:
    def examine(exits: int) -> list[dict[str, Any]]:
        answer = shell.run("doctor", "--state", str(shell.state), "--json", exits=exits)
        return [item for item in json.loads(answer.stdout) if item["needed"] and not item["ok"]]

    # A checkout need not hold the bundled base model's weights; all else is there, or this test would not run.
    expected = [] if default_base_models() else ["base model: none"]
    assert [item["what"] for item in examine(1 if expected else 0)] == expected
    shell.state.chmod(0o755)
    try:
        found = examine(1)
    finally:
        shell.state.chmod(0o700)
    assert [item["remedy"] for item in found if "open to others" in item["what"]] == [f"chmod 700 {shell.state}"]


def test_up_restarts_only_what_died(shell: Shell) -> None:
    before = shell.status()
    pid = before["dataset"]["pid"]
    os.kill(pid, signal.SIGKILL)
    wait_for_the_end_of(pid)
    died = shell.status(exits=1)
    assert {name for name, item in died.items() if not item["serving"]} == {"dataset"}
    assert died["dataset"]["pid"] is None

    said = shell.up().stdout
    assert [line for line in said.splitlines() if line.startswith("starting")] == [
        f"starting dataset on {before['dataset']['endpoint']}"
    ]
    after = shell.status()
    assert after["dataset"]["pid"] not in (None, pid)
    unchanged = SERVICES - {"dataset"}
    assert {name: after[name] for name in unchanged} == {name: before[name] for name in unchanged}
    assert after["dataset"]["endpoint"] == before["dataset"]["endpoint"]
    # What was registered before the kill is still there.
    assert "datasets/notes" in shell.run("datasets").stdout


def test_a_taken_port_is_named(shell: Shell) -> None:
    state = shell.directory / "other-state"
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        refused = shell.run("up", "--state", str(state), "--base-port", str(port), exits=1)
    assert f"Port {port}, which ledger would use, is taken by another program" in refused.stderr
    assert "--base-port" in refused.stderr
    assert not list(state.rglob("process.json"))


def test_down_stops_everything_once(shell: Shell) -> None:
    pids = [item["pid"] for item in shell.status().values()]
    said = shell.run("down", "--state", str(shell.state)).stdout
    assert {line.split()[1] for line in said.splitlines() if line.startswith("stopped ")} == SERVICES
    assert said.splitlines()[-1] == "Murmura is down."
    for pid in pids:
        wait_for_the_end_of(pid)
    assert {item["pid"] for item in shell.status(exits=1).values()} == {None}
    assert shell.run("down", "--state", str(shell.state)).stdout == "Murmura was not running.\n"


def wait_for_the_end_of(pid: int) -> None:
    """Wait until a process is gone, or waits to be reaped by a parent that is not ours."""
    deadline = time.monotonic() + 10
    while psutil.pid_exists(pid):
        try:
            if psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
                return
        except psutil.NoSuchProcess:
            return
        assert time.monotonic() < deadline, f"process {pid} lives on"
        time.sleep(0.05)
