"""The C++ program of `clients/README.md`, built and run as it says there, against the real services."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from murmura import Client
from murmura.local.layout import Layout

ROOT = Path(__file__).parents[2]
PACKAGES = "g++ pkg-config protobuf-compiler-grpc libgrpc++-dev"


def missing() -> str:
    """Say which tool is not on this machine, or nothing."""
    for tool in ("g++", "pkg-config", "protoc", "grpc_cpp_plugin"):
        if shutil.which(tool) is None:
            return tool
    return "" if subprocess.run(["pkg-config", "--exists", "grpc++"], check=False).returncode == 0 else "grpc++"


pytestmark = [
    pytest.mark.e2e,
    pytest.mark.slow,
    pytest.mark.timeout(420),
    pytest.mark.skipif(bool(missing()), reason=f"no {missing()} on this machine: needs Debian's {PACKAGES}"),
]


def blocks(language: str) -> list[str]:
    """Return the README's blocks of a language."""
    text = (ROOT / "clients/README.md").read_text()
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.M | re.S)


def test_the_program_of_the_readme(murmura_up: Callable[[str], Layout], tmp_path: Path) -> None:
    [program], [build] = blocks("cpp"), blocks("sh")
    (tmp_path / "protos").symlink_to(ROOT / "protos")
    (tmp_path / "list_datasets.cc").write_text(program)
    built = subprocess.run(["bash", "-ec", build], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert built.returncode == 0, built.stderr[-4000:]

    layout = murmura_up("tiny")
    source = tmp_path / "notes.jsonl"
    source.write_text("".join(json.dumps({"patient": f"p{n}", "text": f"{n}"}) + "\n" for n in range(12)))
    steward = Client(profile=layout.profile, role="steward")
    steward.register("notes", source, privacy_unit="patient", epsilon=1.0, delta=1e-3)
    facts = json.loads(layout.profile.read_text())

    def ask(token: str) -> subprocess.CompletedProcess[str]:
        words = ["./list_datasets", facts["endpoints"]["dataset"], token]
        return subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=60)

    told = ask(facts["tokens"]["analyst"])
    assert (told.returncode, told.stdout) == (0, "datasets/notes: 12 rows\n"), told.stderr
    (tmp_path / "forged").write_text("nobody")
    refused = ask(str(tmp_path / "forged"))
    assert refused.returncode == 1 and "token" in refused.stderr.lower()
