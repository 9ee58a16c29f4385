"""What all of the ledger's calls share: looking things up, computing off the loop, submitting, checking witnesses."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, nullcontext
from typing import Any, TypeVar

from murmura.api.common.v1 import privacy_pb2
from murmura.api.ledger.v1 import ledger_pb2
from services.common.auth import current_principal
from services.common.errors import MurmuraError, dependency_unavailable, invalid, not_found
from services.common.locks import Locks
from services.common.requests import body_hash
from services.ledger import accounting, messages
from services.ledger.accounting import E18, Mechanism, Unpriceable
from services.ledger.journal import Entry, Store, StoreUnusable
from services.ledger.refusals import behind, explain, unreachable
from services.ledger.state import Account, Amount, Event, Refusal, Reservation, Rollback, State
from services.ledger.writer import Writer

RESULTS_KEPT = 4096
# Compositions that are computed at once.
COMPOSITIONS = 2
_NAMESPACE = uuid.UUID("9d0f7a61-3a86-5b54-8c07-5f3b7a1f6d2e")
_T = TypeVar("_T")


class Core:
    """What the parts of the ledger's face stand on.

    Args:
        writer: the only way to change the ledger.
        store: where the journal lies, for reading it.
    """

    def __init__(self, writer: Writer, store: Store) -> None:
        self._writer = writer
        self._store = store
        self._results: dict[Any, Any] = {}
        # Of their own: plans that wait for each other must not keep the journal's readers waiting.
        self._threads = ThreadPoolExecutor(COMPOSITIONS, "composition")
        self._turns = Locks()

    @property
    def state(self) -> State:
        """Where things stand, as far as it is durable."""
        return self._writer.state

    def receipt(self) -> privacy_pb2.Receipt:
        """Return where the ledger stands."""
        return messages.receipt(self._writer.head, self.state.epoch)

    def account(self, name: str) -> Account:
        """Return an account.

        Raises:
            MurmuraError: RESOURCE_NOT_FOUND.
        """
        account = self.state.accounts.get(name)
        if account is None:
            raise not_found(name)
        return account

    def reservation(self, name: str) -> Reservation:
        """Return a reservation.

        Raises:
            MurmuraError: RESOURCE_NOT_FOUND.
        """
        reservation = self.state.reservations.get(name)
        if reservation is None:
            raise not_found(name)
        return reservation

    async def account_message(self, name: str) -> ledger_pb2.Account:
        """Return an account as a message, with its amounts also as epsilons."""
        account = self.account(name)
        cap, used = messages.cap_of(account), account.spent + account.pending
        spent = await self.compute(accounting.statement, cap, used.units, used.truncation_e18 / E18)
        left = await self.compute(accounting.affordable_epsilon, cap, max(0, account.left.units))
        return messages.account_message(account, spent, left)

    async def statement_message(
        self, account: Account, amount: Amount, mechanism: Mechanism
    ) -> privacy_pb2.PrivacyStatement:
        """Return what a job of this price promises."""
        cap = messages.cap_of(account)
        statement = await self.compute(accounting.statement, cap, amount.units, amount.truncation_e18 / E18)
        return messages.statement_message(account, amount, mechanism, statement)

    async def price(self, account: Account, mechanism: Mechanism, truncation_e18: int) -> Amount:
        """Price a mechanism in an account's currency.

        Raises:
            MurmuraError: TARGET_UNREACHABLE if it has no price.
        """
        unit = messages.cap_of(account).unit
        return Amount(await self.compute(accounting.price, mechanism, unit, truncation_e18 / E18), truncation_e18)

    async def compute(self, function: Callable[..., _T], *arguments: Any) -> _T:
        """Call a pure function on a thread, since a composition may take a while; results are kept.

        Raises:
            MurmuraError: TARGET_UNREACHABLE where there is no price.
        """
        key = (function, arguments)
        if key not in self._results:
            try:
                async with self._turn():
                    result = await self._composing(function, *arguments)
            except Unpriceable as problem:
                raise unreachable(problem) from None
            while len(self._results) >= RESULTS_KEPT:
                self._results.pop(next(iter(self._results)))
            self._results[key] = result
        found: _T = self._results[key]
        return found

    def _turn(self) -> AbstractAsyncContextManager[None]:
        """Give each person one composition at a time, so that nobody waits for all that another asks.

        Services ask for many people, and see to the same themselves.
        """
        caller = current_principal()
        return nullcontext() if caller.has("service") else self._turns.of(caller.subject)

    async def _composing(self, function: Callable[..., _T], *arguments: Any) -> _T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, function, *arguments)

    async def submit(self, kind: str, account: str, request: Any, data: dict[str, Any], payer: str = "") -> None:
        """Make a request happen, durably.

        Raises:
            MurmuraError: if it may not happen, or the store did not confirm it.
        """
        caller = current_principal()
        # A service acts for the person that it has authenticated; people act for themselves.
        who = payer if payer and caller.has("service") else caller.subject
        command = Event(kind, account, request.request_id.lower(), body_hash(request), who, data)
        try:
            await self._writer.submit(command)
        except Refusal as refusal:
            # Its figures are epsilons, which may take a composition each.
            cap = self.state.accounts.get(account)
            raise await self._composing(explain, refusal, cap) from None

    async def journal(self, after: int = 0, most: int | None = None) -> list[Entry]:
        """Read entries.

        Raises:
            MurmuraError: UNAVAILABLE if the store does not answer.
        """
        try:
            return list(await asyncio.to_thread(self._store.read, after, most))
        except StoreUnusable:
            raise unavailable() from None

    async def check_witness(self, witness: privacy_pb2.Receipt) -> None:
        """Refuse if this ledger is not the one that gave a receipt, and remember it.

        Raises:
            MurmuraError: LEDGER_BEHIND_WITNESS.
        """
        found = await self.rollback_by(witness)
        if found is not None and current_principal().has("service"):
            # From now on nobody spends, whatever they have seen. Only services are believed: they alone spend.
            facts = {name: value for name, value in vars(found).items() if name != "time"}
            request_id = str(uuid.uuid5(_NAMESPACE, f"{found.epoch}/{found.sequence}/{found.head_hash}"))
            await self._writer.submit(Event("rolled_back", "", request_id, "", current_principal().subject, facts))
        if standing := self.state.rollback or found:
            raise behind(standing)

    async def rollback_by(self, witness: privacy_pb2.Receipt) -> Rollback | None:
        """Return what a receipt says against this ledger, or None."""
        state, head = self.state, self._writer.head
        if witness.sequence == witness.epoch == 0:
            return None
        if not witness.head_hash:
            raise invalid("witness.head_hash", "must be set: send receipts as they came")
        ahead = witness.epoch > state.epoch or witness.sequence > head.sequence
        if witness.epoch <= state.epoch:
            try:
                if await self._writer.hash_at(witness.sequence) == witness.head_hash:
                    return None
            except StoreUnusable:
                raise unavailable() from None
        # A steward has given up what this receipt knew.
        if witness.sequence <= max(state.lost[witness.epoch :], default=0):
            return None
        sequence = head.sequence if ahead else witness.sequence - 1
        before = await self.journal(sequence - 1, 1) if sequence else []
        moment = before[0].event()[1] if before else 0.0
        return Rollback(witness.sequence, witness.head_hash, witness.epoch, sequence, moment, time.time())


def unavailable() -> MurmuraError:
    """Return the refusal of what needs the store while it does not answer."""
    return dependency_unavailable(
        "ledger store", "The ledger's store does not answer. Try again shortly.", retry_after_s=1
    )
