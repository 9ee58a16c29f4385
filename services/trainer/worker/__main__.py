"""`python -m services.trainer.worker`: one job, then gone.

What this process prints ends up in a log that operators read. An exception's text, and a library's warning, can quote
a private row, so neither is printed: only the type and the places in our code.
"""

from __future__ import annotations

import logging
import os
import sys
import traceback
import warnings
from pathlib import Path


def main() -> int:
    """Run the job that the environment names; returns the exit code."""
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    # Threads that spin while they wait bring a shared machine to a crawl: the other services run here too.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "critical")
    try:
        from services.trainer.worker.session import Session
        from services.trainer.worker.wire import Token

        session = Session(
            os.environ["MURMURA_JOB"],
            int(os.environ["MURMURA_ATTEMPT"]),
            Token.read(Path(os.environ["MURMURA_JOB_TOKEN_FILE"])),
            os.environ["MURMURA_TRAINER_ENDPOINT"],
            os.environ["MURMURA_DATASET_ENDPOINT"],
        )
        return 0 if session.run() else 1
    except Exception as error:
        places = [
            f"{Path(frame.filename).name}:{frame.lineno} {frame.name}"
            for frame in traceback.extract_tb(error.__traceback__)
        ]
        print(f"the worker failed: {type(error).__name__} at {'; '.join(places[-8:])}", flush=True)
        return 1


if __name__ == "__main__":
    sys.exit(main())
