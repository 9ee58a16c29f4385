"""Every RPC has an SDK call, and every call of the SDK is one of the contract's."""

from __future__ import annotations

import ast
import importlib
import pkgutil
from collections.abc import Iterator
from pathlib import Path

import murmura
import murmura.api
from murmura import calls

SDK = Path(murmura.__file__).parent
# Those who call these are no people: a worker, or a service on behalf of whom it has authenticated.
NOT_FOR_PEOPLE = {
    "murmura.api.dataset.v1.DatasetService/ReadRows",
    "murmura.api.ledger.v1.LedgerService/OpenAccount",
    "murmura.api.ledger.v1.LedgerService/CreateReservation",
    "murmura.api.ledger.v1.LedgerService/CommitReservation",
    "murmura.api.ledger.v1.LedgerService/ReleaseReservation",
    "murmura.api.trainer.v1.WorkerService/ExchangeToken",
    "murmura.api.trainer.v1.WorkerService/GetAssignment",
    "murmura.api.trainer.v1.WorkerService/Heartbeat",
    "murmura.api.trainer.v1.WorkerService/SaveCheckpoint",
    "murmura.api.trainer.v1.WorkerService/LoadCheckpoint",
    "murmura.api.trainer.v1.WorkerService/UploadAdapter",
    "murmura.api.trainer.v1.WorkerService/ReportFailure",
}
# What notebooks and services ask for all day; the rest is for people at a prompt.
ON_ASYNCIO = {"GetDataset", "ListDatasets", "GetAccount", "PlanTrainingJob", "CreateTrainingJob", "GetTrainingJob"} | {
    "ListTrainingJobs",
    "WatchTrainingJob",
    "CancelTrainingJob",
    "LoadAdapter",
    "BatchGenerate",
    "StreamGenerate",
}


def rpcs() -> dict[str, str]:
    """Every method of the contracts: name to full name."""
    found: dict[str, str] = {}
    for module in pkgutil.walk_packages(murmura.api.__path__, "murmura.api."):
        if module.name.endswith("_service_pb2"):
            file = importlib.import_module(module.name).DESCRIPTOR
            for service in file.services_by_name.values():
                for method in service.methods:
                    assert method.name not in found, "two methods of one name: this test cannot tell them apart"
                    found[method.name] = f"{service.full_name}/{method.name}"
    return found


def trees() -> Iterator[tuple[Path, ast.Module]]:
    for path in SDK.rglob("*.py"):
        if SDK / "api" not in path.parents:
            yield path, ast.parse(path.read_text())


def built() -> dict[str, set[str]]:
    """The calls that `murmura.calls` builds: function, as `module.name`, to the RPCs that it names."""
    found: dict[str, set[str]] = {}
    for path, tree in trees():
        if path.parent != SDK / "calls":
            continue
        for function in (node for node in tree.body if isinstance(node, ast.FunctionDef)):
            names = {
                str(node.args[1].value)
                for node in ast.walk(function)
                if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "Call"
                if isinstance(node.args[1], ast.Constant)
            }
            if names:
                found[f"{path.stem}.{function.name}"] = names
    return found


def made(of: Path | None = None) -> set[str]:
    """The RPCs that the SDK makes: by a call that is built and used, or by the name of a method of a stub."""
    functions, found = built(), set()
    for path, tree in trees():
        if of is not None and path != of:
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                found |= functions.get(f"{node.value.id}.{node.attr}", set())
            if isinstance(node, ast.Call) and getattr(node.func, "attr", getattr(node.func, "id", "")) in (
                "call",
                "stream",
            ):
                found |= {str(item.value) for item in node.args if isinstance(item, ast.Constant)}
    return found


def test_every_rpc_has_an_sdk_call() -> None:
    called = made()
    missing = {full for name, full in rpcs().items() if name not in called} - NOT_FOR_PEOPLE
    assert not missing, f"the SDK cannot call {', '.join(sorted(missing))}: add a call to murmura.calls and a method"


def test_the_exceptions_are_methods_that_no_person_may_need() -> None:
    assert set(rpcs().values()) >= NOT_FOR_PEOPLE
    called = {rpcs()[name] for name in made() if name in rpcs()}
    assert not called & NOT_FOR_PEOPLE


def test_what_a_service_needs_is_on_asyncio_too() -> None:
    assert made(SDK / "aio.py") >= ON_ASYNCIO


def test_the_calls_are_those_of_the_contract() -> None:
    known = rpcs()
    for name, methods in built().items():
        for method in methods:
            assert method in known, name


def test_each_builder_fits_its_method() -> None:
    """The request is the method's, the stub has the method, and a write carries what makes it happen once."""
    from murmura.api.dataset.v1 import dataset_pb2
    from murmura.api.dataset.v1 import dataset_service_pb2 as pb
    from murmura.api.inference.v1 import inference_pb2
    from murmura.api.trainer.v1 import trainer_pb2
    from murmura.calls import budgets, datasets, jobs, models, registration

    spec, options = trainer_pb2.JobSpec(), inference_pb2.SamplingOptions(seed=1)
    samples = [
        registration.register_dataset("ana", "d", "/notes.csv", privacy_unit="p", epsilon=1.0, delta=1e-6),
        datasets.get_dataset("d"),
        datasets.list_datasets(),
        datasets.delete_dataset("d"),
        datasets.update_policy("d", dataset_pb2.Policy(), 1),
        datasets.list_policy_versions("d"),
        datasets.check_policy("d", "ana", ()),
        datasets.query_statistic(pb.QueryStatisticRequest(request_id="id"), validate_only=True),
        budgets.get_account("accounts/a"),
        budgets.list_accounts(),
        budgets.list_grants("accounts/a"),
        budgets.list_reservations("accounts/a"),
        budgets.create_grant("accounts/a", "ana", 1.0),
        budgets.propose_cap("accounts/a", 1.0, "because it is so"),
        budgets.calibrate("accounts/a", 1.0, 0.1, 10),
        budgets.approve_cap("accounts/a/capChanges/c"),
        budgets.list_entries("accounts/a"),
        budgets.get_reservation("accounts/a/reservations/r"),
        jobs.list_base_models(),
        jobs.list_jobs(),
        jobs.get_job("j"),
        jobs.watch_job("j"),
        jobs.plan_job(spec),
        jobs.create_job(spec, "id"),
        jobs.cancel_job("j", "ana"),
        models.list_adapters(),
        models.get_adapter("a"),
        models.load_adapter("a"),
        models.unload_adapter("a"),
        models.generate("m", "p", options),
        models.batch_generate("m", ["p"], options),
        models.stream_generate("m", "p", options),
        models.count_tokens("m", "t"),
        models.allow("a", ["ben"], 0),
    ]
    assert {call.method for call in samples} == set.union(*built().values())
    for call in samples:
        interface = call.interface or f"{call.service.capitalize()}Service"
        module = importlib.import_module(f"murmura.api.{call.service}.v1.{call.service}_service_pb2")
        method = module.DESCRIPTOR.services_by_name[interface].methods_by_name[call.method]
        assert call.request.DESCRIPTOR.full_name == method.input_type.full_name
        assert calls.repeatable(call.request), call.method
        assert (call.timeout_s is None) <= method.server_streaming
