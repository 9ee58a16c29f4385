"""Between the ledger's own types and the contracts' messages."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp

from murmura.api.common.v1 import privacy_pb2
from murmura.api.ledger.v1 import ledger_pb2
from services.ledger import accounting
from services.ledger.journal import Entry, Head
from services.ledger.state import Account, Amount, Grant, Reservation, Rollback

_STATES = {
    "PENDING": ledger_pb2.RESERVATION_STATE_PENDING,
    "COMMITTED": ledger_pb2.RESERVATION_STATE_COMMITTED,
    "RELEASED": ledger_pb2.RESERVATION_STATE_RELEASED,
}


def cap_of(account: Account) -> accounting.Cap:
    """Return an account's cap as the accounting knows it."""
    terms = account.terms
    return accounting.Cap(
        terms["epsilon"],
        terms["delta_e18"],
        terms["pool_e18"],
        accounting.Unit(terms["unit_noise_multiplier"], terms["unit_sampling_probability"]),
    )


def price_message(amount: Amount) -> privacy_pb2.Price:
    """Return an amount as a message."""
    return privacy_pb2.Price(units=amount.units, truncation_delta_e18=amount.truncation_e18)


def amount_of(message: privacy_pb2.Price) -> Amount:
    """Return a message as an amount."""
    return Amount(message.units, message.truncation_delta_e18)


def receipt(head: Head, epoch: int) -> privacy_pb2.Receipt:
    """Return where the ledger stands."""
    return privacy_pb2.Receipt(sequence=head.sequence, head_hash=head.hash, epoch=epoch)


def rollback_message(rollback: Rollback) -> ledger_pb2.Rollback:
    """Return what stops all spending as a message."""
    return ledger_pb2.Rollback(
        known=privacy_pb2.Receipt(sequence=rollback.sequence, head_hash=rollback.head_hash, epoch=rollback.epoch),
        ledger_sequence=rollback.ledger_sequence,
        ledger_time=_timestamp(rollback.ledger_time),
        found_time=_timestamp(rollback.time),
    )


def charge_messages(charges: Mapping[str, Any]) -> list[ledger_pb2.Charge]:
    """Return what accounts are charged for lost entries as messages."""
    return [
        ledger_pb2.Charge(account=name, price=price_message(Amount(*pair))) for name, pair in sorted(charges.items())
    ]


def risk_message(statement: accounting.Statement) -> privacy_pb2.AttackerRisk:
    """Return the best attacker's chances."""
    return privacy_pb2.AttackerRisk(
        true_positive_rate_at_0_1_percent=statement.tpr_at_0_1_percent,
        true_positive_rate_at_1_percent=statement.tpr_at_1_percent,
        advantage=statement.advantage,
    )


def statement_message(
    account: Account, amount: Amount, mechanism: accounting.Mechanism, statement: accounting.Statement
) -> privacy_pb2.PrivacyStatement:
    """Return what a job of this price promises."""
    return privacy_pb2.PrivacyStatement(
        epsilon=statement.epsilon,
        delta=account.terms["delta_e18"] / accounting.E18,
        mu=statement.mu,
        mechanism=mechanism_message(mechanism),
        sampling=privacy_pb2.SAMPLING_SCHEME_POISSON,
        neighbouring=privacy_pb2.NEIGHBOURING_RELATION_ZERO_OUT,
        risk=risk_message(statement),
        account=account.name,
        price=price_message(amount),
    )


def mechanism_message(mechanism: accounting.Mechanism) -> privacy_pb2.SubsampledGaussian:
    """Return a mechanism as a message."""
    return privacy_pb2.SubsampledGaussian(
        noise_multiplier=mechanism.noise_multiplier,
        sampling_probability=mechanism.sampling_probability,
        steps=mechanism.steps,
    )


def mechanism_of(message: privacy_pb2.SubsampledGaussian) -> accounting.Mechanism:
    """Return a message as a mechanism."""
    return accounting.Mechanism(message.noise_multiplier, message.sampling_probability, message.steps)


def account_message(account: Account, spent: accounting.Statement, left_epsilon: float) -> ledger_pb2.Account:
    """Return an account as a message.

    Args:
        account: the account.
        spent: what is spent and pending amounts to.
        left_epsilon: the greatest target that one more job could be given.
    """
    terms = account.terms
    return ledger_pb2.Account(
        name=account.name,
        lineage=account.name.removeprefix("accounts/"),
        unit=ledger_pb2.UnitMechanism(
            noise_multiplier=terms["unit_noise_multiplier"], sampling_probability=terms["unit_sampling_probability"]
        ),
        epsilon=terms["epsilon"],
        delta=terms["delta_e18"] / accounting.E18,
        capacity=price_message(account.capacity),
        pending=price_message(account.pending),
        spent=price_message(account.spent),
        spent_epsilon=spent.epsilon,
        left_epsilon=left_epsilon,
        unlimited_allowed=terms["unlimited_allowed"],
        unlimited_principals=terms["unlimited_principals"],
        unlimited_jobs=account.unlimited_jobs,
        create_time=_timestamp(account.time),
        spent_risk=risk_message(spent),
    )


def grant_message(account: str, principal: str, grant: Grant) -> ledger_pb2.Grant:
    """Return a share as a message."""
    return ledger_pb2.Grant(
        name=f"{account}/grants/{principal}",
        principal=principal,
        share=price_message(grant.share),
        charged=price_message(grant.charged),
    )


def reservation_message(reservation: Reservation) -> ledger_pb2.Reservation:
    """Return a reservation as a message."""
    message = ledger_pb2.Reservation(
        name=reservation.name,
        principal=reservation.principal,
        job=reservation.job,
        kind=(ledger_pb2.RESERVATION_KIND_UNLIMITED if reservation.unlimited else ledger_pb2.RESERVATION_KIND_PRIVATE),
        price=price_message(reservation.price),
        state=_STATES[reservation.state],
        create_time=_timestamp(reservation.time),
    )
    if not reservation.unlimited:
        message.mechanism.CopyFrom(mechanism_message(accounting.Mechanism(**reservation.mechanism)))
    if reservation.state != "PENDING":
        message.resolve_time.CopyFrom(_timestamp(reservation.resolve_time))
    if reservation.state == "COMMITTED":
        message.committed.CopyFrom(price_message(reservation.committed))
    return message


def cap_change_message(name: str, facts: dict[str, Any]) -> ledger_pb2.CapChange:
    """Return a cap change as a message."""
    return ledger_pb2.CapChange(
        name=name,
        epsilon=facts["epsilon"],
        proposer=facts["proposer"],
        approver=facts["approver"],
        justification=facts["justification"],
    )


def entry_message(entry: Entry) -> ledger_pb2.Entry:
    """Return a journal entry as a message."""
    event, time = entry.event()
    return ledger_pb2.Entry(
        sequence=entry.sequence,
        previous_hash=entry.previous_hash,
        hash=entry.hash,
        request_id=event.request_id,
        principal=event.principal,
        create_time=_timestamp(time),
        kind=event.kind,
        account=event.account,
        payload=entry.payload,
    )


def _timestamp(seconds: float) -> Timestamp:
    whole = int(seconds)
    return Timestamp(seconds=whole, nanos=int((seconds - whole) * 1e9))
