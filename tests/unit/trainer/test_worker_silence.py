"""A worker's output: nothing but its own one line, whoever tries to print."""

from __future__ import annotations

import subprocess
import sys

from services.trainer.worker.__main__ import describe

PRINTING = """
import ctypes, logging, os, sys, warnings
from services.trainer.worker.__main__ import silence
log = silence()
print("row by print"); print("row by stderr", file=sys.stderr, flush=True)
logging.getLogger("transformers").critical("row by logging")
warnings.warn("row by a warning")
os.write(1, b"row by stdout"); os.write(2, b"row by stderr")
libc = ctypes.CDLL(None)
libc.puts(b"row by native code"); libc.fflush(None)
print("ours", file=log, flush=True)
raise ValueError("row by an exception")
"""


def test_nothing_else_in_the_process_can_print() -> None:
    ran = subprocess.run([sys.executable, "-c", PRINTING], capture_output=True, text=True, check=False)
    assert (ran.stdout, ran.stderr) == ("", "ours\n")


def test_an_exception_is_described_by_type_and_our_places_only() -> None:
    try:
        int("a row")
    except ValueError as error:
        assert describe(error) == "ValueError at "
