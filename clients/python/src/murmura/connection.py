"""The wires between the SDK and the services.

Everything that is the same for each call stands here: where a service is, who calls, how long to wait, when to try
again. A local service that is being restarted is waited for; a call that could spend twice is never sent twice
without the request id that makes it safe.
"""

from __future__ import annotations

import base64
import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

from murmura import errors
from murmura.calls import repeatable
from murmura.reach import cause, host_of, is_local

SERVICES = ("dataset", "ledger", "trainer", "inference")
PATIENCE_S = 90.0
# For one that has not answered yet.
FIRST_S = 10.0
RETRY_S = 0.5
_CHANNEL_OPTIONS = [
    ("grpc.max_receive_message_length", 4 << 20),
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 2_000),
]


@dataclass(frozen=True)
class Profile:
    """Where the services are and as whom they are called.

    Attributes:
        endpoints: service to `host:port`.
        token: the bearer token.
        secure: whether to use TLS.
        authority: PEM of the authority of the services' certificates; empty: those that this machine trusts.
    """

    endpoints: dict[str, str]
    token: str
    secure: bool
    authority: bytes = b""

    def channel(self, kind: Any, service: str) -> Any:
        """Open a channel to a service.

        Args:
            kind: `grpc`, or `grpc.aio` for asyncio.
            service: its name.
        """
        endpoint = self.endpoints[service]
        if not self.secure:
            return kind.insecure_channel(endpoint, options=_CHANNEL_OPTIONS)
        credentials = grpc.ssl_channel_credentials(self.authority or None)
        return kind.secure_channel(endpoint, credentials, options=_CHANNEL_OPTIONS)

    def metadata(self) -> list[tuple[str, str]]:
        """Return what goes along with each call: who makes it."""
        return [("authorization", f"Bearer {self.token}")]

    @property
    def subject(self) -> str:
        """Who the token says the caller is; the services check it, this is for display and request ids."""
        try:
            payload = self.token.split(".")[1]
            claims = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
        except (IndexError, ValueError):
            return ""
        return str(claims.get("sub", ""))


def choose_profile(
    url: str | None, token: str | None, authority: str | Path | None, role: str, profile: str | Path | None
) -> Profile:
    """Choose where to call and as whom: what was said, else `MURMURA_URL`, else what `murmura up` wrote here.

    A profile that was named, as an argument or as `MURMURA_PROFILE`, goes before `MURMURA_URL`.

    Raises:
        errors.MurmuraError: if there is no such place.
    """
    if not url and not profile and not os.environ.get("MURMURA_PROFILE"):
        url = os.environ.get("MURMURA_URL")
    return remote_profile(url, token, authority) if url else local_profile(role, profile)


def remote_profile(url: str, token: str | None, authority: str | Path | None = None) -> Profile:
    """Make a profile of one endpoint that serves everything.

    Args:
        url: `grpcs://host:port` (TLS), or `grpc://127.0.0.1:port` on this machine.
        token: a bearer token; `MURMURA_TOKEN` when unset.
        authority: PEM file of the authority of the organisation's certificates; `MURMURA_AUTHORITY` when unset, and
            without either whom this machine trusts.

    Raises:
        errors.InvalidInput: if there is no token, it would travel in the clear, or the authority cannot be read.
    """
    scheme, separator, endpoint = url.partition("://")
    if not separator:
        scheme, endpoint = "grpcs", url
    token = token or os.environ.get("MURMURA_TOKEN", "")
    if not token:
        raise errors.InvalidInput("No token: pass Client(url=..., token=...) or set MURMURA_TOKEN.")
    if scheme not in ("grpc", "grpcs"):
        raise errors.InvalidInput(f"{url!r} is no Murmura address: write grpcs://host:port.")
    if scheme == "grpc" and not is_local(endpoint):
        raise errors.InvalidInput(f"A token would travel to {host_of(endpoint)} in the clear. Use grpcs://{endpoint}.")
    file, pem = authority or os.environ.get("MURMURA_AUTHORITY", ""), b""
    if file:
        try:
            pem = Path(file).read_bytes()
        except OSError as error:
            raise errors.InvalidInput(
                f"The authority {file} cannot be read: {error.strerror}. Ask the operator for its PEM file."
            ) from None
    return Profile(dict.fromkeys(SERVICES, endpoint), token, scheme == "grpcs", pem)


