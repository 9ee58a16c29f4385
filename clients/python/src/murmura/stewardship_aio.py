"""A steward's decisions for asyncio: those of `stewardship`, with the same arguments."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from murmura import policy as policies
from murmura.api.dataset.v1 import dataset_pb2
from murmura.api.ledger.v1 import ledger_pb2
from murmura.calls import budgets, datasets
from murmura.stewardship import require_confirmed

if TYPE_CHECKING:
    from murmura.aio_connection import AsyncConnection


class AsyncStewardship:
    """A steward's decisions; `client.steward` has them. What each takes and raises: see `Stewardship`.

    Args:
        connection: of a steward.
    """

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection

    async def apply(self, file: str | Path, dataset: str = "") -> dataset_pb2.Dataset:
        """Give a dataset the policy of a file."""
        found = policies.read(file)
        return await self.update(policies.for_dataset(found, dataset), found.policy, found.version)

    async def update(self, dataset: str, policy: dataset_pb2.Policy, base_version: int = 0) -> dataset_pb2.Dataset:
        """Give a dataset a policy."""
        call = datasets.update_policy(dataset, policy, base_version)
        changed: dataset_pb2.Dataset = (await self._connection.run(call)).dataset
        return changed

    async def history(self, dataset: str) -> list[dataset_pb2.PolicyVersion]:
        """Return every version of a dataset's policy, newest first."""
        return await self._connection.all(datasets.list_policy_versions(dataset), "policy_versions")

    async def check(self, dataset: str, person: str, roles: Sequence[str] = ()) -> list[dataset_pb2.RightCheck]:
        """Return what a person could do with a dataset, and why or why not."""
        return list((await self._connection.run(datasets.check_policy(dataset, person, roles))).rights)

    async def grant(self, dataset: str, person: str, epsilon: float) -> ledger_pb2.Grant:
        """Give someone a share of a budget. From the first share on, who has none may spend nothing."""
        call = budgets.create_grant(await self._account(dataset), person, epsilon)
        given: ledger_pb2.Grant = (await self._connection.run(call)).grant
        return given

    async def propose_cap(self, dataset: str, epsilon: float, why: str) -> ledger_pb2.CapChange:
        """Propose another cap; nothing changes before another steward approves it."""
        call = budgets.propose_cap(await self._account(dataset), epsilon, why)
        proposal: ledger_pb2.CapChange = (await self._connection.run(call)).cap_change
        return proposal

    async def approve_cap(self, proposal: str) -> ledger_pb2.Account:
        """Approve a cap that another steward proposed; returns the account with it."""
        account: ledger_pb2.Account = (await self._connection.run(budgets.approve_cap(proposal))).account
        return account

    async def reservation(self, name: str) -> ledger_pb2.Reservation:
        """Return what was set aside for a job."""
        found: ledger_pb2.Reservation = (await self._connection.run(budgets.get_reservation(name))).reservation
        return found

    async def delete(self, dataset: str, confirm: str) -> None:
        """Erase a dataset: its key is destroyed. Its budget stays as it was spent."""
        require_confirmed(dataset, confirm)
        await self._connection.run(datasets.delete_dataset(dataset))

    async def _account(self, name: str) -> str:
        if name.startswith("accounts/"):
            return name
        return str((await self._connection.run(datasets.get_dataset(name))).dataset.account)
