"""Whatever is asked wrongly is refused with a documented reason, and changes nothing. Through gRPC, all of it."""

import uuid
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from murmura.api.common.v1 import errors_pb2
from murmura.api.common.v1.privacy_pb2 import Receipt, SubsampledGaussian
from murmura.api.ledger.v1 import ledger_pb2
from murmura.api.ledger.v1 import ledger_service_pb2 as pb
from tests.support.ledger_process import Ledger

NAN, INF = float("nan"), float("inf")
NOTES, SCANS = "accounts/notes", "accounts/scans"
ABSENT = "accounts/absent"
PRIVATE = ledger_pb2.RESERVATION_KIND_PRIVATE
UNLIMITED = ledger_pb2.RESERVATION_KIND_UNLIMITED
WHY = "the committee has agreed to it"
INVALID, MISSING = grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND
DENIED, FAILED = grpc.StatusCode.PERMISSION_DENIED, grpc.StatusCode.FAILED_PRECONDITION
EXISTS = grpc.StatusCode.ALREADY_EXISTS


class Asked:
    """A ledger process with a little history, and what a caller hears from it."""

    def __init__(self, directory):
        self.process = Ledger(directory)
        self.process.launch()
        self.channel = grpc.insecure_channel(
            self.process.endpoint, [("grpc.initial_reconnect_backoff_ms", 100), ("grpc.max_reconnect_backoff_ms", 200)]
        )
        self.stub = self.process.Stub(self.channel)
        self.tokens = {role: self.process.who(role) for role in ("service", "steward", "analyst", "operator")}
        for lineage, unlimited in (("notes", ["ann"]), ("scans", None)):
            opening = opened(lineage=lineage, unlimited_allowed=unlimited is not None)
            opening.unlimited_principals.extend(unlimited or [])
            self.call(opening)
        self.call(pb.CreateGrantRequest(request_id=fresh(), account=SCANS, principal="ann", epsilon=1), "steward")
        self.pending = self.call(reserve()).reservation.name
        self.spent = self.call(reserve()).reservation.name
        self.call(pb.CommitReservationRequest(request_id=fresh(), name=self.spent))
        self.released = self.call(reserve()).reservation.name
        self.call(pb.ReleaseReservationRequest(request_id=fresh(), name=self.released))
        proposal = pb.ProposeCapChangeRequest(request_id=fresh(), account=NOTES, epsilon=9, justification=WHY)
        self.proposal = self.call(proposal, "steward").cap_change.name
        self.used = reserve()
        self.call(self.used)

    def call(self, request, role="service"):
        method = getattr(self.stub, type(request).__name__.removesuffix("Request"))
        metadata = self.tokens.get(role, ())
        return method(request, metadata=metadata, timeout=60, wait_for_ready=True)

    def standing(self):
        accounts = [self.call(pb.GetAccountRequest(name=name)).account for name in (NOTES, SCANS)]
        grants = [self.call(pb.ListGrantsRequest(account=name)).grants for name in (NOTES, SCANS)]
        return accounts, grants, self.call(pb.VerifyJournalRequest()).receipt

    def refused(self, request, role="service"):
        """Return code, reason, fields and sentence of a refusal that changes nothing."""
        before = self.standing()
        with pytest.raises(grpc.RpcError) as caught:
            self.call(request, role)
        assert self.standing() == before
        status = rpc_status.from_call(caught.value)
        assert status, f"{caught.value.code()} without a reason: {caught.value.details()}"
        info, bad = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
        for detail in status.details:
            for kind in (info, bad):
                if detail.Is(kind.DESCRIPTOR):
                    detail.Unpack(kind)
        assert info.domain == "murmura"
        assert errors_pb2.ErrorReason.Value(info.reason)
        assert status.message.endswith("."), status.message
        fields = {item.field for item in bad.field_violations}
        return caught.value.code(), info.reason.removeprefix("ERROR_REASON_"), fields


def fresh():
    return str(uuid.uuid4())


def opened(**changes):
    return pb.OpenAccountRequest(**{"request_id": fresh(), "lineage": "new", "epsilon": 8, "delta": 1e-5, **changes})


def mechanism(sigma=1000.0, q=1.0, steps=100):
    return SubsampledGaussian(noise_multiplier=sigma, sampling_probability=q, steps=steps)


def unit(sigma, q):
    return ledger_pb2.UnitMechanism(noise_multiplier=sigma, sampling_probability=q)


def resolve(request, **changes):
    return request(**{"request_id": fresh(), "name": f"{NOTES}/reservations/{fresh()}", **changes})


