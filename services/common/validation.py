"""Field rules, enforced before any handler runs.

The rules stand beside the fields in the contracts (`common/v1/rules.proto`). This interceptor reads them from the
descriptors, checks each request and the messages inside it, and answers all violations at once.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import grpc
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message

from murmura.api.common.v1 import rules_pb2
from services.common.calls import Call, CallInterceptor
from services.common.errors import MurmuraError

MOST_VIOLATIONS = 20
_UUID = re.compile("[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
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
    for rule in _rules(message.DESCRIPTOR):
        value = getattr(message, rule.name)
        if rule.repeated:
            yield from _check_items(rule, f"{prefix}{rule.name}", value)
        elif rule.presence and not message.HasField(rule.name):
            if rule.required:
                yield f"{prefix}{rule.name}", "must be set"
        elif rule.required and not rule.presence and not value:
            yield f"{prefix}{rule.name}", "must be set"
        elif rule.message:
            yield from violations_of(value, f"{prefix}{rule.name}.")
        elif problem := rule.problem(value):
            yield f"{prefix}{rule.name}", problem


@dataclass(frozen=True)
class _Rule:
    """A field that can break a rule; read once from the descriptor, since each request passes here.

    Attributes:
        name: of the field.
        repeated: whether it is a list or a map.
        presence: whether a field that was not set can be told from an empty one.
        message: whether it holds a message, or a list of them.
        is_map, map_of_messages: whether it is a map, and one to messages.
        required, min_items, max_items: as in the contract.
        problem: says what is wrong with one value, or nothing.
    """

    name: str
    repeated: bool
    presence: bool
    message: bool
    is_map: bool
    map_of_messages: bool
    required: bool
    min_items: int
    max_items: int
    problem: Callable[[Any], str]


def _check_items(rule: _Rule, path: str, items: Any) -> Iterator[tuple[str, str]]:
    if rule.min_items and len(items) < rule.min_items:
        yield path, f"must have at least {rule.min_items} item(s)"
    if rule.max_items and len(items) > rule.max_items:
        yield path, f"must have at most {rule.max_items} items"
        return
    if rule.is_map:
        for key in items if rule.map_of_messages else ():
            yield from violations_of(items[key], f"{path}[{key!r}].")
        return
    for index, item in enumerate(items):
        if rule.message:
            yield from violations_of(item, f"{path}[{index}].")
        elif problem := rule.problem(item):
            yield f"{path}[{index}]", problem


@cache
def _rules(descriptor: Descriptor) -> list[_Rule]:
    """Return the fields that can break a rule: those that have one, numbers that may be no number, and messages."""
    found = []
    for field in descriptor.fields:
        rules, message = field.GetOptions().Extensions[rules_pb2.rules], field.message_type
        if not (rules.ByteSize() or field.cpp_type in _FLOATS or message is not None):
            continue
        is_map = message is not None and message.GetOptions().map_entry
        found.append(
            _Rule(
                field.name,
                field.is_repeated,
                field.has_presence,
                message is not None and not is_map,
                is_map,
                message is not None and is_map and message.fields_by_name["value"].message_type is not None,
                rules.required,
                rules.min_items,
                rules.max_items,
                _text_rule(rules) if field.cpp_type == FieldDescriptor.CPPTYPE_STRING else _number_rule(field, rules),
            )
        )
    return found


def _text_rule(rules: rules_pb2.FieldRules) -> Callable[[Any], str]:
    shortest, longest, uuid = rules.min_length, rules.max_length, rules.uuid
    pattern = re.compile(rules.pattern) if rules.pattern else None

    def problem(value: str | bytes) -> str:
        if not value:
            return ""
        if shortest and len(value) < shortest:
            return f"must be at least {shortest} long"
        if longest and len(value) > longest:
            return f"must be at most {longest} long"
        if uuid and not _UUID.fullmatch(str(value)):
            return "must be a UUID such as 6c1f8a52-7d3b-4f0e-9f57-3f2f6c0b9a11"
        if pattern and not pattern.fullmatch(str(value)):
            return f"must match {pattern.pattern}"
        return ""

    return problem


def _number_rule(field: FieldDescriptor, rules: rules_pb2.FieldRules) -> Callable[[Any], str]:
    floats = field.cpp_type in _FLOATS
    minimum, maximum, above = (
        getattr(rules, name) if rules.HasField(name) else None for name in ("minimum", "maximum", "above")
    )

    def problem(value: float) -> str:
        if floats and not math.isfinite(value):
            return "must be a finite number"
        if minimum is not None and value < minimum:
            return f"must be at least {minimum:g}"
        if maximum is not None and value > maximum:
            return f"must be at most {maximum:g}"
        if above is not None and value <= above:
            return f"must be greater than {above:g}"
        return ""

    return problem
