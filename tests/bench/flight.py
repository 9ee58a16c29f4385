"""Arrow Flight with nothing around it: the peer of `make bench-dataset`.

Serves the batches of an Arrow file from memory, to whoever asks; with TLS if it is given a certificate and its key.
Prints its port.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.flight


class Server(pa.flight.FlightServerBase):  # type: ignore[misc]
    """Serves one table in the batches that it came in."""

    def __init__(self, path: str, *certificate: str) -> None:
        if certificate:
            shown = tuple(Path(part).read_bytes() for part in certificate)
            super().__init__("grpc+tls://127.0.0.1:0", tls_certificates=[shown])
        else:
            super().__init__("grpc://127.0.0.1:0")
        with pa.memory_map(path) as file:
            self._table = pa.ipc.open_stream(file.read()).read_all()

    def do_get(self, context: object, ticket: pa.flight.Ticket) -> pa.flight.RecordBatchStream:
        """Stream the table."""
        return pa.flight.RecordBatchStream(self._table)


if __name__ == "__main__":
    server = Server(*sys.argv[1:])
    print(server.port, flush=True)
    server.serve()
