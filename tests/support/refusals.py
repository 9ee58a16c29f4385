"""What a refused call tells its caller."""

from __future__ import annotations

from typing import Any

from google.rpc import error_details_pb2, status_pb2

_STATUS = "grpc-status-details-bin"


def packed_status(error: Any) -> bytes:
    """Return the status of a refused call as it has travelled."""
    return bytes(dict(error.trailing_metadata())[_STATUS])


def reason(error: Any) -> str:
    """Return the reason of the catalogue, without its prefix; empty where gRPC itself ended the call."""
    return error_info(error)[0] if _STATUS in dict(error.trailing_metadata() or ()) else ""


def error_info(error: Any) -> tuple[str, dict[str, str]]:
    """Return the reason of the catalogue, without its prefix, and the metadata with which a call was refused."""
    info = error_details_pb2.ErrorInfo()
    assert status_pb2.Status.FromString(packed_status(error)).details[0].Unpack(info)
    return info.reason.removeprefix("ERROR_REASON_"), dict(info.metadata)
