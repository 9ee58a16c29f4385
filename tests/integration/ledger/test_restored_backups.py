"""A ledger that was restored from a backup does not hand out what it has forgotten."""

import shutil
import sqlite3
import uuid

import grpc
import pytest

from murmura.api.common.v1.privacy_pb2 import Price, Receipt
from murmura.api.ledger.v1 import ledger_pb2
from murmura.api.ledger.v1 import ledger_service_pb2 as pb
from murmura.errors import MurmuraError, from_rpc

ACCOUNT = "accounts/notes"


class Books:
    """A ledger process whose journal can be put back to an earlier moment."""

    def __init__(self, process):
        self.process = process
        self.channel = grpc.insecure_channel(process.endpoint)
        self.stub = process.Stub(self.channel)
        self.newest = Receipt()
        process.launch()
        self.open("notes")

    def call(self, method, request, role="service"):
        """Call once the process serves; raises what the ledger says."""
        try:
            answer = method(request, metadata=self.process.who(role), timeout=20, wait_for_ready=True)
        except grpc.RpcError as error:
            raise from_rpc(error, "ledger", self.process.endpoint) from None
        self.newest = answer.receipt
        return answer

    def open(self, lineage, witness=None):
        request = pb.OpenAccountRequest(request_id=str(uuid.uuid4()), lineage=lineage, epsilon=8, delta=1e-5)
        return self.call(self.stub.OpenAccount, _seen(request, witness)).account

    def reserve(self, witness=None, request_id=None, units=100, account=ACCOUNT):
        request = pb.CreateReservationRequest(
            request_id=request_id or str(uuid.uuid4()),
            account=account,
            principal="ann",
            job="trainingJobs/one",
            kind=ledger_pb2.RESERVATION_KIND_PRIVATE,
            truncation_delta_e18=1,
        )
        request.mechanism.noise_multiplier, request.mechanism.sampling_probability = 1000, 1
        request.mechanism.steps = units
        return self.call(self.stub.CreateReservation, _seen(request, witness)).reservation

    def commit(self, name, witness=None):
        request = pb.CommitReservationRequest(request_id=str(uuid.uuid4()), name=name)
        return self.call(self.stub.CommitReservation, _seen(request, witness)).reservation

    def spent(self, account=ACCOUNT):
        return self.call(self.stub.GetAccount, pb.GetAccountRequest(name=account)).account.spent.units

    def verify(self, role="steward"):
        return self.call(self.stub.VerifyJournal, pb.VerifyJournalRequest(), role)

    def resolve(self, known, charges=None, *, only_ask=False, role="steward"):
        request = pb.ResolveWitnessRequest(
            request_id=str(uuid.uuid4()),
            known=known,
            justification="The disk of the ledger burned; the jobs that were lost are known.",
            charges=[
                ledger_pb2.Charge(account=name, price=Price(units=units)) for name, units in (charges or {}).items()
            ],
            validate_only=only_ask,
        )
        return self.call(self.stub.ResolveWitness, request, role)

    def back_up(self):
        backup = self.process.directory / "backup.sqlite3"
        backup.unlink(missing_ok=True)
        live, copy = sqlite3.connect(self._journal), sqlite3.connect(backup)
        live.backup(copy)
        live.close(), copy.close()

    def restore(self):
        self.process.kill()
        for leftover in self._journal.parent.glob("journal.sqlite3*"):
            leftover.unlink()
        shutil.copy(self.process.directory / "backup.sqlite3", self._journal)
        self.process.launch()

    @property
    def _journal(self):
        return self.process.directory / "state" / "journal.sqlite3"


def _seen(request, witness):
    if witness is not None:
        request.witness.CopyFrom(witness)
    return request


@pytest.fixture
def books(ledger):
    made = Books(ledger())
    yield made
    made.channel.close()


def refusal(call, *arguments, **named):
    with pytest.raises(MurmuraError) as caught:
        call(*arguments, **named)
    return caught.value


