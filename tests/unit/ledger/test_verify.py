"""An exported journal folds to the budgets that the ledger had, or the check names the entry that is wrong."""

import dataclasses
import json

import pytest

from services.ledger import verify
from services.ledger.journal import Head, JournalBroken, link, replay
from services.ledger.state import Event

TERMS = {"unlimited_allowed": True, "unlimited_principals": [], "epsilon": 1.0}


def reserve(name, units, account="accounts/a"):
    data = {"name": name, "principal": "ann", "job": "j", "unlimited": False, "mechanism": {}, "price": [units, 1]}
    return Event("reserve", account, name, "", "ann", data)


@pytest.fixture
def entries():
    made, head = [], Head()
    for event in (
        Event("open", "accounts/a", "1", "", "sara", {"terms": TERMS, "capacity": [100, 10]}),
        Event("open", "accounts/b", "2", "", "sara", {"terms": TERMS, "capacity": [5000, 10]}),
        reserve("r/1", 20),
        reserve("r/2", 7),
        Event("commit", "accounts/a", "3", "", "ann", {"name": "r/1", "committed": [15, 1]}),
    ):
        made.append(link(head, event, 0.5))
        head = Head.of(made[-1])
    return made


@pytest.fixture
def file(tmp_path, entries):
    path = tmp_path / "journal.jsonl"
    path.write_text("".join(json.dumps(dataclasses.asdict(entry)) + "\n" for entry in entries))
    return path


def test_it_folds_what_the_ledger_folds(file, entries):
    with file.open("rb") as lines:
        assert verify.fold_lines(lines) == replay(entries)


def test_it_prints_the_receipt_and_each_account_in_units(file, entries, capsys):
    assert verify.main([str(file)]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[1] == f"5:{entries[-1].hash}"
    assert [line.split() for line in said[2:]] == [
        ["account", "cap", "spent", "pending", "left"],
        ["accounts/a", "100", "15", "7", "78"],
        ["accounts/b", "5000", "0", "0", "5000"],
    ]


def test_a_standing_rollback_is_said(file, entries, capsys):
    facts = {"sequence": 40, "head_hash": "f" * 64, "epoch": 0, "ledger_sequence": 5, "ledger_time": 0.5}
    more = link(Head.of(entries[-1]), Event("rolled_back", "", "9", "", "trainer", facts), 1.0)
    file.write_text(file.read_text() + json.dumps(dataclasses.asdict(more)) + "\n")
    assert verify.main([str(file)]) == 0
    assert "seen at entry 40" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "sequence"),
    [
        (lambda lines: lines[2].update(payload=lines[2]["payload"].replace("20", "10")), 3),
        (lambda lines: lines.pop(1), 2),
        (lambda lines: lines[0].pop("hash"), 1),
        (lambda lines: lines.append(7), 6),
        (lambda lines: lines.append([]), 6),
    ],
)
def test_what_was_tampered_with_is_named(file, capsys, change, sequence):
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    change(lines)
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert verify.main([str(file)]) == 1
    said = capsys.readouterr()
    assert f"journal entry {sequence} " in said.err
    assert not said.out


def test_a_chain_of_sound_hashes_that_the_ledger_cannot_have_written_is_refused(entries):
    made_up = link(Head.of(entries[-1]), Event("commit", "accounts/a", "9", "", "x", {"name": "r/9"}), 1.0)
    lines = [json.dumps(dataclasses.asdict(entry)).encode() for entry in [*entries, made_up]]
    with pytest.raises(JournalBroken) as caught:
        verify.fold_lines(lines)
    assert caught.value.sequence == 6


def test_wrong_use_is_a_sentence(tmp_path, capsys):
    (tmp_path / "empty").touch()
    for arguments, words in (
        ([], "usage:"),
        (["--help"], "usage:"),
        ([str(tmp_path / "absent")], "No such file"),
        ([str(tmp_path / "empty")], "holds no entry"),
    ):
        assert verify.main(arguments) == 2
        assert words in capsys.readouterr().err
