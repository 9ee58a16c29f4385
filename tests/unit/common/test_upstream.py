"""What a caller is told of another service's answer."""

from __future__ import annotations

import grpc
import pytest
from structlog.testing import capture_logs

from services.common.errors import STATUS_DETAILS, MurmuraError, from_upstream


def answered(code: grpc.StatusCode, refusal: MurmuraError | None = None) -> grpc.aio.AioRpcError:
    """Return the answer of another service as gRPC raises it."""
    trailing = grpc.aio.Metadata()
    if refusal is not None:
        trailing.add(STATUS_DETAILS, refusal.status().SerializeToString())
    return grpc.aio.AioRpcError(code, grpc.aio.Metadata(), trailing, "private words")


def test_a_refusal_passes_through_as_it_is() -> None:
    refusal = MurmuraError(grpc.StatusCode.FAILED_PRECONDITION, "BUDGET_EXHAUSTED", "Too much.", {"left": "1"})
    found = from_upstream(answered(refusal.code, refusal), "ledger")
    assert (found.code, found.reason, found.message) == (refusal.code, refusal.reason, refusal.message)
    assert found.metadata == refusal.metadata


@pytest.mark.parametrize("code", [grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED])
def test_a_service_that_is_away_is_named_with_a_time_to_come_back(code: grpc.StatusCode) -> None:
    found = from_upstream(answered(code), "ledger")
    assert (found.code, found.reason) == (grpc.StatusCode.UNAVAILABLE, "DEPENDENCY_UNAVAILABLE")
    assert found.metadata == {"service": "ledger"} and found.retry_after_s


@pytest.mark.parametrize("reason", ["TOKEN_INVALID", "ROLE_DENIED"])
def test_a_service_that_is_not_let_in_tells_its_operator_why_and_the_caller_whom_to_ask(reason: str) -> None:
    refusal = MurmuraError(grpc.StatusCode.UNAUTHENTICATED, reason, "No valid token. Sign in again.")
    with capture_logs() as logs:
        found = from_upstream(answered(refusal.code, refusal), "ledger")
    # Not the caller's token was refused: signing in again would not help.
    assert (found.code, found.reason) == (grpc.StatusCode.UNAVAILABLE, "DEPENDENCY_UNAVAILABLE")
    assert "Sign in" not in found.message and "operator" in found.message
    assert [(line["event"], line["by"], line["reason"]) for line in logs] == [("shut out", "ledger", reason)]
    assert "address for services" in logs[0]["next"]


def test_of_anything_else_only_an_id_is_told() -> None:
    with capture_logs() as logs:
        found = from_upstream(answered(grpc.StatusCode.INTERNAL), "ledger")
    assert (found.reason, found.metadata["error_id"]) == ("INTERNAL", logs[0]["error_id"])
    assert "private words" not in f"{found.message} {logs}"