def roll_back(books, lost=3):
    """Spend, back up, spend more, restore. Returns the receipt that the ledger has forgotten."""
    books.commit(books.reserve().name)
    books.back_up()
    for _ in range(lost):
        books.commit(books.reserve().name)
    witness = books.newest
    books.restore()
    return witness


def test_the_restored_ledger_spends_for_nobody_and_says_since_when(books):
    witness = roll_back(books)
    assert (witness.sequence, books.spent()) == (9, 100), "the backup knows of one job"
    refused = refusal(books.reserve, witness)
    assert refused.reason == "LEDGER_BEHIND_WITNESS"
    assert refused.metadata["known_sequence"] == "9"
    assert refused.metadata["known_hash"] == witness.head_hash
    assert refused.metadata["ledger_sequence"] == "3"
    assert refused.metadata["ledger_time"] in str(refused)
    # Nor for one who has seen nothing of what is missing, nor in another way, nor after a restart.
    assert refusal(books.reserve).reason == "LEDGER_BEHIND_WITNESS"
    assert refusal(books.open, "fresh").reason == "LEDGER_BEHIND_WITNESS"
    books.process.kill()
    books.process.launch()
    assert refusal(books.reserve).reason == "LEDGER_BEHIND_WITNESS"
    found = books.verify().rollback
    assert (found.known, found.ledger_sequence) == (witness, 3)
    assert found.ledger_time.seconds <= found.found_time.seconds
    assert books.spent() == 100


def test_what_is_pending_can_be_neither_charged_nor_given_back(books):
    pending = books.reserve().name
    books.back_up()
    books.commit(pending)
    witness = books.newest
    books.restore()
    release = pb.ReleaseReservationRequest(request_id=str(uuid.uuid4()), name=pending)
    assert refusal(books.call, books.stub.ReleaseReservation, _seen(release, witness)).reason == "LEDGER_BEHIND_WITNESS"
    assert refusal(books.commit, pending).reason == "LEDGER_BEHIND_WITNESS"
    read = pb.GetReservationRequest(name=pending, witness=witness)
    assert refusal(books.call, books.stub.GetReservation, read).reason == "LEDGER_BEHIND_WITNESS"


def test_a_history_that_went_on_differently_is_found_too(books):
    witness = roll_back(books, lost=1)
    for _ in range(3):  # nobody remembers; the ledger runs past the entry that was lost
        books.reserve()
    assert books.newest.sequence > witness.sequence
    refused = refusal(books.reserve, witness)
    assert refused.reason == "LEDGER_BEHIND_WITNESS"
    assert refused.metadata["ledger_sequence"] == str(witness.sequence - 1)


def test_the_true_journal_comes_back_and_all_goes_on(books):
    books.commit(books.reserve().name)
    books.back_up()
    old = (books.process.directory / "backup.sqlite3").read_bytes()
    books.commit(books.reserve().name)
    witness = books.newest
    books.back_up()
    newest = (books.process.directory / "backup.sqlite3").read_bytes()
    (books.process.directory / "backup.sqlite3").write_bytes(old)
    books.restore()
    assert refusal(books.reserve, witness).reason == "LEDGER_BEHIND_WITNESS"
    (books.process.directory / "backup.sqlite3").write_bytes(newest)
    books.restore()
    books.commit(books.reserve(witness).name, witness)
    assert (books.spent(), books.verify().HasField("rollback")) == (300, False)


