"""Notes of patients whose every word can be looked for, and frames over them."""

from __future__ import annotations

import json
import uuid
from typing import Any

from murmura.api.dataset.v1 import dataset_service_pb2, expressions_pb2

SECRETS = ("Quillfeather", "Brambleworth", "Thistlewood")


def notes(salt: str = "", units: int = 6, rows: int = 2) -> str:
    """Rows of a few patients; a salt makes the content, and with it the account, a new one."""
    salt = salt or uuid.uuid4().hex[:8]
    return "".join(
        json.dumps({"patient": f"{SECRETS[0]} {unit}", "text": f"{SECRETS[1]} {salt} | {SECRETS[2]} {unit}.{row}"})
        + "\n"
        for unit in range(units)
        for row in range(rows)
    )


def split(index: int, by: str = " | ", column: str = "text") -> expressions_pb2.Operation:
    """text = text.split(by)[index]"""
    pbx = expressions_pb2
    arguments = [pbx.Expression(column="text"), pbx.Expression(literal=pbx.Literal(string_value=by))]
    items = pbx.Expression(call=pbx.Call(function=pbx.FUNCTION_STRING_SPLIT, arguments=arguments))
    number = pbx.Expression(literal=pbx.Literal(integer_value=index))
    item = pbx.Expression(call=pbx.Call(function=pbx.FUNCTION_LIST_GET, arguments=[items, number]))
    return pbx.Operation(assign=pbx.Assign(column=column, expression=item))


def cut(start: int | None = None, stop: int | None = None) -> expressions_pb2.Operation:
    """Rows from one position up to another."""
    return expressions_pb2.Operation(slice=expressions_pb2.Slice(start=start, stop=stop))


def frame_of(dataset: Any, *operations: expressions_pb2.Operation) -> expressions_pb2.Frame:
    """Return a frame over a dataset."""
    return expressions_pb2.Frame(dataset=dataset.name, operations=operations)


def describe(pair: Any, frame: expressions_pb2.Frame) -> Any:
    """Describe a frame as an analyst."""
    return pair.dataset.DescribeFrame(
        dataset_service_pb2.DescribeFrameRequest(frame=frame), metadata=pair.who("analyst"), timeout=20
    )
