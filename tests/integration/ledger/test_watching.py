"""Those who watch a budget: the command line, journal files and metrics, against a real ledger process."""

import json
import os
import sqlite3
import subprocess
import sys
import urllib.request
import uuid
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest

from murmura import Client, journal
from murmura.api.common.v1.privacy_pb2 import Receipt
from murmura.api.ledger.v1 import ledger_pb2
from murmura.api.ledger.v1 import ledger_service_pb2 as pb
from murmura.connection import SERVICES
from murmura.local.identity import PEOPLE, Identity
from tests.support.ledger_process import Ledger
from tests.support.ports import free_port

NOTES, SCANS = "accounts/notes", "accounts/scans"
MANY = 1005


class Watched:
    """A ledger process, a few things that happened, and a terminal of someone who looks at them."""

    def __init__(self, directory):
        self.directory = directory
        self.metrics_port = free_port()
        self.process = Ledger(directory / "ledger", METRICS_PORT=str(self.metrics_port))
        self.process.launch()
        # The process needs a second to listen; gRPC's patience would make it several.
        options = [("grpc.initial_reconnect_backoff_ms", 100), ("grpc.max_reconnect_backoff_ms", 200)]
        self.channel = grpc.insecure_channel(self.process.endpoint, options)
        self.stub = self.process.Stub(self.channel)
        identity = Identity(directory / "ledger")
        tokens = {role: str(identity.mint(f"{role}@local", role)) for role in PEOPLE}
        self.profile = directory / "profile.json"
        self.profile.write_text(
            json.dumps({"endpoints": dict.fromkeys(SERVICES, self.process.endpoint), "tokens": tokens})
        )

    def call(self, method, request, role="service"):
        request.request_id = str(uuid.uuid4())
        return method(request, metadata=self.process.who(role), timeout=60, wait_for_ready=True)

    def happen(self):
        request = pb.OpenAccountRequest(lineage="notes", epsilon=8, delta=1e-5, unlimited_allowed=True)
        self.call(self.stub.OpenAccount, request)
        request = pb.OpenAccountRequest(lineage="scans", epsilon=4, delta=1e-5)
        request.unit.noise_multiplier, request.unit.sampling_probability = 2.0, 0.02
        self.call(self.stub.OpenAccount, request)
        self.call(self.stub.CreateGrant, pb.CreateGrantRequest(account=NOTES, principal="ann", epsilon=4), "steward")
        first, second, third = (self.reserve(units) for units in (120_000, 50_000, 30_000))
        self.call(self.stub.CommitReservation, pb.CommitReservationRequest(name=first, attested_steps=100_000))
        self.call(self.stub.ReleaseReservation, pb.ReleaseReservationRequest(name=second))
        return third

    def reserve(self, units, account=NOTES):
        request = pb.CreateReservationRequest(account=account, principal="ann", job=f"trainingJobs/{uuid.uuid4()}")
        request.kind = ledger_pb2.RESERVATION_KIND_PRIVATE if units else ledger_pb2.RESERVATION_KIND_UNLIMITED
        if units:
            request.mechanism.noise_multiplier, request.mechanism.sampling_probability = 1000, 1
            request.mechanism.steps = units
        return self.call(self.stub.CreateReservation, request).reservation.name

    def run(self, *arguments, exits=0):
        """Run `murmura budget` and insist on its exit code."""
        done = subprocess.run(
            [sys.executable, "-c", "from murmura.cli import main; main()", "budget", *arguments],
            env=os.environ | {"MURMURA_PROFILE": str(self.profile), "COLUMNS": "80"},
            cwd=self.directory,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == exits, f"{arguments}\n{done.stdout}\n{done.stderr}"
        assert "Traceback" not in done.stderr
        return done

    def head(self):
        answer = self.stub.VerifyJournal(pb.VerifyJournalRequest(), metadata=self.process.who("steward"), timeout=60)
        return journal.Receipt(answer.receipt.sequence, answer.receipt.head_hash, answer.receipt.epoch)

    def gauges(self):
        with urllib.request.urlopen(f"http://127.0.0.1:{self.metrics_port}/metrics", timeout=10) as answer:
            lines = answer.read().decode().splitlines()
        return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines if line[0] != "#")}

    def close(self):
        self.channel.close()
        self.process.kill()


