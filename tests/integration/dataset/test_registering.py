"""Registering and deleting from outside: who may, what it opens, and what a broken source says."""

from __future__ import annotations

import uuid
from typing import Any

import grpc
import pytest

from murmura.api.dataset.v1 import dataset_pb2, expressions_pb2
from murmura.api.dataset.v1 import dataset_service_pb2 as pb
from murmura.api.ledger.v1 import ledger_service_pb2
from services.common.access import listed
from tests.support.notes import SECRETS, frame_of, notes


def test_registering_streams_progress_and_opens_the_account(pair: Any) -> None:
    request = pair.request(notes(units=700, rows=2))
    answers = list(pair.dataset.RegisterDataset(request, metadata=pair.who("steward"), timeout=60))
    assert [answer.rows_read for answer in answers] == [1000, 1400]
    dataset = answers[-1].dataset
    assert (dataset.row_count, dataset.unit_count, dataset.owner) == (1400, 700, "steward@local")
    assert dataset.account == f"accounts/{dataset.lineage}"
    account = pair.ledger.GetAccount(
        ledger_service_pb2.GetAccountRequest(name=dataset.account), metadata=pair.who("analyst"), timeout=20
    ).account
    assert account.name == dataset.account
    read = pair.dataset.GetDataset(pb.GetDatasetRequest(name=dataset.name), metadata=pair.who("analyst"), timeout=20)
    assert read.dataset == dataset


def test_the_same_request_gives_the_first_answer_whatever_came_after(pair: Any, refused: Any) -> None:
    request = pair.request(notes())
    first = pair.register(request)
    update = pb.UpdatePolicyRequest(request_id=str(uuid.uuid4()), name=first.name, policy=first.policy)
    update.policy.analysts.append("bob@local")
    changed = pair.dataset.UpdatePolicy(update, metadata=pair.who("steward"), timeout=20)
    assert list(changed.dataset.policy.analysts) == ["bob@local"]
    assert pair.register(request) == first
    delete = pb.DeleteDatasetRequest(request_id=str(uuid.uuid4()), name=first.name)
    for _ in range(2):
        pair.dataset.DeleteDataset(delete, metadata=pair.who("steward"), timeout=20)
    assert pair.register(request) == first
    assert pair.dataset.UpdatePolicy(update, metadata=pair.who("steward"), timeout=20) == changed
    request.display_name = "other"
    assert refused(lambda: pair.register(request)).reason == "REQUEST_ID_REUSED"
    delete.name = "datasets/other"
    answer = refused(lambda: pair.dataset.DeleteDataset(delete, metadata=pair.who("steward"), timeout=20))
    assert (answer.code, answer.reason) == (grpc.StatusCode.ALREADY_EXISTS, "REQUEST_ID_REUSED")


def test_the_same_content_has_one_account_under_any_name(pair: Any, refused: Any) -> None:
    content = notes()
    first = pair.register(pair.request(content))
    lines = content.splitlines(keepends=True)
    again = pair.register(pair.request("".join(reversed(lines))), "other-steward@local")
    assert (again.name != first.name, again.account) == (True, first.account)
    part = "".join(lines[:4])
    derived = pair.register(pair.request(part, derived_from=first.name))
    assert derived.account == first.account
    # What was once derived does not become independent by saying so no more, not even when it is gone.
    pair.dataset.DeleteDataset(
        pb.DeleteDatasetRequest(request_id=str(uuid.uuid4()), name=derived.name),
        metadata=pair.who("steward"),
        timeout=20,
    )
    assert pair.register(pair.request(part)).account == first.account
    other = pair.register(pair.request(notes()))
    assert other.account != first.account
    answer = refused(lambda: pair.register(pair.request(content, derived_from=other.name)))
    assert answer.reason == "POLICY_DENIED"
    wider = pair.request(content)
    wider.policy.epsilon = 30
    assert refused(lambda: pair.register(wider)).reason == "RESOURCE_EXISTS"


def test_a_source_must_be_named(pair: Any, refused: Any) -> None:
    request = pair.request(notes())
    request.source.ClearField("file")
    assert refused(lambda: pair.register(request)).reason == "FIELD_RULES"


def test_the_caps_are_the_ledger_s(pair: Any, refused: Any) -> None:
    dataset = pair.register(pair.request(notes()))
    for change in ({"epsilon": 9.0}, {"unlimited_allowed": False}, {"unlimited_principals": ["eve@local"]}):
        policy = dataset_pb2.Policy()
        policy.CopyFrom(dataset.policy)
        policy.MergeFrom(dataset_pb2.Policy(**change))
        if "unlimited_allowed" in change:
            policy.unlimited_allowed = False
        request = pb.UpdatePolicyRequest(request_id=str(uuid.uuid4()), name=dataset.name, policy=policy)
        call = refused(lambda sent=request: pair.dataset.UpdatePolicy(sent, metadata=pair.who("steward"), timeout=20))
        assert call.reason == "FIELD_RULES"


