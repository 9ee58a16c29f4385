"""Configuration by environment: `MURMURA_*` variables, checked at start; what is wrong is named.

A service that others can reach over a network must not be one that anyone could read along with or sign in to. So
without TLS a service listens on this machine only, and there alone do tokens count that the deployment mints itself.
"""

from __future__ import annotations

import re
import sys
from functools import cached_property
from pathlib import Path
from typing import Self

from pydantic import Field, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict, SettingsError

from services.common.addresses import LOOPBACK, believable
from services.common.certificates import DOMAIN, Certificates, Unusable
from services.common.files import read
from services.common.issuer import PEOPLE, Configuration
from services.common.tokens import ROLES, trusted
from services.common.told import Address, AddressOrNone, AuthorityFile, TokenFile

_FIELD = re.compile(r'field "(\w+)"')
_NO_PEOPLE = frozenset({"worker"})


class Settings(BaseSettings):
    """Variables whose names begin with the class's prefix."""

    @classmethod
    def load(cls) -> Self:
        """Read the environment; end the process with a sentence for each variable that is missing or wrong."""
        try:
            return cls()
        except SettingsError as error:
            # The only way to learn which variable: its words name the field, and never the value.
            field = _FIELD.search(str(error))
            name = cls.model_config["env_prefix"] + field[1].upper() if field else cls.__name__
            print(f'{name}: must be JSON, such as ["one", "two"] or {{"name": "value"}}', file=sys.stderr)
            raise SystemExit(2) from None
        except ValidationError as error:
            for item in error.errors():
                if item["loc"]:
                    name = cls.model_config["env_prefix"] + "_".join(str(part) for part in item["loc"]).upper()
                    print(f"{name}: {item['msg'].removeprefix('Value error, ')}", file=sys.stderr)
                else:
                    print(item["msg"].removeprefix("Value error, "), file=sys.stderr)
            raise SystemExit(2) from None


