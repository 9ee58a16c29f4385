"""`python -m services.trainer.worker`: one job, then gone.

What this process prints ends up in a log that operators read. An exception's text, and a library's warning, can quote
a private row. So nothing but this module can print: standard output and error lead nowhere for everything else, native
code included, and of an exception only its type and the places in our own code are told. A crash leaves no core file.
"""

from __future__ import annotations

import logging
import os
import resource
import signal
import sys
import traceback
import warnings
from pathlib import Path
from typing import TextIO

from services.common.memory import calm_collector, importing, keep_freed
from services.trainer.launcher import EVICTED, FAILED

POD_TOKEN = "MURMURA_POD_TOKEN_FILE"  # noqa: S105 - a variable's name
_OURS = Path(__file__).parents[2]


def main() -> int:
    """Run the job that the environment names; returns the exit code."""
    if "RANK" not in os.environ:
        # Before the imports, which take seconds: nothing has begun, and the first process of a container does not even
        # die of a signal that it has not asked for. A rank would not notice while it waits for others in native code,
        # so it keeps to dying.
        signal.signal(signal.SIGTERM, lambda *_: os._exit(EVICTED))
        processes = int(os.environ.get("MURMURA_PROCESSES", "1"))
        if processes > 1 or "MURMURA_NODES" in os.environ:
            # Nothing private comes here: it only starts the processes that read rows, and they are silent.
            logging.disable(logging.CRITICAL)
            with importing():
                from services.trainer.worker.processes import Place, launch

            return launch(processes, Place.of(os.environ))
    log = silence()
    try:
        with importing():
            from services.trainer.worker.ranks import Ranks
            from services.trainer.worker.saving import INTERVAL_S
            from services.trainer.worker.session import Session

        keep_freed()
        calm_collector()
        session = Session(
            os.environ["MURMURA_JOB"],
            int(os.environ["MURMURA_ATTEMPT"]),
            Path(os.environ[POD_TOKEN if POD_TOKEN in os.environ else "MURMURA_JOB_TOKEN_FILE"]),
            POD_TOKEN in os.environ,
            os.environ["MURMURA_TRAINER_ENDPOINT"],
            os.environ["MURMURA_DATASET_ENDPOINT"],
            float(os.environ.get("MURMURA_CHECKPOINT_SECONDS", INTERVAL_S)),
            Ranks.join(),
        )
        return session.run()
    except Exception as error:
        print(f"the worker failed: {describe(error)}", file=log, flush=True)
        return FAILED


def silence() -> TextIO:
    """Close every way to the log but one, and return that one."""
    log = os.fdopen(os.dup(2), "w")
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):
        os.dup2(nowhere, stream)
    os.close(nowhere)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "critical")
    # Threads that wait by spinning bring a shared machine to a crawl, and threads that sleep at once make small steps
    # slower than one thread would. Measured on 2 cores with the bundled model, seconds for 80 ordinary steps, alone
    # and beside a second job: spin (the default) 9.2 and over 200; sleep 18 and 15; spin this long 9.7 and 25.
    os.environ.setdefault("GOMP_SPINCOUNT", "3000")
    return log


def describe(error: BaseException) -> str:
    """Return an exception's type and where in our code it came from; never its text."""
    places = [
        f"{Path(frame.filename).relative_to(_OURS)}:{frame.lineno} {frame.name}"
        for frame in traceback.extract_tb(error.__traceback__)
        if Path(frame.filename).is_relative_to(_OURS)
    ]
    return f"{type(error).__name__} at {'; '.join(places)}"


if __name__ == "__main__":
    sys.exit(main())
