"""Random, odd and hostile messages to every RPC, made from the contracts and their rules."""

from __future__ import annotations

import math
import random
import re
import string
import sys
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from google.protobuf import duration_pb2, message_factory, timestamp_pb2
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message

from murmura.api.common.v1 import errors_pb2, rules_pb2
from services.common.access import allowed_roles
from tests.support.canary import Canary
from tests.support.every_call import METHODS, World, short

TEXTS = [
    "",
    " ",
    "text",
    "patient",
    "x" * 300,
    "ß\u0301\U0001f600\x00",
    "../../etc/passwd",
    "a/b/c",
    "%s%n{0}${x}",
    "'; DROP TABLE datasets; --",
    "<script>alert(1)</script>",
    '{"a": [1, {"b": null}]}',
    "[0-9]{3}",
    "(a+)+$",
    "\ud7ff\ue000",
    "-1",
    "NaN",
    "2026-01-01T00:00:00Z",
    "{name} suffers from |a {word} form of {word}",
]
WHOLE = [0, 1, -1, 2, 3, 7, 64, 1000, 2**31 - 1, -(2**31), 2**32, 2**63 - 1, -(2**63), 10**9]
BROKEN = [0.0, -0.0, 0.5, 1.0, 1e-9, 1e-300, 1e9, 1e308, -1e308, 5e-324, float("nan"), float("inf"), float("-inf")]
MOST_NAMES = 300
# How often a field is left out, where that is not two times in five: whoever is given nonsense here looks no further,
# and one witness too many stops a ledger.
SELDOM = {
    "page_token": 0.9,
    "witness": 0.9995,
    "operations": 0.7,
    "columns": 0.8,
    "evaluation": 0.7,
    "canaries": 0.7,
    "derived_from": 0.9,
}
# How often a method may be answered: each job starts a worker.
MOST = {"TrainerService/CreateTrainingJob": 4, "DatasetService/RegisterDataset": 10}
# What ends things, so that there is little to ask for afterwards: in the last fifth of the time.
LATE = {"DatasetService/DeleteDataset", "TrainerService/CancelTrainingJob", "WorkerService/ReportFailure"}
# Answers that are taken of a stream; one that goes on for as long as a job does is left after the first.
MOST_ANSWERS = {"TrainerService/WatchTrainingJob": 1}
CALLERS = {
    "owner": "analyst",
    "analyst": "analyst",
    "steward": "steward",
    "operator": "operator",
    "dataset": "service",
    "trainer": "service",
    "inference": "service",
    "own worker": "worker",
    "worker": "worker",
}
# What a message can be answered with; anything else says that something broke.
REFUSALS = {
    "INVALID_ARGUMENT",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "FAILED_PRECONDITION",
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
    "UNAUTHENTICATED",
    "UNIMPLEMENTED",
    "ABORTED",
}
BROKEN_REASONS = {"INTERNAL", "UNSPECIFIED"}
BROKEN_ITEMS = {errors_pb2.ErrorReason.Value(f"ERROR_REASON_{reason}") for reason in BROKEN_REASONS}
_INTEGERS = {
    FieldDescriptor.CPPTYPE_INT32: (-(2**31), 2**31 - 1),
    FieldDescriptor.CPPTYPE_INT64: (-(2**63), 2**63 - 1),
    FieldDescriptor.CPPTYPE_UINT32: (0, 2**32 - 1),
    FieldDescriptor.CPPTYPE_UINT64: (0, 2**64 - 1),
}


