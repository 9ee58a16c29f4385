"""The dataset service from outside: registering, describing, and the one edge on which rows leave."""

from __future__ import annotations

import json
import uuid
from typing import Any

import grpc
import pytest

from murmura.api.dataset.v1 import dataset_pb2, expressions_pb2
from murmura.api.dataset.v1 import dataset_service_pb2 as pb
from murmura.api.ledger.v1 import ledger_service_pb2
from services.common.access import listed
from services.common.requests import frame_digest
from tests.support.sent import rows_in

SECRETS = ("Quillfeather", "Brambleworth", "Thistlewood")


def notes(salt: str = "", units: int = 6, rows: int = 2) -> str:
    """Rows of a few patients; a salt makes the content, and with it the account, a new one."""
    salt = salt or uuid.uuid4().hex[:8]
    return "".join(
        json.dumps({"patient": f"{SECRETS[0]} {unit}", "text": f"{SECRETS[1]} {salt} | {SECRETS[2]} {unit}.{row}"})
        + "\n"
        for unit in range(units)
        for row in range(rows)
    )


def split(index: int, by: str = " | ", column: str = "text") -> expressions_pb2.Operation:
    """text = text.split(by)[index]"""
    pbx = expressions_pb2
    arguments = [pbx.Expression(column="text"), pbx.Expression(literal=pbx.Literal(string_value=by))]
    items = pbx.Expression(call=pbx.Call(function=pbx.FUNCTION_STRING_SPLIT, arguments=arguments))
    number = pbx.Expression(literal=pbx.Literal(integer_value=index))
    item = pbx.Expression(call=pbx.Call(function=pbx.FUNCTION_LIST_GET, arguments=[items, number]))
    return pbx.Operation(assign=pbx.Assign(column=column, expression=item))


def cut(start: int | None = None, stop: int | None = None) -> expressions_pb2.Operation:
    return expressions_pb2.Operation(slice=expressions_pb2.Slice(start=start, stop=stop))


def frame_of(dataset: Any, *operations: expressions_pb2.Operation) -> expressions_pb2.Frame:
    return expressions_pb2.Frame(dataset=dataset.name, operations=operations)


# ---------------------------------------------------------------- registering


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


# ---------------------------------------------------------------- who may know


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


# ---------------------------------------------------------------- describing


def describe(pair: Any, frame: expressions_pb2.Frame) -> Any:
    return pair.dataset.DescribeFrame(pb.DescribeFrameRequest(frame=frame), metadata=pair.who("analyst"), timeout=20)


def test_a_frame_is_described_from_public_facts(pair: Any) -> None:
    dataset = pair.register(pair.request(notes()))
    answer = describe(pair, frame_of(dataset, cut(1, 4), split(1, column="name")))
    assert (answer.row_count, answer.unit_count) == (3, 2)
    assert [column.name for column in answer.schema.columns] == ["patient", "text", "name"]
    assert len(answer.mock_rows) == 5
    assert not any(secret.encode() in answer.SerializeToString() for secret in SECRETS)


def test_datasets_that_differ_in_a_failing_row_are_described_alike(pair: Any) -> None:
    salt = uuid.uuid4().hex[:8]
    sound = notes(salt)
    lines = sound.splitlines(keepends=True)
    lines[3] = json.dumps({"patient": f"{SECRETS[0]} 1", "text": "no bar at all"}) + "\n"
    answers = []
    for content in (sound, "".join(lines)):
        dataset = pair.register(pair.request(content))
        answers.append(describe(pair, frame_of(dataset, cut(0, 8), split(1))).SerializeToString(deterministic=True))
    assert answers[0] == answers[1]


@pytest.mark.parametrize(
    ("operation", "reason"),
    [
        (split(0, by=""), "EXPRESSION_REJECTED"),
        (expressions_pb2.Operation(drop=expressions_pb2.Drop(columns=["nobody"])), "COLUMN_UNKNOWN"),
        (
            expressions_pb2.Operation(
                filter=expressions_pb2.Filter(
                    predicate=expressions_pb2.Expression(
                        call=expressions_pb2.Call(function=expressions_pb2.FUNCTION_REGEX_MATCHES)
                    )
                )
            ),
            "EXPRESSION_REJECTED",
        ),
        (
            expressions_pb2.Operation(
                filter=expressions_pb2.Filter(
                    predicate=expressions_pb2.Expression(call=expressions_pb2.Call(function=999))  # type: ignore[arg-type]
                )
            ),
            "EXPRESSION_REJECTED",
        ),
    ],
)
def test_a_frame_that_is_not_allowed_is_refused(pair: Any, refused: Any, operation: Any, reason: str) -> None:
    dataset = pair.register(pair.request(notes()))
    assert refused(lambda: describe(pair, frame_of(dataset, operation))).reason == reason


