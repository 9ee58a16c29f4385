"""What can go wrong, as exceptions that a person can act on.

A service answers with a status, a reason from the contracts' catalogue and a sentence. This module turns that into
one exception type per kind of remedy, so that a notebook can catch `BudgetExhausted` and a reader sees what
happened, why, and what to do next.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from murmura.reach import sentence

if TYPE_CHECKING:
    import grpc

    from murmura.api.common.v1 import errors_pb2


class MurmuraError(Exception):
    """Any refusal or failure.

    Attributes:
        reason: a name from `murmura.api.common.v1.ErrorReason` without its prefix, or empty.
        metadata: what the catalogue documents for the reason.
    """

    def __init__(self, message: str, reason: str = "", metadata: dict[str, str] | None = None) -> None:
        super().__init__(message)
        self.reason = reason
        self.metadata = metadata or {}


class BudgetExhausted(MurmuraError):
    """The dataset's budget, or the caller's share, does not cover the job."""


class NotAllowed(MurmuraError):
    """The caller's roles or the dataset's policy forbid it."""


class NotFound(MurmuraError):
    """The resource does not exist, or the caller may not know that it does."""


class InvalidInput(MurmuraError):
    """An argument breaks a rule; the text names each."""


class Conflict(MurmuraError):
    """Someone else was first: look at what is there now, and decide again."""


class Unreachable(MurmuraError):
    """A service does not answer."""


class JobFailed(MurmuraError):
    """A training job ended without an adapter."""


class NotSupported(MurmuraError, AttributeError):
    """A remote object cannot do this; the text lists what it can."""


class TraceError(MurmuraError):
    """`trace` met something that it cannot record; the text names the line and the supported spelling."""


_BY_REASON = {
    "BUDGET_EXHAUSTED": BudgetExhausted,
    "GRANT_EXHAUSTED": BudgetExhausted,
    "ROLE_DENIED": NotAllowed,
    "TOKEN_INVALID": NotAllowed,
    "UNLIMITED_NOT_ALLOWED": NotAllowed,
    "POLICY_DENIED": NotAllowed,
    "RESOURCE_NOT_FOUND": NotFound,
    "BASE_MODEL_UNKNOWN": NotFound,
    "FIELD_RULES": InvalidInput,
    "EXPRESSION_REJECTED": InvalidInput,
    "COLUMN_UNKNOWN": InvalidInput,
    "TARGET_UNREACHABLE": InvalidInput,
    "VERSION_CONFLICT": Conflict,
    "DEPENDENCY_UNAVAILABLE": Unreachable,
    "ENGINE_DEAD": Unreachable,
    "OVERLOADED": Unreachable,
}


def from_rpc(error: grpc.RpcError, service: str, endpoint: str) -> MurmuraError:
    """Translate a failed call.

    Args:
        error: the error of a synchronous gRPC call.
        service: the service that was called, for the reader.
        endpoint: where it was expected.
    """
    import grpc
    from google.rpc import error_details_pb2
    from grpc_status import rpc_status

    status = rpc_status.from_call(error)
    if status is None:
        code = error.code()
        if code == grpc.StatusCode.UNAVAILABLE:
            return Unreachable(sentence(service, endpoint, error.details() or ""))
        if code == grpc.StatusCode.DEADLINE_EXCEEDED:
            return Unreachable(f"The {service} service took too long. Try again, or look with `murmura status`.")
        return MurmuraError(f"The {service} service refused: {error.details()} ({code.name})")
    reason, metadata, lines = "", {}, [status.message]
    for detail in status.details:
        if detail.Is(error_details_pb2.ErrorInfo.DESCRIPTOR):
            info = error_details_pb2.ErrorInfo()
            detail.Unpack(info)
            reason, metadata = info.reason.removeprefix("ERROR_REASON_"), dict(info.metadata)
        elif detail.Is(error_details_pb2.BadRequest.DESCRIPTOR):
            bad = error_details_pb2.BadRequest()
            detail.Unpack(bad)
            lines += [f"  {item.field}: {item.description}" for item in bad.field_violations]
    return _BY_REASON.get(reason, MurmuraError)("\n".join(lines), reason, metadata)


def from_item(error: errors_pb2.ItemError) -> MurmuraError:
    """Translate an error inside a message, such as that of one item of a batch."""
    from murmura.api.common.v1 import errors_pb2

    reason = errors_pb2.ErrorReason.Name(error.reason).removeprefix("ERROR_REASON_")
    return _BY_REASON.get(reason, MurmuraError)(error.message, reason, dict(error.metadata))


def exhausted(asked: str, beside: str, left: float, dataset: str, account: str) -> BudgetExhausted:
    """Return the refusal of what a plan shows to be more than is left, before it is asked for.

    Args:
        asked: the epsilon that was asked for.
        beside: what else the same request asked for, for people.
        left: the epsilon that is left for one more job.
        dataset: the dataset.
        account: its budget.
    """
    return BudgetExhausted(
        f"ε = {asked} was asked for{beside}, and ε = {left:.2f} is left on {dataset}; "
        f"nothing was spent. Lower target_epsilon to at most {left:.2f}, or ask a steward for "
        f"a higher cap. `murmura budget show {dataset}` shows what was spent on what.",
        "BUDGET_EXHAUSTED",
        {"account": account, "left_epsilon": f"{left:.4f}"},
    )
