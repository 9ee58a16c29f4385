"""From the contracts' frames to the pure ones."""

from __future__ import annotations

from datetime import datetime

from google.protobuf.timestamp_pb2 import Timestamp

from murmura.api.dataset.v1 import expressions_pb2 as pb
from services.dataset import expressions as ex


def operations(frame: pb.Frame) -> list[ex.Operation]:
    """Return the operations of a frame.

    Raises:
        services.dataset.expressions.Rejected: if one is empty, or all of them are too large.
    """
    made = [_operation(item) for item in frame.operations]
    trees = [
        item.expression if isinstance(item, ex.Assign) else item.predicate
        for item in made
        if isinstance(item, ex.Assign | ex.Filter)
    ]
    if sum(map(ex.nodes, trees)) > ex.MOST_FRAME_NODES:
        raise ex.Rejected("frame", f"its expressions have more than {ex.MOST_FRAME_NODES} parts in all")
    return made


def _operation(message: pb.Operation) -> ex.Operation:
    kind = message.WhichOneof("kind")
    if kind == "rename":
        return ex.Rename(dict(message.rename.columns))
    if kind == "assign":
        return ex.Assign(message.assign.column, expression(message.assign.expression))
    if kind == "select":
        return ex.Select(tuple(message.select.columns))
    if kind == "drop":
        return ex.Drop(tuple(message.drop.columns))
    if kind == "slice":
        bounds = message.slice
        return ex.Slice(
            bounds.start if bounds.HasField("start") else None,
            bounds.stop if bounds.HasField("stop") else None,
        )
    if kind == "filter":
        return ex.Filter(expression(message.filter.predicate))
    raise ex.Rejected("operation", "an operation is empty")


def expression(message: pb.Expression) -> ex.Expression:
    """Return an expression.

    Raises:
        services.dataset.expressions.Rejected: if a part is empty or not in this release.
    """
    kind = message.WhichOneof("kind")
    if kind == "column":
        return ex.Column(message.column)
    if kind == "literal":
        field = message.literal.WhichOneof("value")
        if field == "timestamp_value":
            return ex.Literal(_moment(message.literal.timestamp_value))
        return ex.Literal(getattr(message.literal, field) if field else None)
    if kind == "call":
        if message.call.function not in pb.Function.values():
            raise ex.Rejected("call", "there is no such operation in this release")
        name = pb.Function.Name(message.call.function).removeprefix("FUNCTION_")
        return ex.Call(name, tuple(expression(item) for item in message.call.arguments))
    raise ex.Rejected("expression", "an expression is empty")


def _moment(message: Timestamp) -> datetime:
    """Return an instant as columns hold it: UTC, without a zone."""
    try:
        return message.ToDatetime()
    except (ValueError, OverflowError):
        raise ex.Rejected("literal", "a timestamp lies outside the years 1 to 9999") from None
