"""Policy files: what they may say, what is told of one that is wrong, and in what two differ."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import pytest

from murmura import policy, policy_schema
from murmura.api.dataset.v1 import dataset_pb2
from murmura.calls.registration import _policy
from murmura.errors import InvalidInput

GOOD = """\
# who may do what
dataset: phee
version: 3
epsilon: 25
delta: 1e-4
analysts: [bob@local, ana@local]
unlimited:
  allowed: true
  principals: ["no"]
currency: {noise_multiplier: 500}
"""


def test_a_file_says_a_policy() -> None:
    found = policy.parse(GOOD)
    assert (found.dataset, found.version) == ("datasets/phee", 3)
    assert found.policy == dataset_pb2.Policy(
        epsilon=25,
        delta=1e-4,
        analysts=["bob@local", "ana@local"],
        unlimited_allowed=True,
        unlimited_principals=["no"],
        unit_noise_multiplier=500,
    )


def test_what_is_written_is_read_back() -> None:
    found = policy.parse(GOOD)
    text = policy.write(found.policy, found.dataset, found.version)
    again = policy.parse(text)
    assert policy.differences(found.policy, again.policy) == []
    assert (again.dataset, again.version) == (found.dataset, found.version)
    assert policy.write(again.policy, again.dataset, again.version) == text


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("epsilon: 2000\ndelta: 1e-5", "p:1: epsilon is 2000; the most is 1000"),
        ("epsilon: 0\ndelta: 1e-5", "p:1: epsilon is 0; it must be more than 0"),
        ("epsilon: .nan\ndelta: 1e-5", "p:1: epsilon is not a number"),
        ("epsilon: 8\ndelta: tiny", "p:2: delta is tiny; write a number"),
        ("epsilon: 8", "p:1: delta is missing; add it"),
        ("epsilon: 8\ndelta: 1e-5\nanalists: []", "p:3: analists is no field; did you mean analysts?"),
        (
            "epsilon: 8\ndelta: 1e-5\nunlimited:\n  allow: true",
            "p:4: unlimited.allow is no field; did you mean allowed?",
        ),
        ("epsilon: 8\ndelta: 1e-5\nanalysts:\n  - a\n  - 3", "p:5: analysts[1] is 3; write a text"),
        ("epsilon: 8\ndelta: 1e-5\nanalysts: [a, a]", "p:3: analysts names someone twice"),
        ("epsilon: 8\ndelta: 1e-5\nanalysts: ['']", "p:3: analysts[0] is empty"),
        ("epsilon: 8\ndelta: 1e-5\nanalysts: ana", "p:3: analysts is ana; write a list"),
        ("epsilon: 8\ndelta: 1e-5\nunlimited: true", "p:3: unlimited is true; write a group"),
        ("epsilon: 8\ndelta: 1e-5\nunlimited: {allowed: 1}", "p:3: unlimited.allowed is 1; write true or false"),
        ("epsilon: 8\ndelta: 1e-5\ndataset: Phee!", "p:3: dataset is Phee!; write a dataset's name"),
        ("epsilon: 8\ndelta: 1e-5\nepsilon: 9", "p:3: epsilon stands on line 1 already"),
        (
            "epsilon: 8\ndelta: 1e-5\nunlimited:\n  allowed: true\n  allowed: false",
            "p:5: unlimited.allowed stands on line 4",
        ),
        ("epsilon: &a 8\ndelta: *a", "p:2: *a: write it out"),
        ("<<: {epsilon: 8}\ndelta: 1e-5", "p:1: << takes nothing in"),
        ("epsilon: !!python/object/apply:os.getcwd []\ndelta: 1e-5", "p:1: this is no YAML"),
        ("epsilon: [8\ndelta: 1", "p:2: this is no YAML"),
        ("epsilon: 8\ndelta: 1e-5\n1: 2", "p:3: 1 is no field"),
        ("- epsilon", "p:1: a policy is a group of fields"),
        ("", "p:1: a policy is a group of fields"),
        ("? [a]\n: 1", "p:1: a field's name is a text"),
        ("epsilon: 2021-02-30\ndelta: 1", "p:1: this is no policy"),
        ("epsilon: \x00", "p:1: this is no YAML"),
        ("[" * 5000, "p:1: this is no"),
    ],
)
def test_what_is_wrong_is_told_with_its_line_and_the_fix(text: str, told: str) -> None:
    with pytest.raises(InvalidInput) as refusal:
        policy.parse(text, "p")
    assert told in str(refusal.value)
    assert "Nothing was changed" in str(refusal.value)


def test_all_that_is_wrong_is_told_at_once() -> None:
    with pytest.raises(InvalidInput) as refusal:
        policy.parse("epsilon: -1\ndelta: x\nanalists: []\n", "p")
    assert [line.split(" ")[0] for line in str(refusal.value).splitlines()[:3]] == ["p:1:", "p:2:", "p:3:"]


def test_a_difference_is_told_by_name_and_order_means_nothing() -> None:
    before = dataset_pb2.Policy(epsilon=8, delta=1e-5, analysts=["a", "b"])
    after = dataset_pb2.Policy(epsilon=9, delta=1e-5, analysts=["c", "b"])
    assert policy.differences(before, dataset_pb2.Policy(epsilon=8, delta=1e-5, analysts=["b", "a"])) == []
    cap, analysts = policy.differences(before, after)
    assert (cap.term.name, cap.removed, cap.added) == ("epsilon", ["8"], ["9"])
    assert (analysts.term.name, analysts.removed, analysts.added) == ("analysts", ["a"], ["c"])
    assert "propose_cap" in cap.term.instead and "approve_cap" in cap.term.instead
    assert not analysts.term.instead


def test_the_published_schema_is_what_the_contract_says() -> None:
    assert policy_schema.SCHEMA_FILE.read_text() == policy_schema.text(), "run python -m murmura.policy_schema"
    jsonschema.Draft202012Validator.check_schema(json.loads(policy_schema.text()))
    assert {term.field for term in policy_schema.TERMS} == set(dataset_pb2.Policy.DESCRIPTOR.fields_by_name)


def test_a_registration_takes_a_file_or_terms_and_not_both(tmp_path: Path) -> None:
    file = tmp_path / "phee.policy.yaml"
    file.write_text(GOOD)
    assert _policy("phee", file) == policy.parse(GOOD).policy
    assert _policy("phee", None, epsilon=1.0, delta=1e-5) == dataset_pb2.Policy(epsilon=1, delta=1e-5)
    for wrong in (
        lambda: _policy("phee", file, epsilon=1.0),
        lambda: _policy("other", file),
        lambda: _policy("phee", None, epsilon=1.0),
        lambda: _policy("phee", tmp_path / "absent.yaml"),
    ):
        with pytest.raises(InvalidInput):
            wrong()
