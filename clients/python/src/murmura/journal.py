r"""The ledger's journal outside the ledger: written to a file, and checked with nothing but SHA-256.

A journal file is JSON Lines. Line n holds entry n, as an object with exactly these keys:

    sequence       n, from 1
    previous_hash  the hash of entry n - 1; 64 zeros for the first
    hash           the SHA-256, hexadecimal, of f"{sequence}\n{previous_hash}\n{payload}" in UTF-8
    payload        what happened, as the very text that was hashed

What a check proves: no entry was changed, removed, slipped in or reordered by anyone who did not also make every
later hash anew. What it cannot prove is that nothing is missing at the end, or that the whole chain was not made anew.
A receipt that was written down elsewhere shows both: it must lie on the chain.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self, TextIO

from murmura.errors import InvalidInput, MurmuraError

GENESIS = "0" * 64
_RECEIPT = re.compile(r"([1-9][0-9]{0,17}):([0-9a-f]{64})(?::([0-9]{1,9}))?")


class JournalBroken(MurmuraError):
    """The chain does not hold.

    Attributes:
        sequence: the first entry that is wrong; in a file, also its line.
    """

    def __init__(self, sequence: int, why: str) -> None:
        super().__init__(
            f"The journal is broken at entry {sequence}: {why}. Trust nothing from there on; compare with an earlier "
            "export or a backup.",
            "JOURNAL_BROKEN",
        )
        self.sequence = sequence


class NotOnChain(MurmuraError):
    """A receipt is of another journal than this one, or of a part that is missing."""


@dataclass(frozen=True)
class Receipt:
    """Where a ledger stood: all that a later check needs. As text `SEQUENCE:HASH`.

    Attributes:
        sequence: its newest entry.
        hash: of that entry.
        epoch: how many rollbacks stewards had resolved by then; in the text only where there were any.
    """

    sequence: int = 0
    hash: str = GENESIS
    epoch: int = 0

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read a receipt as it was printed.

        Raises:
            InvalidInput: if it is none.
        """
        found = _RECEIPT.fullmatch(text.strip())
        if not found:
            raise InvalidInput(
                f"{text!r} is no receipt. Write SEQUENCE:HASH as `murmura budget verify` printed it: a number, "
                "a colon, 64 of 0-9 and a-f."
            )
        return cls(int(found[1]), found[2], int(found[3] or 0))

    def __str__(self) -> str:
        return f"{self.sequence}:{self.hash}" + (f":{self.epoch}" if self.epoch else "")


@dataclass(frozen=True)
class Link:
    """One entry of the journal; see the module for the attributes."""

    sequence: int
    previous_hash: str
    hash: str
    payload: str

    def line(self) -> str:
        """Return the entry as a line of a journal file."""
        return json.dumps(asdict(self), ensure_ascii=False) + "\n"


class Chain:
    """Checks entries one after the other.

    Args:
        witness: a receipt that must lie on the chain.

    Attributes:
        receipt: of the newest entry that was added.
    """

    def __init__(self, witness: Receipt | None = None) -> None:
        self._witness = witness
        self.receipt = Receipt()

    def add(self, link: Link) -> None:
        """Check the next entry.

        Raises:
            JournalBroken: if it does not follow from the one before.
            NotOnChain: if the witness knows another entry in its place.
        """
        expected = self.receipt.sequence + 1
        if link.sequence != expected:
            raise JournalBroken(expected, f"entry {link.sequence} stands in its place")
        if link.previous_hash != self.receipt.hash:
            raise JournalBroken(expected, "it does not name the hash of the entry before")
        try:
            hashed = hashlib.sha256(f"{link.sequence}\n{link.previous_hash}\n{link.payload}".encode()).hexdigest()
            kind = json.loads(link.payload)["kind"]
        except (ValueError, TypeError, KeyError):
            raise JournalBroken(expected, "its payload is not an event") from None
        if hashed != link.hash:
            raise JournalBroken(expected, "its hash is not that of what it says")
        self.receipt = Receipt(expected, hashed, self.receipt.epoch + (kind == "resolve_rollback"))
        if self._witness and self._witness.sequence == expected and self._witness.hash != hashed:
            raise NotOnChain(
                f"The chain holds, but entry {expected} is another than the receipt's: the journal was made anew or "
                "restored from an older backup since. Look at its history from there on."
            )

    def end(self) -> Receipt:
        """Say that there are no more entries; returns where the journal stands.

        Raises:
            NotOnChain: if the witness knows later entries.
        """
        if self._witness and self._witness.sequence > self.receipt.sequence:
            raise NotOnChain(
                f"The chain holds, but it ends at entry {self.receipt.sequence} and the receipt is of entry "
                f"{self._witness.sequence}: later entries are missing. Look for a newer journal."
            )
        return self.receipt


