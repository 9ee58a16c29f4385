"""How an attempt has ended, from its Job and its pods."""

from __future__ import annotations

from typing import Any

import pytest

from services.trainer.cluster.ended import observed
from services.trainer.cluster.records import PodRecord

GONE = PodRecord(True, 137, "Error", 10.0, 20.0)
LEFT = PodRecord(True, 75, "Error", 10.0, 21.0)
AFTERWARDS = PodRecord(True, 1, "Error", 10.0, 22.0)
DONE = PodRecord(True, 0, "Completed", 10.0, 23.0)
NO_MEMORY = PodRecord(True, 137, "OOMKilled", 10.0, 20.0)
PUSHED = PodRecord(True, 137, "Evicted", 10.0, 20.0)


def job(nodes: int = 1, condition: str = "Failed") -> dict[str, Any]:
    made: dict[str, Any] = {"spec": {"completions": nodes}, "status": {}}
    if condition:
        made["status"]["conditions"] = [
            {"type": condition, "status": "True", "lastTransitionTime": "1970-01-01T00:01:40Z"}
        ]
    return made


def records(*found: PodRecord) -> dict[str, PodRecord]:
    return {str(number): one for number, one in enumerate(found)}


@pytest.mark.parametrize(
    ("pods", "exit_code", "cause", "evicted"),
    [
        ((LEFT, DONE), 75, "", True),  # one was asked to leave, and both agreed on a step
        ((DONE, LEFT), 75, "", True),
        ((GONE, AFTERWARDS), 137, "", False),
        ((AFTERWARDS, NO_MEMORY), 137, "OUT_OF_MEMORY", False),
        ((PUSHED, AFTERWARDS), 137, "", False),  # which steps the others ran, nobody can say
        ((DONE, DONE), 0, "", False),
    ],
)
def test_of_several_pods_the_one_counts_that_brought_the_others_down(
    pods: tuple[PodRecord, ...], exit_code: int, cause: str, evicted: bool
) -> None:
    seen = observed(job(2), records(*pods), 100.0)
    assert (seen.alive, seen.exit_code, seen.cause, seen.evicted) == (False, exit_code, cause, evicted)
    assert (seen.replaced, seen.died) == (0, 0), "the cluster replaces none of them"
    assert seen.node_seconds == sum(pod.ended - pod.started for pod in pods)


def test_of_a_pod_alone_the_last_one_counts_and_those_before_were_replaced() -> None:
    seen = observed(job(), records(GONE, LEFT, DONE), 100.0)
    assert (seen.exit_code, seen.evicted, seen.replaced, seen.died) == (0, False, 2, 1)
    running = observed(job(condition=""), records(GONE, PodRecord(True, None, "", 50.0)), 100.0)
    assert (running.alive, running.replaced, running.died, running.node_seconds) == (True, 1, 1, 60.0)
    assert observed(None, records(PUSHED), 100.0).evicted


def test_a_job_whose_end_is_heard_before_that_of_its_pod_is_waited_for() -> None:
    """Else memory that ran out would be a death without a word, and be tried again."""
    ended_at, running = 100.0, PodRecord(True, None, "", 10.0)
    assert observed(job(), records(running), ended_at + 1).alive
    assert observed(job(), records(NO_MEMORY), ended_at + 1).cause == "OUT_OF_MEMORY"
    assert observed(job(2), records(DONE, running), ended_at + 1).alive
    lost = observed(job(), records(running), ended_at + 60)
    assert (lost.alive, lost.exit_code) == (False, None), "a node that is lost says nothing"
    assert not observed(None, records(running), ended_at).alive
