"""A private dataset, as an analyst sees it: its shape, its budget, and a remote frame over its rows."""

from __future__ import annotations

import html
from typing import TYPE_CHECKING

from murmura.api.dataset.v1 import dataset_pb2
from murmura.api.dataset.v1 import expressions_pb2 as pb
from murmura.counts import extent
from murmura.frame import RemoteFrame

if TYPE_CHECKING:
    from murmura.api.ledger.v1 import ledger_pb2
    from murmura.budget import Budget
    from murmura.client import Client


class RemoteDataset:
    """A dataset that stays where it is.

    Args:
        client: who asks.
        resource: what is public of it.
    """

    def __init__(self, client: Client, resource: dataset_pb2.Dataset) -> None:
        self._client = client
        self.resource = resource

    @property
    def name(self) -> str:
        """`datasets/<id>`."""
        return self.resource.name

    @property
    def account(self) -> ledger_pb2.Account:
        """What the ledger says of its budget, as it stands now."""
        return self._client.account(self.resource.account)

    @property
    def budget(self) -> Budget:
        """Its budget to look at, as it stands now."""
        return self._client.budget(self.resource.account)

    @property
    def epsilon(self) -> float:
        """The greatest target epsilon that one more job could be given."""
        return self.budget.left_epsilon

    @property
    def max_epsilon(self) -> float:
        """The cap."""
        return self.budget.epsilon

    def as_pandas(self) -> RemoteFrame:
        """Return a remote frame: schema and mock rows, never private rows."""
        return RemoteFrame(self._client, pb.Frame(dataset=self.name))

    def __repr__(self) -> str:
        r = self.resource
        return (
            f"<{r.name}: {extent(r.row_count, r.unit_count)} ({r.privacy_unit_column}), "
            f"cap ε = {r.policy.epsilon:g} at δ = {r.policy.delta:g}>"
        )

    def _repr_html_(self) -> str:
        return (
            f"<p><b>{html.escape(self.name)}</b>, "
            f"{extent(self.resource.row_count, self.resource.unit_count)}</p>{self.budget._repr_html_()}"
        )
