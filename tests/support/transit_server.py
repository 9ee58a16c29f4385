"""A small HTTP server that speaks what Vault's and OpenBao's transit engines speak, with real AES-GCM behind it."""

from __future__ import annotations

import base64
import json
import os
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from services.dataset.keys import TransitKeys


class TransitServer:
    """One key, on a port of this machine.

    Attributes:
        url: of the server.
        token: the one that it lets in.
        key: its AES key; another one is another key.
        odd: status and body that it answers instead.
    """

    def __init__(self, name: str = "murmura", token: str = "s.let-me-in") -> None:
        self.token = token
        self.key = AESGCM.generate_key(bit_length=256)
        self.odd: tuple[int, bytes] | None = None
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                verb = self.path.removeprefix("/v1/transit/").partition("/")[0]
                if outer.odd is not None:
                    self._send(*outer.odd)
                elif self.headers.get("X-Vault-Token") != outer.token:
                    self._answer(403, {"errors": ["permission denied"]})
                elif self.path != f"/v1/transit/{verb}/{name}" or verb not in ("encrypt", "decrypt"):
                    self._answer(404, {"errors": []})
                else:
                    try:
                        self._answer(200, {"data": getattr(outer, verb)(body)})
                    except InvalidTag:
                        self._answer(400, {"errors": ["cipher: message authentication failed"]})

            # hvac sends PUT or POST, by version.
            do_PUT = do_POST  # noqa: N815

            def _answer(self, status: int, body: dict[str, Any]) -> None:
                self._send(status, json.dumps(body).encode())

            def _send(self, status: int, data: bytes) -> None:
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_: Any) -> None:
                pass

        self._name = name
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def encrypt(self, body: dict[str, str]) -> dict[str, str]:
        nonce = os.urandom(12)
        plain, associated = base64.b64decode(body["plaintext"]), base64.b64decode(body.get("associated_data", ""))
        sealed = nonce + AESGCM(self.key).encrypt(nonce, plain, associated)
        return {"ciphertext": "vault:v1:" + base64.b64encode(sealed).decode()}

    def decrypt(self, body: dict[str, str]) -> dict[str, str]:
        sealed = base64.b64decode(body["ciphertext"].removeprefix("vault:v1:"))
        associated = base64.b64decode(body.get("associated_data", ""))
        plain = AESGCM(self.key).decrypt(sealed[:12], sealed[12:], associated)
        return {"plaintext": base64.b64encode(plain).decode()}

    def keys(self, token: Path) -> TransitKeys:
        """Return who asks this server, with its token in a file that is written here."""
        token.write_text(self.token + "\n")
        return TransitKeys(self.url, self._name, token, "transit", None)

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()
