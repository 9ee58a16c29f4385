"""Whatever stands in a variable of a service, it is taken, or the service ends with a sentence that names it."""

from __future__ import annotations

import os

import pytest

from services.common.config import Settings
from services.dataset.__main__ import DatasetSettings
from services.inference.settings import InferenceSettings
from services.ledger.settings import LedgerSettings
from services.trainer.__main__ import TrainerSettings
from services.trainer.cluster.settings import ClusterSettings

ALL: list[type[Settings]] = [LedgerSettings, DatasetSettings, TrainerSettings, InferenceSettings, ClusterSettings]
ODD = [
    "",
    "x",
    "-1",
    "0",
    "1e999",
    "nan",
    "[]",
    "{}",
    '["a"]',
    '{"a": 1}',
    "null",
    "é",
    "../..",
    "[::1]:0",
    ":0",
    "1\n2",
]


@pytest.mark.parametrize(
    ("settings", "field"),
    [(one, field) for one in ALL for field in one.model_fields],
    ids=lambda given: given if isinstance(given, str) else given.__name__,
)
def test_any_value_is_taken_or_named(
    settings: type[Settings], field: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    name = settings.model_config.get("env_prefix", "") + field.upper()
    missing = {line for line in said(settings, monkeypatch, capsys) if not line.startswith(name)}
    for value in ODD:
        lines = said(settings, monkeypatch, capsys, **{name: value})
        # What is missing besides is said as ever, where the value does not end it before.
        wrong = lines - missing
        assert all("MURMURA_" in line for line in wrong), f"{value!r}: {wrong}"
        assert not wrong or any(name in line for line in wrong), f"{value!r}: {wrong}"


def said(
    settings: type[Settings], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], **given: str
) -> set[str]:
    """Load settings with these variables alone; return the lines that this ends the process with, if it does."""
    for name in [name for name in os.environ if name.startswith("MURMURA_")]:
        monkeypatch.delenv(name)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    try:
        settings.load()
    except SystemExit as ended:
        assert ended.code == 2
    return set(capsys.readouterr().err.splitlines())


@pytest.mark.parametrize("settings", ALL)
def test_what_must_be_json_is_told_so_without_its_value(
    settings: type[Settings], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A value may hold the password of a database."""
    found = 0
    for field in settings.model_fields:
        name = settings.model_config.get("env_prefix", "") + field.upper()
        lines = said(settings, monkeypatch, capsys, **{name: "postgresql://reader:Zanzibar@db"})
        assert not any("Zanzibar" in line for line in lines)
        if lines == {f'{name}: must be JSON, such as ["one", "two"] or {{"name": "value"}}'}:
            found += 1
    assert found or settings is LedgerSettings