def test_a_currency_may_name_its_noise_alone(pair: Any) -> None:
    request = pair.request(notes())
    request.policy.unit_noise_multiplier = 500
    account = ledger_service_pb2.GetAccountRequest(name=pair.register(request).account)
    unit = pair.ledger.GetAccount(account, metadata=pair.who("analyst"), timeout=20).account.unit
    assert (unit.noise_multiplier, unit.sampling_probability) == (500, 1)


def test_public_values_must_fit_their_column(pair: Any, refused: Any) -> None:
    kind = expressions_pb2.VALUE_TYPE_INTEGER
    columns = [dataset_pb2.Column(name="age", type=kind, public_values=["forty"])]
    assert refused(lambda: pair.register(pair.request(notes(), columns=columns))).reason == "FIELD_RULES"


def test_foreign_datasets_do_not_exist_for_others(pair: Any, refused: Any) -> None:
    request = pair.request(notes())
    request.policy.analysts.append("bob@local")
    dataset = pair.register(request)

    def names(subject: str) -> set[str]:
        answer = pair.dataset.ListDatasets(
            pb.ListDatasetsRequest(page_size=1000), metadata=pair.who("analyst", subject), timeout=20
        )
        return {found.name for found in answer.datasets}

    assert dataset.name in names("bob@local")
    assert dataset.name not in names("eve@local")
    eve = pair.who("analyst", "eve@local")
    said = []
    for name in (dataset.name, "datasets/nothing-of-the-kind"):
        read = pb.GetDatasetRequest(name=name)
        describe = pb.DescribeFrameRequest(frame=expressions_pb2.Frame(dataset=name))
        one = refused(lambda sent=read: pair.dataset.GetDataset(sent, metadata=eve, timeout=20))
        two = refused(lambda sent=describe: pair.dataset.DescribeFrame(sent, metadata=eve, timeout=20))
        assert (one.code, one.message) == (two.code, two.message)
        said.append((one.code, one.reason, one.message.replace(name, "")))
    assert said[0] == said[1]


def test_only_stewards_write(pair: Any, refused: Any) -> None:
    for role in ("analyst", "operator", "service"):
        request = pair.request(notes())
        answer = refused(
            lambda sent=request, who=role: list(pair.dataset.RegisterDataset(sent, metadata=pair.who(who), timeout=20))
        )
        assert answer.reason == "ROLE_DENIED"
    assert "/murmura.api.dataset.v1.DatasetService/ReadRows" in listed()


def test_a_deleted_dataset_is_gone(pair: Any, refused: Any) -> None:
    dataset = pair.register(pair.request(notes()))
    frame = frame_of(dataset)
    token = pair.worker(**pair.claims(frame, pair.reserve(dataset)))
    before = set((pair.state("dataset") / "rows").iterdir())
    delete = pb.DeleteDatasetRequest(request_id=str(uuid.uuid4()), name=dataset.name)
    pair.dataset.DeleteDataset(delete, metadata=pair.who("steward"), timeout=20)
    assert len(before - set((pair.state("dataset") / "rows").iterdir())) == 2
    assert refused(lambda: pair.read(frame, token)).reason == "RESOURCE_NOT_FOUND"


@pytest.mark.parametrize(
    ("ending", "content", "line"),
    [
        ("jsonl", '{"patient": "Quillfeather", "text": "x"}\n{"patient": Brambleworth}\n', "2"),
        ("jsonl", '{"patient": "Quillfeather", "n": 1}\n{"patient": "Thistlewood", "n": "Brambleworth"}\n', "2"),
        ("csv", "patient,text\nQuillfeather,x\nBrambleworth,y,Thistlewood\n", "3"),
        ("csv", "Quillfeather,Brambleworth\nThistlewood,x\n", "0"),
        ("parquet", "PAR1 Quillfeather PAR1", "0"),
    ],
)
def test_a_broken_source_is_named_by_line_only(pair: Any, refused: Any, ending: str, content: str, line: str) -> None:
    request = pair.request(content, ending)
    answer = refused(lambda: pair.register(request))
    assert (answer.code, answer.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "SOURCE_UNREADABLE")
    assert answer.metadata["line"] == line
    seen = [answer.everything]
    for role in ("analyst", "operator", "service"):
        seen.append(
            refused(
                lambda who=role: list(pair.dataset.RegisterDataset(request, metadata=pair.who(who), timeout=20))
            ).everything
        )
    for everything in seen:
        assert not any(secret.encode() in everything for secret in SECRETS)
    assert all(b"line" not in everything for everything in seen[1:])
    assert not any(secret in pair.log("dataset") for secret in SECRETS)
