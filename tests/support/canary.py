"""A canary: a text that is in private rows alone, and every form in which a program could let it out.

What a service wrote or answered is searched for the text itself and for what encoders make of it: the escapes of JSON,
base64 at each of the three places where it can begin, hexadecimal, percent signs, `repr` of Python, UTF-16.
"""

from __future__ import annotations

import base64
import json
import secrets
import urllib.parse
from collections.abc import Iterable
from pathlib import Path


class Canary:
    """A text that nothing may let out.

    Attributes:
        word: letters and digits, for where a text must be plain: a name, a number that is none.
        text: the word among characters that encoders escape.
    """

    def __init__(self) -> None:
        self.word = f"canary{secrets.token_hex(8)}"
        self.text = f'Zoë "{self.word}" Ångström\\'
        self._forms = {form for text in (self.word, self.text) for form in _encoded(text)}

    def found_in(self, data: bytes) -> bool:
        """Say whether bytes hold the canary in any form."""
        return any(form in data for form in self._forms)

    def leaks(self, said: Iterable[tuple[str, bytes]]) -> list[str]:
        """Return the names of all that holds the canary."""
        return sorted({name for name, data in said if self.found_in(data)})


def files(directory: Path) -> Iterable[tuple[str, bytes]]:
    """Yield the name and the content of every file under a directory."""
    for path in sorted(directory.rglob("*")):
        try:
            if path.is_file() and not path.is_symlink():
                yield str(path.relative_to(directory)), path.read_bytes()
        except FileNotFoundError:  # A journal beside a database comes and goes while its service lives.
            continue


def _encoded(text: str) -> Iterable[bytes]:
    plain = text.encode()
    yield from (plain, plain.upper(), text.encode("utf-16-le"), text.encode("utf-16-be"))
    for ascii_only in (True, False):
        yield json.dumps(text, ensure_ascii=ascii_only)[1:-1].encode()
    yield from (repr(text)[1:-1].encode(), ascii(text)[1:-1].encode(), repr(plain)[2:-1].encode())
    yield from (plain.hex().encode(), plain.hex().upper().encode())
    yield urllib.parse.quote(text).encode()
    for before in range(3):
        # Of the first and the last group, some bits are those of the neighbours.
        for encode in (base64.b64encode, base64.urlsafe_b64encode):
            whole = encode(b"\0" * before + plain)
            start = 4 if before else 0
            yield whole[start : 4 * ((before + len(plain)) // 3)]
