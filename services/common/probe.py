"""`python -m services.common.probe`: says by its exit code whether the service of this environment serves.

A kubelet's own gRPC probe speaks no TLS. This one finds the port in the state directory, as whoever starts a service on
one machine does, and insists on the certificate's authority like any other caller.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import grpc
from cryptography import x509
from grpc_health.v1 import health_pb2, health_pb2_grpc

from services.common.certificates import DOMAIN, service_named
from services.common.tls import name_check

TIMEOUT_S = 3.0


def main() -> int:
    """Ask once; returns 0 where it serves."""
    try:
        address = (Path(os.environ["MURMURA_STATE_DIR"]) / "listening").read_text().strip()
    except (KeyError, OSError):
        print("not listening yet", file=sys.stderr)
        return 1
    target = f"127.0.0.1:{address.rpartition(':')[2]}"
    with _channel(target) as channel:
        try:
            answer = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=TIMEOUT_S)
        except grpc.RpcError as error:
            print(error.code().name, file=sys.stderr)
            return 1
    serving = answer.status == health_pb2.HealthCheckResponse.SERVING
    return 0 if serving else 1


def _channel(target: str) -> grpc.Channel:
    authority, certificate = (os.environ.get(f"MURMURA_TLS_{name}") for name in ("AUTHORITY", "CERTIFICATE"))
    if not authority or not certificate:
        return grpc.insecure_channel(target)
    domain = os.environ.get("MURMURA_TLS_DOMAIN", DOMAIN)
    own = x509.load_pem_x509_certificate(Path(certificate).read_bytes())
    names = own.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    service = service_named((name.encode() for name in names.get_values_for_type(x509.DNSName)), domain)
    credentials = grpc.ssl_channel_credentials(Path(authority).read_bytes())
    # A certificate that names no service passes no check, here as with every other caller.
    return grpc.secure_channel(target, credentials, name_check(service or "", domain))


if __name__ == "__main__":
    sys.exit(main())
