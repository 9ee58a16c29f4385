"""Who did what: entries of the ledger, registrations and policies, as one list that a person can read."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from murmura.console.history import Shares, moment, standings
from murmura.counts import extent
from murmura.narration import Narrator, plain

if TYPE_CHECKING:
    from murmura.api.dataset.v1 import dataset_pb2
    from murmura.api.ledger.v1 import ledger_pb2


@dataclass(frozen=True)
class Deed:
    """Something that someone did.

    Attributes:
        time: when.
        who: as their token names them.
        kind: in a word or two.
        words: what it was.
        subject: the resource that it was done to.
        proof: place and hash in the ledger's journal; empty for what is not in it.
    """

    time: datetime
    who: str
    kind: str
    words: str
    subject: str
    proof: str = ""


def of_budget(entries: Sequence[ledger_pb2.Entry], account: str, subject: str) -> list[Deed]:
    """Return what was done to a budget, oldest first.

    Args:
        entries: of its account, oldest first.
        account: `accounts/…`.
        subject: the dataset whose budget it is, which says more to a reader than the account's name.
    """
    steps = standings(entries, account)
    narrator = Narrator(account, Shares(steps[-1].capacity if steps else 0), short=True)
    done = []
    for entry in entries:
        kind, _, words = narrator.tell(entry).partition("  ")
        proof = f"{entry.sequence}:{entry.hash[:12]}"
        done.append(Deed(moment(entry), plain(entry.principal), kind, words, subject, proof))
    return done


def of_dataset(dataset: dataset_pb2.Dataset, versions: Iterable[dataset_pb2.PolicyVersion]) -> list[Deed]:
    """Return who registered a dataset, and who changed its policy.

    Args:
        dataset: which.
        versions: of its policy; the first came with the registration.
    """
    words = extent(dataset.row_count, dataset.unit_count)
    done = [Deed(dataset.create_time.ToDatetime(UTC), plain(dataset.owner), "register", words, dataset.name)]
    for version in versions:
        if version.version > 1:
            when, who = version.create_time.ToDatetime(UTC), plain(version.author)
            done.append(Deed(when, who, "policy", f"version {version.version}", dataset.name))
    return done
