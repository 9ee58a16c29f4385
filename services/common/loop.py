"""The event loop that services run on."""

from __future__ import annotations

import sys
from collections.abc import Coroutine
from typing import Any, NoReturn

import uvloop


def run(service: Coroutine[Any, Any, int]) -> NoReturn:
    """Run a service to its end, and exit with its code.

    On uvloop: every message of a stream passes through the loop several times, and Python's own takes longer for each.
    """
    sys.exit(uvloop.run(service))
