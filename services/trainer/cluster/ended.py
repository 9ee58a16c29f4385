"""How an attempt has ended, or whether it has: from its Job and what is remembered of its pods. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from services.trainer.cluster.records import PodRecord, seconds
from services.trainer.launcher import EVICTED, Observation

_CAUSES = {"OOMKilled": "OUT_OF_MEMORY", "DeadlineExceeded": "RAN_TOO_LONG"}
# Jobs and pods are watched apart, and that a Job has ended may be heard before how its pod did. Not for ever: where a
# node is lost nobody says so.
_LATE_S = 10.0


def observed(job: dict[str, Any] | None, records: Mapping[str, PodRecord], now: float) -> Observation:
    """Say how an attempt is, but for what it waits.

    Args:
        job: its Job; None where that is gone.
        records: of its pods.
        now: seconds since the epoch.
    """
    over = sorted((record for record in records.values() if record.over), key=lambda record: record.ended)
    since = None if job is None else _since(job)
    awaited = since is not None and now - since <= _LATE_S and len(over) < len(records)
    has_ended = job is None or (since is not None and not awaited)
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


def _since(job: dict[str, Any]) -> float | None:
    """Return since when a Job has ended, in seconds since the epoch; None where it has not."""
    conditions = job.get("status", {}).get("conditions") or []
    ends = (one for one in conditions if one["type"] in ("Failed", "Complete") and one["status"] == "True")
    end = next(ends, None)
    return None if end is None else seconds(end.get("lastTransitionTime"))
