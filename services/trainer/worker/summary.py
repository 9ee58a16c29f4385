"""What a worker leaves behind for whoever ran it: one line of JSON, which a cluster keeps with the pod.

Operators read it, and whoever may look at pods; so it says no more than the trainer is told anyway, and steps only as
they were reported.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass
class Summary:
    """How a worker has ended.

    Attributes:
        exit_code: 0: its adapter was published; 75: another worker is to go on; else it failed.
        cause: a name of the failure causes; empty where there was no failure.
        reported_steps: as the last heartbeat said.
    """

    exit_code: int = 1
    cause: str = ""
    reported_steps: int = 0

    def leave(self) -> None:
        """Write it where the launcher wants it; only the process that reports does."""
        path = os.environ.get("MURMURA_SUMMARY_FILE")
        if path and os.environ.get("RANK", "0") == "0" and os.environ.get("MURMURA_NODE_RANK", "0") == "0":
            Path(path).write_text(json.dumps(asdict(self)) + "\n")
