"""Policies as files that people write: reading one, writing one, and saying in what two differ.

A file is YAML, read by PyYAML's safe loader without the two habits of YAML that mislead: a key that stands twice, of
which the second would win, and `1e-4`, which YAML 1.1 takes for a text. What it may say is the published schema. All
that is wrong with a file is said at once, each with its line, its field and what to write instead.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from murmura.api.dataset.v1 import dataset_pb2
from murmura.errors import InvalidInput
from murmura.policy_schema import TERMS, Term, schema

MAX_BYTES = 1 << 20
_KINDS = {
    "number": "a number, for example 8 or 1e-5",
    "integer": "a whole number",
    "boolean": "true or false",
    "string": "a text",
    "array": "a list, for example [ana@hospital.example], or [] for none",
    "object": "a group of fields",
}


@dataclass(frozen=True)
class PolicyFile:
    """What a policy file says.

    Attributes:
        policy: as the contract knows it.
        dataset: `datasets/<id>`, or empty where the file names none.
        version: the version that it was made from; 0 where the file names none.
    """

    policy: dataset_pb2.Policy
    dataset: str = ""
    version: int = 0


@dataclass(frozen=True)
class Change:
    """One thing in which two policies differ.

    Attributes:
        term: what.
        before: what the first says.
        after: what the second says.
    """

    term: Term
    before: Any
    after: Any

    @property
    def removed(self) -> list[str]:
        """What is only in the first, for people."""
        return _only(self.before, self.after)

    @property
    def added(self) -> list[str]:
        """What is only in the second, for people."""
        return _only(self.after, self.before)


def read(path: str | Path) -> PolicyFile:
    """Read a policy file.

    Raises:
        InvalidInput: with everything that is wrong with it.
    """
    path = Path(path)
    try:
        raw = path.read_bytes()
        text = raw.decode()
    except (OSError, UnicodeDecodeError) as problem:
        raise InvalidInput(f"{path} cannot be read as a text in UTF-8: {problem}.") from None
    if len(raw) > MAX_BYTES:
        raise InvalidInput(f"{path} is larger than a mebibyte; a policy is a page.")
    return parse(text, str(path))


def parse(text: str, source: str = "policy") -> PolicyFile:
    """Read a policy from a text; `source` names it to the reader.

    Raises:
        InvalidInput: with everything that is wrong with it.
    """
    document, lines, problems = _load(text, source)
    if not problems:
        problems = list(_breaches(document, lines))
    if problems:
        told = "\n".join(f"{source}:{line}: {says}" for line, says in sorted(problems))
        raise InvalidInput(f"{told}\nNothing was changed. `murmura policy schema` prints what a policy may say.")
    policy = dataset_pb2.Policy()
    for term in TERMS:
        value: Any = document
        for key in term.path:
            value = value.get(key, {})
        if value != {}:
            policy.MergeFrom(dataset_pb2.Policy(**{term.field: value}))
    name = str(document.get("dataset", "")).removeprefix("datasets/")
    return PolicyFile(policy, f"datasets/{name}" if name else "", int(document.get("version", 0)))


def for_dataset(file: PolicyFile, dataset: str = "") -> str:
    """Return the dataset that a file is for: the one that is named beside it, else its own.

    Raises:
        InvalidInput: if neither names one, or they name two.
    """
    named = f"datasets/{dataset.removeprefix('datasets/')}" if dataset else ""
    if named and file.dataset and named != file.dataset:
        raise InvalidInput(f"The file is for {file.dataset}, and {named} was named. Nothing was changed.")
    if not (named or file.dataset):
        raise InvalidInput("The file names no dataset: write `dataset: datasets/…` into it, or name one beside it.")
    return named or file.dataset


def write(policy: dataset_pb2.Policy, dataset: str = "", version: int = 0) -> str:
    """Return a policy as a file that `read` takes, each field with what it means."""
    lines = [f"{key}: {value}" for key, value in (("dataset", dataset), ("version", version)) if value]
    group = ""
    for term in TERMS:
        indent = "  " * (len(term.path) - 1)
        if indent and term.path[0] != group:
            group = term.path[0]
            lines += ["", f"{group}:"]
        lines += [*([] if indent else [""]), f"{indent}# {term.says}"]
        lines.append(f"{indent}{term.path[-1]}: {_written(_value(policy, term))}")
    return "\n".join(lines).strip() + "\n"


def differences(before: dataset_pb2.Policy, after: dataset_pb2.Policy) -> list[Change]:
    """Return in what two policies differ. The order of names means nothing."""
    pairs = ((term, _value(before, term), _value(after, term)) for term in TERMS)
    return [Change(term, one, other) for term, one, other in pairs if one != other]


def _value(policy: dataset_pb2.Policy, term: Term) -> Any:
    value = getattr(policy, term.field)
    return sorted(value) if term.descriptor.is_repeated else value


def _written(value: Any) -> str:
    """Return a value in YAML."""
    plain = int(value) if isinstance(value, float) and value.is_integer() else value
    return (
        yaml.safe_dump(plain, default_flow_style=True, allow_unicode=True, width=1 << 16)
        .removesuffix("\n...\n")
        .strip()
    )


def _only(one: Any, other: Any) -> list[str]:
    if isinstance(one, list):
        return [item for item in one if item not in other]
    return [_written(one)]


# ---------------------------------------------------------------- YAML, with lines


class _Loader(yaml.SafeLoader):
    """The safe loader, which also takes `1e-4` for a number."""


_Loader.yaml_implicit_resolvers = {key: list(found) for key, found in yaml.SafeLoader.yaml_implicit_resolvers.items()}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+"), list("-+0123456789")
)


@dataclass
class _Lines:
    """On which line each thing of a document stands, counted from 1."""

    found: dict[tuple[str | int, ...], int] = field(default_factory=dict)

    def of(self, path: tuple[str | int, ...]) -> int:
        while path and path not in self.found:
            path = path[:-1]
        return self.found.get(path, 1)


def _load(text: str, source: str) -> tuple[Any, _Lines, list[tuple[int, str]]]:
    """Return a document, its lines, and what is wrong with it as YAML."""
    lines, problems = _Lines(), []
    try:
        for event in yaml.parse(text, Loader=_Loader):
            if isinstance(event, yaml.AliasEvent):
                line = event.start_mark.line + 1 if event.start_mark else 1
                return None, lines, [(line, f"*{event.anchor}: write it out; a policy refers to nothing")]
        root = yaml.compose(text, Loader=_Loader)
        if root is not None:
            problems = list(_walk(root, (), lines))
        return (yaml.load(text, Loader=_Loader) if not problems else None), lines, problems  # noqa: S506 - it is a SafeLoader
    except yaml.MarkedYAMLError as problem:
        place = problem.problem_mark or problem.context_mark
        return None, lines, [(place.line + 1 if place else 1, f"this is no YAML: {problem.problem}")]
    except yaml.YAMLError:
        return None, lines, [(1, "this is no YAML: it holds a character that YAML does not have")]
    except (ValueError, RecursionError):
        return None, lines, [(1, "this is no policy: a value has the form of a date or is nested without end")]


def _walk(node: yaml.Node, path: tuple[str | int, ...], lines: _Lines) -> Iterator[tuple[int, str]]:
    lines.found.setdefault(path, node.start_mark.line + 1)
    if isinstance(node, yaml.MappingNode):
        seen: dict[str, int] = {}
        for key, value in node.value:
            name, line = str(key.value), key.start_mark.line + 1
            if not isinstance(key, yaml.ScalarNode):
                yield line, "a field's name is a text"
                continue
            if name == "<<":
                yield line, "<< takes nothing in; write the fields out"
            if name in seen:
                yield line, f"{_name((*path, name))} stands on line {seen[name]} already; keep one of the two"
            seen[name] = line
            lines.found[(*path, name)] = line
            yield from _walk(value, (*path, name), lines)
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            yield from _walk(value, (*path, index), lines)


# ---------------------------------------------------------------- the schema's rules, for people


def _breaches(document: Any, lines: _Lines) -> Iterator[tuple[int, str]]:
    import jsonschema

    if not isinstance(document, dict):
        yield 1, "a policy is a group of fields; it begins with `epsilon: 8` and `delta: 1e-5`"
        return
    for breach in jsonschema.Draft202012Validator(schema()).iter_errors(document):
        path = tuple(breach.absolute_path)
        if breach.validator == "additionalProperties":
            known = list(breach.schema["properties"])
            for key in breach.instance.keys() - known:
                near = difflib.get_close_matches(str(key), known, 1)
                fix = f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}"
                yield lines.of((*path, str(key))), f"{_name((*path, str(key)))} is no field; {fix}"
        else:
            yield lines.of(path), f"{_name(path)}{_told(breach)}"
    for path in lines.found:
        value = _at(document, path)
        # A bound lets it pass: it is neither less nor more than anything.
        if isinstance(value, float) and math.isnan(value):
            yield lines.of(path), f"{_name(path)} is not a number; write {_KINDS['number']}"


def _at(document: Any, path: tuple[str | int, ...]) -> Any:
    """Return what stands at a place; None for a key that is no text, which has no place."""
    for part in path:
        try:
            document = document[part]
        except (KeyError, IndexError, TypeError):
            return None
    return document


def _told(breach: Any) -> str:
    """Say what breaks a rule and what to write instead."""
    wanted, value = breach.validator_value, breach.instance
    told: dict[str, Callable[[], str]] = {
        "type": lambda: f" is {_written(value)}; write {_KINDS[wanted]}",
        "minimum": lambda: f" is {value:g}; the least is {wanted:g}",
        "maximum": lambda: f" is {value:g}; the most is {wanted:g}",
        "exclusiveMinimum": lambda: f" is {value:g}; it must be more than {wanted:g}",
        "uniqueItems": lambda: " names someone twice; once is enough",
        "maxItems": lambda: f" has {len(value)} items; the most is {wanted}",
        "minLength": lambda: " is empty; write a name, or take it out",
        "maxLength": lambda: f" has {len(value)} characters; the most is {wanted}",
        "pattern": lambda: f" is {_written(value)}; write a dataset's name, for example datasets/phee",
        "required": lambda: f"{breach.message.split(' is a')[0]} is missing; add it".replace("'", ""),
    }
    return told[str(breach.validator)]()


def _name(path: tuple[str | int, ...]) -> str:
    """Return how a person is told of a place."""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).removeprefix(".")
