"""`make bench-dataset`: the way of private rows to a worker, beside Arrow Flight with nothing around it.

Made-up notes are registered with the real services and read as a worker reads them: authenticated, with the ledger
asked, the texts of each piece decrypted. Flight serves the very same batches from memory, in turn with it in the same
run. Both are measured with TLS, as a deployment runs, and without, as `murmura up` does on loopback. Memory is the peak
of the dataset service's process, a fresh one for each measurement, with ten times the rows and without. Prints a table
for people on standard error and one JSON line on standard output.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pyarrow as pa
import pyarrow.flight
from rich.console import Console
from rich.table import Table

from murmura.api.dataset.v1 import dataset_service_pb2 as pb
from murmura.api.dataset.v1 import expressions_pb2
from services.common.memory import calm_collector, keep_freed
from services.trainer.worker.rows import parts, read_call
from services.trainer.worker.wire import connect
from tests.support.certificates import DOMAIN
from tests.support.dataset_services import Pair
from tests.support.secure_services import SecurePair

ROWS = 30_000
TIMES = 10
ROUNDS = 25
ROWS_A_UNIT = 4
OVER_FLIGHT_BAR = 0.6
MEMORY_BAR = 1.1
IMPORT_BAR_S = 0.3
_IMPORT = "import time; start = time.perf_counter(); import murmura; print(time.perf_counter() - start)"
_WORDS = ("patient", "reports", "mild", "intermittent", "headache", "after", "the", "second", "dose", "no", "rash")
_console = Console(stderr=True)


def notes(rows: int) -> str:
    """Return made-up notes as JSON Lines; their lengths vary from a few dozen to some hundred characters."""
    return "".join(
        json.dumps(
            {
                "patient": f"p{row // ROWS_A_UNIT}",
                "age": 20 + row % 70,
                "text": f"{row} " + " ".join(_WORDS[(row * 7 + step) % len(_WORDS)] for step in range(10 + row % 60)),
            }
        )
        + "\n"
        for row in range(rows)
    )


class Bench:
    """The services, and what is measured with them.

    Args:
        pair: of services, none of which runs yet.
    """

    def __init__(self, pair: Pair) -> None:
        self.pair = pair
        self.pair.start("ledger")
        self._channel: Any = None

    def registered(self, rows: int) -> tuple[Any, float, float]:
        """Register notes with a fresh service; returns the dataset, seconds, and the service's peak in MB."""
        request = self.pair.request(notes(rows))
        self._start()
        start = time.perf_counter()
        answers = self.pair.dataset.RegisterDataset(request, metadata=self.pair.who("steward"), timeout=1800)
        dataset = list(answers)[-1].dataset
        taken = time.perf_counter() - start
        assert dataset.row_count == rows
        return dataset, taken, self._restart()

    def peak_of_reading(self, dataset: Any) -> float:
        """Read a whole dataset from a fresh service; returns the service's peak in MB."""
        assert counted(self.read(dataset)) == dataset.row_count
        return self._restart()

    def read(self, dataset: Any, worker: Any = None) -> Iterator[Any]:
        """Read a whole dataset as a worker does, by default one of a job of its own; yields texts and units."""
        request = pb.ReadRowsRequest(frame=expressions_pb2.Frame(dataset=dataset.name), text_column="text")
        worker = worker or self.worker(dataset)
        return parts(read_call(self._channel)(request, metadata=worker, timeout=600))

    def worker(self, dataset: Any) -> Any:
        """Return what a worker shows to read a dataset, with money set aside for its job."""
        claims = self.pair.claims(expressions_pb2.Frame(dataset=dataset.name), self.pair.reserve(dataset))
        return self.pair.worker(**claims)

    def _restart(self) -> float:
        status = Path(f"/proc/{self.pair.process('dataset').pid}/status").read_text()
        peak = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM:"))
        self.pair.kill("dataset")
        self._start()
        return peak / 1e3

    def _start(self) -> None:
        self.pair.start("dataset")
        # What the trainer tells a worker.
        told = {}
        if isinstance(self.pair, SecurePair):
            told = {"MURMURA_TLS_AUTHORITY": str(self.pair.authority.file), "MURMURA_TLS_DOMAIN": DOMAIN}
        with mock.patch.dict(os.environ, told):
            self._channel = connect(self.pair.endpoint("dataset"), "dataset")

    def stop(self) -> None:
        """End the services."""
        self.pair.stop()


@dataclass(frozen=True)
class Beside:
    """Reading a dataset and the same batches over Flight, in turn.

    Attributes:
        ours, theirs: seconds of each round.
        size: bytes of all batches.
    """

    ours: list[float]
    theirs: list[float]
    size: int

    @property
    def over_flight(self) -> float:
        """Our speed as a part of Flight's."""
        return statistics.median(self.theirs) / statistics.median(self.ours)

    def rows(self, kind: str, count: int) -> Iterator[tuple[str, str, str]]:
        """Yield names, rows/s and MB/s for the table."""
        for name, seconds in (("reading", self.ours), ("Arrow Flight", self.theirs)):
            taken = statistics.median(seconds)
            yield f"{name}{kind}", f"{count / taken:.0f}", f"{self.size / taken / 1e6:.0f}"


