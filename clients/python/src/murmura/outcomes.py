"""What `murmura.eval` can come to, and how it says so. Loads what it prints with only when it prints.

Whoever evaluates a remote object must know what they hold: it is *public*, *mock*, *DP (ε, δ)* or *unlimited (by
policy …)*, and the last line that is printed says which. There is no fifth, and nothing turns into another one quietly.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from murmura.counts import extent

if TYPE_CHECKING:
    from rich.table import Table

    from murmura.api.common.v1 import privacy_pb2
    from murmura.api.dataset.v1 import dataset_service_pb2 as messages
    from murmura.statistics import RemoteStatistic


class PublicTuple(tuple[Any, ...]):
    """A tuple that is public of a remote object, such as the shape of a frame."""


class PublicList(list[Any]):
    """A list that is public of a remote object, such as the columns of a frame."""


class PublicDict(dict[str, Any]):
    """What is public of each column of a remote frame, such as its type."""


class PublicInt(int):
    """A number that is public of a remote object, such as its privacy units."""


class MockRows(list[dict[str, str]]):
    """Rows that are made up from a schema, each a dictionary of texts; nothing in them is real."""

    def __repr__(self) -> str:
        return f"<{len(self)} mock rows, nothing in them is real: {super().__repr__()}>"


def public(what: str) -> str:
    """Return the outcome of what everybody may know."""
    return f"public, {what}"


def mock(what: str) -> str:
    """Return the outcome of made-up rows."""
    return f"mock, {what}"


def released(statement: privacy_pb2.PrivacyStatement, dataset: str) -> str:
    """Return the outcome of what was computed from private rows.

    Args:
        statement: what is promised about it.
        dataset: whose rows they are.
    """
    if statement.unlimited:
        return f"unlimited (by policy of {dataset}), it may repeat what it read"
    return f"DP (ε = {statement.epsilon:.4g}, δ = {statement.delta:.2g})"


def say(outcome: str) -> None:
    """Print an outcome."""
    from rich.text import Text

    from murmura import display

    display.console.print(Text("outcome: ", style="bold") + Text(outcome))


def show_plan(statistic: RemoteStatistic, planned: messages.QueryStatisticResponse) -> None:
    """Print what a statistic would cost and how exact it would be, before anything is spent."""
    from murmura import display

    display.console.print(plan_table(statistic, planned))


def plan_table(statistic: RemoteStatistic, planned: messages.QueryStatisticResponse) -> Table:
    """Return the plan of a statistic as a table."""
    from rich.text import Text

    from murmura import display

    plan, statement = planned.plan, planned.statement
    table = display.plan_frame()
    table.add_row("statistic", Text(statistic.label))
    table.add_row(
        "data",
        f"{extent(plan.row_count, plan.unit_count)} of {statistic.dataset}; one unit owns at most "
        f"{statement.max_rows_per_unit}",
    )
    display.add_promise(table, statement)
    table.add_row(
        "noise",
        f"standard deviation {plan.noise_standard_deviation:.4g} rows, for a unit that changes at most "
        f"{plan.sensitivity:.4g}",
    )
    table.add_row("exactness", error_of(plan))
    display.add_budget(table, plan, "this one")
    return table


def error_of(plan: messages.StatisticPlan) -> str:
    """Return how exact an answer is, for people."""
    if plan.resolution:
        return f"its rank is off by about {plan.expected_error:.1%} of the rows at most; steps of {plan.resolution:.3g}"
    return f"standard error {plan.expected_error:.4g}"
