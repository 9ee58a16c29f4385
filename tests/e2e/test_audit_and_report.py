"""An analyst plants canaries, reads the audit, and hands a report to whoever answers for the data."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import murmura
from murmura import Canaries, Client
from murmura.llm import LLM
from murmura.local.layout import Layout

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(300)]


def test_an_audit_and_a_report(murmura_up: Callable[[str], Layout], tmp_path: Path) -> None:
    layout = murmura_up("tiny")
    source = tmp_path / "notes.jsonl"
    rows = [{"patient": f"p{number}", "text": f"{number} suffers from quicksilver"} for number in range(40)]
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    Client(profile=layout.profile, role="steward").register(
        "notes", source, privacy_unit="patient", epsilon=10.0, delta=1e-3
    )
    client = Client(profile=layout.profile)
    wish = LLM("tiny", client).fit(client.dataset("notes").as_pandas(), epochs=3, lora_rank=2, max_length=48)
    canaries = Canaries("{name} suffers from |{word}", count=40)
    model = murmura.eval(wish, target_epsilon=5.0, canaries=canaries)
    adapter = model.served_name()
    assert model.audit.promised == pytest.approx(5.0, rel=0.01)
    assert model.audit.kept
    # Asked again it is the same job, with its audit; nothing more is spent.
    spent = client.account("notes").spent
    assert murmura.eval(wish, target_epsilon=5.0, canaries=canaries).served_name() == adapter
    assert client.account("notes").spent == spent

    text = model.report().save(tmp_path / "report.html").read_text()
    assert adapter in text and "That is within what was promised." in text and "commit" in text
    assert "quicksilver" not in text

    def command(*words: str) -> subprocess.CompletedProcess[str]:
        environment = os.environ | {"MURMURA_PROFILE": str(layout.profile)}
        program = [sys.executable, "-c", "from murmura.cli.app import main; main()", *words]
        return subprocess.run(program, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=60)

    told = command("audit", adapter)
    assert (told.returncode, told.stdout.splitlines()[0][:12]) == (0, "attacker's ε"), told.stderr
    found = json.loads(command("audit", adapter, "--json").stdout)
    assert (found["canaries"], found["kept"]) == (40, True)
    written = command("report", adapter, "--to", "report.json")
    assert written.returncode == 0, written.stderr
    report = json.loads((tmp_path / "report.json").read_text())
    assert {entry["kind"] for entry in report["entries"]} >= {"reserve", "commit"}
    assert report["audit"]["planted"] == model.audit.message.planted

    # Without a line of Python: a plan, a job that is not agreed to, and one that is.
    wish = ("notes", "--epsilon", "1", "--base", "tiny", "--rows", "0:30")
    small = ("--set", "epochs=1", "--set", "lora_rank=2", "--set", "max_length=48")
    plan = json.loads(command("plan", *wish, *small, "--json").stdout)
    assert (plan["unitCount"], plan["affordable"]) == ("30", True)
    assert "Plan (nothing is spent yet)" in command("plan", *wish, *small).stdout
    too_much = command("plan", "notes", "--epsilon", "9", "--base", "tiny", *small)
    assert too_much.returncode == 1 and "nothing was spent" in too_much.stderr
    for wrong, said in (
        (("--rows", "5"), "give two positions"),
        (("--set", "epochs"), "give NAME=VALUE"),
        (("--set", "epochs=many"), "is no number"),
        (("--set", "speed=3"), "No setting speed"),
        (("--set", "batch_size=2.5"), "batch_size is a whole number, not 2.5"),
        (("--canaries", "{ward}"), "there are {name}, {word}, {number}"),
    ):
        refused = command("plan", *wish, *wrong)
        assert refused.returncode == 1 and said in refused.stderr, refused.stderr
    spent = client.account("notes").spent
    assert command("train", *wish, *small).returncode == 1, "nobody has agreed"
    assert client.account("notes").spent == spent
    trained = command("train", *wish, *small, "--yes")
    assert trained.returncode == 0, trained.stderr
    assert client.account("notes").spent != spent
    refused = command("audit", client.jobs()[0].adapter)
    assert refused.returncode == 1 and "trained without canaries" in refused.stderr