# ---------------------------------------------------------------- reading


def test_a_worker_reads_its_rows_and_no_others(pair: Any) -> None:
    salt = uuid.uuid4().hex[:8]
    lines = notes(salt).splitlines(keepends=True)
    lines[3] = json.dumps({"patient": f"{SECRETS[0]} 1", "text": "no bar at all"}) + "\n"
    dataset = pair.register(pair.request("".join(lines)))
    frame = frame_of(dataset, cut(2, 8), split(-1))
    token = pair.worker(**pair.claims(frame, pair.reserve(dataset)))
    messages = pair.read(frame, token)
    assert (messages[0].unit_count, messages[0].arrow_ipc) == (3, b"")
    # The row without a bar is its whole text; with [1] it would be none. Units count from the frame's first slot.
    assert rows_in(messages)[0] == (0, f"{SECRETS[2]} 1.0")
    assert [unit for unit, _ in rows_in(messages)] == [0, 0, 1, 1, 2, 2]
    frame = frame_of(dataset, cut(2, 8), split(1))
    token = pair.worker(**pair.claims(frame, pair.reserve(dataset)))
    assert rows_in(pair.read(frame, token)) == [
        (0, f"{SECRETS[2]} 1.0"),
        (1, f"{SECRETS[2]} 2.0"),
        (1, f"{SECRETS[2]} 2.1"),
        (2, f"{SECRETS[2]} 3.0"),
        (2, f"{SECRETS[2]} 3.1"),
    ]


def test_an_analyst_cannot_redefine_the_privacy_units(pair: Any) -> None:
    dataset = pair.register(pair.request(notes()))
    frame = frame_of(dataset, split(1, column="__unit"))
    described = describe(pair, frame)
    messages = pair.read(frame, pair.worker(**pair.claims(frame, pair.reserve(dataset))))
    assert described.unit_count == messages[0].unit_count == 6
    assert [unit for unit, _ in rows_in(messages)] == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5]


def test_messages_stay_small(pair: Any) -> None:
    salt = uuid.uuid4().hex
    lengths = [600_000, 600_000, 40, 1_000_000, 1_000_000, *[50_000] * 60]
    content = "".join(
        json.dumps({"patient": f"p{number}", "text": f"{salt}{number}".ljust(length, "x")}) + "\n"
        for number, length in enumerate(lengths)
    )
    dataset = pair.register(pair.request(content))
    frame = frame_of(dataset)
    messages = pair.read(frame, pair.worker(**pair.claims(frame, pair.reserve(dataset))))
    assert max(message.ByteSize() for message in messages) < (1 << 20) + 4096
    assert [len(text) for _, text in rows_in(messages)] == lengths


@pytest.mark.parametrize("role", ["analyst", "steward", "operator", "service"])
def test_nobody_but_a_worker_reads_rows(pair: Any, refused: Any, role: str) -> None:
    dataset = pair.register(pair.request(notes()))
    frame = frame_of(dataset)
    # A token that says all that a job token says, and is another's: the role alone stands in its way.
    metadata = pair.who(role, **pair.claims(frame, pair.reserve(dataset)))
    answer = refused(lambda: pair.read(frame, metadata))
    assert (answer.code, answer.reason) == (grpc.StatusCode.PERMISSION_DENIED, "ROLE_DENIED")


def test_a_key_for_people_cannot_make_a_worker(pair: Any, refused: Any) -> None:
    dataset = pair.register(pair.request(notes()))
    frame = frame_of(dataset)
    metadata = pair.who("worker", **pair.claims(frame, pair.reserve(dataset)))
    assert refused(lambda: pair.read(frame, metadata)).reason == "TOKEN_INVALID"


@pytest.mark.parametrize("wrong", ["frame", "dataset", "missing"])
def test_a_token_for_other_rows_is_refused(pair: Any, refused: Any, wrong: str) -> None:
    dataset, other = pair.register(pair.request(notes())), pair.register(pair.request(notes()))
    claims = pair.claims(frame_of(dataset, cut(0, 4)), pair.reserve(dataset))
    frame = frame_of(dataset, cut(0, 4))
    if wrong == "frame":
        frame = frame_of(dataset, cut(0, 5))
    elif wrong == "dataset":
        claims["dataset"] = other.name
    else:
        claims.pop("frame_sha256")
    answer = refused(lambda: pair.read(frame, pair.worker(**claims)))
    assert (answer.code, answer.reason) == (grpc.StatusCode.PERMISSION_DENIED, "JOB_TOKEN_MISMATCH")