def local_profile(role: str, path: str | Path | None = None) -> Profile:
    """Read the profile that `murmura up` wrote.

    Args:
        role: `analyst`, `steward` or `operator`: whose token to use.
        path: the profile file; by default `MURMURA_PROFILE`, else `.murmura/profile.json` here or above.

    Raises:
        errors.Unreachable: if there is none.
    """
    chosen = path or os.environ.get("MURMURA_PROFILE")
    here = Path.cwd()
    candidates = [Path(chosen)] if chosen else [p / ".murmura" / "profile.json" for p in (here, *here.parents)]
    for candidate in candidates:
        if candidate.exists():
            return _written(candidate, role)
    raise errors.Unreachable(
        f"No Murmura found: {candidates[0]} does not exist. "
        "Start one with `murmura up`, or name one: MURMURA_URL=grpcs://… and MURMURA_TOKEN, or Client(url=…, token=…)."
    )


def _written(file: Path, role: str) -> Profile:
    """Read a profile.

    Raises:
        errors.InvalidInput: if it cannot be read, or what it names cannot.
    """
    try:
        facts = json.loads(file.read_text())
        token = Path(facts["tokens"][role]).read_text().strip()
        endpoints = {str(service): str(where) for service, where in facts["endpoints"].items()}
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as problem:
        raise errors.InvalidInput(
            f"The profile {file} cannot be used ({type(problem).__name__}): run `murmura up` where it belongs, which "
            "writes it anew, or name another one."
        ) from None
    return Profile(endpoints, token, secure=False)


class Patience:
    """When a call that failed is tried again, whoever waits: only where the service is away, and nothing happens twice.

    Args:
        profile: where the services are.
        service: the one that is called.
        request: what it is asked.
        patience_s: how long to wait for a service that is being restarted. One that has never answered is perhaps not
            there at all: whoever called is told so much sooner.
        answered: the services that have answered; this one is added once it does.
    """

    def __init__(self, profile: Profile, service: str, request: Any, patience_s: float, answered: set[str]) -> None:
        self._service, self._endpoint = service, profile.endpoints[service]
        self._repeatable = repeatable(request)
        self._patience_s, self._answered = patience_s, answered
        self._begun = time.monotonic()

    def over(self) -> None:
        """Note that the service has answered."""
        self._answered.add(self._service)

    def pause(self, error: grpc.RpcError) -> float:
        """Return for how many seconds to wait before the next attempt.

        Raises:
            errors.MurmuraError: what the service said, where there is no next attempt.
        """
        problem = errors.from_rpc(error, self._service, self._endpoint)
        restarting = isinstance(problem, errors.Unreachable) and error.code() == grpc.StatusCode.UNAVAILABLE
        if not restarting or problem.reason:
            self.over()
        limit_s = self._patience_s
        if self._service not in self._answered:
            limit_s = min(limit_s, FIRST_S) if cause(error.details() or "").passing else 0.0
        if not restarting or not self._repeatable or time.monotonic() - self._begun > limit_s:
            raise problem from None
        return RETRY_S


class Connection:
    """Calls to the services, as one caller.

    Args:
        profile: where and as whom.
        patience_s: how long to wait for a service that is being restarted.
    """

    def __init__(self, profile: Profile, patience_s: float = PATIENCE_S) -> None:
        self.profile = profile
        self.patience_s = patience_s
        self._channels: dict[str, grpc.Channel] = {}
        self._answered: set[str] = set()

    def channel(self, service: str) -> grpc.Channel:
        """Return the channel to a service, opened at first use."""
        if service not in self._channels:
            self._channels[service] = self.profile.channel(grpc, service)
        return self._channels[service]

    def call(self, service: str, method: Any, request: Any, timeout_s: float = 60.0) -> Any:
        """Make a unary call; waits for a service that is being restarted.

        Args:
            service: its name.
            method: takes a channel's stub method, for example `stub.GetDataset`.
            request: a read, or a write with a request id: it may be sent again.
            timeout_s: deadline of one attempt.

        Raises:
            errors.MurmuraError: whatever the service said.
        """
        patience = Patience(self.profile, service, request, self.patience_s, self._answered)
        while True:
            try:
                answer = method(request, timeout=timeout_s, metadata=self.profile.metadata())
            except grpc.RpcError as error:
                pause = patience.pause(error)
            else:
                patience.over()
                return answer
            time.sleep(pause)

    def stream(self, service: str, method: Any, request: Any, timeout_s: float | None = None) -> Iterator[Any]:
        """Make a streaming call; an interruption is raised, not hidden.

        Raises:
            errors.MurmuraError: whatever the service said.
        """
        try:
            yield from method(request, timeout=timeout_s, metadata=self.profile.metadata())
        except grpc.RpcError as error:
            raise errors.from_rpc(error, service, self.profile.endpoints[service]) from None

    def close(self) -> None:
        """Close the channels."""
        for channel in self._channels.values():
            channel.close()
        self._channels.clear()
