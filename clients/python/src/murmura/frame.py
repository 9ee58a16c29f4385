"""Remote frames: pandas habits on rows that stay where they are.

A frame is a dataset and a list of operations, nothing more. Its shape and mock rows come from the dataset service,
which checks every operation; the rows themselves never do.
"""

from __future__ import annotations

import html
from typing import TYPE_CHECKING, Any, NoReturn

from murmura.api.dataset.v1 import dataset_service_pb2 as messages
from murmura.api.dataset.v1 import expressions_pb2 as pb
from murmura.errors import InvalidInput, NotSupported
from murmura.tracing import TextProxy, Traced, column

if TYPE_CHECKING:
    from murmura.client import Client

FRAME_FEATURES = (
    "df.rename(columns={old: new}), df['column'], df['column'] = series, df[['a', 'b']], df.drop(columns=[…]), "
    "df.iloc[start:stop], df.columns, df.shape, len(df), df.head(), df.copy()"
)
SERIES_FEATURES = "series.apply(trace(function)), series.str.<strip, lower, upper, replace, slice>(…)"
MOCK_NOTICE = "mock rows: made up from the schema, nothing in them is real"


class RemoteFrame:
    """A lazy frame over private rows.

    Args:
        client: who asks.
        frame: the dataset and the operations so far.
    """

    def __init__(self, client: Client, frame: pb.Frame) -> None:
        self._client = client
        self._frame = frame
        self._description: messages.DescribeFrameResponse | None = None

    @property
    def proto(self) -> pb.Frame:
        """The frame as the contracts know it (a copy)."""
        copy = pb.Frame()
        copy.CopyFrom(self._frame)
        return copy

    @property
    def client(self) -> Client:
        """Who asks."""
        return self._client

    @property
    def columns(self) -> list[str]:
        """The names of the columns."""
        return [item.name for item in self._describe().schema.columns]

    @property
    def shape(self) -> tuple[int, int]:
        """Slots and columns. Slots are public: a row that a filter empties still counts."""
        return self._describe().row_count, len(self.columns)

    @property
    def units(self) -> int:
        """The privacy units (for example patients) of these slots; public."""
        return self._describe().unit_count

    @property
    def iloc(self) -> _Positions:
        """Slots by position: `X.iloc[:2608]`."""
        return _Positions(self)

    def rename(self, *, columns: dict[str, str]) -> RemoteFrame:
        """Return a frame with other column names."""
        return self._then(pb.Operation(rename=pb.Rename(columns=columns)))

    def drop(self, *, columns: str | list[str]) -> RemoteFrame:
        """Return a frame without some columns."""
        names = [columns] if isinstance(columns, str) else columns
        return self._then(pb.Operation(drop=pb.Drop(columns=names)))

    def copy(self) -> RemoteFrame:
        """Return a frame that later assignments to this one leave alone."""
        return RemoteFrame(self._client, self.proto)

    def head(self, n: int = 5) -> RemoteFrame:
        """Return the first slots."""
        return self.iloc[:n]

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, key: str | list[str]) -> Any:
        if isinstance(key, str):
            if key not in self.columns:
                raise InvalidInput(f"No column {key!r}; this frame has {', '.join(self.columns)}.")
            return RemoteSeries(self, column(key))
        if isinstance(key, list) and all(isinstance(name, str) for name in key):
            return self._then(pb.Operation(select=pb.Select(columns=key)))
        raise NotSupported(f"df[{key!r}] is not available on a remote frame. Supported: {FRAME_FEATURES}.")

    def __setitem__(self, name: str, value: RemoteSeries) -> None:
        if not isinstance(value, RemoteSeries):
            raise NotSupported(
                f"Only a series of the same frame can be assigned, not a {type(value).__name__}. "
                f"Supported: {SERIES_FEATURES}."
            )
        if value.frame != self._frame:
            raise InvalidInput(
                f"This series belongs to another state of the frame; take it from the frame you assign to: "
                f"X[{name!r}] = X['…'].apply(…)."
            )
        changed = self._then(pb.Operation(assign=pb.Assign(column=name, expression=value.expression)))
        self._frame, self._description = changed._frame, changed._description

    def __getattr__(self, name: str) -> NoReturn:
        if name.startswith("_"):
            raise AttributeError(name)
        raise NotSupported(f"`df.{name}` is not available on a remote frame. Supported: {FRAME_FEATURES}.")

    def __iter__(self) -> NoReturn:
        raise NotSupported("Rows of a remote frame cannot be looped over: they stay where they are.")

    def __repr__(self) -> str:
        described = self._describe()
        names = [item.name for item in described.schema.columns]
        lines = [self._headline(), MOCK_NOTICE]
        for number, row in enumerate(described.mock_rows):
            cells = (f"{name}={value[:60]!r}" for name, value in zip(names, row.values, strict=True))
            lines.append(f"  {number}  " + "  ".join(cells))
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        described = self._describe()
        head = "".join(f"<th>{html.escape(item.name)}</th>" for item in described.schema.columns)
        body = "".join(
            "<tr>" + "".join(f"<td><i>{html.escape(value[:200])}</i></td>" for value in row.values) + "</tr>"
            for row in described.mock_rows
        )
        return (
            f"<p><b>{html.escape(self._headline())}</b><br><small>{MOCK_NOTICE}</small></p>"
            f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
        )

    def _headline(self) -> str:
        described = self._describe()
        return f"{self._frame.dataset}: {described.row_count} slots of {described.unit_count} privacy units, private"

    def _then(self, operation: pb.Operation) -> RemoteFrame:
        """Return the frame after one more operation; the service checks it at once."""
        extended = self.proto
        extended.operations.append(operation)
        frame = RemoteFrame(self._client, extended)
        frame._describe()
        return frame

    def _describe(self) -> messages.DescribeFrameResponse:
        if self._description is None:
            request = messages.DescribeFrameRequest(frame=self._frame)
            self._description = self._client.stub("dataset").call("DescribeFrame", request)
        return self._description