@dataclass
class Maker:
    """Makes messages: most keep their rules and name what there is, so that they get past the door; some do not.

    Attributes:
        chance: the same chance makes the same messages, given the same answers.
        names: of what there is, and whatever else was seen in answers.
        likely: values of fields, by their name, that mostly make sense.
        odd: how often a value of the message is one that nobody would send.
    """

    chance: random.Random
    names: list[str]
    likely: dict[str, list[str]]
    odd: float = 0.0

    def request(self, descriptor: Descriptor) -> Any:
        """Return a message: every other one without a value that nobody would send."""
        self.odd = self.chance.choice([0.0, 0.12])
        return self.message(descriptor)

    def message(self, descriptor: Descriptor, depth: int = 5) -> Any:
        """Return a message."""
        made = message_factory.GetMessageClass(descriptor)()
        if descriptor.full_name == timestamp_pb2.Timestamp.DESCRIPTOR.full_name:
            made.seconds = self.chance.choice([0, 1, 10**9, -(10**9), 253402300799])
        elif descriptor.full_name == duration_pb2.Duration.DESCRIPTOR.full_name:
            made.seconds = self.chance.choice([0, 1, -1, 3600, 315576000000])
        else:
            for described in self._chosen(descriptor):
                self._set(made, described, depth)
        return made

    def learn(self, answer: Message) -> None:
        """Remember the texts of an answer, for requests to come."""
        for found in _inside(answer):
            if isinstance(found, str) and 0 < len(found) <= 200 and found not in self.names:
                self.names.append(found)
        del self.names[MOST_NAMES:]

    def _chosen(self, descriptor: Descriptor) -> Iterator[FieldDescriptor]:
        """Yield the fields to set: of each `oneof` one at most."""
        for described in descriptor.fields:
            if described.containing_oneof is None:
                yield described
        for group in descriptor.oneofs:
            if self.chance.random() > self.odd:
                yield self.chance.choice(list(group.fields))

    def _set(self, made: Any, described: FieldDescriptor, depth: int) -> None:
        rules = described.GetOptions().Extensions[rules_pb2.rules]
        # A number that was not set is 0.
        needed = not described.has_presence and (rules.HasField("above") or rules.minimum > 0)
        left_out = self.odd if rules.required or rules.min_items or needed else SELDOM.get(described.name, 0.4)
        if self.chance.random() < left_out:
            return
        if described.is_repeated:
            count = self.chance.choice([1, 1, 2, 3, max(rules.min_items, 1)])
            if rules.max_items and self.chance.random() < self.odd:
                count = min(rules.max_items + 1, 2000)
            items = getattr(made, described.name)
            if described.message_type is not None and described.message_type.GetOptions().map_entry:
                self._fill(items, described.message_type, depth)
            elif described.message_type is not None:
                items.extend(self.message(described.message_type, depth - 1) for _ in range(count if depth > 0 else 0))
            else:
                items.extend(self._value(described, rules) for _ in range(count))
        elif described.message_type is not None:
            if depth > 0:
                getattr(made, described.name).CopyFrom(self.message(described.message_type, depth - 1))
        else:
            setattr(made, described.name, self._value(described, rules))

    def _fill(self, items: Any, entry: Descriptor, depth: int) -> None:
        key, value = entry.fields_by_name["key"], entry.fields_by_name["value"]
        for _ in range(self.chance.randrange(3)):
            name = self._value(key, rules_pb2.FieldRules())
            if value.message_type is not None:
                items[name].CopyFrom(self.message(value.message_type, depth - 1))
            else:
                items[name] = self._value(value, rules_pb2.FieldRules())

    def _value(self, described: FieldDescriptor, rules: rules_pb2.FieldRules) -> Any:
        kind = described.cpp_type
        if kind == FieldDescriptor.CPPTYPE_STRING:
            if described.type == FieldDescriptor.TYPE_BYTES:
                return self.chance.randbytes(self.chance.choice([0, 1, 12, 32, 100]))
            return self._text(described.name, rules)
        if kind == FieldDescriptor.CPPTYPE_BOOL:
            return self.chance.random() < 0.5
        if kind == FieldDescriptor.CPPTYPE_ENUM:
            return 99 if self.chance.random() < self.odd else self.chance.choice(described.enum_type.values).number
        return self._number(kind, rules)

    def _text(self, name: str, rules: rules_pb2.FieldRules) -> str:
        if self.chance.random() < self.odd:
            return self.chance.choice(TEXTS)
        if rules.uuid:
            return str(uuid.UUID(int=self.chance.getrandbits(128)))
        if rules.pattern:
            if fitting := [known for known in self.names if re.fullmatch(rules.pattern, known)]:
                return self.chance.choice(fitting)
            return "".join(self.chance.choices(string.ascii_lowercase, k=max(rules.min_length, 8)))
        if name in self.likely:
            return self.chance.choice(self.likely[name])
        return self.chance.choice(self.chance.choice([TEXTS, self.names]))

    def _number(self, kind: int, rules: rules_pb2.FieldRules) -> float | int:
        low, high = _INTEGERS.get(kind, (-1e308, 1e308))
        if self.chance.random() > self.odd:
            if rules.HasField("minimum"):
                low = max(low, rules.minimum)
            if rules.HasField("above"):
                low = max(low, math.nextafter(rules.above, math.inf))
            if rules.HasField("maximum"):
                high = min(high, rules.maximum)
        if kind in _INTEGERS:
            within = [number for number in WHOLE if low <= number <= high] or [low]
            return int(self.chance.choice([*within, min(high, low + self.chance.randrange(50)), low, high]))
        if low == -1e308 and self.chance.random() < self.odd:
            return self.chance.choice(BROKEN)
        least = low if low > -1e308 else 0.0
        most = high if high < 1e308 else least + 100.0
        return self.chance.choice([least, most, least + (most - least) * self.chance.random() ** 4, 1.0, 0.5, 1e-5])


