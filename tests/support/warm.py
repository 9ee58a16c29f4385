"""Services and workers as processes that have their imports behind them.

Importing torch and its like takes seconds of every process, and a run of the tests starts hundreds. So the standard
library's fork server imports what they share, once for each process of the tests, and each is forked from there to run
what `python -m MODULE` runs: a process of its own, with its own environment, log, signals and exit code. What people,
launchers and the command line start is started as always; so is everything in a bench, and with MURMURA_TEST_COLD=1.
"""

from __future__ import annotations

import atexit
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from multiprocessing.connection import wait
from pathlib import Path
from typing import TypeAlias

# Without polars, which starts a thread as it is imported: it would be missing in a fork.
_SHARED = ["services.ledger.__main__", "services.trainer.__main__", "services.trainer.worker.session"]
_server = multiprocessing.get_context("forkserver")
_server.set_forkserver_preload([__name__, *_SHARED])
# A start asks after all others, and of two threads that ask after one, one would not hear its exit code.
_asking = threading.Lock()
_living: set[Warm] = set()


class Warm:
    """A process, with what tests use of `subprocess.Popen`.

    Args:
        module: that `python -m` would be given.
        environment: all of it.
        log: what it prints is added to it.
        new_session: whether it leads a session, and so a group of processes, of its own.
    """

    def __init__(self, module: str, environment: Mapping[str, str], log: Path, new_session: bool) -> None:
        self.args, self.environment = [sys.executable, "-m", module], dict(environment)
        self._process = _server.Process(target=_run, args=(module, self.environment, str(log), new_session))
        with _asking, _one_thread():
            self._process.start()
        assert self._process.pid is not None
        self.pid = self._process.pid
        _living.add(self)

    def poll(self) -> int | None:
        """Return the exit code, negative if a signal ended it; None while it runs."""
        with _asking:
            code = self._process.exitcode
        if code is not None:
            _living.discard(self)
        return code

    @property
    def returncode(self) -> int | None:
        """As `poll`."""
        return self.poll()

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end and return the exit code.

        Raises:
            subprocess.TimeoutExpired: if it still runs after so many seconds.
        """
        if not wait([self._process.sentinel], timeout):
            raise subprocess.TimeoutExpired(self.args, timeout or 0.0)
        code = self.poll()
        assert code is not None
        return code

    def send_signal(self, number: int) -> None:
        """Send it a signal, if it is still there."""
        if self.poll() is None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def terminate(self) -> None:
        """Ask it to end."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """End it."""
        self.send_signal(signal.SIGKILL)


Process: TypeAlias = Warm | subprocess.Popen[bytes]


def environment(settings: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of a process that is told these settings, and none of the tests' own.

    Args:
        settings: by their names without the prefix.
    """
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("MURMURA_")}
    return inherited | {f"MURMURA_{name}": value for name, value in settings.items()} | {"OMP_NUM_THREADS": "1"}


def start(module: str, environment: Mapping[str, str], log: Path, new_session: bool = False) -> Process:
    """Start a module as a process.

    Args:
        module: that `python -m` would be given.
        environment: all of it.
        log: what it prints is added to it.
        new_session: whether it leads a session, and so a group of processes, of its own.
    """
    # Elsewhere libraries that are loaded do not take a fork well.
    if sys.platform == "linux" and "PYTEST_VERSION" in os.environ and "MURMURA_TEST_COLD" not in os.environ:
        return Warm(module, environment, log, new_session)
    with log.open("ab") as out:
        return subprocess.Popen(
            [sys.executable, "-m", module],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            start_new_session=new_session,
        )


def living() -> list[Warm]:
    """Return the processes that were started warm and run."""
    return [process for process in list(_living) if process.poll() is None]


@atexit.register
def _end() -> None:
    """End what a test has left, or the tests would wait for it."""
    for process in living():
        process.kill()


@contextmanager
def _one_thread() -> Iterator[None]:
    """Set what counts when torch is loaded, which the server does before a process has an environment of its own."""
    before = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = "1"
    try:
        yield
    finally:
        # Nothing else of it is touched: other threads read it meanwhile.
        if before is None:
            del os.environ["OMP_NUM_THREADS"]
        else:
            os.environ["OMP_NUM_THREADS"] = before


def _run(module: str, environment: dict[str, str], log: str, new_session: bool) -> None:
    """Become the process, from within its fork."""
    if new_session:
        os.setsid()
    out = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    for stream in (1, 2):
        os.dup2(out, stream)
    os.close(out)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = [module]
    sys.modules.pop(f"{module}.__main__", None)
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    finally:
        # The fork server's processes leave these out.
        sys.stdout.flush()
        atexit._run_exitfuncs()
