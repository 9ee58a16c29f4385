"""Every RPC of every service, called by everyone who could: what each is told stands in one table.

The services are real processes. An RPC that is added to the contracts without a line here makes this fail.
"""

from __future__ import annotations

import uuid
from typing import Any

import grpc
import pytest
from google.protobuf import json_format, message_factory
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from tests.support.every_call import METHODS, World

CALLERS = ("nobody", "expired", "analyst", "steward", "operator", "trainer", "inference", "worker")
# `trainer` and `inference` are services, and `worker` has the token of a job that is not the one it asks about.
TABLE = """
                                        nobody expired analyst steward operator trainer inference worker
DatasetService/RegisterDataset          token  token   role    rules   role     role    role      role
DatasetService/GetDataset               token  token   gone    gone    gone     gone    gone      role
DatasetService/ListDatasets             token  token   ok      ok      ok       ok      ok        role
DatasetService/UpdatePolicy             token  token   role    rules   role     role    role      role
DatasetService/ListPolicyVersions       token  token   role    gone    gone     role    role      role
DatasetService/CheckPolicy              token  token   role    rules   role     role    role      role
DatasetService/DeleteDataset            token  token   role    gone    role     role    role      role
DatasetService/DescribeFrame            token  token   gone    gone    gone     gone    gone      role
DatasetService/ReadRows                 token  token   role    role    role     role    role      other
DatasetService/QueryStatistic           token  token   rules   rules   role     role    role      role
LedgerService/OpenAccount               token  token   role    rules   role     role    role      role
LedgerService/GetAccount                token  token   gone    gone    gone     gone    gone      role
LedgerService/ListAccounts              token  token   role    ok      ok       ok      ok        role
LedgerService/CreateGrant               token  token   role    rules   role     role    role      role
LedgerService/ListGrants                token  token   gone    gone    gone     gone    gone      role
LedgerService/PriceMechanism            token  token   rules   rules   rules    rules   rules     role
LedgerService/Calibrate                 token  token   rules   rules   rules    rules   rules     role
LedgerService/CreateReservation         token  token   role    role    role     rules   role      role
LedgerService/GetReservation            token  token   gone    gone    gone     gone    gone      role
LedgerService/ListReservations          token  token   gone    gone    gone     gone    gone      role
LedgerService/CommitReservation         token  token   role    role    role     gone    role      role
LedgerService/ReleaseReservation        token  token   role    role    role     gone    role      role
LedgerService/ProposeCapChange          token  token   role    rules   role     role    role      role
LedgerService/ApproveCapChange          token  token   role    gone    role     role    role      role
LedgerService/ListEntries               token  token   rules   ok      ok       ok      ok        role
LedgerService/VerifyJournal             token  token   ok      ok      ok       ok      ok        role
LedgerService/ResolveWitness            token  token   role    rules   role     role    role      role
TrainerService/ListBaseModels           token  token   ok      ok      ok       ok      ok        role
TrainerService/PlanTrainingJob          token  token   rules   rules   role     role    role      role
TrainerService/CreateTrainingJob        token  token   rules   rules   role     role    role      role
TrainerService/GetTrainingJob           token  token   gone    gone    gone     role    role      role
TrainerService/ListTrainingJobs         token  token   ok      ok      ok       role    role      role
TrainerService/WatchTrainingJob         token  token   gone    gone    gone     role    role      role
TrainerService/CancelTrainingJob        token  token   gone    gone    role     role    role      role
WorkerService/ExchangeToken             token  token   token   token   token    token   token     token
WorkerService/GetAssignment             token  token   role    role    role     role    role      gone
WorkerService/Heartbeat                 token  token   role    role    role     role    role      gone
WorkerService/SaveCheckpoint            token  token   role    role    role     role    role      gone
WorkerService/LoadCheckpoint            token  token   role    role    role     role    role      gone
WorkerService/UploadAdapter             token  token   role    role    role     role    role      gone
WorkerService/ReportFailure             token  token   role    role    role     role    role      gone
AdapterService/LoadAdapter              token  token   gone    gone    role     role    role      role
AdapterService/GetAdapter               token  token   gone    gone    gone     role    role      role
AdapterService/ListAdapters             token  token   ok      ok      ok       role    role      role
AdapterService/UnloadAdapter            token  token   gone    gone    role     role    role      role
AdapterService/UpdateAdapterPolicy      token  token   role    gone    role     role    role      role
InferenceService/Generate               token  token   gone    gone    role     role    role      role
InferenceService/StreamGenerate         token  token   gone    gone    role     role    role      role
InferenceService/BatchGenerate          token  token   gone    gone    role     role    role      role
InferenceService/CountTokens            token  token   gone    gone    role     role    role      role
ServerReflection/ServerReflectionInfo   token  token   ok      ok      ok       ok      ok        role
Health/Check                            ok     ok      ok      ok      ok       ok      ok        ok
Health/Watch                            ok     ok      ok      ok      ok       ok      ok        ok
Health/List                             absent absent  absent  absent  absent   absent  absent    absent
"""
MEANING = {
    "ok": ("OK", ""),
    "token": ("UNAUTHENTICATED", "TOKEN_INVALID"),
    "role": ("PERMISSION_DENIED", "ROLE_DENIED"),
    # They are let in, and what they ask for does not exist or breaks its rules.
    "gone": ("NOT_FOUND", "RESOURCE_NOT_FOUND"),
    "rules": ("INVALID_ARGUMENT", "FIELD_RULES"),
    "absent": ("UNIMPLEMENTED", ""),
    "other": ("PERMISSION_DENIED", "JOB_TOKEN_MISMATCH"),
}
ID = str(uuid.uuid4())
RESERVATION = "accounts/none/reservations/none"
# A request that is not here is empty. JOB and DATASET are a real job and real rows.
REQUESTS: dict[str, dict[str, Any]] = {
    "DatasetService/GetDataset": {"name": "datasets/none"},
    "DatasetService/ListPolicyVersions": {"name": "datasets/none"},
    "DatasetService/DeleteDataset": {"request_id": ID, "name": "datasets/none"},
    "DatasetService/DescribeFrame": {"frame": {"dataset": "datasets/none"}},
    "DatasetService/ReadRows": {"frame": {"dataset": "DATASET"}, "text_column": "text"},
    "LedgerService/GetAccount": {"name": "accounts/none"},
    "LedgerService/ListGrants": {"account": "accounts/none"},
    "LedgerService/GetReservation": {"name": RESERVATION},
    "LedgerService/ListReservations": {"account": "accounts/none"},
    "LedgerService/CommitReservation": {"request_id": ID, "name": RESERVATION},
    "LedgerService/ReleaseReservation": {"request_id": ID, "name": RESERVATION},
    "LedgerService/ApproveCapChange": {"request_id": ID, "name": "accounts/none/capChanges/none"},
    "TrainerService/GetTrainingJob": {"name": "trainingJobs/none"},
    "TrainerService/WatchTrainingJob": {"name": "trainingJobs/none"},
    "TrainerService/CancelTrainingJob": {"request_id": ID, "name": "trainingJobs/none"},
    "WorkerService/ExchangeToken": {"job": "JOB", "pod_token": "a"},
    "WorkerService/GetAssignment": {"job": "JOB"},
    "WorkerService/Heartbeat": {"job": "JOB", "attempt": 1},
    "WorkerService/SaveCheckpoint": {"job": "JOB", "attempt": 1},
    "WorkerService/LoadCheckpoint": {"job": "JOB"},
    "WorkerService/UploadAdapter": {"job": "JOB", "attempt": 1},
    "WorkerService/ReportFailure": {"job": "JOB", "attempt": 1, "cause": "FAILURE_CAUSE_INTERNAL"},
    "AdapterService/LoadAdapter": {"request_id": ID, "name": "adapters/none"},
    "AdapterService/GetAdapter": {"name": "adapters/none"},
    "AdapterService/UnloadAdapter": {"request_id": ID, "name": "adapters/none"},
    "AdapterService/UpdateAdapterPolicy": {"request_id": ID, "name": "adapters/none", "policy": {}},
    "InferenceService/Generate": {"model": "adapters/none", "prompt": "x"},
    "InferenceService/StreamGenerate": {"request": {"model": "adapters/none", "prompt": "x"}},
    "InferenceService/BatchGenerate": {"model": "adapters/none", "prompts": ["x"]},
    "InferenceService/CountTokens": {"model": "adapters/none", "text": "x"},
    "ServerReflection/ServerReflectionInfo": {"list_services": ""},
}


