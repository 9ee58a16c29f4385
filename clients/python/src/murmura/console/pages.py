"""What each page of the console shows, gathered from the services.

A service that is away takes its part of a page, and no more: that part says what happened and the next step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cached_property, partial
from itertools import islice
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from murmura import policy as policies
from murmura.audit import Audit
from murmura.budget import Budget
from murmura.calls import budgets, datasets, jobs, models
from murmura.console import drawing
from murmura.console.activity import Deed, of_budget, of_dataset
from murmura.console.history import Journals, proposals, standings, stopped
from murmura.errors import MurmuraError
from murmura.figures import Bound, exposure_figure, roc_figure

if TYPE_CHECKING:
    from murmura.api.dataset.v1 import dataset_pb2
    from murmura.api.inference.v1 import inference_pb2
    from murmura.api.ledger.v1 import ledger_pb2
    from murmura.api.trainer.v1 import trainer_pb2
    from murmura.client import Client

# Of jobs and deeds, the newest: older ones are for the command line.
MOST_JOBS, MOST_DEEDS, LATELY = 100, 500, 8
Found = TypeVar("Found")


@dataclass(frozen=True)
class Part(Generic[Found]):
    """A part of a page.

    Attributes:
        found: what it shows; None where a service did not answer or refused.
        problem: what it said then.
    """

    found: Found | None = None
    problem: str = ""


class Look:
    """What several parts of one page show: each thing is asked for once.

    Args:
        client: who asks.
        journals: what was read of the journal so far.
    """

    def __init__(self, client: Client, journals: Journals) -> None:
        self._client = client
        self.entries = journals.look()

    @cached_property
    def datasets(self) -> list[dataset_pb2.Dataset]:
        """All datasets."""
        return self._client.all(datasets.list_datasets(), "datasets")

    @cached_property
    def accounts(self) -> list[ledger_pb2.Account]:
        """All budgets."""
        return self._client.accounts()


class Pages:
    """Gathers what the pages show.

    Args:
        client: who asks; a steward sees all there is.
    """

    def __init__(self, client: Client) -> None:
        self._client = client
        self._journals = Journals(client)
        # What entries say does not change: told once, for as long as the newest is the same.
        self._told: dict[tuple[str, str], tuple[str, list[Deed]]] = {}

    # ------------------------------------------------------------------ the pages

    def overview(self) -> dict[str, Any]:
        """Return what there is: datasets with their budgets, jobs, adapters, what was done lately."""
        newest, look = _part(self._jobs), Look(self._client, self._journals)
        return {
            "datasets": _part(lambda: self._datasets(look)),
            "jobs": newest,
            "adapters": _part(lambda: self._adapters(newest.found or [])),
            "deeds": _part(lambda: self._deeds(look)[:LATELY]),
        }

    def activity(self) -> dict[str, Any]:
        """Return who did what, newest first."""
        look = Look(self._client, self._journals)
        return {"deeds": _part(lambda: self._deeds(look)), "most": MOST_DEEDS}

    def dataset(self, identity: str) -> dict[str, Any]:
        """Return a dataset: what is public of it, its budget over time, its policy, its jobs.

        Raises:
            MurmuraError: if there is no such dataset, or nobody who knows.
        """
        found: dataset_pb2.Dataset = self._client.run(datasets.get_dataset(identity)).dataset
        versions = _part(lambda: self._client.all(datasets.list_policy_versions(found.name), "policy_versions"))
        look = Look(self._client, self._journals)
        return {
            "dataset": found,
            "budget": _part(lambda: self._budget(look, found.account)),
            "policy": policies.write(found.policy),
            "versions": replace(versions, found=versions.found and list(_compared(versions.found))),
            "jobs": _part(lambda: [job for job in self._jobs() if job.spec.frame.dataset == found.name]),
            "deeds": _part(lambda: self._deeds_of(look, found.account, found.name)[::-1][:MOST_DEEDS]),
        }

    def job(self, identity: str) -> dict[str, Any]:
        """Return a job: how far it is, what it promises, what its audit found.

        Raises:
            MurmuraError: if there is no such job, or nobody who knows.
        """
        found: trainer_pb2.TrainingJob = self._client.run(jobs.get_job(identity)).training_job
        return {"job": found, "audit": audit_of(found)}

    def adapter(self, identity: str) -> dict[str, Any]:
        """Return an adapter: how it is served and to whom, and the job that made it.

        Raises:
            MurmuraError: if there is no such adapter, or nobody who knows.
        """
        made: trainer_pb2.TrainingJob = self._client.run(jobs.get_job_of(identity)).training_job
        jobs.require_adapter(made)
        served: Part[inference_pb2.Adapter] = _part(lambda: self._client.run(models.get_adapter(identity)).adapter)
        return {"job": made, "served": served, "audit": audit_of(made)}

    def report(self, identity: str) -> str:
        """Return an adapter's privacy report, a page of its own.

        Raises:
            MurmuraError: if there is no such adapter, or nobody who knows.
        """
        from murmura.report import of_adapter

        return of_adapter(self._client, identity).html()

    # ------------------------------------------------------------------ their parts

    def _datasets(self, look: Look) -> list[tuple[dataset_pb2.Dataset, Part[dict[str, Any]]]]:
        accounts = _part(lambda: look.accounts)
        known = {account.name: account for account in accounts.found or ()}
        unknown: Part[dict[str, Any]] = Part(problem=accounts.problem or "The ledger does not know this budget.")
        rows = []
        for dataset in look.datasets:
            account = known.get(dataset.account)
            rows.append((dataset, _part(partial(_shown, look, account)) if account else unknown))
        return rows

    def _budget(self, look: Look, account: str) -> dict[str, Any]:
        shown = _shown(look, self._client.run(budgets.get_account(account)).account)
        over_time = drawing.burn_down(standings(shown["entries"], account), datetime.now(UTC))
        return shown | {"burn_down": over_time, "shares": self._client.all(budgets.list_grants(account), "grants")}

    def _jobs(self) -> list[trainer_pb2.TrainingJob]:
        """Return the newest jobs, those that run first."""
        newest = list(islice(self._client.each(jobs.list_jobs(), "training_jobs"), MOST_JOBS))
        return sorted(newest, key=jobs.ended)

    def _adapters(
        self, newest_jobs: Iterable[trainer_pb2.TrainingJob]
    ) -> list[tuple[inference_pb2.Adapter, Audit | None]]:
        audits = {job.adapter: Audit(job) for job in newest_jobs if job.adapter and job.HasField("audit")}
        found = self._client.all(models.list_adapters(), "adapters")
        newest = sorted(found, key=lambda adapter: adapter.create_time.ToNanoseconds(), reverse=True)
        return [(one, audits.get(one.name)) for one in newest]

    def _deeds(self, look: Look) -> list[Deed]:
        done: list[Deed] = []
        for account in look.accounts:
            # Datasets of one lineage share a budget; one that was erased leaves its budget behind.
            subject = next((item.name for item in look.datasets if item.account == account.name), account.name)
            done += self._deeds_of(look, account.name, subject)
        for dataset in look.datasets:
            done += of_dataset(
                dataset, self._client.all(datasets.list_policy_versions(dataset.name), "policy_versions")
            )
        return sorted(done, key=lambda deed: deed.time, reverse=True)[:MOST_DEEDS]

    def _deeds_of(self, look: Look, account: str, subject: str) -> list[Deed]:
        """Return what was done to a budget, oldest first."""
        entries = look.entries(account)
        newest = entries[-1].hash if entries else ""
        known, told = self._told.get((account, subject), ("", []))
        if known != newest:
            told = of_budget(entries, account, subject)
            self._told[account, subject] = newest, told
        return told


def audit_of(job: trainer_pb2.TrainingJob) -> dict[str, Any]:
    """Return a job's audit and its pictures; nothing where it has none."""
    if not job.HasField("audit"):
        return {}
    audit = Audit(job)
    bound = None if audit.promised is None else Bound.of(job.plan.statement)
    return {"audit": audit, "roc": roc_figure({"this model": audit}, bound), "exposure": exposure_figure(audit)}


def _shown(look: Look, account: ledger_pb2.Account) -> dict[str, Any]:
    """Return a budget as it is drawn everywhere, with what waits for a steward's decision."""
    budget, entries = Budget(account), look.entries(account.name)
    asked = {"proposals": proposals(entries), "stopped": stopped(entries)}
    return {"budget": budget, "bar": drawing.bar(budget), "entries": entries} | asked


def _compared(
    versions: Sequence[dataset_pb2.PolicyVersion],
) -> Iterable[tuple[dataset_pb2.PolicyVersion, list[policies.Change]]]:
    """Yield each version, newest first, with what it changed."""
    for version, before in zip(versions, [*versions[1:], None], strict=True):
        yield version, policies.differences(before.policy, version.policy) if before else []


def _part(gather: Callable[[], Found]) -> Part[Found]:
    try:
        return Part(gather())
    except MurmuraError as error:
        return Part(problem=str(error))