def reserve(**changes):
    given = {"account": NOTES, "principal": "ann", "job": "trainingJobs/one", "kind": PRIVATE, "mechanism": mechanism()}
    return pb.CreateReservationRequest(**{"request_id": fresh(), **given, "truncation_delta_e18": 1, **changes})


def calibrate(**changes):
    given = {"account": NOTES, "target_epsilon": 2, "sampling_probability": 0.01, "steps": 100}
    return pb.CalibrateRequest(**{**given, **changes})


def priced(**changes):
    return pb.PriceMechanismRequest(**{"account": NOTES, **changes})


def propose(**changes):
    given = {"account": NOTES, "epsilon": 9, "justification": WHY}
    return pb.ProposeCapChangeRequest(**{"request_id": fresh(), **given, **changes})


def grant(**changes):
    given = {"account": NOTES, "principal": "ann", "epsilon": 1}
    return pb.CreateGrantRequest(**{"request_id": fresh(), **given, **changes})


@pytest.fixture(scope="module")
def asked(tmp_path_factory):
    made = Asked(tmp_path_factory.mktemp("asked"))
    yield made
    made.channel.close()
    made.process.kill()


def wrong(builder, role, **fields):
    """Cases in which one field of a request has a value that no field rule lets through."""
    for field, values in fields.items():
        for value in values:
            yield pytest.param(builder, role, field, value, id=f"{builder.__name__}-{field}-{str(value)[:24]}")


NUMBERS = [-1.0, 0.0, NAN, INF, -INF, 1e308]
TEXTS = ["", "x" * 300, "accounts/../a", "accounts/A", "accounts/a b"]


@pytest.mark.parametrize(
    ("builder", "role", "field", "value"),
    [
        *wrong(
            opened,
            "service",
            epsilon=NUMBERS,
            delta=[*NUMBERS, 0.5, 5e-324],
            truncation_pool_e18=[-1, 0],
            lineage=["", "-a", "A", "a" * 64, "a/b", "ü"],
            request_id=["", "1", "x" * 36, "0" * 32],
        ),
        *wrong(grant, "steward", epsilon=NUMBERS, account=TEXTS, principal=["", "x" * 201], request_id=["", "1"]),
        *wrong(
            reserve,
            "service",
            account=TEXTS,
            principal=["", "x" * 201],
            job=["", "x" * 201],
            kind=[0],
            truncation_delta_e18=[-1, 0],
            request_id=["", "1"],
        ),
        *wrong(
            calibrate,
            "analyst",
            target_epsilon=NUMBERS,
            sampling_probability=[*NUMBERS, 1.5],
            steps=[-1, 0, 2**63 - 1],
            truncation_delta_e18=[-1, 0],
            account=TEXTS,
        ),
        *wrong(propose, "steward", epsilon=NUMBERS, justification=["", "short", "x" * 2001], account=TEXTS),
    ],
)
def test_a_field_that_breaks_its_rule_is_named(asked, builder, role, field, value):
    assert asked.refused(builder(**{field: value}), role) == (INVALID, "FIELD_RULES", {field})


@pytest.mark.parametrize(
    "builder", [reserve, lambda mechanism: pb.PriceMechanismRequest(account=NOTES, mechanism=mechanism)]
)
@pytest.mark.parametrize(
    ("part", "values"),
    {
        "noise_multiplier": [-1.0, 0.0, NAN, INF, 1e308],
        "sampling_probability": [-0.1, 0.0, NAN, INF, 1.5],
        "steps": [-1, 0, 2**63 - 1],
    }.items(),
)
def test_a_mechanism_that_is_none_is_refused(asked, builder, part, values):
    for value in values:
        broken = mechanism()
        setattr(broken, part, value)
        assert asked.refused(builder(mechanism=broken)) == (INVALID, "FIELD_RULES", {f"mechanism.{part}"})


