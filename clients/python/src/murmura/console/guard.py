"""Who may look at the console: whoever holds the key that `murmura console` printed, from a page of its own.

The page shows what a steward may see, and every program and every web page on the machine can reach a loopback port.
So a key is asked for once and kept in a cookie; a name that is not this machine's is refused, or a foreign page could
have the browser ask under its own (DNS rebinding); and nothing from elsewhere may run on the page or frame it.
"""

from __future__ import annotations

import hmac
from typing import TYPE_CHECKING

from starlette.requests import Request
from starlette.responses import PlainTextResponse, RedirectResponse

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

NAMES = ("127.0.0.1", "localhost", "[::1]")
COOKIE = "murmura-console"
_WITHOUT_KEY = (
    "This console needs its key. Open the address that `murmura console` printed; it ends in ?key=….\n"
    "A console that was started again has a new one.\n"
)
_HEADERS = {
    "cache-control": "no-store",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}
_POLICY = (
    "default-src 'none'; connect-src 'self'; img-src data:; script-src 'self'; style-src {}; form-action 'none'; "
    "base-uri 'none'; frame-ancestors 'none'"
)
# A report is one file that carries its own style, and no script.
REPORT_SUFFIX = "/report"


class Guard:
    """Asks for the key, and says with each answer what a page may do.

    Args:
        app: what is guarded.
        key: as it was printed.
    """

    def __init__(self, app: ASGIApp, key: str) -> None:
        self._app = app
        self._key = key

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, or pass the request on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request = Request(scope)

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                style = "'unsafe-inline'" if request.url.path.endswith(REPORT_SUFFIX) else "'self'"
                headers = _HEADERS | {"content-security-policy": _POLICY.format(style)}
                message["headers"] = [*message["headers"], *((a.encode(), b.encode()) for a, b in headers.items())]
            await send(message)

        answer = self._answer(request)
        await (answer or self._app)(scope, receive, send_with_headers)

    def _answer(self, request: Request) -> PlainTextResponse | RedirectResponse | None:
        if "key" in request.query_params and self._fits(request.query_params["key"]):
            # The key goes from the address into a cookie, so that no history and no screenshot keeps it.
            redirect = RedirectResponse("/" + request.url.path.lstrip("/"), status_code=303)
            redirect.set_cookie(COOKIE, self._key, httponly=True, samesite="strict")
            return redirect
        if not self._fits(request.cookies.get(COOKIE, "")):
            return PlainTextResponse(_WITHOUT_KEY, status_code=403)
        return None

    def _fits(self, key: str) -> bool:
        return hmac.compare_digest(key.encode(), self._key.encode())
