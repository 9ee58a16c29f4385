"""What tests of training jobs do to them."""

from __future__ import annotations

import uuid
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2

from murmura.api.trainer.v1 import trainer_service_pb2

LONG = {"epochs": 2_000.0}  # far more steps than a test has time for


def refusal(call: Any) -> tuple[str, dict[str, str]]:
    """Return the reason and the metadata with which a call is refused."""
    with pytest.raises(grpc.RpcError) as caught:
        call()
    metadata: Any = caught.value.trailing_metadata()  # type: ignore[attr-defined]
    status = status_pb2.Status.FromString(dict(metadata)["grpc-status-details-bin"])
    info = error_details_pb2.ErrorInfo()
    assert status.details[0].Unpack(info)
    return info.reason.removeprefix("ERROR_REASON_"), dict(info.metadata)


def cancel(cluster: Any, name: str) -> Any:
    """Ask for the end of a job; returns it as it is then."""
    request = trainer_service_pb2.CancelTrainingJobRequest(request_id=str(uuid.uuid4()), name=name)
    return cluster.trainer.CancelTrainingJob(request, metadata=cluster.who(), timeout=20).training_job


def stepped(cluster: Any, name: str) -> bool:
    """Say whether a job has taken a step."""
    return bool(cluster.job(name).completed_steps > 0)
