"""Policies: what a change of one must satisfy, and what a person could do under one, said before they try.

A policy has versions, and a change says which one it was made from: two stewards who edit at the same time do not undo
each other unseen. What a person could do is found by the very rules that decide when they call (`access`, `rights`) and
from what the ledger says of the account at the moment; a second set of rules for show would one day say something else.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import grpc

from murmura.api.dataset.v1 import dataset_pb2
from murmura.api.dataset.v1 import dataset_service_pb2 as pb
from murmura.api.ledger.v1 import ledger_pb2, ledger_service_pb2
from services.common import rights
from services.common.access import allowed_roles
from services.common.errors import MurmuraError, invalid
from services.common.ledger import Ledger
from services.common.tokens import Principal
from services.dataset.catalogue import may_use
from services.dataset.registry import Registry

# What the ledger was told when the account was opened; nobody tells it otherwise on the side.
KEPT_BY_LEDGER = (
    "epsilon",
    "delta",
    "unlimited_allowed",
    "unlimited_principals",
    "unit_noise_multiplier",
    "unit_sampling_probability",
)
_SEE = "/murmura.api.dataset.v1.DatasetService/GetDataset"
_TRAIN = "/murmura.api.trainer.v1.TrainerService/CreateTrainingJob"
_QUERY = "/murmura.api.dataset.v1.DatasetService/QueryStatistic"
_SAMPLE = "/murmura.api.inference.v1.InferenceService/Generate"
_PAGE = 1000


def next_version(registry: Registry, name: str) -> int:
    """Return the number of the next version of a dataset's policy; a name that was used before counts on."""
    known = registry.policies(name)
    return known[0].version + 1 if known else 1


def change(dataset: dataset_pb2.Dataset, request: pb.UpdatePolicyRequest, registry: Registry) -> None:
    """Give a dataset the policy of a request, as its next version.

    Args:
        dataset: as it stands; holds the new policy afterwards.
        request: the policy, and the version that it was made from.
        registry: what versions there were.

    Raises:
        MurmuraError: VERSION_CONFLICT if another version stands by now; FIELD_RULES if it says other than the ledger.
    """
    newest = registry.policies(dataset.name)[0]
    if request.base_version and request.base_version != newest.version:
        raise MurmuraError(
            grpc.StatusCode.ABORTED,
            "VERSION_CONFLICT",
            f"The policy of {dataset.name} is at version {newest.version}, which {newest.author} made, and this change "
            f"was made from version {request.base_version}. Nothing was changed. Look at what is new with `murmura "
            "policy show`, put your change into it, and apply it again.",
            {
                "resource": dataset.name,
                "base_version": str(request.base_version),
                "version": str(newest.version),
                "author": newest.author,
            },
        )
    for term in KEPT_BY_LEDGER:
        if not _same(getattr(request.policy, term), getattr(dataset.policy, term)):
            raise invalid(
                f"policy.{term}",
                "is kept by the ledger and no policy changes it; a cap is changed there by two stewards, one who "
                "proposes (ProposeCapChange) and another who approves (ApproveCapChange)",
            )
    dataset.policy.CopyFrom(request.policy)
    dataset.policy_version = newest.version + 1


@dataclass(frozen=True)
class Money:
    """What the ledger says of an account.

    Attributes:
        account: the account.
        shares: what was granted, by principal; none: nothing was shared out, and everyone may spend.
    """

    account: ledger_pb2.Account
    shares: dict[str, ledger_pb2.Grant]


async def money(ledger: Ledger, account: str) -> Money:
    """Ask the ledger about an account.

    Raises:
        MurmuraError: if it does not answer.
    """
    found = await ledger.call(ledger.stub.GetAccount, ledger_service_pb2.GetAccountRequest(name=account))
    request = ledger_service_pb2.ListGrantsRequest(account=account, page_size=_PAGE)
    shares: dict[str, ledger_pb2.Grant] = {}
    while True:
        answer = await ledger.call(ledger.stub.ListGrants, request)
        shares |= {grant.principal: grant for grant in answer.grants}
        request.page_token = answer.next_page_token
        if not request.page_token:
            return Money(found.account, shares)


def rights_of(dataset: dataset_pb2.Dataset, found: Money, person: Principal) -> list[dataset_pb2.RightCheck]:
    """Say of each right whether a person has it, and why or why not.

    Args:
        dataset: with its policy.
        found: what the ledger says of its account.
        person: who, with the roles that a token would give.
    """
    return list(_rights(dataset, found, person))


def _rights(dataset: dataset_pb2.Dataset, found: Money, person: Principal) -> Iterator[dataset_pb2.RightCheck]:
    unseen = _role_missing(person, _SEE) or _not_named(dataset, person)
    yield _check(dataset_pb2.RIGHT_SEE, unseen, _why_seen(dataset, person))

    spendable = f"ε = {found.account.left_epsilon:.3g} is left for one more job"
    broke = _cannot_spend(found, person)
    yield _check(dataset_pb2.RIGHT_TRAIN_PRIVATE, _role_missing(person, _TRAIN) or unseen or broke, spendable)

    why = _role_missing(person, _TRAIN) or unseen or _no_unlimited(found.account, person)
    yield _check(dataset_pb2.RIGHT_TRAIN_UNLIMITED, why, "the account allows jobs without privacy to them")

    why = _role_missing(person, _QUERY) or unseen or broke
    yield _check(dataset_pb2.RIGHT_STATISTICS, why, spendable)

    every = rights.owns(person.subject, person.roles, owner="")
    granted = "every one, as a steward" if every else "those that they trained, and those whose own policy names them"
    yield _check(dataset_pb2.RIGHT_USE_ADAPTERS, _role_missing(person, _SAMPLE), granted)


def _check(right: Any, against: str, granted: str) -> dataset_pb2.RightCheck:
    return dataset_pb2.RightCheck(right=right, allowed=not against, reason=against or granted)


def _role_missing(person: Principal, method: str) -> str:
    takes = allowed_roles(method)
    if person.roles & takes:
        return ""
    return f"their token would need one of the roles {', '.join(sorted(takes & {'analyst', 'steward', 'operator'}))}"


def _not_named(dataset: dataset_pb2.Dataset, person: Principal) -> str:
    if may_use(dataset, person):
        return ""
    return "`analysts` names others; for them the dataset does not exist. Add them there"


def _why_seen(dataset: dataset_pb2.Dataset, person: Principal) -> str:
    if person.subject in dataset.policy.analysts:
        return "`analysts` names them"
    return "by their role" if dataset.policy.analysts else "`analysts` is empty, so any analyst may"


def _cannot_spend(found: Money, person: Principal) -> str:
    if found.account.left_epsilon <= 0:
        return "the budget is spent. Two stewards can raise the cap"
    if not found.shares:
        return ""
    share = found.shares.get(person.subject)
    if share is None:
        return "the budget is shared out and they have no share. A steward grants one"
    if share.charged.units >= share.share.units:
        return "their share of the budget is spent. A steward grants more"
    return ""


def _no_unlimited(account: ledger_pb2.Account, person: Principal) -> str:
    if rights.may_train_unlimited(account.unlimited_allowed, account.unlimited_principals, person.subject):
        return ""
    if not account.unlimited_allowed:
        return "the account does not allow jobs without privacy, and this cannot change"
    return "`unlimited_principals` names others, and this cannot change"


def _same(one: Any, other: Any) -> bool:
    return bool(one == other if isinstance(one, bool | float) else sorted(one) == sorted(other))