def test_a_measurements_rows_open_to_their_own_claims_and_reservation(pair: Any, refused: Any) -> None:
    dataset = pair.register(pair.request(notes()))
    own, held_out = frame_of(dataset, cut(0, 8)), frame_of(dataset, cut(8, 12))
    claims, evaluation = pair.claims(own, pair.reserve(dataset)), pair.reserve(dataset)
    assert refused(lambda: pair.read(held_out, pair.worker(**claims))).reason == "JOB_TOKEN_MISMATCH"
    claims |= {"evaluation_reservation": evaluation, "evaluation_frame_sha256": frame_digest(held_out)}
    assert len(rows_in(pair.read(own, pair.worker(**claims)))) == 8
    assert len(rows_in(pair.read(held_out, pair.worker(**claims)))) == 4
    request = ledger_service_pb2.ReleaseReservationRequest(request_id=str(uuid.uuid4()), name=evaluation)
    pair.ledger.ReleaseReservation(request, metadata=pair.who("service", "service:trainer"), timeout=20)
    assert refused(lambda: pair.read(held_out, pair.worker(**claims))).reason == "JOB_TOKEN_MISMATCH"
    assert len(rows_in(pair.read(own, pair.worker(**claims)))) == 8, "what pays for these is still pending"


@pytest.mark.parametrize("how", ["committed", "released"])
def test_a_resolved_reservation_opens_nothing(pair: Any, refused: Any, how: str) -> None:
    dataset = pair.register(pair.request(notes()))
    frame, reservation = frame_of(dataset), pair.reserve(dataset)
    token = pair.worker(**pair.claims(frame, reservation))
    assert len(rows_in(pair.read(frame, token))) == 12
    kind = {"committed": "Commit", "released": "Release"}[how]
    request = getattr(ledger_service_pb2, f"{kind}ReservationRequest")(request_id=str(uuid.uuid4()), name=reservation)
    service = pair.who("service", "service:trainer")
    getattr(pair.ledger, f"{kind}Reservation")(request, metadata=service, timeout=20)
    answer = refused(lambda: pair.read(frame, token))
    assert (answer.code, answer.reason) == (grpc.StatusCode.PERMISSION_DENIED, "JOB_TOKEN_MISMATCH")


def test_a_reservation_of_another_account_or_job_opens_nothing(pair: Any, refused: Any) -> None:
    dataset, other = pair.register(pair.request(notes())), pair.register(pair.request(notes()))
    frame = frame_of(dataset)
    for reservation in (pair.reserve(other), pair.reserve(dataset, "trainingJobs/two"), ""):
        metadata = pair.worker(**pair.claims(frame, reservation))
        assert refused(lambda sent=metadata: pair.read(frame, sent)).reason == "JOB_TOKEN_MISMATCH"


def test_a_deleted_dataset_is_gone(pair: Any, refused: Any) -> None:
    dataset = pair.register(pair.request(notes()))
    frame = frame_of(dataset)
    token = pair.worker(**pair.claims(frame, pair.reserve(dataset)))
    before = set((pair.state("dataset") / "rows").iterdir())
    delete = pb.DeleteDatasetRequest(request_id=str(uuid.uuid4()), name=dataset.name)
    pair.dataset.DeleteDataset(delete, metadata=pair.who("steward"), timeout=20)
    assert len(before - set((pair.state("dataset") / "rows").iterdir())) == 2
    assert refused(lambda: pair.read(frame, token)).reason == "RESOURCE_NOT_FOUND"


# ---------------------------------------------------------------- what must not be seen


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


def test_neither_logs_nor_files_hold_rows(pair: Any) -> None:
    dataset = pair.register(pair.request(notes()))
    frame = frame_of(dataset, split(1))
    describe(pair, frame)
    assert SECRETS[2] in str(rows_in(pair.read(frame, pair.worker(**pair.claims(frame, pair.reserve(dataset))))))
    for service in ("dataset", "ledger"):
        log = pair.log(service)
        assert "ReadRows" in log or service == "ledger"
        assert not any(secret in log for secret in SECRETS)
        for path in pair.state(service).rglob("*"):
            if path.is_file():
                held = path.read_bytes()
                assert not any(secret.encode() in held for secret in SECRETS), path
                assert b"PAR1" not in held, path
