"""`murmura policy` against the two services: a steward's day with one file."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from typer.testing import CliRunner

from murmura import Client, display, policy
from murmura.api.dataset.v1 import dataset_pb2
from murmura.cli.app import app
from murmura.errors import Conflict, InvalidInput, MurmuraError, NotAllowed, NotFound
from services.common.tokens import load_signing_key, mint

Run = Callable[..., Result]


@pytest.fixture
def dataset(pair: Any) -> Any:
    salt = uuid.uuid4().hex[:8]
    request = pair.request("".join(json.dumps({"patient": f"p{n}", "text": f"{salt} {n}"}) + "\n" for n in range(4)))
    request.policy.analysts.append("ana@local")
    return pair.register(request)


@pytest.fixture
def run(pair: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Return what runs the command as the steward of this machine."""
    key = load_signing_key(pair.directory / "keys" / "deployment.pem")
    tokens = {}
    for name, role in (("analyst", "analyst"), ("steward", "steward"), ("second", "steward")):
        tokens[name] = str(tmp_path / f"{name}.token")
        Path(tokens[name]).write_text(mint(key, "deployment", f"{name}@local", [role], 600))
    endpoints = {name: (pair.state(name) / "listening").read_text().strip() for name in ("dataset", "ledger")}
    (tmp_path / "profile.json").write_text(json.dumps({"endpoints": endpoints, "tokens": tokens}))
    monkeypatch.setenv("MURMURA_PROFILE", str(tmp_path / "profile.json"))
    monkeypatch.setattr(display.console, "width", 200)

    def invoke(*arguments: str, refused: type[Exception] | None = None, **options: Any) -> Result:
        result = CliRunner().invoke(app, ["policy", *arguments], **options)
        if refused is None:
            assert result.exit_code == 0, (result.output, result.exception)
        else:
            assert isinstance(result.exception, refused), (result.output, result.exception)
        return result

    return invoke


def test_show_edit_diff_apply_history(run: Run, dataset: Any, tmp_path: Path) -> None:
    file = tmp_path / "notes.policy.yaml"
    file.write_text(run("show", dataset.name).stdout)
    assert policy.read(file).policy == dataset.policy
    assert "nothing changes" in run("apply", str(file)).stdout

    file.write_text(file.read_text().replace("[ana@local]", "[ana@local, bob@local]"))
    told = run("diff", str(file)).stdout
    assert "analysts" in told and "+ bob@local" in told and "- " not in told
    assert run("apply", str(file), input="n\n", refused=SystemExit).exit_code == 1
    assert json.loads(run("show", dataset.name, "--json").stdout)["policyVersion"] == 1
    assert "has version 2" in run("apply", str(file), input="y\n").stdout

    listed = run("history", dataset.name).stdout
    assert listed.index("version 2") < listed.index("+ bob@local") < listed.index("version 1")
    versions = json.loads(run("history", dataset.name, "--json").stdout)
    assert [(item["version"], item["author"]) for item in versions] == [("2", "steward@local"), ("1", "steward@local")]


def test_a_file_of_an_older_version_changes_nothing(run: Run, dataset: Any, tmp_path: Path) -> None:
    mine, theirs = tmp_path / "mine.yaml", tmp_path / "theirs.yaml"
    shown = run("show", dataset.name).stdout
    mine.write_text(shown.replace("[ana@local]", "[ana@local, bob@local]"))
    theirs.write_text(shown.replace("[ana@local]", "[]"))
    run("apply", str(theirs), "--yes")
    refusal = run("apply", str(mine), "--yes", refused=Conflict)
    assert "made from version 1, and version 2 stands" in str(refusal.exception)
    assert json.loads(run("show", dataset.name, "--json").stdout)["policyVersion"] == 2


def test_what_the_ledger_keeps_is_shown_and_refused_with_the_way(run: Run, dataset: Any, tmp_path: Path) -> None:
    file = tmp_path / "wider.yaml"
    file.write_text(run("show", dataset.name).stdout.replace("epsilon: 3", "epsilon: 9"))
    for command in ("diff", "apply"):
        refusal = run(command, str(file), refused=InvalidInput)
        assert "epsilon  (kept by the ledger)" in refusal.stdout and "+ 9" in refusal.stdout
        assert "propose_cap" in str(refusal.exception) and "approve_cap" in str(refusal.exception)


def test_a_broken_file_is_told_by_line(run: Run, dataset: Any, tmp_path: Path) -> None:
    file = tmp_path / "broken.yaml"
    file.write_text(f"dataset: {dataset.name}\nepsilon: 3\ndelta: 1e-5\nanalists: []\n")
    refusal = run("apply", str(file), "--yes", refused=InvalidInput)
    assert f"{file}:4: analists is no field; did you mean analysts?" in str(refusal.exception)


def test_a_check_has_a_line_for_each_right(run: Run, dataset: Any) -> None:
    lines = run("check", dataset.name, "--as", "eve@local").stdout.splitlines()
    assert len(lines) == 6
    assert [line.split()[1] for line in lines[1:]] == ["no", "no", "no", "no", "yes"]
    assert "Add them there" in lines[1]
    found = json.loads(run("check", dataset.name, "--as", "ana@local", "--json").stdout)
    assert [(item["right"], item["allowed"]) for item in found] == [
        ("RIGHT_SEE", True),
        ("RIGHT_TRAIN_PRIVATE", True),
        ("RIGHT_TRAIN_UNLIMITED", True),
        ("RIGHT_STATISTICS", True),
        ("RIGHT_USE_ADAPTERS", True),
    ]
    run("check", dataset.name, "--as", "ana@local", "--role", "analyst", refused=NotAllowed)


def test_the_schema_is_printed(run: Run) -> None:
    assert json.loads(run("schema").stdout)["title"] == "A dataset's policy"


def test_two_stewards_change_a_cap_and_share_a_budget(run: Run, dataset: Any) -> None:
    first, second = Client(role="steward"), Client(role="second")
    proposal = first.steward.propose_cap(dataset.name, 5.0, "the second study was approved")
    with pytest.raises(MurmuraError) as refusal:
        first.steward.approve_cap(proposal.name)
    assert refusal.value.reason == "SECOND_PRINCIPAL_NEEDED"
    assert second.steward.approve_cap(proposal.name).epsilon == pytest.approx(5.0)
    assert second.steward.grant(dataset.name, "bob@local", 1.0).principal == "bob@local"
    found = {item.right: item for item in first.steward.check(dataset.name, "ana@local")}
    assert not found[dataset_pb2.RIGHT_TRAIN_PRIVATE].allowed
    assert "have no share" in found[dataset_pb2.RIGHT_TRAIN_PRIVATE].reason
    planned = first.calibrate(dataset.name, 1.0, sampling_probability=0.1, steps=10)
    assert planned.affordable and planned.statement.epsilon <= 1.0


def test_erasing_takes_the_name_twice(run: Run, dataset: Any) -> None:
    steward = Client(role="steward")
    with pytest.raises(InvalidInput, match="twice"):
        steward.steward.delete(dataset.name, confirm="")
    steward.steward.delete(dataset.name, confirm=dataset.name)
    with pytest.raises(NotFound):
        steward.dataset(dataset.name)
