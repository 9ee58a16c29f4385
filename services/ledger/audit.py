"""The journal for readers, and what happens when it turns out to be an old one."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc

from murmura.api.ledger.v1 import ledger_pb2
from murmura.api.ledger.v1 import ledger_service_pb2 as pb
from services.common.auth import current_principal
from services.common.errors import MurmuraError, invalid
from services.common.pages import DEFAULT_SIZE, start_of, token_for
from services.ledger import messages
from services.ledger.core import Core
from services.ledger.journal import Entry, Head, JournalBroken, replay
from services.ledger.ledger import decide
from services.ledger.refusals import explain
from services.ledger.state import Event, Refusal, State

ENTRIES_IN_ONE_READ = 1000


class Audit(Core):
    """The part of the ledger's face that shows and checks the journal."""

    async def ListEntries(self, request: pb.ListEntriesRequest, context: Any) -> pb.ListEntriesResponse:
        """Read the journal."""
        if request.account:
            self.account(request.account)
        elif not current_principal().has("steward", "operator", "service"):
            raise invalid("account", "must be set: only stewards read all accounts' entries")
        after, most = max(request.after_sequence, start_of(request.page_token)), request.page_size or DEFAULT_SIZE
        found: list[ledger_pb2.Entry] = []
        while len(found) <= most and (entries := await self.journal(after, ENTRIES_IN_ONE_READ)):
            after = entries[-1].sequence
            found += filter(None, (_shown(entry, request.account) for entry in entries))
        token = token_for(found[most - 1].sequence) if len(found) > most else ""
        return pb.ListEntriesResponse(entries=found[:most], next_page_token=token, receipt=self.receipt())

    async def VerifyJournal(self, request: pb.VerifyJournalRequest, context: Any) -> pb.VerifyJournalResponse:
        """Check the hash chain, that the state is its fold, and a witness's place on it."""
        state, head = self._writer.copy()
        try:
            folded = await asyncio.to_thread(self._fold, head)
        except JournalBroken as broken:
            raise _broken(broken.sequence) from None
        if folded != (state, head):
            raise _broken(head.sequence)
        if await self.rollback_by(request.witness) and not self.state.rollback:
            await self.check_witness(request.witness)
        answer = pb.VerifyJournalResponse(entries=head.sequence, receipt=messages.receipt(head, state.epoch))
        if self.state.rollback:
            answer.rollback.CopyFrom(messages.rollback_message(self.state.rollback))
        return answer

    async def ResolveWitness(self, request: pb.ResolveWitnessRequest, context: Any) -> pb.ResolveWitnessResponse:
        """Give lost entries up, charge what they had spent, and let the ledger spend again."""
        data = {
            "sequence": request.known.sequence,
            "head_hash": request.known.head_hash,
            "epoch": request.known.epoch,
            "justification": request.justification,
            "charges": {item.account: [item.price.units, item.price.truncation_delta_e18] for item in request.charges},
        }
        if request.validate_only:
            command = Event("resolve_rollback", "", "", "", "", data)
            try:
                event = decide(self.state, command)
            except Refusal as refusal:
                raise explain(refusal) from None
        else:
            await self.submit("resolve_rollback", "", request, data)
            event = await self._event_of(request.request_id.lower())
        charges = messages.charge_messages(event.data["charges"] if event else {})
        return pb.ResolveWitnessResponse(receipt=self.receipt(), charges=charges)

    def _fold(self, head: Head) -> tuple[State, Head]:
        """Fold the journal from its first entry up to a head."""

        def pages() -> Any:
            after = 0
            while after < head.sequence:
                entries = list(self._store.read(after, min(ENTRIES_IN_ONE_READ, head.sequence - after)))
                if not entries:
                    raise JournalBroken(after + 1)
                yield from entries
                after += len(entries)

        return replay(pages())

    async def _event_of(self, request_id: str) -> Event | None:
        """Return what a request led to; it is recent."""
        after = self._writer.head.sequence
        while after > 0:
            after = max(0, after - ENTRIES_IN_ONE_READ)
            for entry in reversed(await self.journal(after, ENTRIES_IN_ONE_READ)):
                event, _ = entry.event()
                if event.request_id == request_id:
                    return event
        return None


def _shown(entry: Entry, account: str) -> ledger_pb2.Entry | None:
    """Return an entry as readers of one account may see it, or of all where none is named."""
    message = messages.entry_message(entry)
    if account and not message.account:
        # Of the whole ledger: that it happened is theirs to know, other accounts' amounts are not.
        message.payload = ""
        return message
    return message if account in ("", message.account) else None


def _broken(sequence: int) -> MurmuraError:
    return MurmuraError(
        grpc.StatusCode.DATA_LOSS,
        "JOURNAL_BROKEN",
        f"Journal entry {sequence} does not follow from the ones before. Stop spending and restore the journal.",
        {"sequence": str(sequence)},
    )
