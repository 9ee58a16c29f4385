"""A deployment of real processes: ledger, dataset service and trainer, with real keys and a tiny random base model.

Services keep their ports, so that a test may kill one and start it again.
"""

from __future__ import annotations

import json
import signal
import subprocess
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import grpc
import psutil
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from murmura.api.dataset.v1 import dataset_service_pb2, dataset_service_pb2_grpc
from murmura.api.ledger.v1 import ledger_service_pb2, ledger_service_pb2_grpc
from murmura.api.trainer.v1 import trainer_pb2, trainer_service_pb2, trainer_service_pb2_grpc
from murmura.local.identity import Identity
from services.common.tokens import load_signing_key, mint
from tests.support import warm
from tests.support.ports import free_port

BASE_MODEL = "tiny"
PATIENCE_S = 120.0
STUBS: dict[str, Any] = {
    "ledger": ledger_service_pb2_grpc.LedgerServiceStub,
    "dataset": dataset_service_pb2_grpc.DatasetServiceStub,
    "trainer": trainer_service_pb2_grpc.TrainerServiceStub,
}


class Cluster:
    """Ledger, dataset service and trainer as real processes.

    Attributes:
        ledger, dataset, trainer: stubs; calls carry a token through `metadata=cluster.who(...)`.
        artifacts: the artifact store.
        processes: of the services.
    """

    def __init__(self, directory: Path, base_models: dict[str, str]) -> None:
        self.directory = directory
        self.artifacts = directory / "artifacts"
        self._identity = Identity(directory)
        self._base_models = base_models
        self.processes: dict[str, warm.Process] = {}
        self._channels: list[grpc.Channel] = []
        self.endpoints = {service: f"127.0.0.1:{free_port()}" for service in STUBS}
        for service in STUBS:
            self._identity.mint(f"service:{service}", "service")
        for service, stub in STUBS.items():
            channel = self.connect(service)
            self._channels.append(channel)
            setattr(self, service, stub(channel))

    ledger: Any
    dataset: Any
    trainer: Any

    # ------------------------------------------------------------------ services

    def connect(self, service: str) -> grpc.Channel:
        """Open a channel to a service, as a person does."""
        # A service that was killed is back in moments; a test should not wait out gRPC's patience.
        options = [("grpc.initial_reconnect_backoff_ms", 100), ("grpc.max_reconnect_backoff_ms", 500)]
        return grpc.insecure_channel(self.endpoints[service], options=options)

    def settings(self, service: str) -> dict[str, str]:
        """What a service is told, without the prefix of its variables."""
        settings = {
            "LISTEN": self.endpoints[service],
            "STATE_DIR": str(self.state(service)),
            "TRUSTED_KEYS": str(self._identity.trusted_keys),
            "SERVICE_TOKEN_FILE": str(self._identity.token_file(f"service:{service}")),
            "BASE_MODELS": json.dumps(self._base_models),
            "ARTIFACTS": str(self.artifacts),
            **{f"{name.upper()}_ENDPOINT": endpoint for name, endpoint in self.endpoints.items()},
        }
        if service == "trainer":
            settings["SIGNING_KEY_FILE"] = str(self._identity.trainer_key)
        return settings

    def start(self, service: str) -> None:
        """Start a service and wait until it serves."""
        self.launch(service)
        self.wait(lambda: self._serves(service), f"{service} serves")

    def launch(self, service: str) -> warm.Process:
        """Start a service."""
        environment = warm.environment(self.settings(service)) | {"HF_HUB_OFFLINE": "1"}
        self.processes[service] = warm.start(f"services.{service}", environment, self.log(service), new_session=True)
        return self.processes[service]

    def __enter__(self) -> Self:
        """Start all services; they end with the block."""
        try:
            self.start_all()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start_all(self) -> None:
        """Start all services."""
        for service in STUBS:
            self.start(service)

    def kill(self, service: str) -> None:
        """End a service as a power cut would."""
        self.processes[service].kill()
        self.processes[service].wait()

    def restart(self, service: str) -> None:
        """Let a service end in good order, and start another."""
        self.processes[service].terminate()
        self.processes[service].wait(30)
        self.start(service)

    def stop(self) -> None:
        """End everything: services, and workers that outlived them."""
        for process in self.processes.values():
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
        for process in self.processes.values():
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
        for worker in self.workers():
            worker.kill()
        for channel in self._channels:
            channel.close()

    def state(self, service: str) -> Path:
        """The state directory of a service."""
        return self.directory / "services" / service

    def log(self, service: str) -> Path:
        """The log of a service."""
        return self.directory / f"{service}.log"

    def logs(self) -> str:
        """All that services and workers have logged."""
        files = [*self.directory.glob("*.log"), *self.state("trainer").rglob("*.log")]
        return "\n".join(path.read_text(errors="replace") for path in files)

    def workers(self, job: str = "") -> list[psutil.Process]:
        """The worker processes of this cluster that live, of one job or of all."""
        found = []
        told = {process.pid: process.environment for process in warm.living()}
        for process in psutil.process_iter():
            try:
                environment = told.get(process.pid) or process.environ()
                ours = environment.get("MURMURA_JOB_TOKEN_FILE", "").startswith(str(self.directory))
                if ours and environment.get("MURMURA_JOB", "").startswith(job):
                    if process.status() != psutil.STATUS_ZOMBIE:
                        found.append(process)
            except psutil.Error:
                continue
        return found

    # ------------------------------------------------------------------ people

    def who(self, role: str = "analyst", subject: str = "") -> tuple[tuple[str, str], ...]:
        """Return call metadata with a fresh token of a person."""
        key = load_signing_key(self.directory / "keys" / "deployment.pem")
        token = mint(key, "deployment", subject or f"{role}@local", [role], 3600)
        return (("authorization", f"Bearer {token}"),)

    # ------------------------------------------------------------------ what most tests do

    def register(self, rows: list[dict[str, Any]], epsilon: float = 10.0, unlimited_allowed: bool = True) -> Any:
        """Register rows (columns `patient`, `text`) as a new dataset and return it."""
        dataset_id = f"notes-{uuid.uuid4().hex[:8]}"
        path = self.directory / f"{dataset_id}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        request = dataset_service_pb2.RegisterDatasetRequest(
            request_id=str(uuid.uuid4()), dataset_id=dataset_id, privacy_unit_column="patient"
        )
        request.source.file.url = str(path)
        request.policy.epsilon, request.policy.delta = epsilon, 1e-3
        request.policy.unlimited_allowed = unlimited_allowed
        answers = list(self.dataset.RegisterDataset(request, metadata=self.who("steward"), timeout=60))
        return answers[-1].dataset

    def spec(self, dataset: Any, epsilon: float | None = 4.0, **settings: Any) -> trainer_pb2.JobSpec:
        """Return the spec of a job over all rows of a dataset; without an epsilon it is unlimited."""
        spec = trainer_pb2.JobSpec(base_model=f"baseModels/{BASE_MODEL}")
        spec.frame.dataset = dataset.name
        if epsilon is None:
            spec.unlimited = True
        else:
            spec.target_epsilon = epsilon
        chosen = {"lora_rank": 2, "max_length": 16, "batch_size": 10} | settings
        spec.settings.CopyFrom(trainer_pb2.Settings(**chosen))
        return spec

    def create(self, spec: trainer_pb2.JobSpec, request_id: str = "", **call: Any) -> Any:
        """Create a job and return it."""
        request = trainer_service_pb2.CreateTrainingJobRequest(request_id=request_id or str(uuid.uuid4()), spec=spec)
        call.setdefault("metadata", self.who())
        return self.trainer.CreateTrainingJob(request, timeout=120, **call).training_job

    def job(self, name: str) -> Any:
        """Read a job."""
        request = trainer_service_pb2.GetTrainingJobRequest(name=name)
        return self.trainer.GetTrainingJob(request, timeout=20, metadata=self.who()).training_job

    def ended(self, name: str) -> Any:
        """Wait until a job is over and return it."""
        over = (
            trainer_pb2.JOB_STATE_SUCCEEDED,
            trainer_pb2.JOB_STATE_FAILED,
            trainer_pb2.JOB_STATE_CANCELLED,
        )
        self.wait(lambda: self.job(name).state in over, f"{name} ends")
        return self.job(name)

    def reservation(self, name: str) -> Any:
        """Read a reservation."""
        request = ledger_service_pb2.GetReservationRequest(name=name)
        return self.ledger.GetReservation(request, timeout=20, metadata=self.who()).reservation

    def account(self, name: str) -> Any:
        """Read an account."""
        request = ledger_service_pb2.GetAccountRequest(name=name)
        return self.ledger.GetAccount(request, timeout=20, metadata=self.who()).account

    def wait(self, condition: Callable[[], Any], what: str, patience_s: float = PATIENCE_S) -> None:
        """Wait until something holds; a service that is away counts as not yet."""
        deadline = time.monotonic() + patience_s
        while True:
            try:
                if condition():
                    return
            except grpc.RpcError as error:
                if error.code() != grpc.StatusCode.UNAVAILABLE:  # type: ignore[attr-defined]
                    raise
            if time.monotonic() > deadline:
                pytest.fail(f"not within {patience_s:.0f} s: {what}\n{self.logs()[-4000:]}")
            time.sleep(0.1)

    def _serves(self, service: str) -> bool:
        if self.processes[service].poll() is not None:
            pytest.fail(f"{service} ended while starting\n{self.log(service).read_text()[-4000:]}")
        with self.connect(service) as channel:
            answer = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=2)
        return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


def tiny_base_model(place: Path) -> Path:
    """Make a random Llama of a few thousand weights, with a tokenizer of bytes."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: number for number, token in enumerate(["<|end|>", *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<|end|>", eos_token="<|end|>").save_pretrained(
        str(place)
    )
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(vocabulary),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=256,  # as many as the default length of rows
        bos_token_id=0,
        eos_token_id=0,
        tie_word_embeddings=True,
    )
    LlamaForCausalLM(config).save_pretrained(str(place))
    return place
