"""`python -m deploy.kubernetes.keys DIRECTORY`: makes the trainer's signing key, and the keys whose tokens count.

Writes `trainer.pem`, which signs job tokens and manifests and is for the trainer alone, and `trusted.json`, its public
half, which every service reads. Overwrites nothing: with another key every adapter's signature would be another's.
"""

from __future__ import annotations

import base64
import json
import os
import sys
from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey


def make(directory: Path) -> None:
    """Write both files.

    Raises:
        FileExistsError: if one is there.
    """
    key = Ed25519PrivateKey.generate()
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    raw = key.public_key().public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)
    public = {
        "kty": "OKP",
        "crv": "Ed25519",
        "kid": "trainer",
        "alg": "EdDSA",
        "use": "sig",
        "x": base64.urlsafe_b64encode(raw).decode().rstrip("="),
        "may_issue": ["worker"],
    }
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    for name, data in (
        ("trainer.pem", private),
        ("trusted.json", json.dumps({"keys": [public]}, indent=2).encode() + b"\n"),
    ):
        descriptor = os.open(directory / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as out:
            out.write(data)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m deploy.kubernetes.keys DIRECTORY")
    try:
        make(Path(sys.argv[1]))
    except FileExistsError as there:
        sys.exit(f"{there.filename} exists; it is left as it is")
