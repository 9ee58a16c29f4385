"""The front door: who you are, where Murmura is, and what there is.

client = Client()
client.datasets()
ds = client.dataset("phee")
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from murmura.connection import PATIENCE_S, Connection, local_profile, remote_profile
from murmura.dataset import RemoteDataset
from murmura.errors import MurmuraError

if TYPE_CHECKING:
    from murmura.api.dataset.v1 import dataset_pb2
    from murmura.api.inference.v1 import inference_pb2
    from murmura.api.ledger.v1 import ledger_pb2
    from murmura.api.trainer.v1 import trainer_pb2
    from murmura.budget import Budget

_NAMESPACE = uuid.UUID("6c1f8a52-7d3b-5f0e-9f57-3f2f6c0b9a11")
_newest: list[Client] = []


class Client:
    """A connection to Murmura, as one person.

    Args:
        url: `grpcs://host:port` of an organisation's Murmura; unset: the one that `murmura up` started here.
        token: your bearer token, with `url`.
        profile: another profile file than `.murmura/profile.json`.
        role: with the local one: `analyst`, `steward` or `operator`.
        patience_s: how long to wait for a service that is being restarted.

    Raises:
        murmura.errors.Unreachable: if there is no local Murmura.
    """

    def __init__(
        self,
        url: str | None = None,
        token: str | None = None,
        *,
        profile: str | Path | None = None,
        role: str = "analyst",
        patience_s: float = PATIENCE_S,
    ) -> None:
        chosen = remote_profile(url, token) if url else local_profile(role, profile)
        self.connection = Connection(chosen, patience_s)
        _newest[:] = [self]

    @property
    def subject(self) -> str:
        """Who you are."""
        return self.connection.profile.subject

    def dataset(self, name: str) -> RemoteDataset:
        """Return a dataset by its name (`phee` or `datasets/phee`)."""
        from murmura.api.dataset.v1 import dataset_service_pb2 as messages

        request = messages.GetDatasetRequest(name=qualified("datasets", name))
        return RemoteDataset(self, self.stub("dataset").call("GetDataset", request).dataset)

    def datasets(self) -> list[RemoteDataset]:
        """Return the datasets that you may use."""
        from murmura.api.dataset.v1 import dataset_service_pb2 as messages

        found: list[dataset_pb2.Dataset] = self.pages(
            "dataset", "ListDatasets", messages.ListDatasetsRequest, "datasets"
        )
        return [RemoteDataset(self, resource) for resource in found]

    def register(
        self,
        name: str,
        source: str | Path,
        *,
        privacy_unit: str,
        epsilon: float,
        delta: float,
        unlimited_allowed: bool = False,
        unit_noise_multiplier: float = 0.0,
        unit_sampling_probability: float = 0.0,
        display_name: str = "",
        derived_from: str = "",
        progress: Callable[[int], None] = lambda rows: None,
    ) -> RemoteDataset:
        """Register private rows (stewards). The same call again changes nothing.

        Args:
            name: the dataset becomes `datasets/<name>`.
            source: a Parquet, CSV or JSON Lines file that the dataset service can read.
            privacy_unit: the column whose equal values make one privacy unit, for example the patient.
            epsilon: the cap: what all jobs together may reach at `delta`.
            delta: the delta of the cap.
            unlimited_allowed: whether jobs without privacy are allowed.
            unit_noise_multiplier: the ledger's currency; 0 takes its default.
            unit_sampling_probability: the ledger's currency; 0 takes its default.
            display_name: for people.
            derived_from: the dataset whose budget this one shares.
            progress: takes the number of rows read so far.
        """
        from murmura.api.dataset.v1 import dataset_pb2
        from murmura.api.dataset.v1 import dataset_service_pb2 as messages

        location = str(source) if "://" in str(source) else str(Path(source).resolve())
        request = messages.RegisterDatasetRequest(
            dataset_id=name.removeprefix("datasets/"),
            display_name=display_name,
            source=dataset_pb2.Source(file=dataset_pb2.FileSource(url=location)),
            privacy_unit_column=privacy_unit,
            derived_from=qualified("datasets", derived_from) if derived_from else "",
            policy=dataset_pb2.Policy(
                epsilon=epsilon,
                delta=delta,
                unlimited_allowed=unlimited_allowed,
                unit_noise_multiplier=unit_noise_multiplier,
                unit_sampling_probability=unit_sampling_probability,
            ),
        )
        request.request_id = self.request_id(request)
        answer = None
        for answer in self.stub("dataset").stream("RegisterDataset", request):
            progress(answer.rows_read)
        if answer is None:
            raise MurmuraError("The dataset service ended the registration without an answer; try again.")
        return RemoteDataset(self, answer.dataset)

    def budget(self, name: str) -> Budget:
        """Return a budget to look at: `accounts/…`, or a dataset's by the dataset's name."""
        from murmura.budget import Budget

        return Budget(self.account(name))

    def account(self, name: str) -> ledger_pb2.Account:
        """Return what the ledger says of a budget: `accounts/…`, or a dataset's by the dataset's name."""
        from murmura.api.ledger.v1 import ledger_service_pb2 as messages

        account = name if name.startswith("accounts/") else self.dataset(name).resource.account
        answer = self.stub("ledger").call("GetAccount", messages.GetAccountRequest(name=account))
        found: ledger_pb2.Account = answer.account
        return found

    def jobs(self) -> list[trainer_pb2.TrainingJob]:
        """Return your jobs, newest first."""
        from murmura.api.trainer.v1 import trainer_service_pb2 as messages

        return self.pages("trainer", "ListTrainingJobs", messages.ListTrainingJobsRequest, "training_jobs")

    def adapters(self) -> list[inference_pb2.Adapter]:
        """Return the adapters that you may use."""
        from murmura.api.inference.v1 import inference_service_pb2 as messages

        return self.pages("inference", "ListAdapters", messages.ListAdaptersRequest, "adapters", "AdapterService")

    def allow(self, adapter: str, *, users: Sequence[str] = (), logprobs: int = 0) -> inference_pb2.Adapter:
        """Say what is allowed with an adapter, in place of what was said before. For stewards.

        Args:
            adapter: its name.
            users: who may use it, besides its owner and stewards.
            logprobs: most log-probabilities in each place; nothing tells more about the training data than these.

        Returns:
            The adapter.
        """
        from murmura.api.inference.v1 import inference_pb2
        from murmura.api.inference.v1 import inference_service_pb2 as messages

        policy = inference_pb2.AdapterPolicy(users=users, logprobs=logprobs)
        request = messages.UpdateAdapterPolicyRequest(
            request_id=str(uuid.uuid4()), name=qualified("adapters", adapter), policy=policy
        )
        answer: messages.UpdateAdapterPolicyResponse = self.stub("inference", "AdapterService").call(
            "UpdateAdapterPolicy", request
        )
        return answer.adapter

    def close(self) -> None:
        """Close the connection."""
        self.connection.close()

    def stub(self, service: str, interface: str = "") -> Stub:
        """Return a caller of one gRPC service by name; for what the SDK has no method for yet."""
        return Stub(self.connection, service, interface or f"{service.capitalize()}Service")

    def pages(self, service: str, method: str, request_type: Any, field: str, interface: str = "") -> list[Any]:
        """Return all items of a paged list."""
        items: list[Any] = []
        token = ""
        while True:
            answer = self.stub(service, interface).call(method, request_type(page_size=1000, page_token=token))
            items.extend(getattr(answer, field))
            token = answer.next_page_token
            if not token:
                return items

    def request_id(self, message: Any, salt: str = "") -> str:
        """Derive a request id from who asks and what is asked, so that a repeated call is the same request."""
        body = message.SerializeToString(deterministic=True).hex()
        return str(uuid.uuid5(_NAMESPACE, f"{self.subject}\n{message.DESCRIPTOR.full_name}\n{body}\n{salt}"))


class Stub:
    """One gRPC service: its methods by name, with the connection's patience and errors."""

    def __init__(self, connection: Connection, service: str, interface: str) -> None:
        import importlib

        self._connection = connection
        self._service = service
        module = importlib.import_module(f"murmura.api.{service}.v1.{service}_service_pb2_grpc")
        self._stub = getattr(module, f"{interface}Stub")(connection.channel(service))

    def call(self, method: str, request: Any, timeout_s: float = 60.0) -> Any:
        """Make a unary call."""
        return self._connection.call(self._service, getattr(self._stub, method), request, timeout_s)

    def stream(self, method: str, request: Any, timeout_s: float | None = None) -> Any:
        """Make a streaming call."""
        return self._connection.stream(self._service, getattr(self._stub, method), request, timeout_s)


def newest() -> Client:
    """Return the client made last, or a local one."""
    return _newest[0] if _newest else Client()


def qualified(collection: str, name: str) -> str:
    """Return the full resource name of a short or full one."""
    return name if name.startswith(f"{collection}/") else f"{collection}/{name}"
