"""Who calls, and whether they may: a token or a certificate, and one table that denies whatever it does not list.

People and workers show a bearer token. A service shows its certificate once there is TLS, and a token before: from
then on a token alone makes nobody a service, so one that leaks out of a file opens nothing.
"""

from __future__ import annotations

from collections.abc import Awaitable
from contextvars import ContextVar

import grpc
import structlog

from services.common.access import UNPROVEN, allowed_roles, allowed_services
from services.common.calls import Call, CallInterceptor
from services.common.certificates import service_named
from services.common.errors import MurmuraError
from services.common.oidc import Issuer, KeyUnknown
from services.common.tokens import Principal, TokenRejected, TrustedKeys

_SERVICE_ROLES = frozenset({"service"})
_principal: ContextVar[Principal | None] = ContextVar("murmura_principal", default=None)
_log = structlog.get_logger()


def current_principal() -> Principal:
    """Return who makes the present call."""
    principal = _principal.get()
    if principal is None:
        raise RuntimeError("no principal: this code runs outside a call")
    return principal


class Auth(CallInterceptor):
    """Authenticates and authorises each call.

    Args:
        keys: whose tokens count.
        issuer: the identity provider of people, if there is one.
        tls_domain: of the names in services' certificates; empty where there is no TLS.
    """

    def __init__(self, keys: TrustedKeys, issuer: Issuer | None = None, tls_domain: str = "") -> None:
        self._keys = keys
        self._issuer = issuer
        self._tls_domain = tls_domain

    def before(self, call: Call) -> Awaitable[None] | None:
        """Let the call in, or refuse it."""
        if allowed_roles(call.method) == UNPROVEN:
            call.facts["by"], call.facts["subject"] = "proof in the request", "unproven"
            _principal.set(Principal("unproven", UNPROVEN))
            return None
        try:
            principal = self._authenticated(call)
        except KeyUnknown:
            return self._once_refreshed(call)
        except TokenRejected as rejection:
            raise _unauthenticated(call, rejection) from None
        _authorise(call, principal)
        return None

    async def _once_refreshed(self, call: Call) -> None:
        """Let in who brings a token of a key that the provider has had for a moment only."""
        if self._issuer is not None:
            await self._issuer.refreshed()
        try:
            principal = self._authenticated(call)
        except TokenRejected as rejection:
            raise _unauthenticated(call, rejection) from None
        _authorise(call, principal)

    def _authenticated(self, call: Call) -> Principal:
        header = call.metadata.get("authorization", "")
        if not header and self._tls_domain:
            return self._certified(call)
        scheme, _, token = str(header).partition(" ")
        if scheme.lower() != "bearer" or not token:
            raise TokenRejected("missing")
        call.facts["by"] = "token"
        if self._issuer is not None and self._issuer.issued(token):
            return self._issuer.verify(token)
        principal = self._keys.verify(token)
        if self._tls_domain and principal.has("service"):
            raise TokenRejected("a service without its certificate")
        return principal

    def _certified(self, call: Call) -> Principal:
        names = call.context.auth_context().get("x509_subject_alternative_name", ())
        service = service_named(names, self._tls_domain)
        if service is None:
            raise TokenRejected("missing" if not names else "certificate of no service")
        call.facts["by"] = "certificate"
        return Principal(f"service:{service}", _SERVICE_ROLES)


def _authorise(call: Call, principal: Principal) -> None:
    call.facts["subject"] = principal.subject
    roles, services = allowed_roles(call.method), allowed_services(call.method)
    if not principal.roles & roles:
        raise _denied(call, principal, sorted(roles))
    # Who is let in as a service must be one of these; a person who is allowed here is none.
    if services is not None and principal.roles & roles == _SERVICE_ROLES and principal.subject not in services:
        raise _denied(call, principal, sorted(services))
    _principal.set(principal)


def _denied(call: Call, principal: Principal, takes: list[str]) -> MurmuraError:
    return MurmuraError(
        grpc.StatusCode.PERMISSION_DENIED,
        "ROLE_DENIED",
        f"{principal.subject} may not call {call.method.rpartition('/')[2]}; "
        f"it takes one of: {', '.join(takes) or 'nobody'}.",
        {"method": call.method, "allowed_roles": ",".join(takes)},
    )


def _unauthenticated(call: Call, rejection: TokenRejected) -> MurmuraError:
    _log.warning("token rejected", why=str(rejection), method=call.method)
    return MurmuraError(
        grpc.StatusCode.UNAUTHENTICATED,
        "TOKEN_INVALID",
        "No valid token. Sign in again; on this machine, `murmura up` mints fresh ones.",
    )
