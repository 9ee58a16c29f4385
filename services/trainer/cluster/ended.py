"""How an attempt has ended, or whether it has: from its Job and what is remembered of its pods. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from services.trainer.cluster.records import PodRecord
from services.trainer.launcher import EVICTED, Observation

_CAUSES = {"OOMKilled": "OUT_OF_MEMORY", "DeadlineExceeded": "RAN_TOO_LONG"}


def observed(job: dict[str, Any] | None, records: Mapping[str, PodRecord], now: float) -> Observation:
    """Say how an attempt is, but for what it waits.

    Args:
        job: its Job; None where that is gone.
        records: of its pods.
        now: seconds since the epoch.
    """
    over = sorted((record for record in records.values() if record.over), key=lambda record: record.ended)
    has_ended = job is None or _is(job, "Failed") or _is(job, "Complete")
    gang = job is not None and job["spec"].get("completions", 1) > 1
    # Pods of a gang end together and none of them is replaced; of a pod alone only the last one was not.
    replaced = [] if gang else over[:-1] if has_ended else over
    died = [one for one in replaced if one.ran and one.exit_code not in (0, EVICTED)]
    held = sum((one.ended or now) - one.started for one in records.values() if one.started)
    seen = Observation(True, True, replaced=len(replaced), died=len(died), node_seconds=held)
    if not has_ended:
        return seen
    last = _telling(over) if gang else next(reversed(over), PodRecord())
    # Of a gang only one that has left in good order, with a checkpoint, lets the others' steps be known.
    evicted = last.exit_code == EVICTED or (last.reason == "Evicted" and not gang)
    cause = "" if evicted else _CAUSES.get(last.reason, "")
    return replace(seen, alive=False, exit_code=last.exit_code, cause=cause, evicted=evicted)


def _telling(over: Sequence[PodRecord]) -> PodRecord:
    """Return the pod of a gang whose end says most of why all have ended: what follows from it is no cause.

    Args:
        over: the pods that have ended, in that order.
    """
    for tells in (
        lambda one: one.reason in _CAUSES,
        lambda one: one.exit_code == EVICTED,
        lambda one: one.exit_code != 0,
        lambda one: True,
    ):
        if (found := next(filter(tells, over), None)) is not None:
            return found
    return PodRecord()


def _is(job: dict[str, Any], kind: str) -> bool:
    conditions = job.get("status", {}).get("conditions") or []
    return any(one["type"] == kind and one["status"] == "True" for one in conditions)
