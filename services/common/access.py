"""Who may call what. A method that is not listed here may be called by nobody; a test proves that none is missing."""

from __future__ import annotations

from functools import cache

_ANALYST = frozenset({"analyst", "steward"})
_READER = frozenset({"analyst", "steward", "operator", "service"})
_PEOPLE = frozenset({"analyst", "steward", "operator"})
_STEWARD = frozenset({"steward"})
_WATCHER = frozenset({"steward", "operator"})
_SERVICE = frozenset({"service"})
_WORKER = frozenset({"worker"})
# Whoever comes with the proof of another authority in the request; the method itself asks that one.
UNPROVEN = frozenset({"unproven"})

_TABLE: dict[str, dict[str, frozenset[str]]] = {
    "murmura.api.dataset.v1.DatasetService": {
        "RegisterDataset": _STEWARD,
        "GetDataset": _READER,
        "ListDatasets": _READER,
        "UpdatePolicy": _STEWARD,
        "ListPolicyVersions": _WATCHER,
        "CheckPolicy": _STEWARD,
        "DeleteDataset": _STEWARD,
        "DescribeFrame": _READER,
        "ReadRows": _WORKER,
        "QueryStatistic": _ANALYST,
    },
    "murmura.api.ledger.v1.LedgerService": {
        "OpenAccount": _STEWARD | _SERVICE,
        "GetAccount": _READER,
        "ListAccounts": _WATCHER | _SERVICE,
        "CreateGrant": _STEWARD,
        "ListGrants": _READER,
        "PriceMechanism": _READER,
        "Calibrate": _READER,
        # Budget is spent by services alone, for the principal whom they have authenticated.
        "CreateReservation": _SERVICE,
        "GetReservation": _READER,
        "ListReservations": _READER,
        "CommitReservation": _SERVICE,
        "ReleaseReservation": _SERVICE,
        "ProposeCapChange": _STEWARD,
        "ApproveCapChange": _STEWARD,
        "ListEntries": _READER,
        "VerifyJournal": _READER,
        "ResolveWitness": _STEWARD,
    },
    "murmura.api.trainer.v1.TrainerService": {
        "ListBaseModels": _READER,
        "PlanTrainingJob": _ANALYST,
        "CreateTrainingJob": _ANALYST,
        "GetTrainingJob": _PEOPLE,
        "ListTrainingJobs": _PEOPLE,
        "WatchTrainingJob": _PEOPLE,
        "CancelTrainingJob": _ANALYST,
    },
    "murmura.api.trainer.v1.WorkerService": {
        "ExchangeToken": UNPROVEN,
        "GetAssignment": _WORKER,
        "Heartbeat": _WORKER,
        "SaveCheckpoint": _WORKER,
        "LoadCheckpoint": _WORKER,
        "UploadAdapter": _WORKER,
        "ReportFailure": _WORKER,
    },
    "murmura.api.inference.v1.AdapterService": {
        "LoadAdapter": _ANALYST,
        "GetAdapter": _PEOPLE,
        "ListAdapters": _PEOPLE,
        "UnloadAdapter": _ANALYST,
        "UpdateAdapterPolicy": _STEWARD,
    },
    "murmura.api.inference.v1.InferenceService": {
        "Generate": _ANALYST,
        "StreamGenerate": _ANALYST,
        "BatchGenerate": _ANALYST,
        "CountTokens": _ANALYST,
    },
    # The shape of the contracts is public; knowing it still takes a token.
    "grpc.reflection.v1alpha.ServerReflection": {
        "ServerReflectionInfo": _READER,
    },
}

# Which services spend. A certificate, or a token of a deployment, is that of one service, and no other can use it to
# give budget away. What is not listed here, any service may call whose role may.
_SPENDING = frozenset({"service:dataset", "service:trainer"})
_SERVICES: dict[str, frozenset[str]] = {
    "/murmura.api.ledger.v1.LedgerService/OpenAccount": frozenset({"service:dataset"}),
    "/murmura.api.ledger.v1.LedgerService/CreateReservation": _SPENDING,
    "/murmura.api.ledger.v1.LedgerService/CommitReservation": _SPENDING,
    "/murmura.api.ledger.v1.LedgerService/ReleaseReservation": _SPENDING,
}


@cache
def allowed_roles(method: str) -> frozenset[str]:
    """Return the roles that may call a method; none for a method that is not listed.

    Args:
        method: `/package.Service/Method`.
    """
    service, _, name = method.removeprefix("/").partition("/")
    return _TABLE.get(service, {}).get(name, frozenset())


def allowed_services(method: str) -> frozenset[str] | None:
    """Return the only services that may call a method, as subjects; None where it does not matter which.

    Args:
        method: `/package.Service/Method`.
    """
    return _SERVICES.get(method)


def listed() -> set[str]:
    """Return all methods of the table."""
    return {f"/{service}/{name}" for service, methods in _TABLE.items() for name in methods}
