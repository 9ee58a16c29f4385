"""Keys and tokens of the embedded default.

A deployment of an organisation has an identity provider; a laptop has none. `murmura up` therefore mints its own:
one Ed25519 key that issues people's and services' tokens, one for the trainer, which may issue job tokens only, and
a JWKS file that tells every service which key may issue which role. Files are readable by their owner only.
"""

from __future__ import annotations

import base64
import json
import os
import time
from pathlib import Path

import jwt
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

AUDIENCE = "murmura"
LIFETIME_S = 30 * 24 * 3600
PEOPLE = ("analyst", "steward", "operator")


class Identity:
    """The keys and tokens under one state directory.

    Args:
        directory: the state directory; keys are made in it when they are missing.
    """

    def __init__(self, directory: Path) -> None:
        self._keys = directory / "keys"
        self._tokens = directory / "tokens"
        for folder in (self._keys, self._tokens):
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._deployment = _load_or_make(self._keys / "deployment.pem")
        _load_or_make(self.trainer_key)
        self._write_trusted()

    @property
    def trainer_key(self) -> Path:
        """The key with which the trainer signs job tokens and adapter manifests."""
        return self._keys / "trainer.pem"

    @property
    def trusted_keys(self) -> Path:
        """The JWKS file of the public halves; `may_issue` lists the roles each key may issue."""
        return self._keys / "trusted.json"

    def token_file(self, role: str) -> Path:
        """Return the file that holds the token of a person's role or of `service:<name>`."""
        return self._tokens / role.replace(":", "-")

    def mint(self, subject: str, role: str) -> Path:
        """Write a fresh token for `subject` and return its file."""
        now = int(time.time())
        claims = {
            "sub": subject,
            "roles": [role],
            "aud": AUDIENCE,
            "iat": now,
            "exp": now + LIFETIME_S,
        }
        token = jwt.encode(claims, self._deployment, algorithm="EdDSA", headers={"kid": "deployment"})
        path = self.token_file(subject if role == "service" else role)
        write_private(path, token)
        return path

    def _write_trusted(self) -> None:
        keys = [
            _public(self._keys / "deployment.pem", "deployment", [*PEOPLE, "service"]),
            _public(self.trainer_key, "trainer", ["worker"]),
        ]
        write_private(self.trusted_keys, json.dumps({"keys": keys}, indent=2) + "\n")


def write_private(path: Path, text: str) -> None:
    """Write a file atomically, readable by its owner only."""
    temporary = path.with_name(path.name + ".new")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as out:
        out.write(text)
    temporary.replace(path)


def _load_or_make(path: Path) -> Ed25519PrivateKey:
    if not path.exists():
        pem = Ed25519PrivateKey.generate().private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        write_private(path, pem.decode())
    key = serialization.load_pem_private_key(path.read_bytes(), password=None)
    if not isinstance(key, Ed25519PrivateKey):
        raise ValueError(f"{path} holds another kind of key; expected Ed25519")
    return key


def _public(path: Path, kid: str, may_issue: list[str]) -> dict[str, object]:
    raw = _load_or_make(path).public_key().public_bytes_raw()
    return {
        "kty": "OKP",
        "crv": "Ed25519",
        "alg": "EdDSA",
        "use": "sig",
        "kid": kid,
        "x": base64.urlsafe_b64encode(raw).rstrip(b"=").decode(),
        "may_issue": may_issue,
    }
