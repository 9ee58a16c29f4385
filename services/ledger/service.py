"""The ledger's gRPC face: requests become commands, answers come from what is durable."""

from __future__ import annotations

from murmura.api.ledger.v1 import ledger_service_pb2_grpc
from services.ledger.accounts import Accounts
from services.ledger.audit import Audit
from services.ledger.spending import Spending


class LedgerService(Accounts, Spending, Audit, ledger_service_pb2_grpc.LedgerServiceServicer):
    """Keeps what a dataset may ever give away; see the contract for each call.

    Args:
        writer: the only way to change the ledger.
        store: where the journal lies, for reading it.
    """
