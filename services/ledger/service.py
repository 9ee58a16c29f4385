"""The ledger's gRPC face: it prices, turns requests into commands, and answers with messages."""

from __future__ import annotations

import asyncio
import dataclasses
import uuid
from typing import Any

import grpc

from murmura.api.ledger.v1 import ledger_pb2, ledger_service_pb2_grpc
from murmura.api.ledger.v1 import ledger_service_pb2 as pb
from services.common.auth import current_principal
from services.common.errors import MurmuraError, invalid, not_found
from services.common.pages import page
from services.common.requests import body_hash
from services.ledger import accounting, messages
from services.ledger.accounting import E18, Mechanism, Unpriceable
from services.ledger.journal import Entry, JournalBroken, Store, StoreUnusable, replay
from services.ledger.ledger import Account, Amount, Event, Refusal, Reservation
from services.ledger.refusals import explain, unreachable
from services.ledger.writer import Writer

JOBS_PER_POOL = 10


class LedgerService(ledger_service_pb2_grpc.LedgerServiceServicer):
    """Keeps what a dataset may ever give away.

    Args:
        writer: the only way to change the ledger.
        store: where the journal lies, for reading it.
    """

    def __init__(self, writer: Writer, store: Store) -> None:
        self._writer = writer
        self._store = store

    async def OpenAccount(self, request: pb.OpenAccountRequest, context: Any) -> pb.OpenAccountResponse:
        """Open an account."""
        if 0 < request.unit.sampling_probability < 1 and not request.unit.noise_multiplier:
            raise invalid("unit.noise_multiplier", "must be set where unit.sampling_probability is below 1")
        unit = accounting.Unit(
            request.unit.noise_multiplier or accounting.DEFAULT_SIGMA, request.unit.sampling_probability or 1.0
        )
        delta_e18 = round(request.delta * E18)
        pool_e18 = request.truncation_pool_e18 if request.HasField("truncation_pool_e18") else delta_e18 // 10
        if not 0 < pool_e18 < delta_e18:
            raise invalid("truncation_pool_e18", "must be positive and smaller than delta")
        cap = accounting.Cap(request.epsilon, delta_e18, pool_e18, unit)
        units = await _priced(accounting.capacity, cap)
        if units < 1:
            raise invalid("epsilon", "does not hold a single unit of this account; raise it, or choose a finer unit")
        terms = {
            "epsilon": request.epsilon,
            "delta_e18": delta_e18,
            "pool_e18": pool_e18,
            "unit_noise_multiplier": unit.noise_multiplier,
            "unit_sampling_probability": unit.sampling_probability,
            "unlimited_allowed": request.unlimited_allowed,
            "unlimited_principals": sorted(request.unlimited_principals),
        }
        name = f"accounts/{request.lineage}"
        data = {"terms": terms, "capacity": [units, pool_e18]}
        await self._submit("open", name, request, data, request.on_behalf_of)
        return pb.OpenAccountResponse(account=self._account_message(name), receipt=self._receipt())

    async def GetAccount(self, request: pb.GetAccountRequest, context: Any) -> pb.GetAccountResponse:
        """Read an account."""
        return pb.GetAccountResponse(account=self._account_message(request.name), receipt=self._receipt())

    async def ListAccounts(self, request: pb.ListAccountsRequest, context: Any) -> pb.ListAccountsResponse:
        """List accounts."""
        accounts = [account for _, account in sorted(self._writer.state.accounts.items())]
        chosen, token = page(accounts, request.page_size, request.page_token)
        found = [messages.account_message(account) for account in chosen]
        return pb.ListAccountsResponse(accounts=found, next_page_token=token, receipt=self._receipt())

    async def CreateGrant(self, request: pb.CreateGrantRequest, context: Any) -> pb.CreateGrantResponse:
        """Give a share."""
        account = self._account(request.account)
        units = await _priced(accounting.units_at, messages.cap_of(account), request.epsilon)
        share = [units, account.capacity.truncation_e18]
        await self._submit("grant", account.name, request, {"principal": request.principal, "share": share})
        grant = self._writer.state.grants[(account.name, request.principal)]
        message = messages.grant_message(account.name, request.principal, grant)
        return pb.CreateGrantResponse(grant=message, receipt=self._receipt())

    async def ListGrants(self, request: pb.ListGrantsRequest, context: Any) -> pb.ListGrantsResponse:
        """List shares."""
        account = self._account(request.account)
        found = sorted((who, grant) for (name, who), grant in self._writer.state.grants.items() if name == account.name)
        chosen, token = page(found, request.page_size, request.page_token)
        grants = [messages.grant_message(account.name, who, grant) for who, grant in chosen]
        return pb.ListGrantsResponse(grants=grants, next_page_token=token, receipt=self._receipt())

    async def PriceMechanism(self, request: pb.PriceMechanismRequest, context: Any) -> pb.PriceMechanismResponse:
        """Price a mechanism."""
        account = self._account(request.account)
        mechanism = messages.mechanism_of(request.mechanism)
        amount = await self._price(account, mechanism, _truncation(request, account))
        return pb.PriceMechanismResponse(
            price=messages.price_message(amount),
            statement=messages.statement_message(account, amount, mechanism),
            affordable=amount.fits(account.left),
            receipt=self._receipt(),
        )

    async def Calibrate(self, request: pb.CalibrateRequest, context: Any) -> pb.CalibrateResponse:
        """Find the noise that a target needs."""
        account = self._account(request.account)
        cap, truncation = messages.cap_of(account), _truncation(request, account)
        try:
            mechanism, units = await asyncio.to_thread(
                accounting.calibrate,
                cap,
                request.target_epsilon,
                request.sampling_probability,
                request.steps,
                truncation / E18,
            )
        except Unpriceable as problem:
            raise unreachable(problem, request.target_epsilon) from None
        amount = Amount(units, truncation)
        left_after = max(0, account.left.units - units)
        return pb.CalibrateResponse(
            mechanism=messages.mechanism_message(mechanism),
            price=messages.price_message(amount),
            statement=messages.statement_message(account, amount, mechanism),
            affordable=amount.fits(account.left),
            account=messages.account_message(account),
            left_epsilon_after=accounting.affordable_epsilon(cap, left_after),
            receipt=self._receipt(),
        )

    async def CreateReservation(
        self, request: pb.CreateReservationRequest, context: Any
    ) -> pb.CreateReservationResponse:
        """Set a price aside."""
        self._check_witness(request.witness)
        account = self._account(request.account)
        unlimited = request.kind == ledger_pb2.RESERVATION_KIND_UNLIMITED
        mechanism, amount = Mechanism(0, 0, 0), Amount()
        if not unlimited:
            if not request.HasField("mechanism"):
                raise invalid("mechanism", "must be set unless the kind is UNLIMITED")
            mechanism = messages.mechanism_of(request.mechanism)
            amount = await self._price(account, mechanism, _truncation(request, account))
        name = f"{account.name}/reservations/{uuid.UUID(request.request_id)}"
        data = {
            "name": name,
            "principal": request.principal,
            "job": request.job,
            "unlimited": unlimited,
            "mechanism": dataclasses.asdict(mechanism),
            "price": [amount.units, amount.truncation_e18],
        }
        await self._submit("reserve", account.name, request, data, request.principal)
        reservation = self._writer.state.reservations[name]
        answer = pb.CreateReservationResponse(
            reservation=messages.reservation_message(reservation), receipt=self._receipt()
        )
        if not unlimited:
            answer.statement.CopyFrom(messages.statement_message(account, reservation.price, mechanism))
        return answer

    async def GetReservation(self, request: pb.GetReservationRequest, context: Any) -> pb.GetReservationResponse:
        """Read a reservation."""
        message = messages.reservation_message(self._reservation(request.name))
        return pb.GetReservationResponse(reservation=message, receipt=self._receipt())

    async def ListReservations(self, request: pb.ListReservationsRequest, context: Any) -> pb.ListReservationsResponse:
        """List reservations."""
        account = self._account(request.account)
        found = [item for item in self._writer.state.reservations.values() if item.account == account.name]
        chosen, token = page(found, request.page_size, request.page_token)
        reservations = [messages.reservation_message(item) for item in chosen]
        return pb.ListReservationsResponse(reservations=reservations, next_page_token=token, receipt=self._receipt())

    async def CommitReservation(
        self, request: pb.CommitReservationRequest, context: Any
    ) -> pb.CommitReservationResponse:
        """Charge a reservation."""
        self._check_witness(request.witness)
        reservation = self._reservation(request.name)
        amount = reservation.price
        if request.HasField("attested_steps") and not reservation.unlimited:
            amount = await self._price_of_steps(reservation, request.attested_steps)
        data = {"name": reservation.name, "committed": [amount.units, amount.truncation_e18]}
        await self._submit("commit", reservation.account, request, data, reservation.principal)
        message = messages.reservation_message(self._reservation(request.name))
        return pb.CommitReservationResponse(reservation=message, receipt=self._receipt())

    async def ReleaseReservation(
        self, request: pb.ReleaseReservationRequest, context: Any
    ) -> pb.ReleaseReservationResponse:
        """Give a reservation back."""
        self._check_witness(request.witness)
        reservation = self._reservation(request.name)
        data = {"name": reservation.name}
        await self._submit("release", reservation.account, request, data, reservation.principal)
        message = messages.reservation_message(self._reservation(request.name))
        return pb.ReleaseReservationResponse(reservation=message, receipt=self._receipt())

    async def ProposeCapChange(self, request: pb.ProposeCapChangeRequest, context: Any) -> pb.ProposeCapChangeResponse:
        """Propose a new cap."""
        account = self._account(request.account)
        cap = dataclasses.replace(messages.cap_of(account), epsilon=request.epsilon)
        units = await _priced(accounting.capacity, cap)
        name = f"{account.name}/capChanges/{uuid.UUID(request.request_id)}"
        data = {
            "name": name,
            "epsilon": request.epsilon,
            "capacity": [units, cap.pool_e18],
            "justification": request.justification,
        }
        await self._submit("propose_cap", account.name, request, data)
        change = messages.cap_change_message(name, self._writer.state.cap_changes[name])
        return pb.ProposeCapChangeResponse(cap_change=change, receipt=self._receipt())

    async def ApproveCapChange(self, request: pb.ApproveCapChangeRequest, context: Any) -> pb.ApproveCapChangeResponse:
        """Approve a proposed cap."""
        proposal = self._writer.state.cap_changes.get(request.name)
        if proposal is None:
            raise not_found(request.name)
        data = {
            "name": request.name,
            "epsilon": proposal["epsilon"],
            "capacity": proposal["capacity"],
        }
        await self._submit("change_cap", proposal["account"], request, data)
        change = messages.cap_change_message(request.name, self._writer.state.cap_changes[request.name])
        return pb.ApproveCapChangeResponse(
            cap_change=change,
            account=self._account_message(proposal["account"]),
            receipt=self._receipt(),
        )

    async def ListEntries(self, request: pb.ListEntriesRequest, context: Any) -> pb.ListEntriesResponse:
        """Read the journal."""
        entries = [messages.entry_message(entry) for entry in await self._journal(request.after_sequence)]
        if request.account:
            self._account(request.account)
            entries = [entry for entry in entries if entry.account == request.account]
        elif not current_principal().has("steward", "operator", "service"):
            raise invalid("account", "must be set: only stewards read all accounts' entries")
        chosen, token = page(entries, request.page_size, request.page_token)
        return pb.ListEntriesResponse(entries=chosen, next_page_token=token, receipt=self._receipt())

    async def VerifyJournal(self, request: pb.VerifyJournalRequest, context: Any) -> pb.VerifyJournalResponse:
        """Check the hash chain, and a witness's place on it."""
        self._check_witness(request.witness)
        try:
            entries = await self._journal()
            _, head = replay(entries)
        except JournalBroken as broken:
            raise _broken(broken.sequence) from None
        witness = request.witness
        if witness.sequence and entries[witness.sequence - 1].hash != witness.head_hash:
            raise _broken(witness.sequence)
        return pb.VerifyJournalResponse(entries=head.sequence, receipt=messages.receipt(head))

    async def ResolveWitness(self, request: pb.ResolveWitnessRequest, context: Any) -> pb.ResolveWitnessResponse:
        """Not yet: a rolled-back ledger stays closed in this release."""
        raise MurmuraError(
            grpc.StatusCode.UNIMPLEMENTED,
            "NOT_IN_THIS_RELEASE",
            "A ledger that is behind its witnesses stays closed in this release: restore the newest journal.",
            {"feature": "witness resolution"},
        )

    async def _submit(self, kind: str, account: str, request: Any, data: dict[str, Any], payer: str = "") -> None:
        caller = current_principal().subject
        # A service acts for the person that it has authenticated; people act for themselves.
        who = payer if payer and current_principal().has("service") else caller
        command = Event(kind, account, str(uuid.UUID(request.request_id)), body_hash(request), who, data)
        try:
            await self._writer.submit(command)
        except Refusal as refusal:
            raise explain(refusal, self._writer.state) from None

    async def _price(self, account: Account, mechanism: Mechanism, truncation_e18: int) -> Amount:
        unit = messages.cap_of(account).unit
        try:
            units = await asyncio.to_thread(accounting.price, mechanism, unit, truncation_e18 / E18)
        except Unpriceable as problem:
            raise unreachable(problem) from None
        return Amount(units, truncation_e18)

    async def _price_of_steps(self, reservation: Reservation, steps: int) -> Amount:
        """Price the steps that a worker attests, never above the plan."""
        if steps <= 0:
            return Amount()
        planned = Mechanism(**reservation.mechanism)
        if steps >= planned.steps:
            return reservation.price
        ran = dataclasses.replace(planned, steps=steps)
        amount = await self._price(self._account(reservation.account), ran, reservation.price.truncation_e18)
        return Amount(min(amount.units, reservation.price.units), amount.truncation_e18)

    async def _journal(self, after: int = 0) -> list[Entry]:
        try:
            return list(await asyncio.to_thread(self._store.read, after))
        except StoreUnusable:
            raise MurmuraError(
                grpc.StatusCode.UNAVAILABLE,
                "DEPENDENCY_UNAVAILABLE",
                "The ledger's store does not answer. Try again shortly.",
                {"service": "ledger store"},
                retry_after_s=1,
            ) from None

    def _check_witness(self, witness: Any) -> None:
        head = self._writer.head
        if witness.sequence > head.sequence:
            raise MurmuraError(
                grpc.StatusCode.FAILED_PRECONDITION,
                "LEDGER_BEHIND_WITNESS",
                f"The ledger stands at entry {head.sequence} and has been seen at {witness.sequence}: it may have been "
                "restored from an old backup. Nothing is spent until its newest journal is back.",
                {"known_sequence": str(witness.sequence), "ledger_sequence": str(head.sequence)},
            )

    def _account(self, name: str) -> Account:
        account = self._writer.state.accounts.get(name)
        if account is None:
            raise not_found(name)
        return account

    def _account_message(self, name: str) -> ledger_pb2.Account:
        return messages.account_message(self._account(name))

    def _reservation(self, name: str) -> Reservation:
        reservation = self._writer.state.reservations.get(name)
        if reservation is None:
            raise not_found(name)
        return reservation

    def _receipt(self) -> Any:
        return messages.receipt(self._writer.head)


def _truncation(request: Any, account: Account) -> int:
    """Return the truncation of one job: what was asked, else a tenth of the account's pool."""
    if request.HasField("truncation_delta_e18"):
        return int(request.truncation_delta_e18)
    return max(1, account.capacity.truncation_e18 // JOBS_PER_POOL)


async def _priced(function: Any, *arguments: Any) -> Any:
    try:
        return await asyncio.to_thread(function, *arguments)
    except Unpriceable as problem:
        raise unreachable(problem) from None


def _broken(sequence: int) -> MurmuraError:
    return MurmuraError(
        grpc.StatusCode.DATA_LOSS,
        "JOURNAL_BROKEN",
        f"Journal entry {sequence} does not follow from the one before. Stop spending and restore the journal.",
        {"sequence": str(sequence)},
    )
