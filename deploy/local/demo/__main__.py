"""`make demo`: tell the story on this machine, and check that it came out.

python -m deploy.local.demo [--quick]
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import shutil
import sys
from pathlib import Path
from typing import Any

from deploy.local.demo import story
from murmura.display import say
from murmura.errors import MurmuraError
from murmura.local import deployment
from murmura.local.layout import Layout


def main() -> int:
    """Run the demo; returns the exit code."""
    parser = argparse.ArgumentParser(description="The story, end to end, on this machine.")
    parser.add_argument("--quick", action="store_true", help="fewer rows and steps, for a check in two minutes")
    parser.add_argument("--state", type=Path, default=Path(".murmura"), help="where the local Murmura lives")
    parser.add_argument("--base-port", type=int, default=7401, help="first of four ports; 0 takes free ones")
    options = parser.parse_args()
    data = os.environ.get("DEMO_DATA", "")
    phee = Path(data) if data else None
    scale = story.QUICK if options.quick else story.FULL
    if phee is not None:
        scale = dataclasses.replace(scale, dataset=f"{scale.dataset}-real")
    layout = Layout(options.state, worker_processes=1 if options.quick else worker_processes())
    was_up = any(item.pid for item in deployment.status(layout))
    try:
        story.chapter("Four services, four processes")
        deployment.up(layout, options.base_port, report=say)
        report = story.tell(options.state, scale, phee)
    except (MurmuraError, ValueError) as problem:
        say(f"The demo stopped: {problem}")
        return 1
    finally:
        if not was_up:
            deployment.down(layout)
    failures = shortfalls(report, quick=options.quick)
    for failure in failures:
        say(f"✗ {failure}")
    if not failures:
        say(f"✓ The story came out as told, in {report['seconds']:.0f} s: {options.state}/demo/report.json")
        say("Your own turn: `murmura up`, then the five lines of the README. `murmura down` stops it.")
    return 1 if failures else 0


def worker_processes() -> int:
    """Return in how many processes a worker trains soonest.

    Cores share a private fine-tune of the bundled model better in as many processes than in as many threads; the quick
    one is over before they are up.
    """
    return 1 if shutil.which("nvidia-smi") else min(4, os.cpu_count() or 1)


def shortfalls(report: dict[str, Any], *, quick: bool) -> list[str]:
    """Compare the figures with what the story promises; returns what fell short.

    The quick form trains on a fifth of the rows, so it promises less of the private model's fluency.
    """
    leaks, perplexity = report["leaks"], report["perplexity"]
    most, least = (0.8, 5.0) if quick else (0.5, story.EPSILON)
    found = report["attackers_epsilon"]
    checks = {
        f"the ordinary model leaked {leaks['unlimited']} times of {leaks['of']}; at least 80 were expected": (
            leaks["unlimited"] >= 80
        ),
        f"the private model leaked {leaks['private']} times; none was expected": leaks["private"] == 0,
        f"the base model leaked {leaks['base']} times; none was expected": leaks["base"] == 0,
        f"private perplexity {perplexity['private']} is above {most} of the base's {perplexity['base']}": (
            perplexity["private"] <= most * perplexity["base"]
        ),
        f"the attacker's epsilon of the private model is {found['private']}, above {report['epsilon']}": (
            found["private"] <= report["epsilon"]
        ),
        f"the attacker's epsilon of the ordinary model is {found['unlimited']}; more than {least} was expected": (
            found["unlimited"] > least
        ),
        f"epsilon is {report['epsilon']}, above what was asked for": 0 < report["epsilon"] <= story.EPSILON,
    }
    return [text for text, passed in checks.items() if not passed]


if __name__ == "__main__":
    sys.exit(main())
