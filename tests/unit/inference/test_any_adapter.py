"""Whatever an adapter's files hold, it is served or refused by name of a check: nothing else comes of it."""

from __future__ import annotations

import json
import os
import random
import shutil
import struct
from pathlib import Path
from typing import Any

import pytest

from services.inference.artifacts import parse_manifest
from services.inference.base_models import linear_shapes, skeleton
from services.inference.verification import CONFIG, WEIGHTS, Limits, Rejected, verify_adapter

SEED = int(os.environ.get("MURMURA_FUZZ_SEED", "11"))
CASES = 400
ODD: list[Any] = [None, True, False, 0, -1, 1, 65, 2**63, 10**400, 1e308, 1e-320, float("nan"), float("inf")]
ODD += ["", "LORA", "é\0", "all-linear", [], [1], ["q_proj"], ["q_proj", "q_proj"], [["q_proj"]], {}, {"a": 1}]
KINDS = ["F64", "F32", "F16", "BF16", "I64", "BOOL", "F8_E4M3", "F8_E8M0", "F4", "C64", "X", None, 7]
SHAPES: list[Any] = [[], [0], [-1], [1 << 63], [1 << 32, 1 << 32], [1.5], "x", None, [None], [2] * 30]
PLACES: list[Any] = [[0, 0], [-1, 4], [4, 0], [0, 1 << 63], [1, 2, 3], None, "x", [0.5, 1]]
DEEP = [b"[" * 60_000, b'{"a":' * 10_000]


def odd_config(chance: random.Random, config: dict[str, Any]) -> bytes:
    changed = dict(config)
    for _ in range(chance.randint(1, 3)):
        changed[chance.choice([*config, "use_dora", "rank_pattern", "invented"])] = chance.choice(ODD)
    text = json.dumps(changed).encode()
    return chance.choice([text] * 16 + [b"", text[:-1], b"\xef\xbb\xbf" + text, b"null", *DEEP])


def odd_weights(chance: random.Random, weights: bytes) -> bytes:
    size = struct.unpack("<Q", weights[:8])[0]
    if chance.random() < 0.4:
        damaged = bytearray(weights)
        for _ in range(chance.randint(1, 8)):
            damaged[chance.randrange(len(damaged) if chance.random() < 0.3 else 8 + size)] = chance.randrange(256)
        return bytes(damaged[: chance.randrange(len(damaged))] if chance.random() < 0.3 else damaged)
    header = json.loads(weights[8 : 8 + size])
    for _ in range(chance.randint(1, 3)):
        name = chance.choice(list(header))
        member, values = chance.choice([("dtype", KINDS), ("shape", SHAPES), ("data_offsets", PLACES), ("", [])])
        if member and isinstance(header[name], dict):
            header[name][member] = chance.choice(values)
        else:
            header[chance.choice(["x", name.upper(), "é", ""])] = header.pop(name)
    text = json.dumps(header).encode()
    said = chance.choice([len(text)] * 8 + [0, 1 << 63, len(text) + 5])
    return struct.pack("<Q", said) + text + weights[8 + size :]


def test_any_adapter_is_served_or_refused(tiny_base: Path, tiny_adapters: list[Path], tmp_path: Path) -> None:
    chance, shapes = random.Random(SEED), linear_shapes(skeleton(tiny_base))
    config = json.loads((tiny_adapters[0] / CONFIG).read_bytes())
    weights = (tiny_adapters[0] / WEIGHTS).read_bytes()
    adapter = shutil.copytree(tiny_adapters[0], tmp_path / "adapter")
    found: dict[str, int] = {}
    for case in range(CASES):
        (adapter / CONFIG).write_bytes(odd_config(chance, config) if case % 2 else json.dumps(config).encode())
        (adapter / WEIGHTS).write_bytes(weights if case % 2 else odd_weights(chance, weights))
        try:
            verify_adapter(adapter, shapes, Limits())
            outcome = "served"
        except Rejected as refusal:
            outcome = refusal.check
        found[outcome] = found.get(outcome, 0) + 1
    assert {"served", "format", "config", "rank", "names"} <= set(found)


MANIFEST = {
    "adapter": "adapters/x",
    "base_model": "baseModels/tiny",
    "owner": "ana@local",
    "training_job": "trainingJobs/x",
    "create_time": "2026-01-01T00:00:00Z",
    "files": {WEIGHTS: "00"},
    "statement": {"unlimited": False, "epsilon": 3.0, "delta": 1e-5},
}


@pytest.mark.parametrize(
    "text", [b"", b"[]", b"null", b"\xff", b"{", *DEEP], ids=lambda text: text[:6].decode("latin-1")
)
def test_what_is_no_manifest_is_refused(text: bytes) -> None:
    with pytest.raises(Rejected) as refused:
        parse_manifest(text, b"")
    assert refused.value.check == "manifest"


def test_any_manifest_is_read_or_refused() -> None:
    chance, read = random.Random(SEED), 0
    values = [
        *ODD,
        [["a", "b"]],
        [[["a"], "b"]],
        "2026",
        "99999-01-01",
        {"price": {"units": 10**30}},
        {"epsilon": "NaN"},
    ]
    for _ in range(CASES):
        members = dict(MANIFEST)
        for _ in range(chance.randint(1, 2)):
            members[chance.choice(list(MANIFEST))] = chance.choice(values)
        try:
            parse_manifest(json.dumps(members).encode(), b"")
            read += 1
        except Rejected as refused:
            assert refused.check == "manifest"
    assert 0 < read < CASES
