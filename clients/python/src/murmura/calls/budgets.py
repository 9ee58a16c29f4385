"""What is asked of the ledger by people: budgets, shares, caps."""

from __future__ import annotations

import uuid

from murmura.api.ledger.v1 import ledger_service_pb2 as messages
from murmura.calls import PAGE_SIZE, Call

CALIBRATION_S = 120.0


def get_account(account: str) -> Call:
    """Read an account."""
    return Call("ledger", "GetAccount", messages.GetAccountRequest(name=account))


def list_accounts() -> Call:
    """List accounts. For stewards and operators."""
    return Call("ledger", "ListAccounts", messages.ListAccountsRequest(page_size=PAGE_SIZE))


def list_grants(account: str) -> Call:
    """List the shares of an account."""
    return Call("ledger", "ListGrants", messages.ListGrantsRequest(account=account, page_size=PAGE_SIZE))


def list_reservations(account: str) -> Call:
    """List what was set aside of an account."""
    request = messages.ListReservationsRequest(account=account, page_size=PAGE_SIZE)
    return Call("ledger", "ListReservations", request)


def list_entries(account: str = "", after: int = 0, most: int = PAGE_SIZE) -> Call:
    """List what was written down about an account, or without one about all, oldest first.

    Args:
        account: `accounts/…`; empty: all, for stewards and operators.
        after: only entries behind this sequence number.
        most: on one page.
    """
    request = messages.ListEntriesRequest(account=account, after_sequence=after, page_size=most)
    return Call("ledger", "ListEntries", request)


def create_grant(account: str, principal: str, epsilon: float) -> Call:
    """Give someone a share."""
    request = messages.CreateGrantRequest(
        request_id=str(uuid.uuid4()), account=account, principal=principal, epsilon=epsilon
    )
    return Call("ledger", "CreateGrant", request)


def propose_cap(account: str, epsilon: float, why: str) -> Call:
    """Propose another cap."""
    request = messages.ProposeCapChangeRequest(
        request_id=str(uuid.uuid4()), account=account, epsilon=epsilon, justification=why
    )
    return Call("ledger", "ProposeCapChange", request)


def approve_cap(proposal: str) -> Call:
    """Approve a proposed cap."""
    request = messages.ApproveCapChangeRequest(request_id=str(uuid.uuid4()), name=proposal)
    return Call("ledger", "ApproveCapChange", request)


def get_reservation(name: str) -> Call:
    """Read a reservation."""
    return Call("ledger", "GetReservation", messages.GetReservationRequest(name=name))


def calibrate(account: str, target_epsilon: float, sampling_probability: float, steps: int) -> Call:
    """Find the noise that a target takes; spends nothing."""
    request = messages.CalibrateRequest(
        account=account, target_epsilon=target_epsilon, sampling_probability=sampling_probability, steps=steps
    )
    return Call("ledger", "Calibrate", request, timeout_s=CALIBRATION_S)
