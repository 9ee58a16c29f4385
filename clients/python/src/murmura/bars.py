"""What a person sees of work that goes on: a bar on a terminal, and a few plain lines elsewhere."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from murmura.display import console, say, state_name

if TYPE_CHECKING:
    from collections.abc import Iterable
    from types import TracebackType
    from typing import Self

    from rich.console import RenderableType

    from murmura.api.trainer.v1 import trainer_pb2

# Where there is no bar, how long something is waited for is said again so often.
_SAID_AGAIN_S = 60.0
_BEFORE_THE_END = ("provisioning", "running")
# What the trainer says of a job while nothing else is to be said.
_TRAINS = "training"


class _WithNote(Progress):
    """A bar, and under it a line of what goes on."""

    note = ""

    def get_renderables(self) -> Iterable[RenderableType]:
        """Yield the bar, then the line."""
        yield from super().get_renderables()
        if self.note:
            yield Text(self.note, style="dim")


class _Bar:
    """A bar on a terminal; elsewhere a plain line for each tenth."""

    def __init__(self, total: int, noun: str, *columns: ProgressColumn) -> None:
        self._total, self._noun, self._said = total, noun, -1
        self._bar = _WithNote(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn(noun),
            TimeRemainingColumn(),
            *columns,
            console=console,
            disable=not console.is_terminal,
        )

    def _show(self, task: TaskID, done: int, word: str) -> None:
        self._bar.update(task, completed=done, description=word)
        tenth = 10 * done // max(1, self._total)
        if not console.is_terminal and tenth != self._said:
            self._said = tenth
            say(f"{word}: {done} of {self._total} {self._noun}")

    def close(self) -> None:
        """Take the bar away."""
        self._bar.stop()

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.stop()


class JobBar(_Bar):
    """One bar for a job: steps, time left, budget."""

    def __init__(self, job: trainer_pb2.TrainingJob) -> None:
        super().__init__(job.plan.steps, "steps", TextColumn("{task.fields[budget]}"))
        statement = job.plan.statement
        budget = "no privacy" if statement.unlimited else f"ε {statement.epsilon:.3g}"
        self._task = self._bar.add_task("starting", total=job.plan.steps, budget=budget)
        self._told, self._told_at = "", 0.0

    def update(self, job: trainer_pb2.TrainingJob) -> None:
        """Show a job as it stands; while no worker of it trains, also why."""
        word = state_name(job)
        why = job.stage if word in _BEFORE_THE_END and job.stage != _TRAINS else ""
        self._bar.note = why
        if why and not console.is_terminal:
            self._tell(f"{word}: {why}")
        else:
            self._show(self._task, job.completed_steps, word)

    def _tell(self, line: str) -> None:
        """Print a line that says something new, or for how long by now."""
        told, now = line.partition(" since ")[0], time.monotonic()
        if told != self._told or now - self._told_at >= _SAID_AGAIN_S:
            self._told, self._told_at = told, now
            say(line)


class CountBar(_Bar):
    """One bar for things that are made one after another."""

    def __init__(self, noun: str, total: int) -> None:
        super().__init__(total, noun)
        self._task = self._bar.add_task("generating", total=total)

    def update(self, done: int) -> None:
        """Show how many there are."""
        self._show(self._task, done, "generating")