def verify(path: str | Path, witness: Receipt | None = None) -> Receipt:
    """Check a journal file; returns where it ends.

    Args:
        path: the file.
        witness: a receipt that must lie on the chain.

    Raises:
        JournalBroken: at the first entry that does not hold.
        NotOnChain: if the witness does not lie on the chain.
        InvalidInput: if the file cannot be read, or is empty.
    """
    chain = Chain(witness)
    for link in read(path):
        chain.add(link)
    if not chain.receipt.sequence:
        raise InvalidInput(f"{path} holds no entry. Name a file that `murmura budget export` wrote.")
    return chain.end()


def read(path: str | Path) -> Iterator[Link]:
    """Yield the entries of a journal file, unchecked.

    Raises:
        JournalBroken: at the first line that is no entry.
        InvalidInput: if the file cannot be read.
    """
    try:
        with open(path, "rb") as lines:
            for number, line in enumerate(lines, 1):
                yield _parsed(line, number)
    except OSError as error:
        raise InvalidInput(
            f"{path} cannot be read: {error.strerror}. Name a file of `murmura budget export`."
        ) from None


def write(path: str | Path, links: Iterable[Link]) -> Receipt:
    """Write a journal file and check the chain on the way; returns where it ends. All of it is written, or nothing.

    Args:
        path: must not exist yet.
        links: from the first.

    Raises:
        JournalBroken: if the chain does not hold.
        InvalidInput: if there is such a file already, or it cannot be written.
    """
    path = Path(path)
    if path.exists():
        raise _exists(path)
    try:
        descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        temporary = Path(name)
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8", newline="\n") as out:
                receipt = copy(out, links)
                out.flush()
                os.fsync(out.fileno())
            _publish(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    except FileExistsError:
        raise _exists(path) from None
    except OSError as error:
        raise InvalidInput(f"{path} cannot be written: {error.strerror}. Choose another place.") from None
    return receipt


def copy(out: TextIO, links: Iterable[Link]) -> Receipt:
    """Write entries to an open file and check the chain on the way; returns where it ends.

    Raises:
        JournalBroken: if the chain does not hold; what was written before is sound.
    """
    chain = Chain()
    for link in links:
        chain.add(link)
        out.write(link.line())
    return chain.end()


def _parsed(line: bytes, number: int) -> Link:
    try:
        # Pairs, since of two equal keys a dictionary would keep the last and a reader may see the first.
        pairs = json.loads(line.decode(), object_pairs_hook=list)
        facts = dict(pairs)
        link = Link(**facts)
    except (ValueError, TypeError):
        raise JournalBroken(number, f"line {number} is no entry") from None
    texts = (link.previous_hash, link.hash, link.payload)
    if len(pairs) != len(facts) or type(link.sequence) is not int or not all(isinstance(text, str) for text in texts):
        raise JournalBroken(number, f"line {number} is no entry")
    return link


def _publish(temporary: Path, path: Path) -> None:
    """Give a file its name, unless there is such a file."""
    try:
        os.link(temporary, path)
    except FileExistsError:
        raise
    except OSError:
        # A stick without hard links: take the name first, so that even there nothing is overwritten.
        path.touch(mode=0o600, exist_ok=False)
        temporary.replace(path)


def _exists(path: Path) -> InvalidInput:
    return InvalidInput(f"{path} exists already and is not overwritten. Choose another name.")
