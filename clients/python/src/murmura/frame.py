"""Remote frames: pandas habits on rows that stay where they are.

A frame is a dataset and a list of operations, nothing more. Its shape and mock rows come from the dataset service,
which checks every operation; the rows themselves never do.
"""

from __future__ import annotations

import html
from collections.abc import Callable
from datetime import datetime
from typing import TYPE_CHECKING, Any, NoReturn

from murmura.accessors import SERIES_FEATURES
from murmura.api.dataset.v1 import dataset_service_pb2 as messages
from murmura.api.dataset.v1 import expressions_pb2 as pb
from murmura.counts import extent
from murmura.errors import InvalidInput, NotSupported
from murmura.outcomes import MockRows, PublicDict, PublicInt, PublicList, PublicTuple
from murmura.proxies import of_type
from murmura.recording import call, columns_of, encode
from murmura.series import RemoteSeries
from murmura.statistics import FrameStatistics
from murmura.tracing import column

if TYPE_CHECKING:
    from murmura.client import Client

FRAME_FEATURES = (
    "df.rename(columns={old: new}), df['column'], df['column'] = series or constant, df[['a', 'b']], df[condition], "
    "df.fillna(value or {column: value}), df.dropna(subset=[…]), df.drop(columns=[…]), df.assign(column=…), df.column, "
    "df.iloc[start:stop], df.columns, df.dtypes, df.shape, len(df), df.head(), df.copy(), df.count()"
)
_KINDS: dict[type, tuple[pb.ValueType.ValueType, ...]] = {
    str: (pb.VALUE_TYPE_STRING,),
    bool: (pb.VALUE_TYPE_BOOLEAN,),
    int: (pb.VALUE_TYPE_INTEGER, pb.VALUE_TYPE_FLOAT),
    float: (pb.VALUE_TYPE_FLOAT,),
    datetime: (pb.VALUE_TYPE_TIMESTAMP,),
}
MOCK_NOTICE = "mock rows: made up from the schema, nothing in them is real"


