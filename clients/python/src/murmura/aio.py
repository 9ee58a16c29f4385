"""The client for programs that wait for many things at once: the same calls as `Client`, on asyncio.

What is sent, how long it may take, when it is tried again and what a refusal means is shared with `Client` (`calls`,
`connection`, `errors`); only the waiting is written here. Requests are messages of the contracts or plain values, and
nothing is printed: this is for services, not for notebooks. Longer than most modules: one short method for each call.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from murmura.aio_connection import AsyncConnection
from murmura.api.dataset.v1 import expressions_pb2
from murmura.api.trainer.v1 import trainer_pb2
from murmura.budget import Budget
from murmura.calls import budgets, datasets, jobs, models, qualified, registration
from murmura.connection import PATIENCE_S, choose_profile
from murmura.errors import InvalidInput, MurmuraError, NotAllowed, Unreachable
from murmura.sampler import sampling_options

if TYPE_CHECKING:
    from murmura.api.dataset.v1 import dataset_pb2, dataset_service_pb2
    from murmura.api.inference.v1 import inference_pb2, inference_service_pb2
    from murmura.api.ledger.v1 import ledger_pb2, ledger_service_pb2
    from murmura.stewardship_aio import AsyncStewardship


class AsyncClient:
    """A connection to Murmura, as one person or program, for asyncio. Close it, or use it with `async with`.

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
        self._connection = AsyncConnection(chosen, patience_s)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.close()

    @property
    def subject(self) -> str:
        """Who you are."""
        return self._connection.profile.subject

    async def close(self) -> None:
        """Close the connection."""
        await self._connection.close()

    @property
    def steward(self) -> AsyncStewardship:
        """What a steward decides: policies, shares, caps."""
        from murmura.stewardship_aio import AsyncStewardship

        return AsyncStewardship(self._connection)

    # ------------------------------------------------------------ datasets and budgets

    async def datasets(self) -> list[dataset_pb2.Dataset]:
        """Return the datasets that you may use."""
        return await self._connection.all(datasets.list_datasets(), "datasets")

    async def dataset(self, name: str) -> dataset_pb2.Dataset:
        """Return what is public of a dataset."""
        found: dataset_pb2.Dataset = (await self._connection.run(datasets.get_dataset(name))).dataset
        return found

    async def register(
        self,
        name: str,
        source: str | Path | registration.Table,
        *,
        progress: Callable[[int], None] = lambda rows: None,
        **terms: Any,
    ) -> dataset_pb2.Dataset:
        """Register private rows (stewards); arguments as of `Client.register`."""
        answer: dataset_service_pb2.RegisterDatasetResponse | None = None
        call = registration.register_dataset(self.subject, name, source, **terms)
        async for answer in self._connection.follow(call):
            progress(answer.rows_read)
        if answer is None:
            raise MurmuraError("The dataset service ended the registration without an answer; try again.")
        return answer.dataset

    async def statistic(
        self, request: dataset_service_pb2.QueryStatisticRequest
    ) -> dataset_service_pb2.QueryStatisticResponse:
        """Ask for a statistic, and pay for it if the budget covers it.

        Args:
            request: the statistic; its `request_id` makes a repeated request the same, paid once.

        Raises:
            murmura.errors.BudgetExhausted: if the budget does not cover it; nothing was spent.
        """
        planned = await self._connection.run(datasets.query_statistic(request, validate_only=True))
        datasets.require_affordable(planned, request)
        answer: dataset_service_pb2.QueryStatisticResponse = await self._connection.run(
            datasets.query_statistic(request, validate_only=False)
        )
        return answer

    async def accounts(self) -> list[ledger_pb2.Account]:
        """Return all budgets that you may see: stewards and operators all, others those of their datasets."""
        try:
            return await self._connection.all(budgets.list_accounts(), "accounts")
        except NotAllowed:
            return [await self.account(name) for name in sorted({item.account for item in await self.datasets()})]

    async def account(self, name: str) -> ledger_pb2.Account:
        """Return what the ledger says of a budget: `accounts/…`, or a dataset's by the dataset's name."""
        account = name if name.startswith("accounts/") else (await self.dataset(name)).account
        found: ledger_pb2.Account = (await self._connection.run(budgets.get_account(account))).account
        return found

    async def budget(self, name: str) -> Budget:
        """Return a budget to look at: `accounts/…`, or a dataset's by the dataset's name."""
        return Budget(await self.account(name))

    async def calibrate(
        self, name: str, target_epsilon: float, *, sampling_probability: float, steps: int
    ) -> ledger_service_pb2.CalibrateResponse:
        """Return the noise that a job would take and its price; arguments as of `Client.calibrate`."""
        account = name if name.startswith("accounts/") else (await self.dataset(name)).account
        call = budgets.calibrate(account, target_epsilon, sampling_probability, steps)
        answer: ledger_service_pb2.CalibrateResponse = await self._connection.run(call)
        return answer

    # ------------------------------------------------------------ jobs

    async def base_models(self) -> list[str]:
        """Return the names of what can be fine-tuned."""
        found = await self._connection.all(jobs.list_base_models(), "base_models")
        return [str(model.name).removeprefix("baseModels/") for model in found]

    def spec(
        self,
        base_model: str,
        data: str | expressions_pb2.Frame,
        target_epsilon: float | str,
        *,
        text_field: str = "text",
        **settings: float,
    ) -> trainer_pb2.JobSpec:
        """Say what is to be trained. Richer wishes are a `JobSpec` of their own; the service checks both.

        Args:
            base_model: its public name.
            data: a dataset's name for all of its rows, or the `proto` of a remote frame.
            target_epsilon: the epsilon that the job may reach at the dataset's delta, or "unlimited".
            text_field: the column that holds the text.
            **settings: fields of the contract's `Settings`; what is left out gets a default that works.

        Raises:
            InvalidInput: if a setting does not exist, or the target is none.
        """
        known = trainer_pb2.Settings.DESCRIPTOR.fields_by_name
        if unknown := sorted(set(settings) - set(known)):
            raise InvalidInput(f"No setting {', '.join(unknown)}. There are: {', '.join(known)}.")
        frame = data if not isinstance(data, str) else expressions_pb2.Frame(dataset=qualified("datasets", data))
        spec = trainer_pb2.JobSpec(
            base_model=qualified("baseModels", base_model),
            frame=frame,
            text_column=text_field,
            settings=trainer_pb2.Settings(**settings),  # type: ignore[arg-type]
        )
        jobs.ask_for(spec, target_epsilon)
        return spec

    async def plan(self, spec: trainer_pb2.JobSpec) -> trainer_pb2.Plan:
        """Return what a job would be and cost; spends nothing."""
        plan: trainer_pb2.Plan = (await self._connection.run(jobs.plan_job(spec))).plan
        return plan

    async def fit(self, spec: trainer_pb2.JobSpec, *, again: bool = False) -> trainer_pb2.TrainingJob:
        """Plan a job, and create it if the budget covers it. The same wish again finds the job that it has.

        Args:
            spec: what is wished for.
            again: train (and pay) once more although the same job has succeeded before.

        Returns:
            The job, which runs; `wait` for it or `watch` it.

        Raises:
            murmura.errors.BudgetExhausted: if the budget does not cover it; nothing was spent.
        """
        earlier, request_id = jobs.earlier_job(await self.jobs(), spec, self.subject, again)
        if earlier is not None:
            return earlier
        jobs.require_affordable(await self.plan(spec), spec)
        job: trainer_pb2.TrainingJob = (await self._connection.run(jobs.create_job(spec, request_id))).training_job
        return job

    async def jobs(self) -> list[trainer_pb2.TrainingJob]:
        """Return your jobs, newest first."""
        return await self._connection.all(jobs.list_jobs(), "training_jobs")

    async def job(self, name: str) -> trainer_pb2.TrainingJob:
        """Read a job."""
        found: trainer_pb2.TrainingJob = (await self._connection.run(jobs.get_job(name))).training_job
        return found

    async def cancel(self, name: str) -> trainer_pb2.TrainingJob:
        """Stop a job. What its worker has already run is charged."""
        call = jobs.cancel_job(name, self.subject)
        job: trainer_pb2.TrainingJob = (await self._connection.run(call)).training_job
        return job

    async def watch(self, name: str) -> AsyncIterator[trainer_pb2.TrainingJob]:
        """Yield a job whenever it changes, to its end; a trainer that is restarted is waited for."""
        job = await self.job(name)
        while True:
            yield job
            if jobs.ended(job):
                return
            try:
                async for answer in self._connection.follow(jobs.watch_job(name)):
                    if answer.training_job != job:
                        job = answer.training_job
                        if jobs.ended(job):
                            break
                        yield job
            except Unreachable:
                job = await self.job(name)

    async def wait(self, name: str) -> trainer_pb2.TrainingJob:
        """Wait for a job's adapter.

        Raises:
            murmura.errors.JobFailed: if the job ends without one.
        """
        job = await self.job(name)
        async for changed in self.watch(name):
            job = changed
        jobs.require_adapter(job)
        return job

    # ------------------------------------------------------------ models

    async def adapters(self) -> list[inference_pb2.Adapter]:
        """Return the adapters that you may use."""
        return await self._connection.all(models.list_adapters(), "adapters")

    async def adapter(self, name: str) -> inference_pb2.Adapter:
        """Return what the inference service says of an adapter."""
        found: inference_pb2.Adapter = (await self._connection.run(models.get_adapter(name))).adapter
        return found

    async def unload(self, adapter: str) -> None:
        """Serve an adapter no more."""
        await self._connection.run(models.unload_adapter(adapter))

    async def allow(self, adapter: str, *, users: Sequence[str] = (), logprobs: int = 0) -> inference_pb2.Adapter:
        """Say what is allowed with an adapter, in place of what was said before. For stewards."""
        found: inference_pb2.Adapter = (await self._connection.run(models.allow(adapter, users, logprobs))).adapter
        return found

    async def load(self, adapter: str) -> inference_pb2.Adapter:
        """Have an adapter verified and served."""
        loaded: inference_pb2.Adapter = (await self._connection.run(models.load_adapter(adapter))).adapter
        return loaded

    async def sample(self, model: str, prompts: Sequence[str] | str, **options: Any) -> list[str]:
        """Continue each prompt. Costs no privacy.

        Args:
            model: `adapters/…` or `baseModels/…`.
            prompts: one text or several.
            **options: as of `Sampler.sample`: temperature, max_new_tokens, top_p, seed, stop.

        Returns:
            The continuations, without the prompts, in the order of the prompts.
        """
        texts = [prompts] if isinstance(prompts, str) else list(prompts)
        if not texts:
            return []
        call = models.batch_generate(model, texts, sampling_options(**options))
        answers = [answer async for answer in self._connection.follow(call)]
        return [completion.text for completion in models.in_order(answers, len(texts))]

    async def stream(self, model: str, prompt: str, **options: Any) -> AsyncIterator[str]:
        """Continue a prompt, piece by piece as it is made; leaving the loop stops the model. Options as of `sample`."""
        piece: inference_service_pb2.StreamGenerateResponse
        async for piece in self._connection.follow(models.stream_generate(model, prompt, sampling_options(**options))):
            if piece.text:
                yield piece.text
