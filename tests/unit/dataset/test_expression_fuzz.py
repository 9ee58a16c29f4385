"""Random trees never crash the checker or the engine, and never take memory or time without bound.

`MURMURA_FUZZ_SECONDS` says for how long; a few seconds without it.
"""

import asyncio
import os
import resource
import sys

import grpc
import numpy as np
import pytest

from murmura.api.dataset.v1 import dataset_pb2, expressions_pb2
from murmura.api.dataset.v1 import dataset_service_pb2 as pb
from services.common.errors import MurmuraError
from services.common.tokens import Principal
from services.dataset import service
from services.dataset.catalogue import Catalogue
from tests.support.expression_fuzz import SCHEMA, fuzz, rows

# What the process may grow by, in bytes: a part of rows, a few arguments, each text at most a mebibyte.
MOST_GROWTH = 1 << 30


class Registry:
    """Knows one dataset, with the fuzzer's columns."""

    def get(self, name):
        dataset = dataset_pb2.Dataset(name=name, row_count=rows().height)
        for column, kind in SCHEMA.items():
            dataset.schema.columns.add(name=column, type=f"VALUE_TYPE_{kind}")
        return dataset, "storage"

    def units(self, storage_id):
        return np.arange(rows().height)


@pytest.fixture
def describe(monkeypatch):
    """Ask the service's own handler, and say whether it described the frame or refused it with a mapped error."""
    monkeypatch.setattr(service, "current_principal", lambda: Principal("service:trainer", frozenset({"service"})))
    handler = service.DatasetService(Catalogue(Registry(), None), None, None)

    with asyncio.Runner() as runner:

        def ask(frame: expressions_pb2.Frame) -> bool:
            try:
                answer = runner.run(handler.DescribeFrame(pb.DescribeFrameRequest(frame=frame), None))
            except MurmuraError as refused:
                assert refused.code == grpc.StatusCode.INVALID_ARGUMENT
                assert refused.reason in ("EXPRESSION_REJECTED", "COLUMN_UNKNOWN")
                return False
            answer.SerializeToString()
            return True

        yield ask


@pytest.mark.timeout(0)  # runs for as long as it is told to
def test_random_trees_run_or_are_refused(describe):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    seed = int(os.environ.get("MURMURA_FUZZ_SEED", "6"))
    outcome = fuzz(float(os.environ.get("MURMURA_FUZZ_SECONDS", "5")), seed, describe)
    growth = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    sys.stdout.write(f"{outcome}, grew by {growth >> 20} MiB\n")
    assert outcome.ran > 50
    assert outcome.refused > 50
    assert growth < MOST_GROWTH
    assert outcome.slowest < 10
