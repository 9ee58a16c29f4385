"""The rules of who may do what with a dataset, its account and its adapters, each written once.

Four services decide by them, each about what it keeps, and the dataset service answers with them what a person could do
(`CheckPolicy`): an answer that was made another way would one day be another answer. Names and roles go in, a yes or no
comes out, nothing else is known here.
"""

from __future__ import annotations

from collections.abc import Collection


def may_use(analysts: Collection[str], subject: str, roles: Collection[str]) -> bool:
    """Say whether a person may know of a dataset and use it.

    Args:
        analysts: those whom its policy names; none: any analyst.
        subject: who.
        roles: theirs. A steward decides about datasets and sees them all; an operator runs what keeps them.
    """
    return "steward" in roles or "operator" in roles or not analysts or subject in analysts


def may_train_unlimited(allowed: bool, principals: Collection[str], subject: str) -> bool:
    """Say whether a person may run jobs without privacy; nobody's role makes an exception.

    Args:
        allowed: whether the account allows any.
        principals: those who may; none: anyone, if it is allowed at all.
        subject: who.
    """
    return allowed and (not principals or subject in principals)


def owns(subject: str, roles: Collection[str], owner: str) -> bool:
    """Say whether a person needs nobody's permission to use an adapter.

    Args:
        subject: who.
        roles: theirs.
        owner: who trained it.
    """
    return subject == owner or "steward" in roles
