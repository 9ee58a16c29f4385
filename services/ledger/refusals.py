"""The ledger's refusals as sentences: what happened, why, and the next step."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import grpc

from services.common.errors import MurmuraError
from services.ledger import accounting
from services.ledger.messages import cap_of
from services.ledger.state import Account, Amount, Refusal, Rollback

_CODES = {
    "REQUEST_ID_REUSED": grpc.StatusCode.ALREADY_EXISTS,
    "RESOURCE_EXISTS": grpc.StatusCode.ALREADY_EXISTS,
    "RESOURCE_NOT_FOUND": grpc.StatusCode.NOT_FOUND,
    "BUDGET_EXHAUSTED": grpc.StatusCode.FAILED_PRECONDITION,
    "GRANT_EXHAUSTED": grpc.StatusCode.FAILED_PRECONDITION,
    "RESERVATION_RESOLVED": grpc.StatusCode.FAILED_PRECONDITION,
    "UNLIMITED_NOT_ALLOWED": grpc.StatusCode.PERMISSION_DENIED,
    "SECOND_PRINCIPAL_NEEDED": grpc.StatusCode.PERMISSION_DENIED,
    "COMMIT_EXCEEDS_RESERVATION": grpc.StatusCode.INVALID_ARGUMENT,
    "TARGET_UNREACHABLE": grpc.StatusCode.INVALID_ARGUMENT,
}
_TEXTS = {
    "REQUEST_ID_REUSED": "This request id was used before for something else. Make a new one for a new request.",
    "RESOURCE_EXISTS": "{resource} exists already, on other terms. A cap is changed by two stewards, not reopened.",
    "RESOURCE_NOT_FOUND": "{resource} does not exist, or you may not use it.",
    "RESERVATION_RESOLVED": "{reservation} is {state} already; a reservation resolves once.",
    "UNLIMITED_NOT_ALLOWED": "The policy of {account} does not allow this job without privacy. "
    "Give a target epsilon, or ask a steward.",
    "SECOND_PRINCIPAL_NEEDED": "A cap change needs two people: someone else than its proposer must approve {proposal}.",
    "COMMIT_EXCEEDS_RESERVATION": "A commit may not exceed what was reserved by {reservation}.",
    "TARGET_UNREACHABLE": "The amount must be positive. Raise the epsilon.",
}


def explain(refusal: Refusal, account: Account | None = None) -> MurmuraError:
    """Turn a refusal into what the caller reads. May compute for a while.

    Args:
        refusal: what the rules say.
        account: the one it is about; needed where amounts are.
    """
    if refusal.reason == "LEDGER_BEHIND_WITNESS":
        return behind(refusal.metadata["rollback"])
    metadata = {key: value for key, value in refusal.metadata.items() if not isinstance(value, Amount)}
    if account is not None and refusal.reason in ("BUDGET_EXHAUSTED", "GRANT_EXHAUSTED"):
        return _exhausted(refusal, account, metadata)
    return MurmuraError(
        _CODES[refusal.reason],
        refusal.reason,
        _TEXTS[refusal.reason].format_map(metadata),
        _text(metadata),
    )


def unreachable(problem: Exception) -> MurmuraError:
    """Turn a mechanism without a price into what the caller reads."""
    sentence = str(problem)
    return MurmuraError(
        grpc.StatusCode.INVALID_ARGUMENT,
        "TARGET_UNREACHABLE",
        sentence[0].upper() + sentence[1:] + ".",
    )


def behind(rollback: Rollback) -> MurmuraError:
    """Return the refusal of a ledger that was restored from an older backup."""
    since = datetime.fromtimestamp(rollback.ledger_time, UTC).isoformat(timespec="seconds")
    missing = f"after entry {rollback.ledger_sequence} of {since}" if rollback.ledger_sequence else "from the beginning"
    return MurmuraError(
        grpc.StatusCode.FAILED_PRECONDITION,
        "LEDGER_BEHIND_WITNESS",
        f"The ledger has been restored from an older backup: it was seen at entry {rollback.sequence}, and what was "
        f"recorded {missing} may be missing. Nothing is spent until its newest journal is back, or a steward gives the "
        "lost entries up with `murmura budget resolve`.",
        {
            "known_sequence": str(rollback.sequence),
            "known_hash": rollback.head_hash,
            "known_epoch": str(rollback.epoch),
            "ledger_sequence": str(rollback.ledger_sequence),
            "ledger_time": since,
        },
    )


def _exhausted(refusal: Refusal, account: Account, metadata: dict[str, Any]) -> MurmuraError:
    asked, left = refusal.metadata["asked"], refusal.metadata["left"]
    cap = cap_of(account)
    asked_epsilon = accounting.epsilon_of(cap, asked.units)
    left_epsilon = accounting.affordable_epsilon(cap, max(0, left.units))
    whose = "your share of " if refusal.reason == "GRANT_EXHAUSTED" else ""
    if asked.units > left.units:
        what = (
            f"ε = {asked_epsilon:.4g} was asked for and ε = {left_epsilon:.4g} is left on {whose}{metadata['account']}"
        )
        step = f"Lower target_epsilon to at most {left_epsilon:.4g}, or ask a steward"
    else:
        what = f"The truncation pool of {whose}{metadata['account']} is used up by the number of jobs"
        step = "Ask a steward"
    metadata |= {
        "asked_epsilon": f"{asked_epsilon:.6g}",
        "left_epsilon": f"{left_epsilon:.6g}",
        "asked_units": asked.units,
        "left_units": left.units,
    }
    text = f"{what}; nothing was spent. {step}."
    return MurmuraError(_CODES[refusal.reason], refusal.reason, text, _text(metadata))


def _text(metadata: dict[str, Any]) -> dict[str, str]:
    return {key: str(value) for key, value in metadata.items()}
