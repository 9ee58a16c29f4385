"""Noisy statistics of remote columns: what is wished for, lazily, and the answer once `murmura.eval` has paid for it.

`X['age'].mean(lower=0, upper=120)` asks nobody anything. `murmura.eval` shows what it would cost and how exact it would
be, pays, and fills the answer in. Bounds are yours to give: bounds that were read from the data would leak it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from murmura.api.dataset.v1 import dataset_service_pb2 as messages
from murmura.api.dataset.v1 import expressions_pb2 as pb
from murmura.errors import InvalidInput, MurmuraError

if TYPE_CHECKING:
    from murmura.api.common.v1 import privacy_pb2
    from murmura.client import Client
    from murmura.frame import RemoteFrame

DEFAULT_BINS = 10


class RemoteStatistic:
    """A statistic: before `murmura.eval` a wish, after it a noisy answer that costs nothing to look at again.

    Args:
        client: who asks.
        request: what is asked, without its id and its price.
        label: for people, for example `mean of age`.
    """

    def __init__(self, client: Client, request: messages.QueryStatisticRequest, label: str) -> None:
        self.client = client
        self.label = label
        self.dataset = request.frame.dataset
        self._request = request
        self._answer: messages.QueryStatisticResponse | None = None

    def request(self, target_epsilon: float) -> messages.QueryStatisticRequest:
        """Return what the contracts call this query, without an id."""
        request = messages.QueryStatisticRequest(target_epsilon=target_epsilon)
        request.MergeFrom(self._request)
        return request

    def fill(self, answer: messages.QueryStatisticResponse) -> None:
        """Keep the answer."""
        self._answer = answer

    @property
    def value(self) -> float:
        """The noisy value of a count, a mean or a quantile."""
        if self._request.statistic == messages.STATISTIC_HISTOGRAM:
            raise InvalidInput("A histogram has one value a bin: see `.values` and `.edges`.")
        return self.values[0]

    @property
    def values(self) -> list[float]:
        """The noisy values: one, or one a bin. The noise may make a count negative."""
        return list(self._answered().values)

    @property
    def edges(self) -> list[float]:
        """The edges of a histogram's bins, one more than there are bins; empty for other statistics."""
        return list(self._answered().edges)

    @property
    def expected_error(self) -> float:
        """The standard error to expect, in the unit of the value; of a quantile, the share of rows it is off."""
        return self._answered().plan.expected_error

    @property
    def statement(self) -> privacy_pb2.PrivacyStatement:
        """What is promised about the answer."""
        return self._answered().statement

    def __float__(self) -> float:
        return self.value

    def __repr__(self) -> str:
        if self._answer is None:
            return f"<{self.label} of {self.dataset}, not asked yet; next: murmura.eval(statistic, target_epsilon=…)>"
        return f"<{self.label} of {self.dataset}: {self.described()}>"

    def described(self) -> str:
        """Return the answer with its error, for people."""
        from murmura.outcomes import error_of

        shown = ", ".join(f"{value:.6g}" for value in self.values[:8]) + (", …" if len(self.values) > 8 else "")
        return f"{shown} ({error_of(self._answered().plan)})"

    def _answered(self) -> messages.QueryStatisticResponse:
        if self._answer is None:
            raise MurmuraError(
                f"The {self.label} has not been asked yet: murmura.eval(statistic, target_epsilon=0.5) shows what it "
                "costs and how exact it will be, and pays."
            )
        return self._answer


class FrameStatistics:
    """Statistics of a frame's rows."""

    def count(self: Any) -> RemoteStatistic:
        """Return how many rows are not empty, as a noisy statistic; `len(X)` counts slots, which are public."""
        request = messages.QueryStatisticRequest(frame=self.proto, statistic=messages.STATISTIC_COUNT)
        return RemoteStatistic(self.client, request, "count")


class SeriesStatistics:
    """Statistics of a column of numbers, or of what is computed from one.

    A row without a value counts nowhere. Values beyond a bound count as the bound.
    """

    def count(self) -> RemoteStatistic:
        """Return how many rows have a value, as a noisy statistic."""
        return self._wish("count", messages.STATISTIC_COUNT)

    def mean(self, *, lower: float | None = None, upper: float | None = None) -> RemoteStatistic:
        """Return the mean, as a noisy statistic.

        Args:
            lower: public lower bound of the values.
            upper: public upper bound of the values.
        """
        return self._bounded("mean", messages.STATISTIC_MEAN, lower, upper)

    def quantile(self, q: float = 0.5, *, lower: float | None = None, upper: float | None = None) -> RemoteStatistic:
        """Return a quantile, as a noisy statistic.

        Args:
            q: which, from 0 to 1.
            lower: public lower bound of the values.
            upper: public upper bound of the values.
        """
        if not 0 <= q <= 1:
            raise InvalidInput(f"q is {q!r}; a quantile lies between 0 and 1.")
        return self._bounded(f"quantile {q:g}", messages.STATISTIC_QUANTILE, lower, upper, float(q))

    def median(self, *, lower: float | None = None, upper: float | None = None) -> RemoteStatistic:
        """Return the median, as a noisy statistic; arguments as for `quantile`."""
        return self.quantile(0.5, lower=lower, upper=upper)

    def hist(
        self, bins: int = DEFAULT_BINS, *, lower: float | None = None, upper: float | None = None
    ) -> RemoteStatistic:
        """Return a histogram of equally wide bins, as a noisy statistic: one price, however many bins.

        Args:
            bins: how many, at most 1000.
            lower: public lower bound of the values.
            upper: public upper bound of the values.
        """
        return self._bounded(f"histogram ({bins} bins)", messages.STATISTIC_HISTOGRAM, lower, upper, float(bins))

    def _bounded(
        self,
        name: str,
        kind: messages.Statistic.ValueType,
        lower: float | None,
        upper: float | None,
        parameter: float | None = None,
    ) -> RemoteStatistic:
        if lower is None or upper is None:
            raise InvalidInput(
                f"A {name} needs bounds that are known without the data: pass lower=… and upper=…, such as 0 and 120 "
                "for an age in years."
            )
        if not lower < upper:
            raise InvalidInput(f"lower is {lower:g} and upper is {upper:g}; upper must be the greater one.")
        return self._wish(name, kind, lower, upper, parameter)

    def _wish(
        self: Any,
        name: str,
        kind: messages.Statistic.ValueType,
        lower: float | None = None,
        upper: float | None = None,
        parameter: float | None = None,
    ) -> RemoteStatistic:
        frame, column = column_of(self._owner, self.frame, self.expression)
        request = messages.QueryStatisticRequest(
            frame=frame, statistic=kind, column=column, lower=lower, upper=upper, parameter=parameter
        )
        between = "" if lower is None else f" between {lower:g} and {upper:g}"
        return RemoteStatistic(self._owner.client, request, f"{name} of {column}{between}")


def column_of(owner: RemoteFrame, frame: pb.Frame, expression: pb.Expression) -> tuple[pb.Frame, str]:
    """Return a frame that has the values of an expression as a column, and the column's name.

    Args:
        owner: the frame as an analyst sees it.
        frame: the state of it that the expression belongs to.
        expression: how each row's value is computed.
    """
    made = pb.Frame()
    made.CopyFrom(frame)
    if expression.WhichOneof("kind") == "column":
        return made, expression.column
    name = "value"
    while name in owner.columns:
        name += "_"
    made.operations.append(pb.Operation(assign=pb.Assign(column=name, expression=expression)))
    return made, name
