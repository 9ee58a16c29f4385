"""Entries to fill journals with."""

from services.ledger.journal import Head, link
from services.ledger.state import Event

TERMS = {"unlimited_allowed": True, "unlimited_principals": [], "epsilon": 1.0}


def chain(count, after=None, text="ü"):
    """Entries that follow each other; the first opens an account."""
    head, entries = after or Head(), []
    for _ in range(count):
        sequence = head.sequence + 1
        opening = {"terms": TERMS, "capacity": [10**6, 10**6]}
        sharing = {"principal": f'{text}\n"\\', "share": [sequence, 1]}
        event = Event(
            *(("open", "accounts/a") if sequence == 1 else ("grant", "accounts/a")),
            f"q{sequence}{text}",
            "body",
            "ann",
            opening if sequence == 1 else sharing,
        )
        entries.append(link(head, event, float(sequence)))
        head = Head.of(entries[-1])
    return entries
