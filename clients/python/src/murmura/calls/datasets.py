"""What is asked about datasets, their policies and their budgets."""

from __future__ import annotations

import uuid
from collections.abc import Sequence

from murmura.api.dataset.v1 import dataset_pb2
from murmura.api.dataset.v1 import dataset_service_pb2 as messages
from murmura.calls import PAGE_SIZE, Call, qualified
from murmura.errors import exhausted

STATISTIC_S = 120.0


def get_dataset(name: str) -> Call:
    """Read a dataset."""
    return Call("dataset", "GetDataset", messages.GetDatasetRequest(name=qualified("datasets", name)))


def list_datasets() -> Call:
    """List datasets."""
    return Call("dataset", "ListDatasets", messages.ListDatasetsRequest(page_size=PAGE_SIZE))


def delete_dataset(name: str) -> Call:
    """Erase a dataset."""
    request = messages.DeleteDatasetRequest(request_id=str(uuid.uuid4()), name=qualified("datasets", name))
    return Call("dataset", "DeleteDataset", request)


def update_policy(name: str, policy: dataset_pb2.Policy, base_version: int) -> Call:
    """Change a policy."""
    request = messages.UpdatePolicyRequest(
        request_id=str(uuid.uuid4()), name=qualified("datasets", name), policy=policy, base_version=base_version
    )
    return Call("dataset", "UpdatePolicy", request)


def list_policy_versions(name: str) -> Call:
    """List a policy's versions."""
    request = messages.ListPolicyVersionsRequest(name=qualified("datasets", name), page_size=PAGE_SIZE)
    return Call("dataset", "ListPolicyVersions", request)


def check_policy(name: str, principal: str, roles: Sequence[str]) -> Call:
    """Ask what a person could do."""
    request = messages.CheckPolicyRequest(name=qualified("datasets", name), principal=principal, roles=roles)
    return Call("dataset", "CheckPolicy", request)


def query_statistic(request: messages.QueryStatisticRequest, *, validate_only: bool) -> Call:
    """Ask for a statistic, which spends; or plan it, which does not."""
    sent = messages.QueryStatisticRequest()
    sent.CopyFrom(request)
    sent.validate_only = validate_only
    return Call("dataset", "QueryStatistic", sent, timeout_s=STATISTIC_S)


def require_affordable(planned: messages.QueryStatisticResponse, request: messages.QueryStatisticRequest) -> None:
    """Refuse a statistic that the budget does not cover, before it is asked for.

    Raises:
        BudgetExhausted: nothing was spent.
    """
    if not planned.plan.paid and not planned.plan.affordable:
        asked, left = f"{request.target_epsilon:g}", planned.plan.left_epsilon
        raise exhausted(asked, "", left, request.frame.dataset, planned.statement.account)