@pytest.mark.parametrize(
    ("request_", "expected"),
    [
        (opened(unit=ledger_pb2.UnitMechanism(sampling_probability=0.1)), "unit.noise_multiplier"),
        (opened(unit=ledger_pb2.UnitMechanism(noise_multiplier=-1)), "unit.noise_multiplier"),
        (opened(unit=ledger_pb2.UnitMechanism(noise_multiplier=NAN)), "unit.noise_multiplier"),
        (
            opened(unit=ledger_pb2.UnitMechanism(noise_multiplier=1, sampling_probability=2)),
            "unit.sampling_probability",
        ),
        # One step of it is more than the cap.
        (opened(epsilon=0.001, unit=ledger_pb2.UnitMechanism(noise_multiplier=0.5, sampling_probability=1)), "epsilon"),
        (opened(truncation_pool_e18=10**13), "truncation_pool_e18"),
        (reserve(mechanism=None), "mechanism"),
        (reserve(witness=Receipt(sequence=2)), "witness.head_hash"),
        (reserve(witness=Receipt(sequence=2, head_hash="z" * 64)), "witness.head_hash"),
        (reserve(witness=Receipt(sequence=-2, head_hash="a" * 64)), "witness.sequence"),
        (
            pb.CommitReservationRequest(request_id=fresh(), name=f"{NOTES}/reservations/x", attested_steps=-1),
            "attested_steps",
        ),
        (pb.CommitReservationRequest(request_id=fresh(), name="reservations/x"), "name"),
        (pb.ReleaseReservationRequest(request_id=fresh(), name=f"{NOTES}/reservations/A"), "name"),
        (pb.ListEntriesRequest(page_size=-1), "page_size"),
        (pb.ListEntriesRequest(after_sequence=-1), "after_sequence"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_what_no_single_rule_can_say_names_its_field_too(asked, request_, expected):
    assert asked.refused(request_) == (INVALID, "FIELD_RULES", {expected})


@pytest.mark.parametrize(
    ("request_", "role"),
    [
        (reserve(account=ABSENT), "service"),
        (grant(account=ABSENT), "steward"),
        (propose(account=ABSENT), "steward"),
        (calibrate(account=ABSENT), "analyst"),
        (pb.GetAccountRequest(name=ABSENT), "analyst"),
        (pb.ListEntriesRequest(account=ABSENT), "analyst"),
        (pb.ListReservationsRequest(account=ABSENT), "analyst"),
        (pb.GetReservationRequest(name=f"{NOTES}/reservations/{fresh()}"), "analyst"),
        (pb.CommitReservationRequest(request_id=fresh(), name=f"{NOTES}/reservations/{fresh()}"), "service"),
        (pb.ReleaseReservationRequest(request_id=fresh(), name=f"{NOTES}/reservations/{fresh()}"), "service"),
        (pb.ApproveCapChangeRequest(request_id=fresh(), name=f"{NOTES}/capChanges/{fresh()}"), "steward"),
        (
            pb.ResolveWitnessRequest(
                request_id=fresh(), known=Receipt(sequence=1, head_hash="a" * 64), justification=WHY
            ),
            "steward",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_what_does_not_exist_is_not_found(asked, request_, role):
    assert asked.refused(request_, role)[:2] == (MISSING, "RESOURCE_NOT_FOUND")


def test_a_reservation_of_another_account_is_not_found_there(asked):
    elsewhere = asked.pending.replace(NOTES, SCANS)
    for request in (pb.CommitReservationRequest, pb.ReleaseReservationRequest):
        assert asked.refused(request(request_id=fresh(), name=elsewhere))[1] == "RESOURCE_NOT_FOUND"


def test_a_resolved_reservation_resolves_no_more(asked):
    for name in (asked.spent, asked.released):
        for request in (pb.CommitReservationRequest, pb.ReleaseReservationRequest):
            assert asked.refused(request(request_id=fresh(), name=name))[:2] == (FAILED, "RESERVATION_RESOLVED")


@pytest.mark.parametrize("steps", [10**12, 2**62])
def test_more_steps_than_were_planned_cost_no_more_than_the_plan(asked, steps):
    name = asked.call(reserve()).reservation.name
    charged = asked.call(pb.CommitReservationRequest(request_id=fresh(), name=name, attested_steps=steps)).reservation
    assert charged.committed == charged.price


def test_a_price_beyond_the_cap_is_refused_with_what_is_left(asked):
    assert asked.refused(reserve(mechanism=mechanism(steps=10**8)))[:2] == (FAILED, "BUDGET_EXHAUSTED")
    assert asked.refused(reserve(truncation_delta_e18=10**12 + 1))[:2] == (FAILED, "BUDGET_EXHAUSTED")
    assert asked.refused(reserve(mechanism=mechanism(sigma=1e-6)))[:2] == (INVALID, "TARGET_UNREACHABLE")


def test_a_share_bounds_its_owner_and_others_have_none(asked):
    beyond = asked.refused(reserve(account=SCANS, mechanism=mechanism(steps=10**6)))
    assert beyond[:2] == (FAILED, "GRANT_EXHAUSTED")
    assert asked.refused(reserve(account=SCANS, principal="bob"))[:2] == (FAILED, "GRANT_EXHAUSTED")
    assert asked.refused(grant(epsilon=900), "steward")[:2] == (FAILED, "BUDGET_EXHAUSTED")


def test_jobs_without_privacy_need_the_policy_and_the_person(asked):
    without = {"kind": UNLIMITED, "mechanism": None}
    assert asked.refused(reserve(account=SCANS, **without))[:2] == (DENIED, "UNLIMITED_NOT_ALLOWED")
    assert asked.refused(reserve(principal="bob", **without))[:2] == (DENIED, "UNLIMITED_NOT_ALLOWED")


def test_a_cap_is_not_changed_by_one_person(asked):
    approval = pb.ApproveCapChangeRequest(request_id=fresh(), name=asked.proposal)
    assert asked.refused(approval, "steward")[:2] == (DENIED, "SECOND_PRINCIPAL_NEEDED")


def test_other_terms_open_nothing(asked):
    assert asked.refused(opened(lineage="notes", epsilon=80))[:2] == (EXISTS, "RESOURCE_EXISTS")
    assert asked.refused(opened(lineage="scans", unlimited_allowed=True))[:2] == (EXISTS, "RESOURCE_EXISTS")


def test_a_request_id_belongs_to_one_request(asked):
    for other in (reserve(job="trainingJobs/other"), reserve(account=SCANS), reserve(mechanism=mechanism(steps=99))):
        other.request_id = asked.used.request_id
        assert asked.refused(other)[:2] == (EXISTS, "REQUEST_ID_REUSED")
    commit = pb.CommitReservationRequest(request_id=asked.used.request_id, name=asked.pending)
    assert asked.refused(commit)[:2] == (EXISTS, "REQUEST_ID_REUSED")
    shouted = pb.CreateReservationRequest()
    shouted.CopyFrom(asked.used)
    shouted.request_id, shouted.job = asked.used.request_id.upper(), "trainingJobs/other"
    assert asked.refused(shouted)[:2] == (EXISTS, "REQUEST_ID_REUSED")


@pytest.mark.parametrize("role", ["analyst", "operator", "steward"])
def test_people_spend_nothing_themselves(asked, role):
    for request in (
        reserve(),
        pb.CommitReservationRequest(request_id=fresh(), name=asked.pending),
        pb.ReleaseReservationRequest(request_id=fresh(), name=asked.pending),
    ):
        assert asked.refused(request, role)[:2] == (DENIED, "ROLE_DENIED")


def test_policy_is_for_stewards(asked):
    approval = pb.ApproveCapChangeRequest(request_id=fresh(), name=asked.proposal)
    for request in (grant(), propose(), approval):
        for role in ("analyst", "operator", "service"):
            assert asked.refused(request, role)[:2] == (DENIED, "ROLE_DENIED")


def test_nobody_is_nobody(asked):
    assert asked.refused(reserve(), "nobody")[:2] == (grpc.StatusCode.UNAUTHENTICATED, "TOKEN_INVALID")


def test_a_page_token_of_ones_own_making(asked):
    assert asked.refused(pb.ListReservationsRequest(account=NOTES, page_token="next"))[1] == "PAGE_TOKEN_INVALID"
    assert asked.refused(pb.ListEntriesRequest(page_token="next"))[1] == "PAGE_TOKEN_INVALID"


def test_many_at_once_get_exactly_what_is_there(asked):
    room = 11
    account = asked.call(opened(lineage="contested", truncation_pool_e18=room)).account.name

    def one(_):
        try:
            return asked.call(reserve(account=account)).reservation.name
        except grpc.RpcError as error:
            assert error.code() == FAILED
            return None

    with ThreadPoolExecutor(32) as threads:
        names = [name for name in threads.map(one, range(32)) if name]
    assert len(set(names)) == len(names) == room
    left = asked.call(pb.GetAccountRequest(name=account)).account
    assert left.pending.truncation_delta_e18 == left.capacity.truncation_delta_e18 == room


def test_a_request_that_is_sent_again_charges_once(asked):
    account = asked.call(opened(lineage="again")).account.name
    request = reserve(account=account)
    with ThreadPoolExecutor(16) as threads:
        answers = list(threads.map(lambda _: asked.call(request), range(16)))
    assert {answer.reservation.name for answer in answers} == {answers[0].reservation.name}
    commit = pb.CommitReservationRequest(request_id=fresh(), name=answers[0].reservation.name, attested_steps=40)
    with ThreadPoolExecutor(16) as threads:
        charged = {
            answer.reservation.committed.units for answer in threads.map(lambda _: asked.call(commit), range(16))
        }
    standing = asked.call(pb.GetAccountRequest(name=account)).account
    assert charged == {standing.spent.units} == {40}
    assert standing.pending.units == 0
    # Also when the reservation has long been resolved, the first answer's name comes back.
    assert asked.call(request).reservation.name == answers[0].reservation.name
    assert asked.call(pb.GetAccountRequest(name=account)).account == standing
