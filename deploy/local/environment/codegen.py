"""Generate the Python stubs from the protos, or tell which of the committed ones are stale.

The generated code is committed, so that nobody needs a compiler to use Murmura and a review shows
what a change of a contract does to its users. It comes from an environment of its own
(`.venv-codegen`, made from `codegen.txt`): gencode imports only on a protobuf runtime as new as its
generator, so the generator is older than the runtime, and pinned.

    python deploy/local/environment/codegen.py            # write clients/python/src/murmura/api
    python deploy/local/environment/codegen.py --check    # compare, name stale files, exit 1

Only the standard library is used, so any Python from 3.11 on runs it.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
REQUIREMENTS = Path(__file__).with_name("codegen.txt")
ENVIRONMENT = ROOT / ".venv-codegen"
PROTOS = ROOT / "protos"
SOURCES = ROOT / "clients" / "python" / "src"
PACKAGE = Path("murmura") / "api"

# All that is on the wire is grpc.aio, so the stubs are typed for it alone: a blocking call is then
# a type error.
GRPC_TYPES = "only_async"


class CodegenError(Exception):
    """Something that a person has to mend; its text says what, why and the next step."""


def main() -> int:
    """Run the command line.

    Returns:
        The exit status: 0, or 1 where files are stale (`--check`) or the protos do not compile.
    """
    parser = argparse.ArgumentParser(description="Generate the Python stubs from the protos.")
    parser.add_argument("--check", action="store_true", help="compare with what is committed, change nothing")
    parser.add_argument("--environment-only", action="store_true", help="make .venv-codegen and stop")
    options = parser.parse_args()
    try:
        python = ensure_environment()
        if options.environment_only:
            return 0
        with tempfile.TemporaryDirectory(prefix="murmura-codegen-") as folder:
            generate(python, Path(folder))
            return check(Path(folder)) if options.check else install(Path(folder))
    except CodegenError as error:
        print(f"codegen: {error}", file=sys.stderr)
        return 1


def ensure_environment() -> Path:
    """Make `.venv-codegen` from `codegen.txt` unless it is there and complete.

    Returns:
        Its Python.

    Raises:
        CodegenError: if it cannot be made.
    """
    python = ENVIRONMENT / "bin" / "python"
    stamp = ENVIRONMENT / "stamp"
    wanted = hashlib.sha256(REQUIREMENTS.read_bytes() + sys.version.encode()).hexdigest()
    with locked(ROOT / ".venv-codegen.lock"):
        if python.exists() and stamp.exists() and stamp.read_text() == wanted:
            return python
        print("codegen: making .venv-codegen (once)", file=sys.stderr)
        shutil.rmtree(ENVIRONMENT, ignore_errors=True)
        pip = [
            str(python),
            "-m",
            "pip",
            "install",
            "-qq",
            "--disable-pip-version-check",
            "--no-deps",
        ]
        try:
            subprocess.run([sys.executable, "-m", "venv", str(ENVIRONMENT)], check=True)
            subprocess.run([*pip, "-r", str(REQUIREMENTS)], check=True)
        except (OSError, subprocess.CalledProcessError) as error:
            raise CodegenError(
                "the environment for code generation could not be made (pip's words are above). "
                "It needs Python's venv module and a reachable index; then run it again."
            ) from error
        stamp.write_text(wanted)
        return python


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold an advisory lock, so that two runs at once do not tear one environment.

    Args:
        path: the lock's file.

    Yields:
        Nothing.
    """
    with path.open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def proto_files() -> list[str]:
    """List the protos.

    Returns:
        Their paths below `protos/`, sorted, as protoc wants them.

    Raises:
        CodegenError: if there are none.
    """
    files = sorted(path.relative_to(PROTOS).as_posix() for path in PROTOS.joinpath(PACKAGE).rglob("*.proto"))
    if not files:
        raise CodegenError(f"no .proto file under {PROTOS.joinpath(PACKAGE).relative_to(ROOT)}")
    return files


