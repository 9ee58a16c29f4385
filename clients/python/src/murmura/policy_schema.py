"""What a policy file may say, written once: the schema, the reader, the writer and the diff are made from this table.

The bounds of each number and list are those of the contract (`dataset.proto`), read from its descriptors, so a file
that passes the schema passes the service's rules. `python -m murmura.policy_schema` writes `policy.schema.json` anew;
it is published with the package, for editors and for checks that run where there is no Murmura.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from google.protobuf.descriptor import FieldDescriptor

from murmura.api.common.v1 import rules_pb2
from murmura.api.dataset.v1 import dataset_pb2

SCHEMA_FILE = Path(__file__).with_name("policy.schema.json")
FIRST_DRAFT = "https://json-schema.org/draft/2020-12/schema"
_CAP = "Two stewards change a cap: client.steward.propose_cap(…) by one, client.steward.approve_cap(…) by the other."
_FIXED = "It was fixed when the account was opened, and stays."


@dataclass(frozen=True)
class Term:
    """One thing that a policy says.

    Attributes:
        path: where it stands in a file.
        field: what it is called in the contract.
        says: what it means, for a steward.
        instead: where the ledger keeps it, so that no policy changes it: what to do.
    """

    path: tuple[str, ...]
    field: str
    says: str
    instead: str = ""

    @property
    def name(self) -> str:
        """How a person is told of it."""
        return ".".join(self.path)

    @property
    def descriptor(self) -> FieldDescriptor:
        """Its field in the contract."""
        return dataset_pb2.Policy.DESCRIPTOR.fields_by_name[self.field]


TERMS = (
    Term(("epsilon",), "epsilon", "The cap: the epsilon that all jobs together may reach at `delta`.", _CAP),
    Term(("delta",), "delta", "The delta of the cap, far below one in the number of privacy units.", _FIXED),
    Term(("analysts",), "analysts", "Who may use the dataset; empty: any analyst. For others it does not exist."),
    Term(("unlimited", "allowed"), "unlimited_allowed", "Whether jobs without privacy are allowed at all.", _FIXED),
    Term(
        ("unlimited", "principals"),
        "unlimited_principals",
        "Who may run jobs without privacy, if they are allowed; empty: any analyst who may use the dataset.",
        _FIXED,
    ),
    Term(
        ("currency", "noise_multiplier"),
        "unit_noise_multiplier",
        "Noise multiplier of one unit of the account; 0: the ledger's default.",
        _FIXED,
    ),
    Term(
        ("currency", "sampling_probability"),
        "unit_sampling_probability",
        "Sampling probability of one unit of the account; 0: the ledger's default.",
        _FIXED,
    ),
)
_GROUPS = {
    "unlimited": "Jobs without privacy: what they make may repeat what they read.",
    "currency": "In what the account counts. The default is right unless a house knows its jobs.",
}
_DATASET = {
    "type": "string",
    "pattern": "^(datasets/)?[a-z0-9][a-z0-9-]{0,62}$",
    "description": "The dataset that the policy is for.",
}
_VERSION = {
    "type": "integer",
    "minimum": 1,
    "description": "The version that this was made from. Where another stands by now, it is not applied.",
}


def schema() -> dict[str, Any]:
    """Return the JSON schema of a policy file."""
    properties: dict[str, Any] = {"dataset": _DATASET, "version": _VERSION}
    for term in TERMS:
        place = properties
        for group in term.path[:-1]:
            made = {"type": "object", "description": _GROUPS[group], "additionalProperties": False, "properties": {}}
            place = place.setdefault(group, made)["properties"]
        place[term.path[-1]] = {**_kind(term.descriptor), "description": term.says}
    return {
        "$schema": FIRST_DRAFT,
        "title": "A dataset's policy",
        "description": "Who may do what with a private dataset of Murmura.",
        "type": "object",
        "required": ["epsilon", "delta"],
        "additionalProperties": False,
        "properties": properties,
    }


def text() -> str:
    """Return the schema as it is published."""
    return json.dumps(schema(), indent=2, ensure_ascii=False) + "\n"


def _kind(field: FieldDescriptor) -> dict[str, Any]:
    """Return what a value must be, by the field's type and rules."""
    rules: Any = field.GetOptions().Extensions[rules_pb2.rules]
    if field.is_repeated:
        item = {"type": "string", "minLength": 1, "maxLength": rules.max_length}
        return {"type": "array", "maxItems": rules.max_items, "uniqueItems": True, "items": item}
    if field.type == FieldDescriptor.TYPE_BOOL:
        return {"type": "boolean"}
    bounds = {"minimum": "minimum", "maximum": "maximum", "above": "exclusiveMinimum"}
    return {"type": "number"} | {word: getattr(rules, name) for name, word in bounds.items() if rules.HasField(name)}


if __name__ == "__main__":
    SCHEMA_FILE.write_text(text(), encoding="utf-8")
