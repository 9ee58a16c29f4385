"""The one error that handlers raise, and how any error leaves a service.

A refusal is a `MurmuraError`: a status code, a reason from the catalogue, a sentence and metadata. Anything else that
escapes a handler could carry a private row in its text, so nothing of it travels: the caller gets a fixed sentence
and an id, and the log gets the id, the exception's type and the places in the code.
"""

from __future__ import annotations

import errno
import secrets
import sqlite3
import traceback

import grpc
import structlog
from google.protobuf import duration_pb2
from google.rpc import error_details_pb2, status_pb2

from murmura.api.common.v1 import errors_pb2

DOMAIN = "murmura"
Reason = errors_pb2.ErrorReason
STATUS_DETAILS = "grpc-status-details-bin"
_log = structlog.get_logger()


class MurmuraError(Exception):
    """A refusal.

    Args:
        code: the gRPC status code.
        reason: a name of the catalogue without its prefix, for example `BUDGET_EXHAUSTED`.
        message: what happened, why, and the next step; never anything derived from a private row.
        metadata: as the catalogue documents for the reason.
        violations: field path to what is wrong with it.
        retry_after_s: when to try again.
    """

    def __init__(
        self,
        code: grpc.StatusCode,
        reason: str,
        message: str,
        metadata: dict[str, str] | None = None,
        violations: dict[str, str] | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        Reason.Value(f"ERROR_REASON_{reason}")  # an unknown reason is a programming error
        self.code = code
        self.reason = reason
        self.message = message
        self.metadata = metadata or {}
        self.violations = violations or {}
        self.retry_after_s = retry_after_s

    def status(self) -> status_pb2.Status:
        """Return the google.rpc.Status that travels."""
        status = status_pb2.Status(code=self.code.value[0], message=self.message)
        info = error_details_pb2.ErrorInfo(reason=f"ERROR_REASON_{self.reason}", domain=DOMAIN, metadata=self.metadata)
        status.details.add().Pack(info)
        if self.violations:
            bad = error_details_pb2.BadRequest()
            for field, description in self.violations.items():
                bad.field_violations.add(field=field, description=description)
            status.details.add().Pack(bad)
        if self.retry_after_s is not None:
            delay = duration_pb2.Duration()
            delay.FromMilliseconds(int(self.retry_after_s * 1000))
            status.details.add().Pack(error_details_pb2.RetryInfo(retry_delay=delay))
        return status

    def item(self) -> errors_pb2.ItemError:
        """Return the same as an error inside a message, which has no place for details of its own."""
        broken = "; ".join(f"{field} {description}" for field, description in self.violations.items())
        return errors_pb2.ItemError(
            code=self.code.value[0],
            reason=Reason.Value(f"ERROR_REASON_{self.reason}"),
            message=f"{self.message} {broken}." if broken else self.message,
            metadata=self.metadata,
        )


def not_found(resource: str) -> MurmuraError:
    """Return the one answer for what does not exist and for what the caller may not see."""
    return MurmuraError(
        grpc.StatusCode.NOT_FOUND,
        "RESOURCE_NOT_FOUND",
        f"{resource} does not exist, or you may not use it.",
        {"resource": resource},
    )


def invalid(field: str, description: str) -> MurmuraError:
    """Return a refusal of one field."""
    return MurmuraError(
        grpc.StatusCode.INVALID_ARGUMENT,
        "FIELD_RULES",
        "The request breaks its rules.",
        violations={field: description},
    )


def dependency_unavailable(service: str, message: str, *, retry_after_s: float) -> MurmuraError:
    """Return the refusal of what needs a service, or a store, that is not there now.

    Args:
        service: what is not there.
        message: what was done or not, and the next step.
        retry_after_s: after which trying again makes sense.
    """
    return MurmuraError(
        grpc.StatusCode.UNAVAILABLE,
        "DEPENDENCY_UNAVAILABLE",
        message,
        {"service": service},
        retry_after_s=retry_after_s,
    )


def unknown(error: BaseException) -> MurmuraError:
    """Log an exception that no handler foresaw, without its text, and return what may be said of it."""
    places = [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in traceback.extract_tb(error.__traceback__)]
    if is_full(error):
        _log.error("no room on the disk", exception=type(error).__name__, places=places[-6:])
        return dependency_unavailable(
            "disk",
            "There is no room left on the disk where this is written. Tell the operator; when there is, send the same "
            "request again.",
            retry_after_s=30,
        )
    error_id = secrets.token_hex(6)
    _log.error("unforeseen", error_id=error_id, exception=type(error).__name__, places=places[-6:])
    return MurmuraError(
        grpc.StatusCode.INTERNAL,
        "INTERNAL",
        f"Something failed that should not have. Give the operator this id: {error_id}.",
        {"error_id": error_id},
    )


def is_full(error: BaseException | None) -> bool:
    """Say whether an error means that a disk is full."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        if isinstance(error, sqlite3.Error) and getattr(error, "sqlite_errorcode", 0) == sqlite3.SQLITE_FULL:
            return True
        error = error.__cause__ or error.__context__
    return False


def from_upstream(error: grpc.aio.AioRpcError, service: str) -> MurmuraError:
    """Translate the answer of another service: its refusals pass through, its troubles become ours."""
    for key, value in error.trailing_metadata() or ():
        if key == STATUS_DETAILS:
            status = status_pb2.Status.FromString(value if isinstance(value, bytes) else value.encode())
            info = error_details_pb2.ErrorInfo()
            for detail in status.details:
                if detail.Is(error_details_pb2.ErrorInfo.DESCRIPTOR):
                    detail.Unpack(info)
            reason = info.reason.removeprefix("ERROR_REASON_")
            if info.domain == DOMAIN and reason in ("TOKEN_INVALID", "ROLE_DENIED"):
                return _shut_out(service, reason)
            if info.domain == DOMAIN and reason != "INTERNAL":
                return MurmuraError(error.code(), reason, status.message, dict(info.metadata))
    code = error.code()
    if code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
        return dependency_unavailable(
            service, f"The {service} service does not answer. Nothing was changed; try again shortly.", retry_after_s=2
        )
    if code == grpc.StatusCode.UNIMPLEMENTED:
        _log.error(
            "not this service", expected=service, next="its endpoint must be that of this service, of this version"
        )
        return dependency_unavailable(
            service,
            f"What answers in place of the {service} service is another one. Nothing was changed; tell the operator, "
            "whose log says more.",
            retry_after_s=5,
        )
    return unknown(error)


def _shut_out(service: str, reason: str) -> MurmuraError:
    """Return what may be said where another service does not know this one: no caller is at fault."""
    _log.error(
        "shut out",
        by=service,
        reason=reason,
        next="its endpoint must be the address for services where there is TLS, and it must trust this one's "
        "certificate, or without TLS this one's token",
    )
    return dependency_unavailable(
        service,
        f"The {service} service does not let this one in. Nothing was changed; tell the operator, whose log says more.",
        retry_after_s=5,
    )