class ServiceSettings(Settings):
    """What every service is told."""

    model_config = SettingsConfigDict(env_prefix="MURMURA_", extra="ignore")

    listen: Address = Field("127.0.0.1:0", description="host:port; port 0 takes a free one")
    services_listen: AddressOrNone = Field(
        "", description="host:port for other services, with TLS: they show certificates"
    )
    state_dir: Path = Field(description="directory that is this service's own")
    trusted_keys: Path = Field(description="JWKS file of the keys whose tokens count")
    service_token_file: TokenFile | None = Field(
        None, description="file with the token that this service shows to others; with TLS it shows its certificate"
    )
    tls_certificate: Path | None = Field(None, description="PEM file: this service's certificate and its chain")
    tls_key: Path | None = Field(None, description="PEM file: its private key")
    tls_authority: Path | None = Field(None, description="PEM file: the authority of all services' certificates")
    tls_domain: str = Field(
        DOMAIN,
        pattern=r"^[a-z0-9-]+(\.[a-z0-9-]+)*$",
        description="a certificate of <service>.<domain> makes its holder that service",
    )
    oidc_issuer: str = Field("", description="URL of the identity provider of people")
    oidc_audience: str = Field("murmura", min_length=1, description="what its tokens for Murmura say in aud")
    oidc_jwks_url: str = Field("", description="where its keys are; empty: discovered")
    oidc_authority: AuthorityFile | None = Field(None, description="PEM file: the authority of its certificate")
    oidc_subject_claim: str = Field("sub", min_length=1, description="claim that names a person")
    oidc_roles_claim: str = Field("groups", min_length=1, description="claim that holds groups; dots lead inside")
    oidc_roles: dict[str, str] = Field({}, description="JSON: group to analyst, steward or operator")
    audit_log: Path | None = Field(None, description="file of decisions; by default audit.jsonl in the state directory")
    log_format: str = Field("json", pattern="json|console")
    metrics_port: int = Field(0, ge=0, le=65535, description="Prometheus port; 0: none")
    metrics_host: str = Field("127.0.0.1", description="address at which it listens; anyone who reaches it may read")
    stop_grace_s: float = Field(10.0, ge=0)
    max_concurrent_rpcs: int = Field(512, ge=1)

    @field_validator("oidc_roles")
    @classmethod
    def _for_people(cls, roles: dict[str, str]) -> dict[str, str]:
        if others := set(roles.values()) - PEOPLE:
            raise ValueError(f"no group can be {min(others)}; people are {', '.join(sorted(PEOPLE))}")
        return roles

    @field_validator("oidc_issuer", "oidc_jwks_url")
    @classmethod
    def _believable(cls, url: str) -> str:
        if url and not believable(url):
            raise ValueError("must be an https:// URL, or one of this machine")
        return url

    @model_validator(mode="after")
    def _sound(self) -> Self:
        given = [path is not None for path in (self.tls_certificate, self.tls_key, self.tls_authority)]
        if any(given) and not all(given):
            raise ValueError("MURMURA_TLS_CERTIFICATE, MURMURA_TLS_KEY and MURMURA_TLS_AUTHORITY come all or none")
        if self.services_listen and not all(given):
            raise ValueError("MURMURA_SERVICES_LISTEN needs TLS: set MURMURA_TLS_CERTIFICATE, _KEY and _AUTHORITY")
        if not all(given) and self.service_token_file is None:
            raise ValueError("MURMURA_SERVICE_TOKEN_FILE: must be set where there is no TLS")
        if not all(given) and not self.local:
            raise ValueError(
                f"MURMURA_LISTEN: {self.listen} is not on this machine alone, and without TLS anyone on the way could "
                "read tokens. Set MURMURA_TLS_CERTIFICATE, MURMURA_TLS_KEY and MURMURA_TLS_AUTHORITY, or listen on "
                "127.0.0.1"
            )
        self._check_keys()
        try:
            _ = self.certificates
        except Unusable as problem:
            raise ValueError(f"MURMURA_TLS_CERTIFICATE, MURMURA_TLS_KEY, MURMURA_TLS_AUTHORITY: {problem}") from None
        return self

    @property
    def local(self) -> bool:
        """Whether only this machine can call."""
        addresses = [address for address in (self.listen, self.services_listen) if address]
        return all(a.startswith("unix:") or a.rpartition(":")[0].strip("[]") in LOOPBACK for a in addresses)

    @property
    def roles_of_keys(self) -> frozenset[str]:
        """What the trusted keys may issue at most: no person and no service where a network can call."""
        return ROLES if self.local else _NO_PEOPLE

    @cached_property
    def certificates(self) -> Certificates | None:
        """This service's certificates; None without TLS."""
        if self.tls_certificate is None or self.tls_key is None or self.tls_authority is None:
            return None
        return Certificates(self.tls_certificate, self.tls_key, self.tls_authority, self.tls_domain)

    def oidc(self) -> Configuration | None:
        """Return the identity provider; None where the deployment mints its own tokens."""
        if not self.oidc_issuer:
            return None
        return Configuration(
            self.oidc_issuer,
            self.oidc_audience,
            self.oidc_jwks_url,
            self.oidc_authority,
            self.oidc_subject_claim,
            self.oidc_roles_claim,
            self.oidc_roles,
        )

    def told_to_workers(self) -> dict[str, str]:
        """Return what a worker needs to know whom it speaks to: the authority and the names, no certificate."""
        if self.tls_authority is None:
            return {}
        return {"MURMURA_TLS_AUTHORITY": str(self.tls_authority.resolve()), "MURMURA_TLS_DOMAIN": self.tls_domain}

    def _check_keys(self) -> None:
        try:
            keys = trusted(read(self.trusted_keys))
        except ValueError as problem:
            raise ValueError(f"MURMURA_TRUSTED_KEYS: {problem}") from None
        for kid, (_, may_issue) in keys.items() if not self.local else ():
            if beyond := sorted(may_issue - _NO_PEOPLE):
                raise ValueError(
                    f"MURMURA_TRUSTED_KEYS: the key {kid!r} may issue {', '.join(beyond)}: tokens that "
                    "a deployment mints itself are for one machine. Set MURMURA_OIDC_ISSUER for people, let services "
                    "show certificates, and leave only the trainer's key, for workers"
                )
