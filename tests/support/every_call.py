"""All methods of all contracts, all services that serve them, and tokens of everyone who could call."""

from __future__ import annotations

import importlib
import itertools
import pkgutil
from collections.abc import Iterator
from typing import Any

import grpc
from google.protobuf import message_factory
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2

import murmura.api
from murmura.api.dataset.v1 import expressions_pb2
from services.common.requests import frame_digest
from services.common.tokens import load_signing_key, mint
from tests.support.refusals import reason

TIMEOUT_S = 30


def described() -> Iterator[Any]:
    """Yield all methods of all contracts."""
    modules = [reflection_pb2, health_pb2]
    for found in pkgutil.walk_packages(murmura.api.__path__, "murmura.api."):
        if found.name.endswith("_pb2"):
            modules.append(importlib.import_module(found.name))
    for module in modules:
        for service in module.DESCRIPTOR.services_by_name.values():
            yield from service.methods


def short(method: Any) -> str:
    return f"{method.containing_service.name}/{method.name}"


METHODS = {short(method): method for method in described()}


class World:
    """All services, and everyone's tokens.

    Attributes:
        job, dataset: real ones.
        channels: to each service, by its name.
    """

    def __init__(self, cluster: Any, inference: Any, dataset: Any, job: Any) -> None:
        self.dataset, self.job = dataset, job
        keys = cluster.directory / "keys"
        self._trainer_key = load_signing_key(keys / "trainer.pem")
        self._keys = {"": load_signing_key(keys / "deployment.pem"), "inference": inference.key}
        endpoints = {**cluster.endpoints, "inference": f"127.0.0.1:{inference.port}"}
        self.channels = {service: grpc.insecure_channel(endpoint) for service, endpoint in endpoints.items()}

    def where(self, method: Any) -> str:
        """Return the process that a method is called at."""
        package = method.containing_service.full_name.split(".")
        return package[2] if package[0] == "murmura" else "ledger"

    def token(self, caller: str, service: str) -> str:
        """Return a token of someone, as a service believes it."""
        key = self._keys.get(service, self._keys[""])
        if caller == "worker":
            return self._worker("trainingJobs/other", "datasets/other", f"{self.dataset.account}/reservations/other")
        if caller == "own worker":
            return self._worker(self.job.name, self.dataset.name, self.job.reservation)
        if caller == "owner":
            return mint(key, "deployment", "analyst@local", ["analyst"], 600)
        if caller == "expired":
            return mint(key, "deployment", "steward@local", ["steward", "operator", "analyst", "service"], -10)
        if caller in ("dataset", "trainer", "inference"):
            return mint(key, "deployment", f"service:{caller}", ["service"], 600)
        # Another analyst than the one whose job it is.
        return mint(key, "deployment", f"other-{caller}@local", [caller], 600)

    def call(self, method: Any, requests: list[Any], token: str, most: int = 1) -> tuple[str, str, list[Any]]:
        """Call a method.

        Args:
            method: its descriptor.
            requests: one, or those of a stream.
            token: empty for none.
            most: how many answers of a stream are taken.

        Returns:
            The status code's name, the reason of a refusal, and the answers.
        """
        kind = f"{'stream' if method.client_streaming else 'unary'}_{'stream' if method.server_streaming else 'unary'}"
        call = getattr(self.channels[self.where(method)], kind)(
            f"/{method.containing_service.full_name}/{method.name}",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=message_factory.GetMessageClass(method.output_type).FromString,
        )
        metadata = (("authorization", f"Bearer {token}"),) if token else ()
        answering, answers = None, []
        try:
            sent = iter(requests) if method.client_streaming else requests[0]
            answering = call(sent, timeout=TIMEOUT_S, metadata=metadata)
            if method.server_streaming:
                answers.extend(itertools.islice(answering, most))
            else:
                answers.append(answering)
        except grpc.RpcError as error:
            failed: Any = error
            return failed.code().name, reason(failed), answers
        finally:
            if method.server_streaming and answering is not None:
                answering.cancel()
        return "OK", "", answers

    def _worker(self, job: str, dataset: str, reservation: str) -> str:
        claims = {
            "job": job,
            "attempt": "1",
            "dataset": dataset,
            "frame_sha256": frame_digest(expressions_pb2.Frame(dataset=dataset)),
            "reservation": reservation,
        }
        return mint(self._trainer_key, "trainer", f"worker:{job.partition('/')[2]}", ["worker"], 600, **claims)