_heading, *_lines = TABLE.strip("\n").splitlines()
EXPECTED = {line.split()[0]: dict(zip(_heading.split(), line.split()[1:], strict=True)) for line in _lines}


def told(world: World, name: str, caller: str) -> tuple[str, str]:
    """Call a method as someone; returns the status code and the reason."""
    method = METHODS[name]
    names = {"JOB": world.job.name, "DATASET": world.dataset.name}
    request = json_format.ParseDict(
        _named(REQUESTS.get(name, {}), names), message_factory.GetMessageClass(method.input_type)()
    )
    token = "" if caller == "nobody" else world.token(caller, world.where(method))
    return world.call(method, [request], token)[:2]


def _named(value: Any, names: dict[str, str]) -> Any:
    if isinstance(value, dict):
        return {key: _named(inner, names) for key, inner in value.items()}
    return names.get(value, value) if isinstance(value, str) else value


def test_every_method_has_a_line_and_every_line_a_method() -> None:
    assert set(EXPECTED) == set(METHODS)
    assert tuple(_heading.split()) == CALLERS


def test_the_services_serve_what_is_described_and_nothing_else(world: World) -> None:
    served = set()
    for service, channel in world.channels.items():
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)
        request = reflection_pb2.ServerReflectionRequest(list_services="")
        metadata = (("authorization", f"Bearer {world.token('operator', service)}"),)
        (answer,) = stub.ServerReflectionInfo(iter([request]), timeout=20, metadata=metadata)
        served |= {found.name for found in answer.list_services_response.service}
    contracts = {method.containing_service.full_name for method in METHODS.values()}
    assert served == contracts - {"grpc.health.v1.Health"}


@pytest.mark.parametrize("name", sorted(METHODS))
def test_everyone_is_told_what_the_table_says(world: World, name: str) -> None:
    expected = {caller: MEANING[word] for caller, word in EXPECTED[name].items()}
    assert {caller: told(world, name, caller) for caller in CALLERS} == expected


def test_what_is_not_in_the_contracts_is_nobodys(world: World) -> None:
    for service, channel in world.channels.items():
        for caller in ("steward", "trainer"):
            call = channel.unary_unary(f"/murmura.api.{service}.v1.Back/Door")
            metadata = (("authorization", f"Bearer {world.token(caller, service)}"),)
            with pytest.raises(grpc.RpcError) as caught:
                call(b"", timeout=20, metadata=metadata)
            assert caught.value.code() == grpc.StatusCode.UNIMPLEMENTED  # type: ignore[attr-defined]
