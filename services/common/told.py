"""Kinds of settings that name a file or an address: what is there is looked at when the service starts.

A slip in one of them would otherwise show at the first call that needs it, and there look like a fault of the service.
What is said names no value: whoever errs writes a password where the name of its file belongs.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator

from services.common.files import read, token_in

_MOST_PORT = 65_535
# Of gRPC's other ways to name a server; what follows them is gRPC's to read.
_RESOLVERS = ("unix:", "dns:", "ipv4:", "ipv6:", "xds:")


def _token_file(path: Path) -> Path:
    token_in(path)
    return path


def _authority(path: Path) -> Path:
    read(path)
    try:
        ssl.create_default_context(cafile=path)
    except ssl.SSLError:
        raise ValueError("the file that it names does not hold certificates in PEM form") from None
    return path


def _address(text: str) -> str:
    if text.startswith("unix:"):
        return text
    host, colon, port = text.rpartition(":")
    if not colon or not (port.isascii() and port.isdecimal()) or int(port) > _MOST_PORT:
        raise ValueError(f"must be host:port, with a port of at most {_MOST_PORT}")
    if ":" in host and not host.startswith("["):
        raise ValueError("must have an IPv6 address in brackets, as in [::1]:7402")
    return text


def _endpoint(text: str) -> str:
    if text.startswith(_RESOLVERS):
        return text
    if "/" in text:
        raise ValueError("must be host:port, without a scheme or a path")
    if not _address(text).rpartition(":")[0]:
        raise ValueError("must be host:port: where the other service is")
    return text


def _or_nothing(check: Callable[[str], str]) -> Callable[[str], str]:
    return lambda text: check(text) if text else text


# A file with a token, which is read again at each use.
TokenFile = Annotated[Path, AfterValidator(_token_file)]
# A PEM file with the certificates of those who are believed.
AuthorityFile = Annotated[Path, AfterValidator(_authority)]
# Where a service listens.
Address = Annotated[str, AfterValidator(_address)]
AddressOrNone = Annotated[str, AfterValidator(_or_nothing(_address))]
# Where another one does.
Endpoint = Annotated[str, AfterValidator(_endpoint)]
EndpointOrNone = Annotated[str, AfterValidator(_or_nothing(_endpoint))]