def beside_flight(bench: Bench, dataset: Any, place: Path) -> Beside:
    """Measure reading a dataset beside Flight, both with TLS where the services have it."""
    worker = bench.worker(dataset)
    batches = side_by_side(bench.read(dataset, worker))
    with pa.OSFile(str(place), "wb") as sink, pa.ipc.new_stream(sink, batches[0].schema) as writer:
        for batch in batches:
            writer.write_batch(batch)
    command, scheme, believed = [sys.executable, "-m", "tests.bench.flight", str(place)], "grpc", {}
    if isinstance(bench.pair, SecurePair):
        files = bench.pair.files["dataset"]
        command += [str(files.certificate), str(files.key)]
        scheme, believed = "grpc+tls", {"tls_root_certs": files.authority.read_bytes()}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout
        client = pa.flight.connect(f"{scheme}://127.0.0.1:{int(process.stdout.readline())}", **believed)
        found = Beside([], [], sum(batch.nbytes for batch in batches))
        for number in range(ROUNDS + 1):
            for seconds, read in (
                (found.ours, lambda: bench.read(dataset, worker)),
                (found.theirs, lambda: _flown(client)),
            ):
                start = time.perf_counter()
                rows = counted(read())
                # The first round warms both up.
                if number:
                    seconds.append(time.perf_counter() - start)
                assert rows == dataset.row_count
    finally:
        process.kill()
        process.wait()
    return found


def counted(found: Iterator[Any]) -> int:
    """Take all that comes; returns the rows."""
    return sum(part.num_rows for part in found if isinstance(part, pa.RecordBatch))


def side_by_side(found: Iterator[Any]) -> list[pa.RecordBatch]:
    """Return texts with their units beside them, in the batches in which the texts came."""
    all_of = list(found)
    texts = pa.Table.from_batches([part for part in all_of if isinstance(part, pa.RecordBatch)])
    units = np.concatenate([part for part in all_of if isinstance(part, np.ndarray)])
    return texts.append_column("unit", pa.array(units)).to_batches()


def _flown(client: Any) -> Iterator[pa.RecordBatch]:
    for chunk in client.do_get(pa.flight.Ticket(b"")):
        yield chunk.data


def import_seconds() -> float:
    """Return how long `import murmura` takes in a fresh process."""
    taken = [
        float(subprocess.run([sys.executable, "-c", _IMPORT], capture_output=True, check=True, text=True).stdout)
        for _ in range(ROUNDS)
    ]
    return statistics.median(taken)


def main() -> int:
    """Run the benchmark; returns the exit code."""
    # As a worker does; Flight's client gains from it as well.
    keep_freed()
    calm_collector()
    with tempfile.TemporaryDirectory(prefix="bench-dataset-", dir=Path.cwd()) as directory:
        bench = Bench(Pair(Path(directory, "plain")))
        try:
            few, _, registering_few = bench.registered(ROWS)
            reading_few = bench.peak_of_reading(few)
            bench.pair.kill("dataset")
            many, taken, registering_many = bench.registered(TIMES * ROWS)
            reading_many = bench.peak_of_reading(many)
            plain = beside_flight(bench, many, Path(directory, "batches.arrow"))
        finally:
            bench.stop()
        bench = Bench(SecurePair(Path(directory, "tls")))
        try:
            tls = beside_flight(bench, bench.registered(TIMES * ROWS)[0], Path(directory, "batches.arrow"))
        finally:
            bench.stop()
    growth = max(registering_many / registering_few, reading_many / reading_few)
    imported = import_seconds()

    table = Table(title=f"{many.row_count} notes, {plain.size / 1e6:.0f} MB of Arrow")
    for heading in ("", "rows/s", "MB/s", "peak, MB", f"peak, {TIMES} × rows", "growth"):
        table.add_column(heading, justify="right" if heading else "left")

    def memory(few: float, many: float) -> tuple[str, str, str]:
        return f"{few:.0f}", f"{many:.0f}", f"{many / few:.2f}"

    speed = (f"{many.row_count / taken:.0f}", f"{plain.size / taken / 1e6:.0f}")
    table.add_row("registering", *speed, *memory(registering_few, registering_many))
    ours, theirs = plain.rows("", many.row_count)
    table.add_row(*ours, *memory(reading_few, reading_many))
    for row in (theirs, *tls.rows(", TLS", many.row_count)):
        table.add_row(*row)
    _console.print(table)
    for what, value, bar, met in (
        ("reading / Flight", plain.over_flight, OVER_FLIGHT_BAR, plain.over_flight >= OVER_FLIGHT_BAR),
        ("reading / Flight, TLS", tls.over_flight, OVER_FLIGHT_BAR, tls.over_flight >= OVER_FLIGHT_BAR),
        ("memory growth", growth, MEMORY_BAR, growth <= MEMORY_BAR),
        ("import murmura, s", imported, IMPORT_BAR_S, imported < IMPORT_BAR_S),
    ):
        _console.print(f"{what}: {value:.2f} (bar {bar}){'' if met else ': MISSED'}")
    figures = {
        "over_flight": plain.over_flight,
        "over_flight_tls": tls.over_flight,
        "memory_growth": growth,
        "import_seconds": imported,
    }
    print(json.dumps({name: round(value, 3) for name, value in figures.items()}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