@pytest.fixture(scope="module")
def watched(tmp_path_factory):
    made = Watched(tmp_path_factory.mktemp("watched"))
    try:
        made.pending = made.happen()
        yield made
    finally:
        made.close()


@pytest.fixture
def own(tmp_path):
    made = Watched(tmp_path)
    try:
        made.happen()
        yield made
    finally:
        made.close()


def test_one_budget_with_its_shares_and_jobs(watched):
    said = watched.run("show", NOTES).stdout
    assert max(map(len, said.splitlines())) <= 80
    words = " ".join(said.split())
    account = json.loads(watched.run("show", NOTES, "--json").stdout)["account"]
    assert f"ε = {account['spentEpsilon']:.4g} of 8 at δ = 1e-05" in words
    assert f"ε = {account['leftEpsilon']:.4g} for one more job" in words
    assert "spent 100 000 units (ε 1.21), pending 30 000 units (ε 0.625)" in words
    assert "█▒░" in words
    assert "0 jobs recorded, allowed" in words
    assert "ann ε 4 (31 % of the cap)" in words
    jobs = [line.split("  ")[1] for line in said.splitlines() if line.endswith("  ann")]
    assert sorted(jobs) == ["charged", "given back", "pending"]
    missing = watched.run("show", "accounts/absent", exits=1)
    assert "accounts/absent does not exist" in missing.stderr


def test_one_budget_as_json(watched):
    found = json.loads(watched.run("show", NOTES, "--json").stdout)
    assert set(found) == {"account", "grants", "reservations"}
    assert found["account"]["pending"]["units"] == "30000"
    assert [grant["principal"] for grant in found["grants"]] == ["ann"]
    assert {item["state"].rsplit("_", 1)[1] for item in found["reservations"]} == {"PENDING", "COMMITTED", "RELEASED"}


def test_all_budgets_with_a_line_for_each(watched):
    lines = watched.run("show", "--role", "steward").stdout.splitlines()
    assert [line.split()[0] for line in lines] == [NOTES, SCANS]
    assert "of 8 used" in lines[0] and "ε 0 of 4 used" in lines[1]
    found = json.loads(watched.run("show", "--json", "--role", "operator").stdout)
    assert [account["name"] for account in found["accounts"]] == [NOTES, SCANS]


def test_the_sdk_looks_at_the_same_budget(watched):
    client = Client(profile=watched.profile)
    try:
        budget = client.budget(NOTES)
        assert budget.units[1:3] == (100_000, 30_000)
        assert budget.message == client.account(NOTES)
    finally:
        client.close()


def test_a_history_in_words(watched):
    lines = watched.run("history", NOTES).stdout.splitlines()
    kinds = [line.split()[3] for line in lines]
    assert kinds == ["open", "grant", "reserve", "reserve", "reserve", "commit", "release"]
    assert "reserve  120 000 units (ε 1.34) for trainingJobs/" in lines[2]
    assert "commit  100 000 units (ε 1.21) for trainingJobs/" in lines[5]
    assert lines[5].endswith("by ann; 20 000 units (ε 0.501) given back")
    entries = json.loads(watched.run("history", NOTES, "--json").stdout)
    assert [entry["hash"][:8] for entry in entries] == [line.split()[2] for line in lines]


def test_a_receipt_is_printed_and_found_again(watched, tmp_path):
    receipt = watched.run("verify").stdout.splitlines()[-1]
    assert receipt == str(watched.head())
    assert "lies on the chain" in watched.run("verify", "--witness", receipt).stdout
    assert json.loads(watched.run("verify", "--json").stdout)["receipt"]["headHash"] == receipt.split(":")[1]
    early = json.loads(watched.run("history", NOTES, "--json").stdout)[1]
    assert "lies on the chain" in watched.run("verify", "--witness", f"{early['sequence']}:{early['hash']}").stdout
    for other in (f"1:{early['hash']}", f"9999:{early['hash']}"):
        refused = watched.run("verify", "--witness", other, exits=1)
        assert "does not lie on the chain" in refused.stderr
    assert "SEQUENCE:HASH" in watched.run("verify", "--witness", "12", exits=1).stderr
    # Whoever may only look stops nothing with a receipt that is wrong.
    assert watched.gauges()["murmura_ledger_stopped"] == 0