class RemoteSeries:
    """A column of a remote frame, or what is computed from one.

    Args:
        owner: the frame.
        expression: how each row's value is computed.
    """

    def __init__(self, owner: RemoteFrame, expression: pb.Expression) -> None:
        self._owner = owner
        self.frame = owner.proto
        self.expression = expression

    def apply(self, function: Traced) -> RemoteSeries:
        """Apply a traced function to each row.

        Raises:
            NotSupported: if the function is not traced.
            murmura.errors.TraceError: if it does what cannot be recorded.
        """
        if not isinstance(function, Traced):
            raise NotSupported("Wrap the function: X['text'].apply(murmura.trace(function)). Code never travels.")
        return RemoteSeries(self._owner, function.record(self.expression))

    def __getattr__(self, name: str) -> NoReturn:
        if name.startswith("_"):
            raise AttributeError(name)
        raise NotSupported(f"`series.{name}` is not available on a remote column. Supported: {SERIES_FEATURES}.")

    def __iter__(self) -> NoReturn:
        raise NotSupported("Values of a remote column cannot be looped over: they stay where they are.")

    def __repr__(self) -> str:
        return f"<a column of {self.frame.dataset}, private; assign it to the frame to use it>"

    # Last, because the name hides the type in the rest of the class.
    @property
    def str(self) -> _TextMethods:
        """Text methods, as in pandas."""
        return _TextMethods(self)


class _TextMethods:
    """`series.str`."""

    def __init__(self, series: RemoteSeries) -> None:
        self._series = series

    def strip(self, to_strip: str | None = None) -> RemoteSeries:
        """Strip characters from both ends."""
        return self._record(lambda text: text.strip(to_strip))

    def lower(self) -> RemoteSeries:
        """Make lower case."""
        return self._record(lambda text: text.lower())

    def upper(self) -> RemoteSeries:
        """Make upper case."""
        return self._record(lambda text: text.upper())

    def replace(self, old: str, new: str) -> RemoteSeries:
        """Replace every occurrence, literally."""
        return self._record(lambda text: text.replace(old, new))

    def slice(self, start: int | None = None, stop: int | None = None) -> RemoteSeries:
        """Keep a range of characters."""
        return self._record(lambda text: text[start:stop])

    def _record(self, function: Any) -> RemoteSeries:
        proxy: TextProxy = function(TextProxy(self._series.expression))
        return RemoteSeries(self._series._owner, proxy._expression)

    def __getattr__(self, name: str) -> NoReturn:
        if name.startswith("_"):
            raise AttributeError(name)
        raise NotSupported(f"`series.str.{name}` is not available on a remote column. Supported: {SERIES_FEATURES}.")


class _Positions:
    """`df.iloc`."""

    def __init__(self, frame: RemoteFrame) -> None:
        self._frame = frame

    def __getitem__(self, key: slice) -> RemoteFrame:
        if not isinstance(key, slice) or key.step not in (None, 1):
            raise NotSupported("Only ranges of slots can be taken: df.iloc[start:stop].")
        return self._frame._then(pb.Operation(slice=pb.Slice(start=key.start, stop=key.stop)))
