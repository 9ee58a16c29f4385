"""Who may do what with an adapter: its owner, stewards, and whom a steward has named in its policy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from services.common import rights

if TYPE_CHECKING:  # settings are read before the engine forks, and gRPC is imported after that
    from services.common.tokens import Principal
    from services.inference.catalogue import Record

_ROLES = frozenset({"analyst", "steward"})


@dataclass(frozen=True)
class Rules:
    """What the operator allows at all, whoever else allows more.

    Attributes:
        base_roles: roles that may use base models.
        unlimited_roles: roles that may use adapters trained without privacy.
        max_logprobs: log-probabilities in each place that a steward may grant.
    """

    base_roles: frozenset[str] = _ROLES
    unlimited_roles: frozenset[str] = _ROLES
    max_logprobs: int = 0


def may_use(principal: Principal, record: Record) -> bool:
    """Say whether someone may sample from an adapter, load it and unload it."""
    return owns(principal, record.owner) or principal.subject in record.allowed.users


def may_see(principal: Principal, record: Record) -> bool:
    """Say whether someone may know of an adapter."""
    return may_use(principal, record) or principal.has("operator")


def owns(principal: Principal, owner: str) -> bool:
    """Say whether someone needs nobody's permission."""
    return rights.owns(principal.subject, principal.roles, owner)
