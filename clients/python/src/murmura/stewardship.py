"""What a steward decides after a dataset is registered: its policy, shares of its budget, its cap, its end."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from murmura import policy as policies
from murmura.api.dataset.v1 import dataset_pb2
from murmura.api.ledger.v1 import ledger_pb2
from murmura.calls import budgets, datasets
from murmura.errors import InvalidInput

if TYPE_CHECKING:
    from murmura.client import Client


class Stewardship:
    """A steward's decisions; `client.steward` has them.

    Args:
        client: who decides; a steward.
    """

    def __init__(self, client: Client) -> None:
        self._client = client

    def apply(self, file: str | Path, dataset: str = "") -> dataset_pb2.Dataset:
        """Give a dataset the policy of a file.

        Args:
            file: YAML; see `murmura policy schema`.
            dataset: its name, where the file does not say it.

        Returns:
            The dataset with its new policy.

        Raises:
            InvalidInput: with everything that is wrong with the file.
            murmura.errors.Conflict: if the policy is at another version than the file was made from.
        """
        found = policies.read(file)
        return self.update(policies.for_dataset(found, dataset), found.policy, found.version)

    def update(self, dataset: str, policy: dataset_pb2.Policy, base_version: int = 0) -> dataset_pb2.Dataset:
        """Give a dataset a policy.

        Args:
            dataset: its name.
            policy: all of it.
            base_version: the version that it was made from: refused where another stands by now. 0 takes any.
        """
        changed: dataset_pb2.Dataset = self._client.run(datasets.update_policy(dataset, policy, base_version)).dataset
        return changed

    def history(self, dataset: str) -> list[dataset_pb2.PolicyVersion]:
        """Return every version of a dataset's policy, newest first."""
        return self._client.all(datasets.list_policy_versions(dataset), "policy_versions")

    def check(self, dataset: str, person: str, roles: Sequence[str] = ()) -> list[dataset_pb2.RightCheck]:
        """Return what a person could do with a dataset, and why or why not, as the services themselves decide it.

        Args:
            dataset: its name.
            person: as their token names them.
            roles: what their token would give them; none: analyst.
        """
        return list(self._client.run(datasets.check_policy(dataset, person, roles)).rights)

    def grant(self, dataset: str, person: str, epsilon: float) -> ledger_pb2.Grant:
        """Give someone a share of a budget. From the first share on, who has none may spend nothing.

        Args:
            dataset: its name.
            person: as their token names them.
            epsilon: what the share alone may reach at the budget's delta.
        """
        account = self._client.account(dataset).name
        given: ledger_pb2.Grant = self._client.run(budgets.create_grant(account, person, epsilon)).grant
        return given

    def propose_cap(self, dataset: str, epsilon: float, why: str) -> ledger_pb2.CapChange:
        """Propose another cap; nothing changes before another steward approves it.

        Args:
            dataset: its name.
            epsilon: the new cap, at the budget's delta.
            why: for those who read the journal.

        Returns:
            The proposal, with the name to approve it by.
        """
        account = self._client.account(dataset).name
        proposal: ledger_pb2.CapChange = self._client.run(budgets.propose_cap(account, epsilon, why)).cap_change
        return proposal

    def approve_cap(self, proposal: str) -> ledger_pb2.Account:
        """Approve a cap that another steward proposed; returns the account with it."""
        account: ledger_pb2.Account = self._client.run(budgets.approve_cap(proposal)).account
        return account

    def reservation(self, name: str) -> ledger_pb2.Reservation:
        """Return what was set aside for a job: `accounts/…/reservations/…`, as `murmura budget history` lists it."""
        found: ledger_pb2.Reservation = self._client.run(budgets.get_reservation(name)).reservation
        return found

    def delete(self, dataset: str, confirm: str) -> None:
        """Erase a dataset: its key is destroyed, and nobody reads its rows again. Its budget stays as it was spent.

        Args:
            dataset: its name.
            confirm: its name again.

        Raises:
            InvalidInput: if the two differ.
        """
        require_confirmed(dataset, confirm)
        self._client.run(datasets.delete_dataset(dataset))


def require_confirmed(dataset: str, confirm: str) -> None:
    """Refuse to erase what is not named twice.

    Raises:
        InvalidInput: nothing was erased.
    """
    if dataset != confirm:
        raise InvalidInput(f"Nothing was erased: write the name twice, delete({dataset!r}, confirm={dataset!r}).")
