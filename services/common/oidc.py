"""People's tokens from an identity provider: OpenID Connect, with keys that the provider may replace at any time.

A token counts if it is signed by a key of the issuer's JWKS (RFC 7517) with the one algorithm that this kind of key is
for, which leaves no room for `none` or for a public key taken as a secret; if it is meant for Murmura and valid now.
What its groups, or another claim, mean is the operator's to say, and no claim makes anyone a service or a worker.

Keys are fetched by a thread, ahead of need, so that no call waits for the provider. Only a token of a key that was
never seen waits, for one fetch that all such callers share; how often that may happen is bounded, or anyone could make
this service hammer the provider.
"""

from __future__ import annotations

import asyncio
import threading
import time
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import jwt
import structlog
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey

from services.common.errors import dependency_unavailable
from services.common.issuer import Configuration, Fetcher
from services.common.tokens import Principal, TokenRejected, Verified, key_of

REFRESH_S = 300.0
RETRY_S = 5.0
# Between two fetches for the sake of a token of an unknown key.
UNKNOWN_KEY_S = 5.0
WAIT_S = 3.0
MOST_WAITING = 32
# How long keys count when the provider has been away: longer than its outages, shorter than forgetting a stolen key.
KEYS_TRUSTED_S = 12 * 3600.0
LEEWAY_S = 10
LEAST_RSA_BITS = 2048
LONGEST_SUBJECT = 200
# What Murmura itself says of who is no person.
_RESERVED = ("service:", "worker:")
_log = structlog.get_logger()


class KeyUnknown(TokenRejected):
    """Signed by a key that was not seen yet: the provider may have a new one."""


@dataclass(frozen=True)
class _Key:
    key: Any
    algorithm: str


class Issuer:
    """The identity provider whose tokens people bring.

    Args:
        configuration: which provider, and what its claims mean.
    """

    def __init__(self, configuration: Configuration) -> None:
        self._configuration = configuration
        self._fetcher = Fetcher(configuration)
        self._keys: dict[str, _Key] = {}
        self._verified = Verified()
        self._fetched_at = float("-inf")
        self._tried_at = float("-inf")
        self._waiting = 0
        self._fetching, self._fetched = False, Future[None]()
        self._wanted, self._ended = threading.Event(), False
        self._thread = threading.Thread(target=self._keep_fresh, name="oidc-keys", daemon=True)

    def start(self) -> None:
        """Begin to fetch keys."""
        self._thread.start()

    def close(self) -> None:
        """Stop fetching."""
        self._ended = True
        self._wanted.set()

    def issued(self, token: str) -> bool:
        """Say whether a token claims to come from this provider; proves nothing."""
        if self._verified.get(token) is not None:
            return True
        try:
            claims = jwt.decode(token, options={"verify_signature": False})
        except jwt.PyJWTError:
            return False
        return bool(claims.get("iss") == self._configuration.issuer)

    def verify(self, token: str) -> Principal:
        """Check a token.

        Raises:
            KeyUnknown: if its key was never seen; `refreshed` may help.
            TokenRejected: if it is good for nothing.
            MurmuraError: UNAVAILABLE while there are no keys to check it with.
        """
        if time.monotonic() > self._fetched_at + KEYS_TRUSTED_S:
            self._wanted.set()
            raise dependency_unavailable(
                "identity provider",
                "The identity provider does not answer, so no one can sign in. Try again shortly.",
                retry_after_s=RETRY_S,
            )
        known = self._verified.get(token)
        if known is None:
            verified = self._verified  # a verdict by keys that have been replaced meanwhile must not be kept
            known = self._verify(token)
            verified.put(token, known)
        return known

    async def refreshed(self) -> None:
        """Wait for the fetch under way, or for another one if it may be made now."""
        soon = not self._fetching and time.monotonic() < self._tried_at + UNKNOWN_KEY_S
        if soon or self._waiting >= MOST_WAITING:
            return
        fetched = self._fetched
        self._wanted.set()
        self._waiting += 1
        try:
            await asyncio.wait([asyncio.wrap_future(fetched)], timeout=WAIT_S)
        finally:
            self._waiting -= 1

    def _verify(self, token: str) -> Principal:
        try:
            kid = jwt.get_unverified_header(token).get("kid")
            keys = self._keys
            # A provider with a single key need not name it.
            found = next(iter(keys.values())) if kid is None and len(keys) == 1 else keys.get(str(kid))
            if found is None:
                raise KeyUnknown("unknown key")
            claims = jwt.decode(
                token,
                found.key,
                algorithms=[found.algorithm],
                audience=self._configuration.audience,
                issuer=self._configuration.issuer,
                leeway=LEEWAY_S,
                options={"require": ["exp", "iat", "iss", "aud", "sub"]},
            )
        except jwt.PyJWTError as error:
            raise TokenRejected(type(error).__name__) from None
        return Principal(self._subject(claims), self._configuration.roles_of(claims), claims)

    def _subject(self, claims: dict[str, Any]) -> str:
        name = self._configuration.subject_claim
        subject = claims.get(name)
        if not isinstance(subject, str) or not subject or len(subject) > LONGEST_SUBJECT:
            raise TokenRejected(name)
        if subject.startswith(_RESERVED):
            raise TokenRejected("reserved subject")
        if name == "email" and claims.get("email_verified") is not True:
            # Anyone may write another's address into a profile.
            raise TokenRejected("email not verified")
        return subject

    def _keep_fresh(self) -> None:
        while not self._ended:
            self._fetching, self._tried_at = True, time.monotonic()
            self._wanted.clear()
            try:
                keys = usable_keys(self._fetcher.keys())
                self._verified = Verified()
                self._keys, self._fetched_at = keys, time.monotonic()
                if not keys:
                    _log.warning("identity provider has no key that may sign: RS256, ES256 or EdDSA")
                pause = REFRESH_S
            except Exception as error:
                # Whatever a provider answers, this thread must live: without it nobody can sign in for long.
                _log.warning("identity provider's keys not fetched", why=type(error).__name__)
                pause = RETRY_S
            fetched, self._fetched = self._fetched, Future[None]()
            self._fetching = False
            fetched.set_result(None)
            self._wanted.wait(pause)
            if not self._ended:
                time.sleep(max(0.0, self._tried_at + UNKNOWN_KEY_S - time.monotonic()))


def usable_keys(items: list[Any]) -> dict[str, _Key]:
    """Return the keys of a JWKS that may sign tokens, each with the one algorithm it is for.

    Args:
        items: the set's keys; secrets, weak keys and kinds that are not allowed are left out.
    """
    keys: dict[str, _Key] = {}
    for item in items:
        if not isinstance(item, dict) or item.get("use", "sig") != "sig" or item.get("kty") == "oct":
            continue
        key = key_of(item)
        if isinstance(key, RSAPublicKey) and key.key_size >= LEAST_RSA_BITS:
            algorithm = "RS256"
        elif isinstance(key, EllipticCurvePublicKey) and isinstance(key.curve, SECP256R1):
            algorithm = "ES256"
        elif isinstance(key, Ed25519PublicKey):
            algorithm = "EdDSA"
        else:
            continue
        if item.get("alg", algorithm) == algorithm:
            keys[str(item.get("kid", ""))] = _Key(key, algorithm)
    return keys
