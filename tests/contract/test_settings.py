"""Whatever stands in a variable of a service, it is taken, or the service ends with a sentence that names it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from services.common.config import Settings
from services.dataset.__main__ import DatasetSettings
from services.inference.settings import InferenceSettings
from services.ledger.settings import LedgerSettings
from services.trainer.__main__ import TrainerSettings
from services.trainer.cluster.settings import ClusterSettings

ALL: list[type[Settings]] = [LedgerSettings, DatasetSettings, TrainerSettings, InferenceSettings, ClusterSettings]
SIGNING_KEY = Ed25519PrivateKey.generate().private_bytes(
    serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
)
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


# What a file must hold, by the settings that name it. Files that are checked together are tests/unit/common's.
FILES: dict[str, type[Settings]] = {
    "trusted_keys": LedgerSettings,
    "service_token_file": LedgerSettings,
    "oidc_authority": LedgerSettings,
    "redis_password_file": LedgerSettings,
    "transit_token_file": DatasetSettings,
    "transit_authority": DatasetSettings,
    "signing_key_file": TrainerSettings,
    "prices": TrainerSettings,
}
TOGETHER = {"tls_certificate", "tls_key", "tls_authority"}
# Their use says what is wrong: tests/integration/test_starts.py.
DIRECTORIES = {"state_dir", "artifacts"}
WRITTEN = {"audit_log"}
LIBRARY_S = {"kubeconfig"}
CONTENTS: dict[str, bytes | None] = {
    "missing": None,
    "empty": b"",
    "binary": b"\xff\x00\xfe",
    "words": b"Zanzibar is far\n",
    "another": b'{"Zanzibar": 1}',
    "private": b"-----BEGIN PRIVATE KEY-----\nZanzibar\n-----END PRIVATE KEY-----\n",
}
# A password may be any text, and so may a token without blanks.
TAKEN = {("redis_password_file", kind) for kind in ("empty", "words", "another", "private")}


def test_every_file_is_in_one_list() -> None:
    found = {name for one in ALL for name, field in one.model_fields.items() if "Path" in str(field.annotation)}
    assert found == set(FILES) | TOGETHER | DIRECTORIES | WRITTEN | LIBRARY_S


@pytest.mark.parametrize("kind", [*CONTENTS, "directory"])
@pytest.mark.parametrize("field", FILES)
def test_a_file_holds_what_it_should_or_is_named(
    field: str, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    settings, file = FILES[field], tmp_path / "Timbuktu"
    if kind == "directory":
        file.mkdir()
    elif (content := CONTENTS[kind]) is not None:
        file.write_bytes(content)
    # What is checked with all others wants those to be there.
    (tmp_path / "keys").write_text('{"keys": []}')
    (tmp_path / "token").write_text("a.b.c")
    (tmp_path / "key.pem").write_bytes(SIGNING_KEY)
    told = {"TRUSTED_KEYS": "keys", "SERVICE_TOKEN_FILE": "token", "SIGNING_KEY_FILE": "key.pem", "STATE_DIR": "state"}
    given = {f"MURMURA_{name}": str(tmp_path / where) for name, where in told.items()} | {
        f"MURMURA_{name}": "127.0.0.1:1" for name in ("LEDGER_ENDPOINT", "DATASET_ENDPOINT", "TRAINER_ENDPOINT")
    }
    given |= {"MURMURA_BASE_MODELS": "{}", "MURMURA_ARTIFACTS": str(tmp_path / "artifacts")}
    assert said(settings, monkeypatch, capsys, **given) == set()
    lines = said(settings, monkeypatch, capsys, **given | {f"MURMURA_{field.upper()}": str(file)})
    if (field, kind) in TAKEN:
        assert lines == set()
        return
    [line] = lines
    assert line.startswith(f"MURMURA_{field.upper()}: ")
    assert "Zanzibar" not in line
    # Whoever errs writes a secret where the name of its file belongs; a file of prices is none.
    assert "Timbuktu" not in line or field == "prices"


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ("ledger", "must be host:port"),
        ("ledger:", "must be host:port"),
        ("ledger:grpc", "must be host:port"),
        ("ledger:99999", "at most 65535"),
        ("::1:7402", "in brackets"),
        (":7402", "must be host:port: where the other service is"),
        ("http://ledger:7402", "must be host:port, without a scheme or a path"),
        ("ledger:7402/", "must be host:port, without a scheme or a path"),
        ("ledger:7402", ""),
        ("[::1]:7402", ""),
        ("dns:///ledger:7402", ""),
        ("unix:/run/ledger", ""),
    ],
)
def test_another_service_is_named_as_grpc_takes_it(
    value: str, says: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = said(DatasetSettings, monkeypatch, capsys, MURMURA_LEDGER_ENDPOINT=value)
    about = [line for line in lines if line.startswith("MURMURA_LEDGER_ENDPOINT: ")]
    assert len(about) == bool(says)
    assert says in "".join(about)
