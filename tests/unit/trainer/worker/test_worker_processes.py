"""How the processes of one worker are started; that they work together is shown in the integration tests."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import torch
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

from services.trainer.worker import processes
from services.trainer.worker.ranks import MEETING, Ranks


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[int, list[Any]]]:
    """Launch two processes that end as told; returns the exit code, the configuration and the environment."""

    def run(*codes: int) -> tuple[int, list[Any]]:
        seen: list[Any] = []

        def elastic_launch(config: Any, entrypoint: str) -> Callable[..., None]:
            def start(*arguments: str) -> None:
                seen.extend([config, dict(os.environ)])
                if codes:
                    raise ChildFailedError("worker", {i: SimpleNamespace(exitcode=c) for i, c in enumerate(codes)})  # type: ignore[misc]

            return start

        for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME", MEETING):
            monkeypatch.setenv(name, "")
            monkeypatch.delenv(name)
        monkeypatch.setattr(processes, "elastic_launch", elastic_launch)
        monkeypatch.setattr(processes.signal, "signal", lambda *_: None)
        monkeypatch.setattr(
            ChildFailedError, "__init__", lambda self, name, failures: vars(self).update(failures=failures)
        )
        return processes.launch(2), seen

    return run


def test_they_meet_on_this_machine_only(launched: Callable[..., tuple[int, list[Any]]]) -> None:
    code, (config, environment) = launched()
    assert code == 0
    for library in ("GLOO", "NCCL"):
        interface = psutil.net_if_addrs()[environment[f"{library}_SOCKET_IFNAME"]]
        assert "127.0.0.1" in [one.address for one in interface]
    folder = os.path.dirname(environment[MEETING])
    assert (config.rdzv_configs["store_type"], os.path.dirname(config.rdzv_endpoint)) == ("file", folder)
    assert not os.path.exists(folder), "and leave nothing behind"


def test_they_are_not_started_again_behind_the_trainers_back(launched: Callable[..., tuple[int, list[Any]]]) -> None:
    _, (config, _) = launched()
    assert config.max_restarts == 0


@pytest.mark.parametrize(("codes", "expected"), [((75, -15), 75), ((-15, 75), 75), ((1, -15), 1), ((-9,), 1)])
def test_one_exit_code_stands_for_all(
    launched: Callable[..., tuple[int, list[Any]]], codes: tuple[int, ...], expected: int
) -> None:
    assert launched(*codes)[0] == expected


TOLD_TO_LEAVE_WHILE_IT_IMPORTS = """
import os, runpy, signal, sys
class Finder:
    def find_spec(self, name, *_):
        if name in ("services.trainer.worker.session", "services.trainer.worker.processes"):
            os.kill(os.getpid(), signal.SIGTERM)
sys.meta_path.insert(0, Finder())
runpy.run_module("services.trainer.worker", run_name="__main__")
"""


@pytest.mark.parametrize("count", ["1", "2"])
def test_a_worker_that_has_begun_nothing_leaves_at_once_and_in_good_order(count: str) -> None:
    """As the first process of a container it would otherwise go on until it is killed."""
    environment = os.environ | {"MURMURA_PROCESSES": count}
    told = [sys.executable, "-c", TOLD_TO_LEAVE_WHILE_IT_IMPORTS]
    assert subprocess.run(told, env=environment, timeout=60, check=False).returncode == 75


def test_who_is_left_computes_with_all_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", taken.append)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(6)), raising=False)
    assert (Ranks(0, 2).left().count, taken) == (1, [6])
    Ranks().left()
    assert taken == [6], "a process that was alone keeps what it was given"
