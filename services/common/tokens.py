"""Bearer tokens: signed, short, and only as powerful as the key that signed them.

A token is a JWT signed with Ed25519 (RFC 8037). Which keys are trusted, and which roles each may issue, stands in a
JWKS file (RFC 7517) whose keys carry one member of ours, `may_issue`. The file is looked at again every second.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jwt
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

AUDIENCE = "murmura"
TOKENS_KEPT = 1024
REREAD_S = 1.0
ROLES = frozenset({"analyst", "steward", "operator", "service", "worker"})


class TokenRejected(Exception):
    """The token proves nothing; why is for the log, not for the caller."""


@dataclass(frozen=True)
class Principal:
    """Who calls.

    Attributes:
        subject: for example `analyst@local`, `service:trainer`, `worker:<job id>`.
        roles: what they may do.
        claims: the token's other claims.
    """

    subject: str
    roles: frozenset[str]
    claims: dict[str, Any] = field(default_factory=dict)

    def has(self, *roles: str) -> bool:
        """Say whether the principal has one of the roles."""
        return bool(self.roles & set(roles))


class Verified:
    """Tokens that were found good: a signature costs more than the rest of a call's checks together."""

    def __init__(self) -> None:
        self._principals: dict[str, Principal] = {}

    def get(self, token: str) -> Principal | None:
        """Return whose token it is if it was found good and has not expired since."""
        known = self._principals.get(token)
        return known if known is not None and time.time() < known.claims["exp"] else None

    def put(self, token: str, principal: Principal) -> None:
        """Remember a good token, in place of the oldest when there are many."""
        while len(self._principals) >= TOKENS_KEPT:
            self._principals.pop(next(iter(self._principals)), None)
        self._principals[token] = principal


class TrustedKeys:
    """The keys whose tokens count.

    Args:
        path: the JWKS file.
        roles: what any key of it may issue at most.
    """

    def __init__(self, path: Path, roles: frozenset[str] = ROLES) -> None:
        self._path = path
        self._roles = roles
        self._read_at: tuple[int, int] | None = None
        self._keys: dict[str, tuple[Ed25519PublicKey, frozenset[str]]] = {}
        self._verified = Verified()
        self._fresh_until = 0.0

    def verify(self, token: str) -> Principal:
        """Check a token. One that was found good is good until it expires or the keys change.

        Raises:
            TokenRejected: if it is not signed by a trusted key, expired, for someone else, or claims a role that its
                key may not issue.
        """
        self._refresh()
        known = self._verified.get(token)
        if known is None:
            known = self._verify(token)
            self._verified.put(token, known)
        return known

    def _verify(self, token: str) -> Principal:
        try:
            kid = jwt.get_unverified_header(token).get("kid", "")
            key, may_issue = self._keys[kid]
            claims = jwt.decode(
                token,
                key,
                algorithms=["EdDSA"],
                audience=AUDIENCE,
                options={"require": ["exp", "iat", "sub", "aud"]},
            )
        except (jwt.PyJWTError, KeyError) as error:
            raise TokenRejected(type(error).__name__) from None
        roles = claims.get("roles")
        if not isinstance(roles, list) or not roles or not all(isinstance(role, str) for role in roles):
            raise TokenRejected("roles")
        if not set(roles) <= may_issue:
            raise TokenRejected("may_issue")
        return Principal(str(claims["sub"]), frozenset(roles), claims)

    def issuers_of(self, role: str) -> list[Ed25519PublicKey]:
        """Return the keys that may issue a role; the trainer's sign manifests too."""
        self._refresh()
        return [key for key, may_issue in self._keys.values() if role in may_issue]

    def _refresh(self) -> None:
        now = time.monotonic()
        if now < self._fresh_until:
            return
        self._fresh_until = now + REREAD_S
        facts = self._path.stat()
        version = (facts.st_mtime_ns, facts.st_ino)
        if version == self._read_at:
            return
        keys = {}
        for item in json.loads(self._path.read_text())["keys"]:
            key = jwt.PyJWK(item).key
            if isinstance(key, Ed25519PublicKey):
                keys[item["kid"]] = (key, frozenset(item.get("may_issue", [])) & self._roles)
        self._keys, self._verified, self._read_at = keys, Verified(), version


def load_signing_key(path: Path) -> Ed25519PrivateKey:
    """Read an Ed25519 key from a PEM file.

    Raises:
        ValueError: if it is another kind of key.
    """
    key = serialization.load_pem_private_key(path.read_bytes(), password=None)
    if not isinstance(key, Ed25519PrivateKey):
        raise ValueError(f"{path.name} does not hold an Ed25519 key")
    return key


def mint(key: Ed25519PrivateKey, kid: str, subject: str, roles: list[str], lifetime_s: int, **claims: str) -> str:
    """Make a token."""
    now = int(time.time())
    body = {
        "sub": subject,
        "roles": roles,
        "aud": AUDIENCE,
        "iat": now,
        "exp": now + lifetime_s,
        **claims,
    }
    return jwt.encode(body, key, algorithm="EdDSA", headers={"kid": kid})
