"""`python -m services.ledger.verify FILE`: check a journal file and say what its budgets amount to.

The file is what `murmura budget export` wrote: JSON Lines, an object per entry. Beyond the hash chain, which needs
nothing but SHA-256, this folds the entries as the ledger does. A receipt that it prints can be compared with one that
was written down earlier: only that shows that nothing is missing at the end.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable

from services.ledger.journal import Entry, Head, JournalBroken, replay
from services.ledger.state import State


def fold_lines(lines: Iterable[bytes]) -> tuple[State, Head]:
    """Fold a journal file, checking each entry.

    Raises:
        JournalBroken: at the first line that is no entry, does not follow, or says what the ledger cannot have said.
    """
    state, head = State(), Head()
    for line in lines:
        try:
            _, head = replay([Entry(**json.loads(line))], state, head)
        except (ValueError, TypeError, KeyError, AttributeError, IndexError):
            raise JournalBroken(head.sequence + 1) from None
    return state, head


def table(state: State) -> str:
    """Return each account's cap, what is spent and what is pending, in units."""
    rows: list[tuple[str, ...]] = [("account", "cap", "spent", "pending", "left")]
    for name, account in sorted(state.accounts.items()):
        parts = (account.capacity, account.spent, account.pending, account.left)
        rows.append((name, *(str(part.units) for part in parts)))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for name, *figures in rows:
        cells = [figure.rjust(width) for figure, width in zip(figures, widths[1:], strict=True)]
        lines.append("  ".join([name.ljust(widths[0]), *cells]))
    return "\n".join(lines)


def main(arguments: list[str]) -> int:
    """Check a file; 0 says that it holds, 1 that it does not, 2 that it could not be read."""
    if len(arguments) != 1 or arguments[0].startswith("-"):
        print("usage: python -m services.ledger.verify FILE", file=sys.stderr)
        return 2
    try:
        with open(arguments[0], "rb") as lines:
            state, head = fold_lines(lines)
    except OSError as error:
        print(f"{arguments[0]} cannot be read: {error.strerror}.", file=sys.stderr)
        return 2
    except JournalBroken as broken:
        print(f"{arguments[0]}: {broken}. Trust nothing from there on.", file=sys.stderr)
        return 1
    if not head.sequence:
        print(f"{arguments[0]} holds no entry. Name a file that `murmura budget export` wrote.", file=sys.stderr)
        return 2
    print(f"{head.sequence} entries, each following from the one before. Receipt:")
    print(f"{head.sequence}:{head.hash}" + (f":{state.epoch}" if state.epoch else ""))
    print(table(state))
    if state.rollback:
        print(
            f"Restored from an older backup: the ledger was seen at entry {state.rollback.sequence}; nothing is spent."
        )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
