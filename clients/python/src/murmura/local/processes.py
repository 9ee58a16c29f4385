"""Start, find and stop the services as ordinary processes.

No supervisor stays resident: a service is a detached process and a small file that names it by id and start time
(an id alone may belong to someone else after a reboot). Running `up` again starts only what is not running.
"""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass

import psutil

from murmura.errors import MurmuraError
from murmura.local.layout import Layout

STOP_GRACE_S = 15.0
PORT_GRACE_S = 3.0


class LocalError(MurmuraError):
    """The embedded default cannot do what was asked; the text says why and what to do."""


@dataclass(frozen=True)
class Running:
    """A service's process, if it lives.

    Attributes:
        service: its name.
        pid: its process id; None where it does not run.
        since: seconds since the epoch.
    """

    service: str
    pid: int | None
    since: float = 0.0


def find(layout: Layout, service: str) -> Running:
    """Find the process of a service from its process file."""
    try:
        facts = json.loads(layout.process_file(service).read_text())
        process = psutil.Process(facts["pid"])
        alive = process.is_running() and process.status() != psutil.STATUS_ZOMBIE
        if alive and abs(process.create_time() - facts["create_time"]) < 1.0:
            return Running(service, process.pid, process.create_time())
    except (FileNotFoundError, KeyError, ValueError, psutil.Error):
        pass
    return Running(service, None)


def choose_endpoints(layout: Layout, services: tuple[str, ...], base_port: int) -> dict[str, str]:
    """Choose the endpoints of `services`: those of the last `up`, else from `base_port` on.

    Args:
        layout: the deployment.
        services: names in port order.
        base_port: the first port; 0 takes free ones.

    Raises:
        LocalError: if a port that is needed is taken by another program.
    """
    known = layout.endpoints()
    endpoints: dict[str, str] = {}
    for index, service in enumerate(services):
        port = base_port + index if base_port else _free_port()
        endpoints[service] = known.get(service, f"127.0.0.1:{port}")
    # A service that was just killed looks gone while its last threads still hold its port, for some milliseconds.
    deadline = time.monotonic() + (PORT_GRACE_S if known else 0.0)
    for service, endpoint in endpoints.items():
        if find(layout, service).pid is not None:
            continue
        while not (free := _is_free(endpoint)) and time.monotonic() < deadline:
            time.sleep(0.05)
        if not free:
            raise LocalError(
                f"Port {endpoint.rpartition(':')[2]}, which {service} would use, is taken by another program. "
                f"Stop that program, or choose other ports: `murmura down`, remove {layout.profile}, "
                "then `murmura up --base-port 7501`."
            )
    return endpoints


def start(layout: Layout, service: str, environment: dict[str, str]) -> Running:
    """Start a service detached, its output appended to its log."""
    layout.state(service).mkdir(parents=True, exist_ok=True, mode=0o700)
    layout.log(service).parent.mkdir(parents=True, exist_ok=True)
    with layout.log(service).open("ab") as log:
        child = subprocess.Popen(
            [sys.executable, "-m", f"services.{service}"],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    created = psutil.Process(child.pid).create_time()
    layout.process_file(service).write_text(json.dumps({"pid": child.pid, "create_time": created}))
    return Running(service, child.pid, created)


def stop(layout: Layout, services: tuple[str, ...]) -> Iterator[Running]:
    """Stop services: ask, wait, then insist. Yields each that was running, once it is gone."""
    running = [found for found in (find(layout, name) for name in services) if found.pid is not None]
    families = {found.service: _family(found) for found in running}
    for found in running:
        _signal(families[found.service][:1], force=False)
    deadline = time.monotonic() + STOP_GRACE_S
    for found in running:
        family = families[found.service]
        psutil.wait_procs(family[:1], timeout=max(0.1, deadline - time.monotonic()))
        # An engine's children end with it; whoever is left after the grace time is ended.
        _signal(family, force=True)
        psutil.wait_procs(family, timeout=5)
        layout.process_file(found.service).unlink(missing_ok=True)
        yield found


def stop_workers(layout: Layout) -> int:
    """Stop trainer workers of this deployment that outlive their trainer; returns how many."""
    marker = str(layout.state("trainer").resolve())
    workers = []
    for process in psutil.process_iter(["cmdline"]):
        try:
            ours = process.environ().get("MURMURA_JOB_TOKEN_FILE", "").startswith(marker)
            if ours and "services.trainer.worker" in (process.info["cmdline"] or ()):
                workers.append(process)
        except psutil.Error:
            continue
    _signal(workers, force=False)
    _, alive = psutil.wait_procs(workers, timeout=STOP_GRACE_S)
    _signal(alive, force=True)
    return len(workers)


def log_tail(layout: Layout, service: str, lines: int = 8) -> str:
    """Return the end of a service's log, for a person."""
    path = layout.log(service)
    if not path.exists():
        return "(no log yet)"
    return "\n".join(path.read_text(errors="replace").splitlines()[-lines:])


def _family(found: Running) -> list[psutil.Process]:
    try:
        parent = psutil.Process(found.pid)
        workers_apart = [c for c in parent.children(recursive=True) if not _is_worker(c)]
        return [parent, *workers_apart]
    except psutil.Error:
        return []


def _is_worker(process: psutil.Process) -> bool:
    try:
        return "services.trainer.worker" in process.cmdline()
    except psutil.Error:
        return False


def _signal(processes: list[psutil.Process], *, force: bool) -> None:
    for process in processes:
        try:
            process.kill() if force else process.terminate()
        except psutil.NoSuchProcess:
            continue


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _is_free(endpoint: str) -> bool:
    host, _, port = endpoint.rpartition(":")
    with socket.socket() as probe:
        # A port in TIME_WAIT after a restart counts as free, as it does for the server.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, int(port)))
        except OSError:
            return False
    return True
