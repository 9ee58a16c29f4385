"""What the dataset service is told, and what follows where it is told nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from murmura.api.dataset.v1 import dataset_pb2
from services.dataset.__main__ import DatasetSettings
from services.dataset.columns import Unreadable
from services.dataset.keys import TransitKeys
from services.dataset.vault import Vault
from tests.support.certificates import Authority


@pytest.fixture
def told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name, content in {
        "keys/trusted.json": '{"keys": []}',
        "tokens/dataset": "a.b.c",
        "tokens/vault": "s.t",
    }.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content)
    for name, value in {
        "LEDGER_ENDPOINT": "127.0.0.1:1",
        "STATE_DIR": str(tmp_path / "state"),
        "TRUSTED_KEYS": str(tmp_path / "keys" / "trusted.json"),
        "SERVICE_TOKEN_FILE": str(tmp_path / "tokens" / "dataset"),
    }.items():
        monkeypatch.setenv(f"MURMURA_{name}", value)
    return monkeypatch


def refusal(settings: DatasetSettings, path: Path, directory: Path) -> str:
    """What registering a file is refused with; empty where it is not."""
    source = dataset_pb2.Source(file=dataset_pb2.FileSource(url=str(path), format=dataset_pb2.FILE_FORMAT_CSV))
    try:
        list(settings.places.read(source, "patient", {}, Vault(directory / "vault")))
    except Unreadable as problem:
        return str(problem)
    return ""


def rows(path: Path) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text("patient\np\n")
    return path


def test_on_one_machine_every_file_but_the_service_s_own_can_be_registered(
    told: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    settings = DatasetSettings()
    assert refusal(settings, rows(tmp_path / "data" / "rows.csv"), tmp_path) == ""
    for own in ("state/master.key", "keys/deployment.pem", "tokens/steward"):
        assert "MURMURA_SOURCES" in refusal(settings, rows(tmp_path / own), tmp_path)


def test_where_a_network_can_call_nothing_can_be_registered_until_it_is_configured(
    told: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    files = Authority(tmp_path / "tls").service("dataset").environment()
    told.setenv("MURMURA_LISTEN", "0.0.0.0:0")
    for name, value in files.items():
        told.setenv(f"MURMURA_{name}", str(value))
    path = rows(tmp_path / "data" / "rows.csv")
    assert "MURMURA_SOURCES" in refusal(DatasetSettings(), path, tmp_path)
    told.setenv("MURMURA_SOURCES", f'["{tmp_path}/data"]')
    assert refusal(DatasetSettings(), path, tmp_path) == ""


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("SOURCES", '["ftp://x/y"]', "ftp://x/y"),
        ("SOURCES", '["data"]', "absolute"),
        ("DATABASES", '{"clinic": "Zanzibar:no"}', "'clinic'"),
        ("TRANSIT_URL", "http://vault.example:8200", "TRANSIT_TOKEN_FILE"),
    ],
)
def test_what_is_wrong_is_named(
    told: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str, value: str, says: str
) -> None:
    told.setenv(f"MURMURA_{name}", value)
    with pytest.raises(SystemExit):
        DatasetSettings.load()
    said = capsys.readouterr().err
    assert says in said
    assert "Zanzibar" not in said


def test_a_transit_key_is_used_where_one_is_named(told: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert DatasetSettings().transit is None
    told.setenv("MURMURA_TRANSIT_URL", "https://vault.example:8200")
    told.setenv("MURMURA_TRANSIT_TOKEN_FILE", str(tmp_path / "tokens" / "vault"))
    assert isinstance(DatasetSettings().transit, TransitKeys)
