"""When lines are written, and what they look like."""

import asyncio
import io
import json
import subprocess
import sys
from pathlib import Path

from services.common import logs


async def test_lines_are_written_together_and_soon():
    stream = io.StringIO()
    lines = logs.Lines(stream)
    lines.info("one")
    lines.info("two")
    assert stream.getvalue() == ""
    await asyncio.sleep(3 * logs.FLUSH_S)
    assert stream.getvalue() == "one\ntwo\n"


async def test_a_warning_does_not_wait_and_keeps_the_order():
    stream = io.StringIO()
    lines = logs.Lines(stream)
    lines.info("one")
    lines.warning("two")
    assert stream.getvalue() == "one\ntwo\n"
    lines.info("three")
    await asyncio.sleep(3 * logs.FLUSH_S)
    assert stream.getvalue() == "one\ntwo\nthree\n"


def test_without_a_loop_nothing_waits():
    stream = io.StringIO()
    logs.Lines(stream).info("one")
    assert stream.getvalue() == "one\n"


def test_a_line_that_has_no_room_is_lost_and_ends_nothing():
    program = (
        "import structlog\n"
        "from services.common.logs import configure_logging\n"
        "configure_logging('ledger', 'json')\n"
        "for count in range(1000): structlog.get_logger().warning('one')\n"
        "print('done')\n"
    )
    with Path("/dev/full").open("wb") as full:
        ended = subprocess.run([sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=full, check=False)
    assert ended.stdout == b"done\n"


def test_the_last_lines_of_a_process_are_written():
    program = (
        "import asyncio, structlog\n"
        "from services.common.logs import configure_logging\n"
        "configure_logging('ledger', 'json')\n"
        "async def main():\n"
        "    structlog.get_logger().info('héllo', path=[1], seconds=0.5)\n"
        "asyncio.run(main())\n"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    line = json.loads(ended.stderr)
    assert line.pop("timestamp").endswith("Z")
    assert line == {"event": "héllo", "level": "info", "service": "ledger", "path": [1], "seconds": 0.5}
