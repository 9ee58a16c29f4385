"""A small OpenID provider: discovery, keys, and tokens of whomever a test asks for."""

from __future__ import annotations

import http.server
import json
import threading
import time
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

RSA = rsa.generate_private_key(65537, 2048)
EC = ec.generate_private_key(ec.SECP256R1())
ED = Ed25519PrivateKey.generate()
_KINDS = (
    (rsa.RSAPrivateKey, jwt.algorithms.RSAAlgorithm),
    (ec.EllipticCurvePrivateKey, jwt.algorithms.ECAlgorithm),
    (Ed25519PrivateKey, jwt.algorithms.OKPAlgorithm),
)


def public(key: Any, kid: str, **more: str) -> dict[str, Any]:
    """Return the public half of a key as a JWK."""
    algorithm: Any = next(algorithm for kind, algorithm in _KINDS if isinstance(key, kind))
    return {**json.loads(algorithm.to_jwk(key.public_key())), "kid": kid, "use": "sig", **more}


class Provider:
    """The provider, on a port that it keeps.

    Attributes:
        keys: its JWKS; a test may change it.
        asked: how often the keys were fetched.
        claimed: the issuer that its discovery document names, if not itself.
        odd: what it answers instead, by path.
    """

    def __init__(self) -> None:
        self.keys = [public(RSA, "rsa"), public(EC, "ec"), public(ED, "ed")]
        self.asked = 0
        self.claimed = ""
        self.odd: dict[str, bytes] = {}
        self._port = 0
        self.start()

    @property
    def url(self) -> str:
        """Its issuer."""
        return f"http://127.0.0.1:{self._port}"

    def start(self) -> None:
        """Serve."""
        provider = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                if (data := provider.odd.get(self.path)) is not None:
                    self._answer(data)
                    return
                if self.path == "/.well-known/openid-configuration":
                    body: Any = {"issuer": provider.claimed or provider.url, "jwks_uri": f"{provider.url}/keys"}
                elif self.path == "/keys":
                    provider.asked += 1
                    body = {"keys": provider.keys}
                else:
                    self.send_error(404)
                    return
                self._answer(json.dumps(body).encode())

            def _answer(self, data: bytes) -> None:
                self.send_response(200)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_: Any) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", self._port), Handler)
        self._port = self._server.server_port
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def stop(self) -> None:
        """Be away."""
        self._server.shutdown()
        self._server.server_close()

    def claims(self, **changed: Any) -> dict[str, Any]:
        """Return the claims of a good token, changed; None removes one."""
        now = int(time.time())
        claims = {
            "iss": self.url,
            "aud": "murmura",
            "sub": "ana",
            "iat": now,
            "exp": now + 3600,
            "groups": ["doctors", "choir"],
        }
        return {name: value for name, value in (claims | changed).items() if value is not None}

    def token(
        self,
        key: Any = RSA,
        kid: str = "rsa",
        algorithm: str = "RS256",
        headers: dict[str, Any] | None = None,
        **changed: Any,
    ) -> str:
        """Sign a token."""
        return jwt.encode(self.claims(**changed), key, algorithm=algorithm, headers=headers or {"kid": kid})
