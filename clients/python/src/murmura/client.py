"""The front door: who you are, where Murmura is, and what there is.

client = Client()
client.datasets()
ds = client.dataset("phee")
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from murmura.calls import DEADLINE_S, Call, request_id, stub_class
from murmura.connection import PATIENCE_S, Connection, choose_profile
from murmura.dataset import RemoteDataset
from murmura.errors import MurmuraError, NotAllowed

if TYPE_CHECKING:
    from murmura.api.dataset.v1 import dataset_pb2
    from murmura.api.inference.v1 import inference_pb2
    from murmura.api.ledger.v1 import ledger_pb2, ledger_service_pb2
    from murmura.api.trainer.v1 import trainer_pb2
    from murmura.budget import Budget
    from murmura.calls.registration import Table
    from murmura.stewardship import Stewardship

_newest: list[Client] = []


class Client:
    """A connection to Murmura, as one person.

    Args:
        url: `grpcs://host:port` of an organisation's Murmura; unset: `MURMURA_URL`, else the one that `murmura up`
            started here.
        token: your bearer token, with `url`; unset: `MURMURA_TOKEN`.
        authority: with `url`: PEM file of the authority of the organisation's certificates, if it has its own; unset:
            `MURMURA_AUTHORITY`.
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
        authority: str | Path | None = None,
        profile: str | Path | None = None,
        role: str = "analyst",
        patience_s: float = PATIENCE_S,
    ) -> None:
        chosen = choose_profile(url, token, authority, role, profile)
        self.connection = Connection(chosen, patience_s)
        _newest[:] = [self]

    @property
    def subject(self) -> str:
        """Who you are."""
        return self.connection.profile.subject

    @property
    def steward(self) -> Stewardship:
        """What a steward decides: policies, shares, caps."""
        from murmura.stewardship import Stewardship

        return Stewardship(self)

    def dataset(self, name: str) -> RemoteDataset:
        """Return a dataset by its name (`phee` or `datasets/phee`)."""
        from murmura.calls import datasets

        return RemoteDataset(self, self.run(datasets.get_dataset(name)).dataset)

    def datasets(self) -> list[RemoteDataset]:
        """Return the datasets that you may use."""
        from murmura.calls import datasets

        return [RemoteDataset(self, resource) for resource in self.all(datasets.list_datasets(), "datasets")]

    def register(
        self,
        name: str,
        source: str | Path | Table,
        *,
        privacy_unit: str,
        epsilon: float | None = None,
        delta: float | None = None,
        policy: str | Path | dataset_pb2.Policy | None = None,
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
            source: a Parquet, CSV or JSON Lines file that the dataset service can read, or a database's table:
                `murmura.table("notes", connection="warehouse")`.
            privacy_unit: the column whose equal values make one privacy unit, for example the patient.
            epsilon: the cap: what all jobs together may reach at `delta`.
            delta: the delta of the cap.
            policy: in place of the terms beside it: a policy file (YAML; see `murmura policy schema`), or a message.
            unlimited_allowed: whether jobs without privacy are allowed.
            unit_noise_multiplier: the ledger's currency; 0 takes its default.
            unit_sampling_probability: the ledger's currency; 0 takes its default.
            display_name: for people.
            derived_from: the dataset whose budget this one shares.
            progress: takes the number of rows read so far.

        Raises:
            InvalidInput: if the policy is incomplete, said twice, or a file that breaks its schema.
        """
        from murmura.calls import registration

        call = registration.register_dataset(
            self.subject,
            name,
            source,
            privacy_unit=privacy_unit,
            epsilon=epsilon,
            delta=delta,
            policy=policy,
            unlimited_allowed=unlimited_allowed,
            unit_noise_multiplier=unit_noise_multiplier,
            unit_sampling_probability=unit_sampling_probability,
            display_name=display_name,
            derived_from=derived_from,
        )
        answer = None
        for answer in self.follow(call):
            progress(answer.rows_read)
        if answer is None:
            raise MurmuraError("The dataset service ended the registration without an answer; try again.")
        return RemoteDataset(self, answer.dataset)

    def budget(self, name: str) -> Budget:
        """Return a budget to look at: `accounts/…`, or a dataset's by the dataset's name."""
        from murmura.budget import Budget

        return Budget(self.account(name))

    def accounts(self) -> list[ledger_pb2.Account]:
        """Return all budgets that you may see: stewards and operators all, others those of their datasets."""
        from murmura.calls import budgets

        try:
            return self.all(budgets.list_accounts(), "accounts")
        except NotAllowed:
            return [self.account(name) for name in sorted({item.resource.account for item in self.datasets()})]

    def account(self, name: str) -> ledger_pb2.Account:
        """Return what the ledger says of a budget: `accounts/…`, or a dataset's by the dataset's name."""
        from murmura.calls import budgets

        account = name if name.startswith("accounts/") else self.dataset(name).resource.account
        found: ledger_pb2.Account = self.run(budgets.get_account(account)).account
        return found

    def calibrate(
        self, name: str, target_epsilon: float, *, sampling_probability: float, steps: int
    ) -> ledger_service_pb2.CalibrateResponse:
        """Return the noise that a job would take and its price, without any rows; spends nothing.

        Args:
            name: `accounts/…`, or a dataset.
            target_epsilon: what the job may reach at the budget's delta.
            sampling_probability: with which a unit takes part in a step.
            steps: how many.
        """
        from murmura.calls import budgets

        account = name if name.startswith("accounts/") else self.dataset(name).resource.account
        call = budgets.calibrate(account, target_epsilon, sampling_probability, steps)
        answer: ledger_service_pb2.CalibrateResponse = self.run(call)
        return answer

    def jobs(self) -> list[trainer_pb2.TrainingJob]:
        """Return your jobs, newest first."""
        from murmura.calls import jobs

        return self.all(jobs.list_jobs(), "training_jobs")

    def base_models(self) -> list[str]:
        """Return the names of what can be fine-tuned: `LLM(name)`."""
        from murmura.calls import jobs

        found = self.all(jobs.list_base_models(), "base_models")
        return [str(model.name).removeprefix("baseModels/") for model in found]

    def adapters(self) -> list[inference_pb2.Adapter]:
        """Return the adapters that you may use."""
        from murmura.calls import models

        return self.all(models.list_adapters(), "adapters")

    def adapter(self, name: str) -> inference_pb2.Adapter:
        """Return what the inference service says of an adapter."""
        from murmura.calls import models

        found: inference_pb2.Adapter = self.run(models.get_adapter(name)).adapter
        return found

    def unload(self, adapter: str) -> None:
        """Serve an adapter no more; `murmura.eval`, or the next who asks for it, brings it back."""
        from murmura.calls import models

        self.run(models.unload_adapter(adapter))

    def allow(self, adapter: str, *, users: Sequence[str] = (), logprobs: int = 0) -> inference_pb2.Adapter:
        """Say what is allowed with an adapter, in place of what was said before. For stewards.

        Args:
            adapter: its name.
            users: who may use it, besides its owner and stewards.
            logprobs: most log-probabilities in each place; nothing tells more about the training data than these.

        Returns:
            The adapter.
        """
        from murmura.calls import models

        found: inference_pb2.Adapter = self.run(models.allow(adapter, users, logprobs)).adapter
        return found

    def close(self) -> None:
        """Close the connection."""
        self.connection.close()

    def stub(self, service: str, interface: str = "") -> Stub:
        """Return a caller of one gRPC service by name; for what the SDK has no method for yet."""
        return Stub(self.connection, service, interface)

    def run(self, call: Call) -> Any:
        """Make a unary call and return its answer."""
        return self.stub(call.service, call.interface).call(call.method, call.request, call.timeout_s or DEADLINE_S)

    def follow(self, call: Call) -> Iterator[Any]:
        """Make a streaming call and yield its answers."""
        answers: Iterator[Any] = self.stub(call.service, call.interface).stream(
            call.method, call.request, call.timeout_s
        )
        return answers

    def each(self, call: Call, field: str) -> Iterator[Any]:
        """Yield the items of a list; a page is asked for when it is needed."""
        while True:
            answer = self.run(call)
            yield from getattr(answer, field)
            call.request.page_token = answer.next_page_token
            if not call.request.page_token:
                return

    def all(self, call: Call, field: str) -> list[Any]:
        """Return all items of a list."""
        return list(self.each(call, field))

    def request_id(self, message: Any, salt: str = "") -> str:
        """Derive a request id from who asks and what is asked, so that a repeated call is the same request."""
        return request_id(self.subject, message, salt)


class Stub:
    """One gRPC service: its methods by name, with the connection's patience and errors."""

    def __init__(self, connection: Connection, service: str, interface: str) -> None:
        self._connection = connection
        self._service = service
        self._stub = stub_class(service, interface)(connection.channel(service))

    def call(self, method: str, request: Any, timeout_s: float = 60.0) -> Any:
        """Make a unary call."""
        return self._connection.call(self._service, getattr(self._stub, method), request, timeout_s)

    def stream(self, method: str, request: Any, timeout_s: float | None = None) -> Any:
        """Make a streaming call."""
        return self._connection.stream(self._service, getattr(self._stub, method), request, timeout_s)


def newest() -> Client:
    """Return the client made last, or a local one."""
    return _newest[0] if _newest else Client()
