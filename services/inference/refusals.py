"""What this service refuses, in words that name the next step."""

from __future__ import annotations

from collections.abc import Iterable

import grpc

from services.common.errors import MurmuraError
from services.inference.catalogue import Record
from services.inference.verification import Rejected


def unknown_base(name: str, bases: Iterable[str]) -> MurmuraError:
    """Return the refusal of a base model that is not served."""
    served = ", ".join(sorted(bases))
    return MurmuraError(
        grpc.StatusCode.NOT_FOUND,
        "BASE_MODEL_UNKNOWN",
        f"{name} is not served here. There is: {served}.",
        {"base_model": name, "base_models": served},
    )


def not_for_roles(what: str, roles: Iterable[str]) -> MurmuraError:
    """Return the refusal of a kind of model to someone whose roles do not allow it."""
    allowed = ", ".join(sorted(roles)) or "nobody"
    return MurmuraError(
        grpc.StatusCode.PERMISSION_DENIED,
        "ROLE_DENIED",
        f"{what} may be used here by: {allowed}. Use another model, or ask the operator.",
        {"method": "Generate", "allowed_roles": allowed},
    )


def rejected(name: str, cause: Rejected) -> MurmuraError:
    """Return the refusal of an adapter that failed a check."""
    return MurmuraError(
        grpc.StatusCode.INVALID_ARGUMENT,
        "ADAPTER_REJECTED",
        f"{name} is not served: {cause.problem}. Train it again, or ask the operator.",
        {"adapter": name, "check": cause.check},
    )


def not_ready(record: Record) -> MurmuraError:
    """Return the refusal of an adapter that takes no requests."""
    why = {"DRAINING": "was unloaded", "FAILED": "failed when it was loaded"}.get(record.state, "is not loaded")
    return MurmuraError(
        grpc.StatusCode.FAILED_PRECONDITION,
        "ADAPTER_NOT_READY",
        f"{record.name} {why}. LoadAdapter brings it back, or says what is wrong with it.",
        {"adapter": record.name, "state": record.state},
    )


def engine_dead() -> MurmuraError:
    """Return the refusal of whatever needs an engine that died."""
    return MurmuraError(
        grpc.StatusCode.UNAVAILABLE,
        "ENGINE_DEAD",
        "The engine died; the service is being restarted. Try again in a minute.",
        retry_after_s=30,
    )