@dataclass
class Outcome:
    """How a run of the fuzzer went.

    Attributes:
        answered: calls of each method that were answered.
        refused: refusals by their reason.
        slowest: seconds that the slowest call of each method took.
    """

    answered: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    slowest: dict[str, float] = field(default_factory=dict)


def fuzz(
    world: World, seconds: float, seed: int, names: list[str], likely: dict[str, list[str]], private: Canary
) -> Outcome:
    """Call every method with random messages for some seconds.

    Args:
        world: the services.
        seconds: how long.
        seed: the same seed makes the same messages to services that answer the same.
        names: of what there is.
        likely: values of fields, by their name, that mostly make sense.
        private: is in the rows; only their own worker may read it.

    Raises:
        AssertionError: naming the call, if an answer is not mapped, or holds what is private.
    """
    chance, outcome = random.Random(seed), Outcome()
    maker = Maker(chance, names, likely)
    methods = [method for name, method in sorted(METHODS.items()) if method.full_name.startswith("murmura.")]
    end = time.monotonic() + seconds
    while (began := time.monotonic()) < end:
        method = chance.choice(methods)
        name = short(method)
        if outcome.answered[name] >= MOST.get(name, sys.maxsize) or (name in LATE and began < end - seconds / 5):
            continue
        roles = allowed_roles(f"/{method.containing_service.full_name}/{method.name}")
        able = [caller for caller, role in CALLERS.items() if role in roles]
        caller = chance.choice(able if able and chance.random() < 0.9 else list(CALLERS))
        count = chance.randrange(1, 4) if method.client_streaming else 1
        requests = [maker.request(method.input_type) for _ in range(count)]
        code, reason, answers = world.call(
            method, requests, world.token(caller, world.where(method)), MOST_ANSWERS.get(name, 20)
        )
        taken = time.monotonic() - began
        told = f"{name} by {caller}: {code} {reason} after {taken:.1f} s\n{str(requests)[:6000]}"
        if code == "OK":
            outcome.answered[name] += 1
        else:
            outcome.refused[reason] += 1
            assert code in REFUSALS, told
            assert reason and reason not in BROKEN_REASONS, told
        for answer in answers:
            maker.learn(answer)
            failed = {item.reason for item in _inside(answer) if isinstance(item, errors_pb2.ItemError)}
            assert not failed & BROKEN_ITEMS, f"{told}\n{answer}"
            if name != "DatasetService/ReadRows":
                assert not private.found_in(answer.SerializeToString()), told
        outcome.slowest[name] = max(taken, outcome.slowest.get(name, 0.0))
    return outcome


def _inside(message: Message) -> Iterator[Any]:
    """Yield a message and all that it holds: messages, numbers, texts, and the keys of maps."""
    yield message
    for described, value in message.ListFields():
        if described.message_type is not None and described.message_type.GetOptions().map_entry:
            yield from value
            continue
        for item in value if described.is_repeated else [value]:
            yield from _inside(item) if isinstance(item, Message) else [item]
