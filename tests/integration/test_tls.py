"""A deployment that a network can reach: TLS everywhere, certificates for services, an identity provider for people."""

from __future__ import annotations

import json
import ssl
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from murmura import errors
from murmura.api.trainer.v1 import trainer_pb2, trainer_service_pb2
from murmura.client import Client
from tests.support import warm
from tests.support.certificates import Authority
from tests.support.deployment import BASE_MODEL, Cluster
from tests.support.identity_provider import Provider
from tests.support.ports import free_port

ROLES = {"doctors": "analyst", "data office": "steward"}


class Site(Cluster):
    """Ledger, dataset service and trainer, listening to the world."""

    def __init__(self, directory: Path, base_models: dict[str, str]) -> None:
        self.authority = Authority(directory / "tls")
        self.provider = Provider()
        self.files = {name: self.authority.service(name) for name in ("ledger", "dataset", "trainer", "inference")}
        self._for_services = {name: free_port() for name in self.files}
        super().__init__(directory, base_models)
        # No one signs in with a key that this deployment made.
        keys = json.loads(self._identity.trusted_keys.read_text())["keys"]
        workers = [key for key in keys if key["may_issue"] == ["worker"]]
        self.keys = directory / "keys" / "workers.json"
        self.keys.write_text(json.dumps({"keys": workers}))

    def connect(self, service: str) -> grpc.Channel:
        credentials = grpc.ssl_channel_credentials(self.authority.file.read_bytes())
        return grpc.secure_channel(self.endpoints[service], credentials)

    def as_service(self, caller: str, service: str) -> grpc.Channel:
        """Open a channel with the certificate of a service."""
        files = self.files[caller]
        credentials = grpc.ssl_channel_credentials(
            *(path.read_bytes() for path in (files.authority, files.key, files.certificate))
        )
        return grpc.secure_channel(f"127.0.0.1:{self._for_services[service]}", credentials)

    def settings(self, service: str) -> dict[str, str]:
        settings = super().settings(service)
        settings.pop("SERVICE_TOKEN_FILE")
        return (
            settings
            | self.files[service].environment()
            | {
                "LISTEN": f"0.0.0.0:{self.endpoints[service].rpartition(':')[2]}",
                "SERVICES_LISTEN": f"0.0.0.0:{self._for_services[service]}",
                "TRUSTED_KEYS": str(self.keys),
                "OIDC_ISSUER": self.provider.url,
                "OIDC_ROLES": json.dumps(ROLES),
                "SOURCES": json.dumps([str(self.directory)]),
                "LEDGER_ENDPOINT": f"127.0.0.1:{self._for_services['ledger']}",
                "DATASET_ENDPOINT": f"127.0.0.1:{self._for_services['dataset']}",
                "WORKER_DATASET_ENDPOINT": self.endpoints["dataset"],
            }
        )

    def stop(self) -> None:
        super().stop()
        self.provider.stop()

    def who(self, role: str = "analyst", subject: str = "") -> tuple[tuple[str, str], ...]:
        groups = [group for group, given in ROLES.items() if given == role]
        return (("authorization", f"Bearer {self.provider.token(sub=subject or role, groups=groups)}"),)

    def audit(self, service: str) -> list[dict[str, Any]]:
        """What stands in the audit log of a service."""
        return [json.loads(line) for line in (self.state(service) / "audit.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, tiny_base_model: Path) -> Iterator[Site]:
    with Site(tmp_path_factory.mktemp("site").resolve(), {BASE_MODEL: str(tiny_base_model)}) as made:
        yield made


def test_a_job_runs_from_the_data_to_the_adapter_and_every_step_is_in_an_audit_log(
    site: Site, notes: list[dict[str, Any]]
) -> None:
    dataset = site.register(notes)
    job = site.ended(site.create(site.spec(dataset, epochs=2.0)).name)
    assert job.state == trainer_pb2.JOB_STATE_SUCCEEDED, site.logs()[-4000:]
    assert job.owner == "analyst"

    def seen(service: str, method: str) -> set[tuple[str, str, str]]:
        lines = [line for line in site.audit(service) if line["method"].endswith(f"/{method}")]
        return {(line["subject"], line["by"], line["decision"]) for line in lines}

    worker = f"worker:{job.name.removeprefix('trainingJobs/')}"
    assert seen("dataset", "RegisterDataset") == {("steward", "token", "allowed")}
    assert seen("ledger", "OpenAccount") == {("service:dataset", "certificate", "allowed")}
    assert seen("ledger", "CreateReservation") == {("service:trainer", "certificate", "allowed")}
    assert seen("dataset", "ReadRows") == {(worker, "token", "allowed")}
    assert seen("trainer", "UploadAdapter") == {(worker, "token", "allowed")}
    read = next(line for line in site.audit("dataset") if line["method"].endswith("/ReadRows"))
    assert read["resources"] == [dataset.name]
    everything = "".join((site.state(name) / "audit.jsonl").read_text() for name in ("ledger", "dataset", "trainer"))
    assert "xylophone" not in everything


def test_a_job_token_dies_with_its_job(site: Site, notes: list[dict[str, Any]]) -> None:
    """The worker's own token, as it was while the job ran, opens nothing of either service afterwards."""
    created = site.create(site.spec(site.register(notes), epochs=1000.0))
    job_id = created.name.removeprefix("trainingJobs/")
    token_file = site.state("trainer") / "workers" / job_id / "token"
    site.wait(lambda: site.job(created.name).completed_steps > 0, "the job steps")
    metadata = (("authorization", f"Bearer {token_file.read_text().strip()}"),)
    worker = _stub(site, "trainer", "WorkerService")
    beat = trainer_service_pb2.HeartbeatRequest(job=created.name, attempt=1)
    assert not worker.Heartbeat(beat, timeout=20, metadata=metadata).stop
    # It is for this job alone, whatever else exists.
    other = trainer_service_pb2.HeartbeatRequest(job="trainingJobs/other", attempt=1)
    assert _code(lambda: worker.Heartbeat(other, timeout=20, metadata=metadata)) == grpc.StatusCode.NOT_FOUND

    request = trainer_service_pb2.CancelTrainingJobRequest(request_id=str(uuid.uuid4()), name=created.name)
    site.trainer.CancelTrainingJob(request, metadata=site.who(), timeout=20)
    site.ended(created.name)
    calls = {
        "GetAssignment": trainer_service_pb2.GetAssignmentRequest(job=created.name),
        "Heartbeat": beat,
        "ReportFailure": trainer_service_pb2.ReportFailureRequest(
            job=created.name, attempt=1, cause=trainer_service_pb2.FAILURE_CAUSE_INTERNAL
        ),
    }
    answers = {
        method: _code(lambda m=method, r=sent: getattr(worker, m)(r, timeout=20, metadata=metadata))
        for method, sent in calls.items()
    }
    load = trainer_service_pb2.LoadCheckpointRequest(job=created.name)
    answers["LoadCheckpoint"] = _code(lambda: list(worker.LoadCheckpoint(load, timeout=20, metadata=metadata)))
    for method, message in (
        ("SaveCheckpoint", trainer_service_pb2.SaveCheckpointRequest(job=created.name, attempt=1, completed_steps=1)),
        ("UploadAdapter", trainer_service_pb2.UploadAdapterRequest(job=created.name, attempt=1)),
    ):
        answers[method] = _code(
            lambda m=method, r=message: getattr(worker, m)(iter([r]), timeout=20, metadata=metadata)
        )
    assert answers == dict.fromkeys(answers, grpc.StatusCode.FAILED_PRECONDITION)
    rows = _stub(site, "dataset", "DatasetService")
    from murmura.api.dataset.v1 import dataset_service_pb2

    read = dataset_service_pb2.ReadRowsRequest(frame=created.spec.frame, text_column="text")
    code = _code(lambda: list(rows.ReadRows(read, timeout=20, metadata=metadata)))
    assert code == grpc.StatusCode.PERMISSION_DENIED


def test_the_sdk_speaks_to_it(site: Site, notes: list[dict[str, Any]]) -> None:
    dataset = site.register(notes)
    token = site.who()[0][1].removeprefix("Bearer ")
    client = Client(f"grpcs://{site.endpoints['dataset']}", token, authority=site.authority.file)
    assert client.dataset(dataset.name).resource.name == dataset.name
    client.close()
    without = Client(f"grpcs://{site.endpoints['dataset']}", token, patience_s=0.1)
    with pytest.raises(errors.Unreachable):
        without.dataset(dataset.name)
    without.close()


def test_only_those_who_spend_can_spend(site: Site) -> None:
    from murmura.api.ledger.v1 import ledger_service_pb2, ledger_service_pb2_grpc

    request = ledger_service_pb2.ReleaseReservationRequest(
        request_id=str(uuid.uuid4()), name="accounts/none/reservations/none"
    )
    for caller, expected in (
        ("trainer", grpc.StatusCode.NOT_FOUND),
        ("inference", grpc.StatusCode.PERMISSION_DENIED),
    ):
        with site.as_service(caller, "ledger") as channel:
            stub: Any = ledger_service_pb2_grpc.LedgerServiceStub(channel)
            assert _code(lambda s=stub: s.ReleaseReservation(request, timeout=20)) == expected


def test_services_take_new_certificates_while_they_run(site: Site, notes: list[dict[str, Any]]) -> None:
    before = {name: _shown(site, name) for name in ("ledger", "dataset", "trainer")}
    fresh = {name: site.authority.service(name, file=f"fresh-{name}") for name in ("ledger", "dataset", "trainer")}
    for name, files in fresh.items():
        files.key.replace(site.files[name].key)
        files.certificate.replace(site.files[name].certificate)
    dataset = site.register(notes)
    assert site.account(dataset.account).name == dataset.account
    for name, old in before.items():
        site.wait(lambda n=name, o=old: _shown(site, n) != o, f"{name} shows the new one", 20)


@pytest.mark.parametrize("without", ["tls", "provider"])
def test_a_service_does_not_start_where_others_could_pose_as_someone(site: Site, tmp_path: Path, without: str) -> None:
    settings = site.settings("ledger") | {"STATE_DIR": str(tmp_path / "state")}
    if without == "tls":
        settings = {name: value for name, value in settings.items() if not name.startswith("TLS_")}
        settings.pop("SERVICES_LISTEN")
        (tmp_path / "token").write_text("a.b.c")
        settings["SERVICE_TOKEN_FILE"] = str(tmp_path / "token")
        said = "MURMURA_TLS_CERTIFICATE, MURMURA_TLS_KEY and MURMURA_TLS_AUTHORITY"
    else:
        settings["TRUSTED_KEYS"] = str(site._identity.trusted_keys)
        said = "MURMURA_TRUSTED_KEYS: the key 'deployment' may issue"
    ended = subprocess.run(
        [sys.executable, "-m", "services.ledger"],
        env=warm.environment(settings),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (ended.returncode, said in ended.stderr) == (2, True), ended.stderr
    assert "Traceback" not in ended.stderr


def _shown(site: Site, service: str) -> str:
    host, _, port = site.endpoints[service].rpartition(":")
    return ssl.get_server_certificate((host, int(port)))


def _stub(site: Site, service: str, interface: str) -> Any:
    from murmura.api.dataset.v1 import dataset_service_pb2_grpc
    from murmura.api.trainer.v1 import trainer_service_pb2_grpc

    modules: dict[str, Any] = {"trainer": trainer_service_pb2_grpc, "dataset": dataset_service_pb2_grpc}
    channel = site.connect(service)
    site._channels.append(channel)
    return getattr(modules[service], f"{interface}Stub")(channel)


def _code(call: Any) -> grpc.StatusCode:
    try:
        call()
    except grpc.RpcError as error:
        code: grpc.StatusCode = error.code()  # type: ignore[attr-defined]
        return code
    return grpc.StatusCode.OK
