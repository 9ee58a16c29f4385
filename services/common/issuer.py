"""Which identity provider, what its claims mean, and how its keys are fetched."""

from __future__ import annotations

import json
import ssl
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from services.common.addresses import believable

PEOPLE = frozenset({"analyst", "steward", "operator"})
TIMEOUT_S = 5.0
MOST_BYTES = 1 << 20


@dataclass(frozen=True)
class Configuration:
    """What an operator says of the identity provider.

    Attributes:
        issuer: its URL, as it stands in `iss`.
        audience: what stands in the `aud` of tokens for Murmura.
        jwks_url: where its keys are; empty: its discovery document says so.
        authority: PEM file of the authority of its certificate; None: the system's.
        subject_claim: the claim that names a person, and never another one later.
        roles_claim: the claim that says what a person belongs to; dots lead into objects.
        roles: value of that claim to role.
    """

    issuer: str
    audience: str
    jwks_url: str = ""
    authority: Path | None = None
    subject_claim: str = "sub"
    roles_claim: str = "groups"
    roles: dict[str, str] = field(default_factory=dict)

    def roles_of(self, claims: dict[str, Any]) -> frozenset[str]:
        """Return the roles of a person; none where no claim gives one, and never one that is not for people."""
        found: Any = claims
        if self.roles_claim in claims:
            found = claims[self.roles_claim]
        else:
            for part in self.roles_claim.split("."):
                found = found.get(part) if isinstance(found, dict) else None
        values = [found] if isinstance(found, str) else found if isinstance(found, list) else []
        return frozenset(self.roles[v] for v in values if isinstance(v, str) and v in self.roles) & PEOPLE


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """A provider is where it was said to be; what it points to is not looked at."""

    def redirect_request(self, *_: Any) -> None:
        """Follow none."""
        return


class Fetcher:
    """Fetches a provider's keys; blocks, so it is for a thread.

    Args:
        configuration: which provider.
    """

    def __init__(self, configuration: Configuration) -> None:
        self._configuration = configuration
        context = ssl.create_default_context(cafile=configuration.authority)
        self._opener = urllib.request.build_opener(_NoRedirects(), urllib.request.HTTPSHandler(context=context))

    def keys(self) -> list[Any]:
        """Fetch the keys.

        Raises:
            OSError: if the provider does not answer.
            ValueError: if it answers something else.
        """
        url = self._configuration.jwks_url or self._discovered()
        keys = self._read(url).get("keys")
        if not isinstance(keys, list) or not keys:
            raise ValueError("no keys")
        return keys

    def _discovered(self) -> str:
        issuer = self._configuration.issuer
        document = self._read(f"{issuer.rstrip('/')}/.well-known/openid-configuration")
        url = document.get("jwks_uri")
        if document.get("issuer") != issuer or not isinstance(url, str) or not believable(url):
            raise ValueError("the discovery document is another's")
        return url

    def _read(self, url: str) -> dict[str, Any]:
        with self._opener.open(url, timeout=TIMEOUT_S) as answer:
            body = answer.read(MOST_BYTES + 1)
        if len(body) > MOST_BYTES:
            raise ValueError("too long")
        document = json.loads(body)
        if not isinstance(document, dict):
            raise ValueError("no object")
        return document
