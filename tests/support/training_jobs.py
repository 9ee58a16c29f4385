"""What tests of training jobs do to them."""

from __future__ import annotations

import uuid
from typing import Any

import grpc
import pytest

from murmura.api.trainer.v1 import trainer_service_pb2
from tests.support.refusals import error_info

LONG = {"epochs": 2_000.0}  # far more steps than a test has time for


def refusal(call: Any) -> tuple[str, dict[str, str]]:
    """Return the reason and the metadata with which a call is refused."""
    with pytest.raises(grpc.RpcError) as caught:
        call()
    return error_info(caught.value)


def cancel(cluster: Any, name: str) -> Any:
    """Ask for the end of a job; returns it as it is then."""
    request = trainer_service_pb2.CancelTrainingJobRequest(request_id=str(uuid.uuid4()), name=name)
    return cluster.trainer.CancelTrainingJob(request, metadata=cluster.who(), timeout=20).training_job


def stepped(cluster: Any, name: str) -> bool:
    """Say whether a job has taken a step."""
    return bool(cluster.job(name).completed_steps > 0)
