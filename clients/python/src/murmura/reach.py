"""Why a service cannot be reached, in words.

gRPC tells it in a line for its own developers. What is known of such lines is here; of any other, and of a plain
refusal, no more is said than that nobody answers.
"""

from __future__ import annotations

from dataclasses import dataclass

_LOCAL = frozenset({"localhost", "127.0.0.1", "::1"})


@dataclass(frozen=True)
class Cause:
    """Why nobody answers.

    Attributes:
        words: go on from "The ledger service at host:port".
        passing: whether it may be over in a moment, as when a service starts.
    """

    words: str
    passing: bool


_SILENT = Cause("does not answer", passing=True)
_NO_GRPC = Cause(
    "does not speak gRPC: something else listens there. Check MURMURA_URL, and whether it needs grpcs://", passing=False
)
_NO_HOST = Cause("is on a host that nobody knows. Check the address in MURMURA_URL", passing=False)
# By what is in gRPC's line, the first that fits.
_KNOWN = {
    "CERTIFICATE_VERIFY_FAILED": Cause(
        "shows a certificate that this machine does not trust. Ask the operator for the PEM file of the organisation's "
        "authority, and name it in MURMURA_AUTHORITY or Client(authority=…)",
        passing=False,
    ),
    "Hostname Verification": Cause(
        "shows the certificate of another host. Write the address as the operator gave it", passing=False
    ),
    "WRONG_VERSION_NUMBER": Cause(
        "does not speak TLS: something else listens there. Check the port in MURMURA_URL", passing=False
    ),
    "parsing HTTP/2": _NO_GRPC,
    "http1.x server": _NO_GRPC,
    "lookup failed": _NO_HOST,
    "DNS resolution failed": _NO_HOST,
}


def is_local(endpoint: str) -> bool:
    """Say whether an endpoint is on this machine."""
    return host_of(endpoint) in _LOCAL


def host_of(endpoint: str) -> str:
    """Return the host of an endpoint, `host:port` or a host alone."""
    return endpoint.rpartition(":")[0].strip("[]") or endpoint


def cause(line: str) -> Cause:
    """Return what gRPC's line about a service that is UNAVAILABLE means."""
    return next((known for mark, known in _KNOWN.items() if mark in line), _SILENT)


def sentence(service: str, endpoint: str, line: str) -> str:
    """Return what to tell whoever called, and what to do next.

    Args:
        service: its name.
        endpoint: where it was expected.
        line: gRPC's own.
    """
    found = cause(line)
    said = f"The {service} service at {endpoint} {found.words}."
    if not found.passing:
        return said
    if is_local(endpoint):
        return f"{said} Start it with `murmura up`, or look with `murmura status`."
    return f"{said} Check the address, or ask the operator whether it runs."
