"""Who calls, and whether they may: a bearer token, and one table that denies whatever it does not list."""

from __future__ import annotations

from contextvars import ContextVar

import grpc
import structlog

from services.common.access import allowed_roles
from services.common.calls import Call, CallInterceptor
from services.common.errors import MurmuraError
from services.common.tokens import Principal, TokenRejected, TrustedKeys

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
    """

    def __init__(self, keys: TrustedKeys) -> None:
        self._keys = keys

    def before(self, call: Call) -> None:
        """Let the call in, or refuse it."""
        header = call.metadata.get("authorization", "")
        scheme, _, token = str(header).partition(" ")
        try:
            if scheme.lower() != "bearer" or not token:
                raise TokenRejected("missing")
            principal = self._keys.verify(token)
        except TokenRejected as rejection:
            _log.warning("token rejected", why=str(rejection), method=call.method)
            raise MurmuraError(
                grpc.StatusCode.UNAUTHENTICATED,
                "TOKEN_INVALID",
                "No valid token. Sign in again; on this machine, `murmura up` mints fresh ones.",
            ) from None
        call.facts["subject"] = principal.subject
        roles = allowed_roles(call.method)
        if not principal.roles & roles:
            raise MurmuraError(
                grpc.StatusCode.PERMISSION_DENIED,
                "ROLE_DENIED",
                f"{principal.subject} may not call {call.method.rpartition('/')[2]}; "
                f"it takes one of: {', '.join(sorted(roles)) or 'nobody'}.",
                {"method": call.method, "allowed_roles": ",".join(sorted(roles))},
            )
        _principal.set(principal)