class RemoteFrame(FrameStatistics):
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
        return PublicList(self._kinds())

    @property
    def dtypes(self) -> dict[str, str]:
        """The type of each column: string, integer, float, boolean or timestamp."""
        types = {name: pb.ValueType.Name(kind) for name, kind in self._kinds().items()}
        return PublicDict({name: kind.removeprefix("VALUE_TYPE_").lower() for name, kind in types.items()})

    @property
    def shape(self) -> tuple[int, int]:
        """Slots and columns. Slots are public: a row that a filter empties still counts."""
        return PublicTuple((self._describe().row_count, len(self.columns)))

    @property
    def units(self) -> int:
        """The privacy units (for example patients) of these slots; public."""
        return PublicInt(self._describe().unit_count)

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

    def dropna(self, *, subset: str | list[str] | None = None) -> RemoteFrame:
        """Return a frame without the rows that lack a value; their slots stay, and are empty.

        Args:
            subset: the columns that must have one; all by default.
        """
        names = [subset] if isinstance(subset, str) else subset or self.columns
        present = [call("NOT", call("IS_NULL", column(name))) for name in names]
        return self._then(pb.Operation(filter=pb.Filter(predicate=call("AND", *present))))

    def assign(self, **columns: Any) -> RemoteFrame:
        """Return a frame with columns set.

        Args:
            **columns: a constant, a series of this frame, or a function that is given the frame with those before set.
        """
        frame = self.copy()
        before: set[str] = set()
        for name, value in columns.items():
            if isinstance(value, RemoteSeries) and value.frame == self._frame:
                if changed := columns_of(value.expression) & before:
                    raise InvalidInput(
                        f"{name!r} is made of {', '.join(sorted(changed))}, which is set before it. Write "
                        f"{name}=lambda X: X[…] to take it as it is then, or put it first to take it as it was."
                    )
                value = RemoteSeries(frame, value._proxy)
            frame[name] = value(frame) if callable(value) else value
            before.add(name)
        return frame

    def copy(self) -> RemoteFrame:
        """Return a frame that later assignments to this one leave alone."""
        return RemoteFrame(self._client, self.proto)

    def head(self, n: int = 5) -> RemoteFrame:
        """Return the first slots."""
        return self.iloc[:n]

    def mock_rows(self) -> MockRows:
        """Return made-up rows of this frame, each a dictionary of texts."""
        names = self.columns
        return MockRows(dict(zip(names, row.values, strict=True)) for row in self._describe().mock_rows)

    def __len__(self) -> int:
        return int(self.shape[0])

    def __getitem__(self, key: str | list[str] | RemoteSeries | Callable[[RemoteFrame], Any]) -> Any:
        if callable(key):
            key = key(self)
        if isinstance(key, str):
            kinds = self._kinds()
            if key not in kinds:
                raise InvalidInput(f"No column {key!r}; this frame has {', '.join(kinds)}.")
            return RemoteSeries(self, of_type(kinds[key], column(key)))
        if isinstance(key, RemoteSeries):
            self._mine(key, "X[X['…'] > 60]")
            return self._then(pb.Operation(filter=pb.Filter(predicate=key.expression)))
        if isinstance(key, list) and all(isinstance(name, str) for name in key):
            return self._then(pb.Operation(select=pb.Select(columns=key)))
        raise NotSupported(f"df[{key!r}] is not available on a remote frame. Supported: {FRAME_FEATURES}.")

    def __setitem__(self, name: str, value: RemoteSeries | str | float | bool | datetime) -> None:
        if isinstance(value, RemoteSeries):
            self._mine(value, f"X[{name!r}] = X['…'].apply(…)")
        elif not isinstance(value, str | int | float | datetime):
            raise NotSupported(
                f"Only a series of the same frame or a constant can be assigned, not a {type(value).__name__}. "
                f"Supported: {SERIES_FEATURES}."
            )
        expression = value.expression if isinstance(value, RemoteSeries) else encode(value)
        self._become(self._then(pb.Operation(assign=pb.Assign(column=name, expression=expression))))

    def __delitem__(self, name: str) -> None:
        self._become(self.drop(columns=name))

    def _become(self, changed: RemoteFrame) -> None:
        self._frame, self._description = changed._frame, changed._description

    def fillna(self, value: Any) -> RemoteFrame:
        """Return a frame with a constant where there is no value.

        Args:
            value: a constant for every column of its type, or a dictionary of column to constant.
        """
        if isinstance(value, dict):
            chosen = value
        else:
            chosen = {name: value for name, kind in self._kinds().items() if kind in _takes(value)}
        frame = self.copy()
        for name, constant in chosen.items():
            frame[name] = frame[name].fillna(constant)
        return frame

    def _mine(self, series: RemoteSeries, spelling: str) -> None:
        if series.frame != self._frame:
            raise InvalidInput(
                f"This series belongs to another state of the frame; take it from the frame you use it on: {spelling}."
            )

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        if name in self._kinds():
            return self[name]
        raise NotSupported(f"`df.{name}` is not available on a remote frame. Supported: {FRAME_FEATURES}.")

    def __setattr__(self, name: str, value: object) -> None:
        # pandas sets a column that exists, and else an attribute that no operation sees.
        if not name.startswith("_"):
            spelling = "df = df.rename(columns={old: new})" if name == "columns" else f"df[{name!r}] = …"
            raise NotSupported(f"Write {spelling}. Supported: {FRAME_FEATURES}.")
        super().__setattr__(name, value)

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
        return f"{self._frame.dataset}: {extent(described.row_count, described.unit_count, 'slot')}, private"

    def _then(self, operation: pb.Operation) -> RemoteFrame:
        """Return the frame after one more operation; the service checks it at once."""
        extended = self.proto
        extended.operations.append(operation)
        frame = RemoteFrame(self._client, extended)
        frame._describe()
        return frame

    def _kinds(self) -> dict[str, pb.ValueType.ValueType]:
        """Return the type of each column, in their order."""
        return {item.name: item.type for item in self._describe().schema.columns}

    def _describe(self) -> messages.DescribeFrameResponse:
        if self._description is None:
            request = messages.DescribeFrameRequest(frame=self._frame)
            self._description = self._client.stub("dataset").call("DescribeFrame", request)
        return self._description


class _Positions:
    """`df.iloc`."""

    def __init__(self, frame: RemoteFrame) -> None:
        self._frame = frame

    def __getitem__(self, key: slice) -> RemoteFrame:
        if not isinstance(key, slice) or key.step not in (None, 1):
            raise NotSupported("Only ranges of slots can be taken: df.iloc[start:stop].")
        return self._frame._then(pb.Operation(slice=pb.Slice(start=key.start, stop=key.stop)))


def _takes(value: object) -> tuple[pb.ValueType.ValueType, ...]:
    """Return the types of columns that a constant can stand in."""
    return _KINDS.get(type(value), ())
