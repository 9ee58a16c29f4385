"""The dataset service and the trainer remember what the ledger told them, and a ledger that forgot it is found out."""

from __future__ import annotations

import shutil
import uuid
from pathlib import Path
from typing import Any

from murmura.api.ledger.v1 import ledger_pb2, ledger_service_pb2
from murmura.api.trainer.v1 import trainer_pb2
from tests.support.training_jobs import refusal


def back_up(cluster: Any, place: Path) -> None:
    cluster.kill("ledger")
    shutil.copytree(cluster.state("ledger"), place)
    cluster.start("ledger")


def restore(cluster: Any, place: Path) -> None:
    cluster.kill("ledger")
    shutil.rmtree(cluster.state("ledger"))
    shutil.copytree(place, cluster.state("ledger"))
    cluster.start("ledger")


def resolve(cluster: Any, *accounts: str) -> None:
    """Give up what was lost, and charge these accounts nothing for it."""
    steward = cluster.who("steward")
    found = cluster.ledger.VerifyJournal(ledger_service_pb2.VerifyJournalRequest(), metadata=steward, timeout=20)
    request = ledger_service_pb2.ResolveWitnessRequest(
        request_id=str(uuid.uuid4()),
        known=found.rollback.known,
        justification="Only what a test has done was lost.",
        charges=[ledger_pb2.Charge(account=account) for account in accounts],
    )
    cluster.ledger.ResolveWitness(request, metadata=steward, timeout=20)


def test_whoever_remembers_more_stops_a_restored_ledger(
    cluster: Any, notes: list[dict[str, Any]], tmp_path: Path
) -> None:
    dataset = cluster.register(notes)
    back_up(cluster, tmp_path / "first")
    cluster.register([{"patient": "p", "text": "of another house"}])
    restore(cluster, tmp_path / "first")
    # The trainer has seen nothing yet: it is the dataset service that knows.
    cluster.kill("dataset")
    cluster.start("dataset")
    assert refusal(lambda: cluster.register([{"patient": "p", "text": "of a third"}]))[0] == "LEDGER_BEHIND_WITNESS"
    assert refusal(lambda: cluster.create(cluster.spec(dataset)))[0] == "LEDGER_BEHIND_WITNESS"
    resolve(cluster, dataset.account)

    back_up(cluster, tmp_path / "second")
    done = cluster.ended(cluster.create(cluster.spec(dataset)).name)
    assert done.state == trainer_pb2.JOB_STATE_SUCCEEDED
    charged = cluster.account(dataset.account).spent.units
    assert charged > 0
    restore(cluster, tmp_path / "second")
    assert cluster.account(dataset.account).spent.units == 0, "the backup has forgotten the job"
    cluster.kill("trainer")
    cluster.start("trainer")
    assert refusal(lambda: cluster.create(cluster.spec(dataset)))[0] == "LEDGER_BEHIND_WITNESS"
    # Decided without a figure, so the account has nothing left: a backup refills nothing.
    resolve(cluster)
    assert refusal(lambda: cluster.create(cluster.spec(dataset)))[0] == "BUDGET_EXHAUSTED"
