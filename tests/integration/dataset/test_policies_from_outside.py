"""Policies from outside: versions, changes that cross, and a check that says what the services then do."""

from __future__ import annotations

import json
import uuid
from typing import Any

import grpc
import pytest

from murmura.api.dataset.v1 import dataset_pb2
from murmura.api.dataset.v1 import dataset_service_pb2 as pb
from murmura.api.ledger.v1 import ledger_pb2, ledger_service_pb2


@pytest.fixture
def dataset(pair: Any) -> Any:
    salt = uuid.uuid4().hex[:8]
    rows = [{"patient": f"p{unit}", "text": f"{salt} {unit}"} for unit in range(4)]
    request = pair.request("".join(json.dumps(row) + "\n" for row in rows))
    request.policy.analysts.extend(["ana@local", "bob@local"])
    request.policy.unlimited_principals.append("bob@local")
    return pair.register(request)


def update(pair: Any, dataset: Any, base: int, *analysts: str, who: str = "steward@local") -> Any:
    policy = dataset_pb2.Policy()
    policy.CopyFrom(dataset.policy)
    del policy.analysts[:]
    policy.analysts.extend(analysts)
    request = pb.UpdatePolicyRequest(request_id=str(uuid.uuid4()), name=dataset.name, policy=policy, base_version=base)
    return pair.dataset.UpdatePolicy(request, metadata=pair.who("steward", who), timeout=20).dataset


def versions(pair: Any, dataset: Any, **page: Any) -> Any:
    request = pb.ListPolicyVersionsRequest(name=dataset.name, **page)
    return pair.dataset.ListPolicyVersions(request, metadata=pair.who("steward"), timeout=20)


def check(pair: Any, dataset: Any, subject: str, *roles: str) -> dict[str, bool]:
    request = pb.CheckPolicyRequest(name=dataset.name, principal=subject, roles=roles)
    answer = pair.dataset.CheckPolicy(request, metadata=pair.who("steward"), timeout=20)
    names = {value: name.removeprefix("RIGHT_") for name, value in dataset_pb2.Right.items()}
    return {names[item.right]: item.allowed for item in answer.rights}


def test_versions_are_numbered_listed_and_guarded(pair: Any, dataset: Any, refused: Any) -> None:
    assert dataset.policy_version == 1
    assert update(pair, dataset, 1, "ana@local", who="eve@local").policy_version == 2
    answer = refused(lambda: update(pair, dataset, 1, "bob@local"))
    assert (answer.code, answer.reason) == (grpc.StatusCode.ABORTED, "VERSION_CONFLICT")
    assert "eve@local" in answer.message
    first = versions(pair, dataset, page_size=1)
    assert [(item.version, item.author) for item in first.policy_versions] == [(2, "eve@local")]
    rest = versions(pair, dataset, page_size=1, page_token=first.next_page_token)
    assert [(item.version, item.author) for item in rest.policy_versions] == [(1, "steward@local")]
    pair.kill("dataset")
    pair.start("dataset")
    assert [item.version for item in versions(pair, dataset).policy_versions] == [2, 1]
    assert update(pair, dataset, 2).policy_version == 3


def test_a_check_says_what_then_happens(pair: Any, dataset: Any, refused: Any) -> None:
    """Of each right that this pair of services decides: the check, and the attempt of that very person."""
    trainer, read = pair.who("service", "service:trainer"), pb.GetDatasetRequest(name=dataset.name)
    for name, role in (("ana", "analyst"), ("bob", "analyst"), ("eve", "analyst"), ("ops", "operator")):
        subject = f"{name}@local"
        said, who = check(pair, dataset, subject, role), pair.who(role, subject)
        assert said["SEE"] == _succeeds(lambda by=who: pair.dataset.GetDataset(read, metadata=by, timeout=20))
        job = f"trainingJobs/{uuid.uuid4().hex[:16]}"
        reserve = ledger_service_pb2.CreateReservationRequest(
            request_id=str(uuid.uuid4()),
            account=dataset.account,
            job=job,
            kind=ledger_pb2.RESERVATION_KIND_UNLIMITED,
            principal=subject,
        )
        may = _succeeds(lambda sent=reserve: pair.ledger.CreateReservation(sent, metadata=trainer, timeout=20))
        # Who does not see the dataset never comes as far as the ledger.
        if said["SEE"] and role == "analyst":
            assert said["TRAIN_UNLIMITED"] == may
    assert check(pair, dataset, "ana@local")["TRAIN_PRIVATE"]
    grant = ledger_service_pb2.CreateGrantRequest(
        request_id=str(uuid.uuid4()), account=dataset.account, principal="bob@local", epsilon=1.0
    )
    pair.ledger.CreateGrant(grant, metadata=pair.who("steward"), timeout=20)
    assert not check(pair, dataset, "ana@local")["TRAIN_PRIVATE"]
    assert check(pair, dataset, "bob@local")["TRAIN_PRIVATE"]


def test_only_stewards_check_and_watchers_read_versions(pair: Any, dataset: Any, refused: Any) -> None:
    asked = pb.CheckPolicyRequest(name=dataset.name, principal="ana@local")
    listed = pb.ListPolicyVersionsRequest(name=dataset.name)
    for role in ("analyst", "operator", "service"):
        who = pair.who(role)
        call = refused(lambda by=who: pair.dataset.CheckPolicy(asked, metadata=by, timeout=20))
        assert call.reason == "ROLE_DENIED"
    analyst = pair.who("analyst", "ana@local")
    assert (
        refused(lambda: pair.dataset.ListPolicyVersions(listed, metadata=analyst, timeout=20)).reason == "ROLE_DENIED"
    )
    strange = pb.CheckPolicyRequest(name=dataset.name, principal="ana@local", roles=["worker"])
    call = refused(lambda: pair.dataset.CheckPolicy(strange, metadata=pair.who("steward"), timeout=20))
    assert call.reason == "FIELD_RULES"


def _succeeds(call: Any) -> bool:
    try:
        call()
    except grpc.RpcError:
        return False
    return True
