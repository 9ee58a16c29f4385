"""Prices and reservations: the calls that plan, set aside, charge and give back."""

from __future__ import annotations

import dataclasses
from typing import Any

from murmura.api.ledger.v1 import ledger_pb2
from murmura.api.ledger.v1 import ledger_service_pb2 as pb
from services.common.errors import invalid
from services.common.pages import page
from services.ledger import accounting, messages
from services.ledger.accounting import E18, Mechanism
from services.ledger.core import Core
from services.ledger.state import Account, Amount, Reservation

JOBS_PER_POOL = 10


class Spending(Core):
    """The part of the ledger's face that prices mechanisms and keeps reservations."""

    async def PriceMechanism(self, request: pb.PriceMechanismRequest, context: Any) -> pb.PriceMechanismResponse:
        """Price a mechanism."""
        account = self.account(request.account)
        mechanism = messages.mechanism_of(request.mechanism)
        amount = await self.price(account, mechanism, _truncation(request, account))
        return pb.PriceMechanismResponse(
            price=messages.price_message(amount),
            statement=await self.statement_message(account, amount, mechanism),
            affordable=amount.fits(account.left),
            receipt=self.receipt(),
        )

    async def Calibrate(self, request: pb.CalibrateRequest, context: Any) -> pb.CalibrateResponse:
        """Find the noise that a target needs."""
        account = self.account(request.account)
        cap, truncation = messages.cap_of(account), _truncation(request, account)
        mechanism, units = await self.compute(
            accounting.calibrate,
            cap,
            request.target_epsilon,
            request.sampling_probability,
            request.steps,
            truncation / E18,
        )
        amount = Amount(units, truncation)
        both = amount + messages.amount_of(request.beside)
        left_after = max(0, account.left.units - both.units)
        return pb.CalibrateResponse(
            mechanism=messages.mechanism_message(mechanism),
            price=messages.price_message(amount),
            statement=await self.statement_message(account, amount, mechanism),
            affordable=both.fits(account.left),
            account=await self.account_message(account.name),
            left_epsilon_after=await self.compute(accounting.affordable_epsilon, cap, left_after),
            receipt=self.receipt(),
        )

    async def CreateReservation(
        self, request: pb.CreateReservationRequest, context: Any
    ) -> pb.CreateReservationResponse:
        """Set a price aside."""
        await self.check_witness(request.witness)
        account = self.account(request.account)
        unlimited = request.kind == ledger_pb2.RESERVATION_KIND_UNLIMITED
        mechanism, amount = Mechanism(0, 0, 0), Amount()
        if not unlimited:
            if not request.HasField("mechanism"):
                raise invalid("mechanism", "must be set unless the kind is UNLIMITED")
            mechanism = messages.mechanism_of(request.mechanism)
            amount = await self.price(account, mechanism, _truncation(request, account))
        name = f"{account.name}/reservations/{request.request_id.lower()}"
        data = {
            "name": name,
            "principal": request.principal,
            "job": request.job,
            "unlimited": unlimited,
            "mechanism": dict(vars(mechanism)),
            "price": [amount.units, amount.truncation_e18],
        }
        await self.submit("reserve", account.name, request, data, request.principal)
        reservation = self.state.reservations[name]
        answer = pb.CreateReservationResponse(
            reservation=messages.reservation_message(reservation), receipt=self.receipt()
        )
        if not unlimited:
            answer.statement.CopyFrom(await self.statement_message(account, reservation.price, mechanism))
        return answer

    async def GetReservation(self, request: pb.GetReservationRequest, context: Any) -> pb.GetReservationResponse:
        """Read a reservation."""
        await self.check_witness(request.witness)
        message = messages.reservation_message(self.reservation(request.name))
        return pb.GetReservationResponse(reservation=message, receipt=self.receipt())

    async def ListReservations(self, request: pb.ListReservationsRequest, context: Any) -> pb.ListReservationsResponse:
        """List reservations."""
        account = self.account(request.account)
        found = [item for item in self.state.reservations.values() if item.account == account.name]
        chosen, token = page(found, request.page_size, request.page_token)
        reservations = [messages.reservation_message(item) for item in chosen]
        return pb.ListReservationsResponse(reservations=reservations, next_page_token=token, receipt=self.receipt())

    async def CommitReservation(
        self, request: pb.CommitReservationRequest, context: Any
    ) -> pb.CommitReservationResponse:
        """Charge a reservation."""
        await self.check_witness(request.witness)
        reservation = self.reservation(request.name)
        amount = reservation.price
        if request.HasField("attested_steps") and not reservation.unlimited:
            amount = await self._price_of_steps(reservation, request.attested_steps)
        data = {"name": reservation.name, "committed": [amount.units, amount.truncation_e18]}
        await self.submit("commit", reservation.account, request, data, reservation.principal)
        message = messages.reservation_message(self.reservation(request.name))
        return pb.CommitReservationResponse(reservation=message, receipt=self.receipt())

    async def ReleaseReservation(
        self, request: pb.ReleaseReservationRequest, context: Any
    ) -> pb.ReleaseReservationResponse:
        """Give a reservation back."""
        await self.check_witness(request.witness)
        reservation = self.reservation(request.name)
        data = {"name": reservation.name}
        await self.submit("release", reservation.account, request, data, reservation.principal)
        message = messages.reservation_message(self.reservation(request.name))
        return pb.ReleaseReservationResponse(reservation=message, receipt=self.receipt())

    async def _price_of_steps(self, reservation: Reservation, steps: int) -> Amount:
        """Price the steps that a worker attests, never above the plan."""
        if steps <= 0:
            return Amount()
        planned = Mechanism(**reservation.mechanism)
        if steps >= planned.steps:
            return reservation.price
        ran = dataclasses.replace(planned, steps=steps)
        amount = await self.price(self.account(reservation.account), ran, reservation.price.truncation_e18)
        return Amount(min(amount.units, reservation.price.units), amount.truncation_e18)


def _truncation(request: Any, account: Account) -> int:
    """Return the truncation of one job: what was asked, else a tenth of the account's pool."""
    if request.HasField("truncation_delta_e18"):
        return int(request.truncation_delta_e18)
    return max(1, account.capacity.truncation_e18 // JOBS_PER_POOL)
