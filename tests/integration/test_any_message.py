"""Any message to any RPC is answered, or refused in words of the catalogue; nothing private comes out.

`MURMURA_FUZZ_SECONDS` says for how long; a while without it. `MURMURA_FUZZ_SEED` makes other messages.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.support.call_fuzz import fuzz
from tests.support.canary import Canary
from tests.support.every_call import World

BASE = "baseModels/tiny"


@pytest.mark.timeout(0)  # runs for as long as it is told to
def test_any_message_is_answered_or_refused_in_words_of_the_catalogue(cluster: Any, world: World) -> None:
    private = Canary()
    rows = [{"patient": f"p{row // 2}", "age": row, "text": f"{row} {private.text}"} for row in range(60)]
    dataset = cluster.register(rows)
    source = cluster.directory / "more.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows[:9]))
    # One that runs on, so that its worker is listened to.
    job = cluster.create(cluster.spec(dataset, epochs=3000.0))
    cluster.wait(lambda: cluster.job(job.name).completed_steps > 0, "a job runs")
    world.dataset, world.job = dataset, job
    names = [dataset.name, dataset.account, job.name, job.reservation, job.name.replace("trainingJobs", "adapters")]
    names += [str(source), BASE]
    likely = {
        "url": [str(source)],
        "privacy_unit_column": ["patient"],
        "text_column": ["text"],
        "completion_column": [""],
        "column": ["age", "age", "text", "absent"],
        "model": [BASE],
        "base_model": [BASE],
        "json_schema": [""],
        "regex": [""],
        "prompt": ["A note"],
    }
    seconds = float(os.environ.get("MURMURA_FUZZ_SECONDS", "20"))
    outcome = fuzz(world, seconds, int(os.environ.get("MURMURA_FUZZ_SEED", "5")), names, likely, private)
    slow = sorted(outcome.slowest.items(), key=lambda item: -item[1])[:5]
    sys.stdout.write(f"{sum(outcome.answered.values())} answered: {dict(outcome.answered)}\n")
    sys.stdout.write(f"{sum(outcome.refused.values())} refused: {dict(outcome.refused)}\nslowest: {slow}\n")
    # Much of it gets past the door, or nothing would be shown.
    assert len(outcome.answered) >= 15
    assert len(outcome.refused) >= 8
    for channel in world.channels.values():
        answer = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=20)
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
    assert not private.found_in(cluster.logs().encode())