def test_a_steward_decides_what_the_lost_entries_had_spent(books):
    witness = roll_back(books)
    refusal(books.reserve, witness)
    known = books.verify().rollback.known
    asked = books.resolve(known, {ACCOUNT: 300}, only_ask=True)
    assert [(item.account, item.price.units) for item in asked.charges] == [(ACCOUNT, 300)]
    assert refusal(books.reserve).reason == "LEDGER_BEHIND_WITNESS", "asking decides nothing"
    assert refusal(books.resolve, known, {ACCOUNT: 300}, role="analyst").reason == "ROLE_DENIED"
    answer = books.resolve(known, {ACCOUNT: 300})
    assert books.spent() == 400
    assert answer.receipt.epoch == 1
    # The witness of the abandoned history is of no more account; what follows it is.
    books.commit(books.reserve(witness).name, witness)
    newest = books.newest
    assert (newest.epoch, books.spent()) == (1, 500)
    entries = books.call(books.stub.ListEntries, pb.ListEntriesRequest(page_size=100), "steward").entries
    decision = next(entry for entry in entries if entry.kind == "resolve_rollback")
    assert decision.principal == "steward@local"
    assert "burned" in decision.payload
    assert books.verify().entries == len(entries)


def test_an_account_without_a_stated_charge_has_nothing_left(books):
    books.open("other")
    witness = roll_back(books)
    refusal(books.reserve, witness)
    books.resolve(books.verify().rollback.known, {"accounts/other": 0})
    assert refusal(books.reserve, units=1).reason == "BUDGET_EXHAUSTED"
    books.reserve(account="accounts/other")


def test_an_account_that_was_lost_itself_owes_when_it_opens_again(books):
    books.back_up()
    books.open("late")
    books.commit(books.reserve(account="accounts/late", units=700).name)
    witness = books.newest
    books.restore()
    refusal(books.open, "late", witness)
    books.resolve(books.verify().rollback.known, {"accounts/late": 700, ACCOUNT: 0})
    assert books.open("late").spent.units == 700


def test_a_second_rollback_is_found_by_what_was_seen_after_the_first(books):
    refusal(books.reserve, roll_back(books))
    books.resolve(books.verify().rollback.known, {ACCOUNT: 300})
    witness = roll_back(books, lost=1)
    assert witness.epoch == 1
    assert refusal(books.reserve, witness).reason == "LEDGER_BEHIND_WITNESS"


def test_a_rollback_past_the_decision_is_found_by_its_epoch(books):
    lost = roll_back(books)
    refusal(books.reserve, lost)
    books.resolve(books.verify().rollback.known, {ACCOUNT: 300})
    after = books.newest
    books.restore()
    assert after.sequence < lost.sequence
    assert refusal(books.reserve, after).reason == "LEDGER_BEHIND_WITNESS"


def test_a_witness_that_knows_more_than_was_resolved_stops_it_again(books):
    books.commit(books.reserve().name)
    books.back_up()
    books.reserve()
    first = books.newest
    books.reserve()
    second = books.newest
    books.restore()
    refusal(books.reserve, first)
    books.resolve(books.verify().rollback.known, {ACCOUNT: 100})
    books.reserve(first)
    assert refusal(books.reserve, second).reason == "LEDGER_BEHIND_WITNESS"
    assert books.verify().rollback.known == second


def test_only_services_can_stop_the_ledger(books):
    books.reserve()
    forged = Receipt(sequence=99, head_hash="a" * 64)
    request = pb.VerifyJournalRequest(witness=forged)
    assert refusal(books.call, books.stub.VerifyJournal, request, "analyst").reason == "LEDGER_BEHIND_WITNESS"
    books.reserve()


def test_a_receipt_without_its_hash_is_a_mistake_and_stops_nothing(books):
    assert refusal(books.reserve, Receipt(sequence=1)).reason == "FIELD_RULES"
    books.reserve()


def test_what_is_resolved_must_be_what_was_found(books):
    refusal(books.reserve, roll_back(books))
    other = Receipt(sequence=9, head_hash="b" * 64)
    assert refusal(books.resolve, other, {ACCOUNT: 0}).reason == "RESOURCE_NOT_FOUND"
    assert refusal(books.reserve).reason == "LEDGER_BEHIND_WITNESS"