def test_an_exported_journal_is_checked_without_a_ledger(watched, tmp_path):
    file = tmp_path / "journal.jsonl"
    receipt = str(watched.head())
    said = watched.run("export", str(file)).stdout
    assert said.splitlines()[-1] == receipt
    assert "✓ 8 entries" in said
    assert watched.run("export", "-", "--role", "operator").stdout == file.read_text()
    assert "not overwritten" in watched.run("export", str(file), exits=1).stderr
    refused = watched.run("export", str(tmp_path / "other"), "--role", "analyst", exits=1)
    assert "only stewards read all accounts' entries" in refused.stderr
    assert [path.name for path in tmp_path.iterdir()] == [file.name]

    profile, watched.profile = watched.profile, tmp_path / "no profile"
    try:
        assert watched.run("verify", "--file", str(file)).stdout.splitlines()[-1] == receipt
        assert "lies on the chain" in watched.run("verify", "--file", str(file), "--witness", receipt).stdout
        assert json.loads(watched.run("verify", "--file", str(file), "--json").stdout)["entries"] == "8"
        text = file.read_text()
        file.write_text(text.replace("120000", "120001", 1))
        assert "broken at entry 4" in watched.run("verify", "--file", str(file), exits=1).stderr
        file.write_text(text[: text.rindex('{"sequence": 8')])
        assert "✓ 7 entries" in watched.run("verify", "--file", str(file)).stdout
        cut = watched.run("verify", "--file", str(file), "--witness", receipt, exits=1)
        assert "later entries are missing" in cut.stderr
    finally:
        watched.profile = profile


