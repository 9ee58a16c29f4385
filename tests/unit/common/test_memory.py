"""Freed memory is used again instead of being given back and cleared anew."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

_CYCLES = """
import resource, sys
from services.common.memory import keep_freed
if sys.argv[1] == "kept":
    keep_freed()
def cycle():
    return [bytes(1 << 20) for _ in range(4)]
cycle()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(100):
    cycle()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="tunes glibc's allocator only")
def test_pieces_that_come_and_go_cost_no_page_faults() -> None:
    faults = {
        how: int(subprocess.run([sys.executable, "-c", _CYCLES, how], capture_output=True, check=True).stdout)
        for how in ("kept", "as it is")
    }
    assert faults["kept"] * 10 < faults["as it is"]
