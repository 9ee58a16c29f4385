"""What a job's end means for what was set aside for it, in one place. Pure.

Nothing that may have touched rows is ever given back for free.
"""

from __future__ import annotations

from dataclasses import dataclass

from services.trainer.jobs import PUBLISHING, SUCCEEDED, Job


@dataclass(frozen=True)
class Resolution:
    """What becomes of a reservation.

    Attributes:
        release: give it back; nothing ran.
        attested_steps: charge for these; None charges the plan in full.
    """

    release: bool
    attested_steps: int | None = None


def resolution(job: Job) -> Resolution:
    """Say what becomes of the reservation.

    Nothing is given back once a worker has begun, except what it attests not to have run, and never once an adapter
    exists. Without an attestation the plan is charged in full.
    """
    if job.state in (PUBLISHING, SUCCEEDED):
        return Resolution(release=False)
    if not job.started:
        return Resolution(release=True)
    steps = job.ending.attested_steps if job.ending else None
    return Resolution(release=False, attested_steps=steps)


def evaluation_resolution(job: Job) -> Resolution:
    """Say what becomes of the measurement's own reservation.

    It runs after the last step. So it is given back only where a worker attests that not all steps ran.
    """
    training = resolution(job)
    before_it = training.attested_steps is not None and training.attested_steps < job.total_steps
    return Resolution(release=training.release or before_it)
