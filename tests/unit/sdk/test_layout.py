"""What each service of a local deployment is told."""

from __future__ import annotations

from pathlib import Path

import pytest

from murmura.local.identity import Identity
from murmura.local.layout import SERVICES, Layout


@pytest.fixture
def told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, dict[str, str]]:
    """The environment of each service, beside a setting of this process that is nobody's."""
    monkeypatch.setenv("MURMURA_STRAY", "1")
    layout = Layout(tmp_path, {"tiny": "/models/tiny"}, "transformers", worker_processes=2)
    endpoints = {service: f"127.0.0.1:{port}" for port, service in enumerate(SERVICES, 7401)}
    identity = Identity(tmp_path)
    return {service: layout.environment(service, endpoints, identity) for service in SERVICES}


def test_only_the_trainer_signs_and_starts_workers(told: dict[str, dict[str, str]]) -> None:
    for name in ("MURMURA_SIGNING_KEY_FILE", "MURMURA_WORKER_PROCESSES"):
        assert [service for service in SERVICES if name in told[service]] == ["trainer"]
    assert told["trainer"]["MURMURA_WORKER_PROCESSES"] == "2"


def test_each_knows_the_others_and_listens_at_its_own_place(told: dict[str, dict[str, str]]) -> None:
    for service in SERVICES:
        assert told[service]["MURMURA_LISTEN"] == told["trainer"][f"MURMURA_{service.upper()}_ENDPOINT"]
        assert told[service]["MURMURA_BASE_MODELS"] == '{"tiny": "/models/tiny"}'


def test_settings_of_this_process_are_not_passed_on(told: dict[str, dict[str, str]]) -> None:
    assert not any("MURMURA_STRAY" in environment for environment in told.values())
