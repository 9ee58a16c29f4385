"""Field rules, enforced before any handler runs.

The rules stand beside the fields in the contracts (`common/v1/rules.proto`). This interceptor reads them from the
descriptors, checks each request and the messages inside it, and answers all violations at once.
"""

from __future__ import annotations

import math
import re
import uuid
from collections.abc import Iterator
from functools import cache
from typing import Any

import grpc
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message

from murmura.api.common.v1 import rules_pb2
from services.common.calls import Call, CallInterceptor
from services.common.errors import MurmuraError

MOST_VIOLATIONS = 20
_FLOATS = (FieldDescriptor.CPPTYPE_DOUBLE, FieldDescriptor.CPPTYPE_FLOAT)


class Validation(CallInterceptor):
    """Refuses messages that break their rules."""

    def check(self, call: Call, message: Message) -> None:
        """Check one request message.

        Raises:
            MurmuraError: INVALID_ARGUMENT with every violation (the first twenty).
        """
        violations: dict[str, str] = {}
        for path, problem in violations_of(message):
            violations.setdefault(path, problem)
            if len(violations) >= MOST_VIOLATIONS:
                break
        if violations:
            raise MurmuraError(
                grpc.StatusCode.INVALID_ARGUMENT,
                "FIELD_RULES",
                "The request breaks its rules.",
                violations=violations,
            )


def violations_of(message: Message, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield the path of each field that breaks a rule, and the rule. Never yields the value."""
    for field, rules in _fields(message.DESCRIPTOR):
        path = f"{prefix}{field.name}"
        value = getattr(message, field.name)
        if field.is_repeated:
            yield from _check_items(field, rules, path, value)
            continue
        if field.has_presence and not message.HasField(field.name):
            if rules.required:
                yield path, "must be set"
            continue
        if rules.required and not field.has_presence and not value:
            yield path, "must be set"
            continue
        yield from _check_one(field, rules, path, value)


def _check_items(
    field: FieldDescriptor, rules: rules_pb2.FieldRules, path: str, items: Any
) -> Iterator[tuple[str, str]]:
    if rules.min_items and len(items) < rules.min_items:
        yield path, f"must have at least {rules.min_items} item(s)"
    if rules.max_items and len(items) > rules.max_items:
        yield path, f"must have at most {rules.max_items} items"
        return
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        value_field = field.message_type.fields_by_name["value"]
        for key in items:
            if value_field.message_type is not None:
                yield from violations_of(items[key], f"{path}[{key!r}].")
        return
    for index, item in enumerate(items):
        yield from _check_one(field, rules, f"{path}[{index}]", item)


def _check_one(field: FieldDescriptor, rules: rules_pb2.FieldRules, path: str, value: Any) -> Iterator[tuple[str, str]]:
    if field.message_type is not None:
        yield from violations_of(value, f"{path}.")
    elif isinstance(value, str | bytes):
        problem = _text_problem(rules, value)
        if problem:
            yield path, problem
    elif isinstance(value, int | float) and not isinstance(value, bool):
        problem = _number_problem(field, rules, value)
        if problem:
            yield path, problem


def _text_problem(rules: rules_pb2.FieldRules, value: str | bytes) -> str:
    if not value:
        return ""
    if rules.min_length and len(value) < rules.min_length:
        return f"must be at least {rules.min_length} long"
    if rules.max_length and len(value) > rules.max_length:
        return f"must be at most {rules.max_length} long"
    if rules.uuid and not _is_uuid(str(value)):
        return "must be a UUID such as 6c1f8a52-7d3b-4f0e-9f57-3f2f6c0b9a11"
    if rules.pattern and not re.fullmatch(rules.pattern, str(value)):
        return f"must match {rules.pattern}"
    return ""


def _number_problem(field: FieldDescriptor, rules: rules_pb2.FieldRules, value: float) -> str:
    if field.cpp_type in _FLOATS and not math.isfinite(value):
        return "must be a finite number"
    if rules.HasField("minimum") and value < rules.minimum:
        return f"must be at least {rules.minimum:g}"
    if rules.HasField("maximum") and value > rules.maximum:
        return f"must be at most {rules.maximum:g}"
    if rules.HasField("above") and value <= rules.above:
        return f"must be greater than {rules.above:g}"
    return ""


def _is_uuid(text: str) -> bool:
    try:
        return str(uuid.UUID(text)) == text.lower()
    except ValueError:
        return False


@cache
def _fields(descriptor: Descriptor) -> list[tuple[FieldDescriptor, rules_pb2.FieldRules]]:
    return [(field, field.GetOptions().Extensions[rules_pb2.rules]) for field in descriptor.fields]
