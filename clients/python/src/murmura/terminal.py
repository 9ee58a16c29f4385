"""Print where not every character can be written: terminals and pipes that know Latin-1 or less.

Python would end the work with an error over a `✓`, perhaps between paying for a job and following it.
"""

from __future__ import annotations

import codecs
import sys
from typing import Any

# A name of `codecs`, as `errors=` of a stream or of `str.encode`.
SPELT = "murmura-spelt"
_SPELLINGS = {
    "ε": "epsilon", "δ": "delta", "μ": "mu", "≥": ">=", "…": "...", "✓": "ok", "✗": "no", "█": "#", "▒": "+", "░": "-",
}  # fmt: skip


def _spelt(error: UnicodeError) -> tuple[str, int]:
    """Return what to write in place of what cannot be written, and where to go on."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(_SPELLINGS.get(one, "?") for one in error.object[error.start : error.end]), error.end


codecs.register_error(SPELT, _spelt)


class Output:
    """Whatever standard output is at the moment; what it cannot write is spelt."""

    def write(self, text: str) -> int:
        """Write a text; returns how many characters it has."""
        # While a progress bar is there, Rich puts a file before standard output that would come back here.
        stream = getattr(sys.stdout, "rich_proxied_file", sys.stdout)
        encoding = _encoding(stream)
        stream.write(text.encode(encoding, SPELT).decode(encoding))
        return len(text)

    def __getattr__(self, name: str) -> Any:
        if name == "rich_proxied_file":
            raise AttributeError(name)
        return getattr(sys.stdout, name)


def knows_everything(stream: Any) -> bool:
    """Say whether a stream can write every character."""
    return _encoding(stream).lower().startswith("utf")


def _encoding(stream: Any) -> str:
    # One in memory has none, and takes everything.
    return getattr(stream, "encoding", None) or "utf-8"
