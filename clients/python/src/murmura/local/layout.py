"""Where the embedded default keeps its state, and what each of its services is told.

One place decides directories, endpoints and environment, so that `up`, `status`, `down`, `doctor` and the tests
speak of the same things.
"""

from __future__ import annotations

import importlib.util
import json
import os
from dataclasses import dataclass, field
from pathlib import Path

from murmura.local.identity import PEOPLE, Identity, write_private

SERVICES = ("ledger", "dataset", "trainer", "inference")
DEFAULT_BASE_PORT = 7401
BASE_MODEL = "murmura-base"


@dataclass(frozen=True)
class Layout:
    """The state directory of one embedded deployment.

    Attributes:
        directory: usually `.murmura` in the working directory.
        base_models: public name to local path or hub id.
        engine: `auto`, `vllm` or `transformers`.
        worker_processes: of each worker; they share a private fine-tune.
    """

    directory: Path
    base_models: dict[str, str] = field(default_factory=dict)
    engine: str = "auto"
    worker_processes: int = 1

    @property
    def profile(self) -> Path:
        """The file that tells a client where the services are."""
        return self.directory / "profile.json"

    def log(self, service: str) -> Path:
        """The log file of a service."""
        return self.directory / "logs" / f"{service}.log"

    def state(self, service: str) -> Path:
        """The state directory of a service."""
        return self.directory / "services" / service

    def process_file(self, service: str) -> Path:
        """The file that names the running process of a service."""
        return self.state(service) / "process.json"

    def endpoints(self) -> dict[str, str]:
        """Read the endpoints of the last `up`; empty before the first."""
        if not self.profile.exists():
            return {}
        endpoints: dict[str, str] = json.loads(self.profile.read_text())["endpoints"]
        return endpoints

    def write_profile(self, endpoints: dict[str, str], identity: Identity) -> None:
        """Write the profile that `Client()` reads."""
        tokens = {role: str(identity.token_file(role).resolve()) for role in PEOPLE}
        profile = {"version": 1, "endpoints": endpoints, "tokens": tokens}
        write_private(self.profile, json.dumps(profile, indent=2) + "\n")

    def environment(self, service: str, endpoints: dict[str, str], identity: Identity) -> dict[str, str]:
        """Return the environment of a service: this process's, with Murmura's settings over it."""
        models = self.base_models or default_base_models()
        settings = {
            "LISTEN": endpoints[service],
            "STATE_DIR": str(self.state(service).resolve()),
            "TRUSTED_KEYS": str(identity.trusted_keys.resolve()),
            "SERVICE_TOKEN_FILE": str(identity.token_file(f"service:{service}").resolve()),
            "LOG_FORMAT": "json",
            "BASE_MODELS": json.dumps(models),
            "ARTIFACTS": str((self.directory / "artifacts").resolve()),
            "SIGNING_KEY_FILE": str(identity.trainer_key.resolve()),
            "ENGINE": self.engine,
            "WORKER_PROCESSES": str(self.worker_processes),
        }
        if service != "trainer":
            # Only the trainer signs, so the others get the public halves, and starts workers.
            del settings["SIGNING_KEY_FILE"], settings["WORKER_PROCESSES"]
        for name, endpoint in endpoints.items():
            settings[f"{name.upper()}_ENDPOINT"] = endpoint
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("MURMURA_")}
        return inherited | {f"MURMURA_{name}": value for name, value in settings.items()}


def default_base_models() -> dict[str, str]:
    """Return the bundled base model's name and path, or nothing where it is not bundled."""
    services = importlib.util.find_spec("services")
    for place in services.submodule_search_locations or () if services else ():
        weights = Path(place).parent / "deploy" / "local" / "base_model" / "weights"
        if (weights / "config.json").exists():
            return {BASE_MODEL: str(weights)}
    return {}


def mint_all(identity: Identity) -> None:
    """Mint a fresh token for every role and service."""
    for role in PEOPLE:
        identity.mint(f"{role}@local", role)
    for service in SERVICES:
        identity.mint(f"service:{service}", "service")
