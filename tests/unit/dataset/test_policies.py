"""What a change of a policy must satisfy, and what a person could do under one, rule by rule."""

from __future__ import annotations

import uuid
import zlib
from pathlib import Path

import grpc
import numpy as np
import pytest

from murmura.api.dataset.v1 import dataset_pb2
from murmura.api.dataset.v1 import dataset_service_pb2 as pb
from murmura.api.ledger.v1 import ledger_pb2
from services.common.errors import MurmuraError
from services.common.tokens import Principal
from services.dataset import policies
from services.dataset.policies import Money
from services.dataset.registry import Registry

SEE, PRIVATE, UNLIMITED, STATISTICS, ADAPTERS = (
    dataset_pb2.RIGHT_SEE,
    dataset_pb2.RIGHT_TRAIN_PRIVATE,
    dataset_pb2.RIGHT_TRAIN_UNLIMITED,
    dataset_pb2.RIGHT_STATISTICS,
    dataset_pb2.RIGHT_USE_ADAPTERS,
)


def dataset(**policy: object) -> dataset_pb2.Dataset:
    made = dataset_pb2.Dataset(name="datasets/d", account="accounts/d", owner="sam@local", policy_version=1)
    made.policy.CopyFrom(dataset_pb2.Policy(epsilon=8, delta=1e-5, **policy))  # type: ignore[arg-type]
    made.create_time.GetCurrentTime()
    return made


def money(left: float = 8.0, shares: dict[str, tuple[int, int]] | None = None, **account: object) -> Money:
    grants = {}
    for principal, (share, charged) in (shares or {}).items():
        grants[principal] = ledger_pb2.Grant(principal=principal)
        grants[principal].share.units, grants[principal].charged.units = share, charged
    return Money(ledger_pb2.Account(left_epsilon=left, **account), grants)  # type: ignore[arg-type]


def rights(made: dataset_pb2.Dataset, found: Money, subject: str = "ana@local", *roles: str) -> set[int]:
    person = Principal(subject, frozenset(roles or ("analyst",)))
    checks = policies.rights_of(made, found, person)
    assert [check.right for check in checks] == [SEE, PRIVATE, UNLIMITED, STATISTICS, ADAPTERS]
    assert all(check.reason for check in checks)
    return {check.right for check in checks if check.allowed}


def test_an_open_dataset_is_for_any_analyst() -> None:
    assert rights(dataset(), money(unlimited_allowed=True)) == {SEE, PRIVATE, UNLIMITED, STATISTICS, ADAPTERS}
    assert rights(dataset(), money()) == {SEE, PRIVATE, STATISTICS, ADAPTERS}


def test_a_closed_one_is_for_those_whom_it_names_and_for_stewards() -> None:
    closed = dataset(analysts=["bob@local"])
    assert rights(closed, money(unlimited_allowed=True)) == {ADAPTERS}
    assert rights(closed, money(), "bob@local") == {SEE, PRIVATE, STATISTICS, ADAPTERS}
    assert rights(closed, money(), "eve@local", "steward") == {SEE, PRIVATE, STATISTICS, ADAPTERS}


def test_an_operator_sees_and_trains_nothing() -> None:
    assert rights(dataset(), money(unlimited_allowed=True), "ops@local", "operator") == {SEE}


def test_unlimited_jobs_are_for_those_whom_the_account_names_whatever_their_role() -> None:
    found = money(unlimited_allowed=True, unlimited_principals=["bob@local"])
    assert UNLIMITED not in rights(dataset(), found)
    assert UNLIMITED not in rights(dataset(), found, "ana@local", "steward")
    assert UNLIMITED in rights(dataset(), found, "bob@local")


def test_who_cannot_pay_cannot_train_nor_ask() -> None:
    for found in (money(left=0.0), money(shares={"bob@local": (9, 0)}), money(shares={"ana@local": (9, 9)})):
        assert rights(dataset(), found) == {SEE, ADAPTERS}
    assert PRIVATE in rights(dataset(), money(shares={"ana@local": (9, 8)}))


# ---------------------------------------------------------------- changing one


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    made = Registry(tmp_path / "registry.sqlite3")
    made.add(dataset(), "storage", zlib.compress(np.array([0, 1], dtype="<i8").tobytes()), "f", ("r1", "body", b""))
    return made


def changed(registry: Registry, author: str, base: int, **policy: object) -> dataset_pb2.Dataset:
    found = registry.get("datasets/d")
    assert found is not None
    request = pb.UpdatePolicyRequest(name="datasets/d", base_version=base)
    request.policy.CopyFrom(dataset_pb2.Policy(**{"epsilon": 8.0, "delta": 1e-5} | policy))  # type: ignore[arg-type]
    policies.change(found[0], request, registry)
    registry.update(found[0], author, (str(uuid.uuid4()), "body", b""))
    return found[0]


def test_every_version_is_kept_with_who_and_when(registry: Registry) -> None:
    assert changed(registry, "eve@local", 1, analysts=["ana@local"]).policy_version == 2
    assert changed(registry, "sam@local", 0, analysts=[]).policy_version == 3
    versions = registry.policies("datasets/d")
    assert [(item.version, item.author, list(item.policy.analysts)) for item in versions] == [
        (3, "sam@local", []),
        (2, "eve@local", ["ana@local"]),
        (1, "sam@local", []),
    ]
    times = [item.create_time.ToNanoseconds() for item in versions]
    assert times == sorted(times, reverse=True) and times[-1] > 0


def test_a_change_of_what_is_no_longer_there_is_refused(registry: Registry) -> None:
    changed(registry, "eve@local", 1, analysts=["ana@local"])
    with pytest.raises(MurmuraError) as refusal:
        changed(registry, "sam@local", 1, analysts=["bob@local"])
    assert (refusal.value.code, refusal.value.reason) == (grpc.StatusCode.ABORTED, "VERSION_CONFLICT")
    assert refusal.value.metadata["author"] == "eve@local" and "version 2" in refusal.value.message
    assert [item.version for item in registry.policies("datasets/d")] == [2, 1]


@pytest.mark.parametrize("term", policies.KEPT_BY_LEDGER)
def test_what_the_ledger_keeps_stays(registry: Registry, term: str) -> None:
    other = {"unlimited_allowed": True, "unlimited_principals": ["eve@local"]}.get(term, 0.5)
    with pytest.raises(MurmuraError) as refusal:
        changed(registry, "sam@local", 1, **{term: other})
    assert list(refusal.value.violations) == [f"policy.{term}"]
    assert "two stewards" in refusal.value.violations[f"policy.{term}"]


def test_versions_outlive_their_dataset_and_count_on(registry: Registry) -> None:
    registry.delete("datasets/d", ("r9", "body", b""))
    assert [item.version for item in registry.policies("datasets/d")] == [1]
    assert policies.next_version(registry, "datasets/d") == 2
    assert policies.next_version(registry, "datasets/new") == 1