def test_an_exported_journal_folds_to_the_budgets(watched, tmp_path):
    file = tmp_path / "journal.jsonl"
    watched.run("export", str(file))
    done = subprocess.run([sys.executable, "-m", "services.ledger.verify", file], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rows = {line.split()[0]: line.split()[1:] for line in done.stdout.splitlines()[2:]}
    for name in (NOTES, SCANS):
        request = pb.GetAccountRequest(name=name)
        account = watched.stub.GetAccount(request, metadata=watched.process.who("analyst"), timeout=60).account
        amounts = (account.capacity, account.spent, account.pending)
        assert rows[name][:3] == [str(amount.units) for amount in amounts]


def test_a_broken_chain_is_found_and_not_exported(own, tmp_path):
    assert "✓ 8 entries" in own.run("verify").stdout
    file = sqlite3.connect(own.process.directory / "state" / "journal.sqlite3")
    file.execute("DROP TRIGGER no_update")
    file.execute("UPDATE journal SET payload = replace(payload, '120000', '120') WHERE sequence = 4")
    file.commit()
    file.close()
    refused = own.run("verify", exits=1)
    assert "entry 4 does not follow" in refused.stderr
    assert "✓" not in refused.stdout
    exported = own.run("export", str(tmp_path / "export"), exits=1)
    assert "broken at entry 4" in exported.stderr
    assert not (tmp_path / "export").exists()


def test_a_ledger_that_was_restored_from_an_older_backup_does_not_pass(own):
    request = pb.GetReservationRequest(name=own.reserve(1000), witness=Receipt(sequence=99, head_hash="a" * 64))
    with pytest.raises(grpc.RpcError):
        own.stub.GetReservation(request, metadata=own.process.who("service"), timeout=60)
    refused = own.run("verify", exits=1)
    assert "its end is missing: the ledger was seen at entry 99" in refused.stderr
    assert own.gauges()["murmura_ledger_stopped"] == 1
    assert "the ledger was seen at entry 99" in own.run("history", NOTES, "--role", "steward").stdout
    assert "the ledger was restored from an older backup" in own.run("history", NOTES).stdout


def test_a_steward_gives_lost_entries_up(own):
    said = own.run("resolve", "nothing is wrong here", exits=1)
    assert "nothing to resolve" in said.stderr
    request = pb.GetReservationRequest(name=own.reserve(1000), witness=Receipt(sequence=99, head_hash="a" * 64))
    with pytest.raises(grpc.RpcError):
        own.stub.GetReservation(request, metadata=own.process.who("service"), timeout=60)
    reason = "the disk burned; two jobs are known to be lost"
    for wrong in ("notes", "notes=3", "notes=3/0", "notes=0/2", "notes=-3/1"):
        assert "is not ACCOUNT=UNITS/JOBS" in own.run("resolve", reason, "--charge", wrong, exits=2).stderr
    asked = own.run("resolve", reason, "--charge", "notes=2000/2", exits=1)
    words = " ".join(asked.stdout.split())
    assert "The ledger was seen at entry 99" in words
    assert "accounts/notes 2 000 units" in words
    assert "accounts/scans" in words and "nothing is left" in words
    assert own.run("verify", exits=1), "showing a plan decides nothing"
    assert "may not call ResolveWitness" in own.run("resolve", reason, "--yes", "--role", "analyst", exits=1).stderr
    before = json.loads(own.run("show", NOTES, "--json").stdout)["account"]
    own.run("resolve", reason, "--charge", "notes=2000/2", "--yes")
    after = json.loads(own.run("show", NOTES, "--json").stdout)["account"]
    assert int(after["spent"]["units"]) - int(before["spent"]["units"]) == 2000
    pools = [int(account["spent"]["truncationDeltaE18"]) for account in (before, after)]
    assert pools[1] - pools[0] == 2 * int(after["capacity"]["truncationDeltaE18"]) // 10
    scans = json.loads(own.run("show", SCANS, "--json").stdout)["account"]
    assert scans["spent"] == scans["capacity"]
    assert reason in own.run("history", NOTES, "--role", "steward").stdout
    own.run("verify")
    own.reserve(10)


def test_a_long_history_is_shown_in_full(own, tmp_path):
    with ThreadPoolExecutor(32) as threads:
        list(threads.map(own.reserve, [0] * MANY))
    lines = own.run("history", NOTES).stdout.splitlines()
    assert len(lines) == MANY + 7
    sequences = [int(line.split()[0]) for line in lines]
    assert sequences == sorted(set(sequences))
    assert len(json.loads(own.run("show", NOTES, "--json").stdout)["reservations"]) == MANY + 3
    assert own.run("export", str(tmp_path / "export")).stdout.splitlines()[-1] == str(own.head())


def test_metrics_follow_the_budgets(own):
    before = own.gauges()
    assert before[f'murmura_ledger_spent_units{{account="{NOTES}"}}'] == 100_000
    assert before[f'murmura_ledger_pending_units{{account="{NOTES}"}}'] == 30_000
    assert before[f'murmura_ledger_cap_epsilon{{account="{SCANS}"}}'] == 4
    assert before["murmura_ledger_entries"] == own.head().sequence == 8
    request = pb.GetAccountRequest(name=NOTES)
    account = own.stub.GetAccount(request, metadata=own.process.who("analyst"), timeout=60).account
    assert before[f'murmura_ledger_cap_units{{account="{NOTES}"}}'] == account.capacity.units
    assert before[f'murmura_ledger_used_epsilon{{account="{NOTES}"}}'] == account.spent_epsilon
    # What would take a composition is not computed in a scrape.
    assert f'murmura_ledger_used_epsilon{{account="{SCANS}"}}' not in before
    own.call(own.stub.CommitReservation, pb.CommitReservationRequest(name=own.reserve(5_000)))
    own.call(own.stub.OpenAccount, pb.OpenAccountRequest(lineage="late", epsilon=1, delta=1e-5))
    after = own.gauges()
    assert after[f'murmura_ledger_spent_units{{account="{NOTES}"}}'] == 105_000
    assert after['murmura_ledger_spent_units{account="accounts/late"}'] == 0
    assert after["murmura_ledger_entries"] == 11
