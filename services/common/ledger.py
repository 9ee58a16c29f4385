"""How a service speaks to the ledger: it shows the newest receipt that it has seen, and keeps the newest that it gets.

A ledger that was restored from an older backup lacks the receipt's entry; so long as anyone remembers one, a budget
cannot be refilled in secret.
"""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path
from typing import Any

from murmura.api.common.v1 import privacy_pb2
from murmura.api.ledger.v1 import ledger_service_pb2_grpc
from services.common.upstream import Upstream


class Witness:
    """The newest receipt that a service has seen, in a file.

    Args:
        path: made at the first receipt.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.receipt = privacy_pb2.Receipt()
        if path.exists():
            facts = json.loads(path.read_text())
            self.receipt = privacy_pb2.Receipt(
                sequence=facts["sequence"], head_hash=facts["head_hash"], epoch=facts["epoch"]
            )

    def saw(self, receipt: privacy_pb2.Receipt) -> None:
        """Keep a receipt if it is the newest; on disk when this returns."""
        if (receipt.epoch, receipt.sequence) <= (self.receipt.epoch, self.receipt.sequence):
            return
        facts = {"sequence": receipt.sequence, "head_hash": receipt.head_hash, "epoch": receipt.epoch}
        fresh = self._path.with_suffix(".new")
        with fresh.open("w") as file:
            json.dump(facts, file)
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(self._path)
        self.receipt = receipt


class Ledger:
    """The ledger as another service calls it.

    Args:
        upstream: the way there.
        witness: what this service has seen of it.
    """

    def __init__(self, upstream: Upstream, witness: Witness) -> None:
        self.stub = ledger_service_pb2_grpc.LedgerServiceStub(upstream.channel)
        self._upstream = upstream
        self._witness = witness
        self._one_file = asyncio.Lock()

    async def call(self, method: Any, request: Any, timeout_s: float = 20.0) -> Any:
        """Make a call; see `Upstream.call`. A request that has room for a witness carries it.

        Raises:
            MurmuraError: the ledger's refusal, or DEPENDENCY_UNAVAILABLE.
        """
        if "witness" in request.DESCRIPTOR.fields_by_name:
            request.witness.CopyFrom(self._witness.receipt)
        answer = await self._upstream.call(method, request, timeout_s)
        async with self._one_file:
            await asyncio.to_thread(self._witness.saw, answer.receipt)
        return answer