def generate(python: Path, target: Path) -> None:
    """Generate everything into a folder.

    Args:
        python: the Python of `.venv-codegen`.
        target: an empty folder; modules land in `target/murmura/api/…`.

    Raises:
        CodegenError: if the protos do not compile.
    """
    files = proto_files()
    with_services = [name for name in files if "\nservice " in PROTOS.joinpath(name).read_text(encoding="utf-8")]
    # protoc looks for its plug-ins on PATH.
    environment = {**os.environ, "PATH": f"{python.parent}{os.pathsep}{os.environ.get('PATH', '')}"}
    protoc = [str(python), "-m", "grpc_tools.protoc", f"--proto_path={PROTOS}"]
    messages = [f"--python_out={target}", f"--mypy_out=quiet:{target}", *files]
    # Only files that hold a service get a _grpc module; the others would get an empty one.
    services = [
        f"--grpc_python_out={target}",
        f"--mypy_grpc_out=quiet,{GRPC_TYPES}:{target}",
        *with_services,
    ]
    for arguments in [messages, services] if with_services else [messages]:
        if subprocess.run([*protoc, *arguments], env=environment, check=False).returncode != 0:
            raise CodegenError("the protos do not compile; mend what protoc names above")
    for folder in [
        target / PACKAGE,
        *sorted(path for path in (target / PACKAGE).rglob("*") if path.is_dir()),
    ]:
        folder.joinpath("__init__.py").write_text(docstring(folder.relative_to(target)), encoding="utf-8")


def docstring(package: Path) -> str:
    """Write the source of a package's `__init__.py`.

    Args:
        package: its path, `murmura/api/ledger/v1`.

    Returns:
        One docstring.
    """
    parts = package.parts[2:]
    if not parts:
        return '"""The contracts, generated by `make codegen`; never edited by hand."""\n'
    return f'"""Generated from protos/{package.as_posix()}."""\n'


def tree(base: Path) -> dict[str, bytes]:
    """Read the generated package.

    Args:
        base: what holds `murmura/api`.

    Returns:
        Contents by path below `base`, bytecode left out.
    """
    return {
        path.relative_to(base).as_posix(): path.read_bytes()
        for path in sorted(base.joinpath(PACKAGE).rglob("*"))
        if path.is_file() and "__pycache__" not in path.parts
    }


def check(fresh: Path) -> int:
    """Compare what was generated with what is committed.

    Args:
        fresh: what holds the fresh `murmura/api`.

    Returns:
        0 where they agree, else 1.
    """
    wanted, present = tree(fresh), tree(SOURCES)
    stale = [f"{name} (missing)" for name in wanted.keys() - present.keys()]
    stale += [f"{name} (no proto makes it)" for name in present.keys() - wanted.keys()]
    stale += [f"{name} (differs)" for name in wanted.keys() & present.keys() if wanted[name] != present[name]]
    if not stale:
        print(f"codegen: {len(wanted)} generated files are fresh")
        return 0
    print(
        "codegen: the generated Python does not match the protos; run `make codegen`:",
        file=sys.stderr,
    )
    for line in sorted(stale):
        print(f"  {SOURCES.relative_to(ROOT).as_posix()}/{line}", file=sys.stderr)
    return 1


def install(fresh: Path) -> int:
    """Make the committed tree equal to what was generated, touching only files that change.

    Args:
        fresh: what holds the fresh `murmura/api`.

    Returns:
        0.
    """
    wanted, present = tree(fresh), tree(SOURCES)
    for name in present.keys() - wanted.keys():
        SOURCES.joinpath(name).unlink()
    changed = 0
    for name, content in wanted.items():
        if present.get(name) == content:
            continue
        path = SOURCES / name
        path.parent.mkdir(parents=True, exist_ok=True)
        # Replaced whole, so that whoever imports it meanwhile never reads half a file.
        part = path.with_name(f"{path.name}.part")
        part.write_bytes(content)
        part.replace(path)
        changed += 1
    for folder in sorted(SOURCES.joinpath(PACKAGE).rglob("*"), reverse=True):
        if folder.is_dir() and not any(child.is_file() and child.suffix != ".pyc" for child in folder.rglob("*")):
            shutil.rmtree(folder)
    print(f"codegen: {len(wanted)} files, {changed} changed, under {(SOURCES / PACKAGE).relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
