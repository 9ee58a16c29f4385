"""What is said of jobs."""

from __future__ import annotations

from murmura.api.trainer.v1 import trainer_service_pb2
from services.trainer.messages import CAUSES


def test_whatever_ends_a_worker_has_words() -> None:
    given = {name.removeprefix("FAILURE_CAUSE_") for name, number in trainer_service_pb2.FailureCause.items() if number}
    assert given <= CAUSES.keys()
    assert all(CAUSES[cause].endswith(".") for cause in given)
