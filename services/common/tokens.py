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
import structlog
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from services.common.files import read

AUDIENCE = "murmura"
TOKENS_KEPT = 1024
REREAD_S = 1.0
_log = structlog.get_logger()
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
        try:
            facts = self._path.stat()
            version = (facts.st_mtime_ns, facts.st_ino)
            if version == self._read_at:
                return
            keys = trusted(self._path.read_text())
        except (OSError, ValueError) as problem:
            if self._read_at is None:
                raise
            # Whoever replaces the file may do it in steps; what counted a moment ago counts until there is another.
            _log.warning("trusted keys not replaced", why=type(problem).__name__)
            return
        self._keys = {kid: (key, may_issue & self._roles) for kid, (key, may_issue) in keys.items()}
        self._verified, self._read_at = Verified(), version


def trusted(text: str) -> dict[str, tuple[Ed25519PublicKey, frozenset[str]]]:
    """Read a JWKS of trusted keys; returns each key and the roles that it may issue, by its id.

    Raises:
        ValueError: says which key is none, or that it is no such file at all.
    """
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        raise ValueError("the file that it names is not JSON") from None
    items = document.get("keys") if isinstance(document, dict) else None
    if not isinstance(items, list):
        raise ValueError('the file that it names is no JWKS: {"keys": [...]}')
    keys = {}
    for number, item in enumerate(items):
        kid = item.get("kid") if isinstance(item, dict) else None
        if not isinstance(kid, str):
            raise ValueError(f"keys[{number}] of the file that it names has no kid")
        key, may_issue = key_of(item), item.get("may_issue", [])
        if not isinstance(key, Ed25519PublicKey):
            raise ValueError(f"the key {kid!r} is no public Ed25519 key")
        if not isinstance(may_issue, list) or not all(isinstance(role, str) for role in may_issue):
            raise ValueError(f"the key {kid!r} says in may_issue what is no list of roles")
        keys[kid] = (key, frozenset(may_issue))
    return keys


def key_of(item: dict[str, Any]) -> Any:
    """Return the key of a JWK, of whatever kind; None where it holds none."""
    try:
        return jwt.PyJWK(item).key
    except Exception:
        # The library says that it is none in a dozen ways, a TypeError among them.
        return None


def load_signing_key(path: Path) -> Ed25519PrivateKey:
    """Read an Ed25519 key from a PEM file.

    Raises:
        ValueError: if it cannot be read, or is another kind of key, or locked with a password.
    """
    pem = read(path).encode()
    try:
        key = serialization.load_pem_private_key(pem, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, Ed25519PrivateKey):
        raise ValueError("the file that it names does not hold an Ed25519 key in PEM form, without a password")
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
