"""What the ledger is told, and what is wrong with it in a sentence."""

import pytest

from services.common.redis_checks import NEEDED, complaints, parse_info
from services.ledger.settings import LedgerSettings

SAFE = {name: needed for name, (needed, _) in NEEDED.items()}
INFO = {"redis_version": "7.0.15", "role": "master", "cluster_enabled": "0", "aof_rewrite_in_progress": "0"}


@pytest.fixture
def load(monkeypatch, tmp_path, capsys):
    def loads(**settings):
        (tmp_path / "keys").write_text('{"keys": []}')
        (tmp_path / "token").write_text("a.b.c")
        given = {"STATE_DIR": tmp_path, "TRUSTED_KEYS": tmp_path / "keys", "SERVICE_TOKEN_FILE": tmp_path / "token"}
        for name, value in {**given, **settings}.items():
            monkeypatch.setenv(f"MURMURA_{name}", str(value))
        try:
            return LedgerSettings.load()
        except SystemExit as ended:
            assert ended.code == 2
            return capsys.readouterr().err

    return loads


def test_the_default_is_a_file(load):
    assert load().store == "sqlite"


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("", "needs redis://host:port"),
        ("http://host", "needs redis://host:port"),
        ("redis://:s3cret@host", "MURMURA_REDIS_PASSWORD_FILE"),
        ("redis://host?socket_timeout=0", "has the option socket_timeout, which is not allowed"),
        ("rediss://host?ssl_cert_reqs=none", "has the option ssl_cert_reqs, which is not allowed"),
    ],
)
def test_a_url_that_cannot_be_is_named(load, url, said):
    text = load(STORE="redis", REDIS_URL=url)
    assert text.startswith("MURMURA_REDIS_URL: ") and said in text
    assert "s3cret" not in text


@pytest.mark.parametrize(
    ("name", "value"),
    [("STORE", "etcd"), ("REDIS_PASSWORD_FILE", "/absent"), ("REDIS_TIMEOUT_S", 0), ("REDIS_KEY_PREFIX", "two words")],
)
def test_other_mistakes_are_named(load, name, value):
    assert load(**{name: value}).startswith(f"MURMURA_{name}: ")


def test_a_password_is_read_without_its_line_break(load, tmp_path):
    (tmp_path / "password").write_text("s3cret\n")
    settings = load(STORE="redis", REDIS_URL="unix:///run/redis.sock", REDIS_PASSWORD_FILE=tmp_path / "password")
    assert settings.redis_password() == "s3cret"
    assert "s3cret" not in repr(settings)


def test_a_safe_server_has_nothing_wrong():
    assert complaints(SAFE, INFO) == []


@pytest.mark.parametrize(
    ("config", "info", "said"),
    [
        ({"appendonly": "no"}, {}, "appendonly is no and must be yes"),
        ({"appendfsync": "everysec"}, {}, "CONFIG SET appendfsync always"),
        ({"no-appendfsync-on-rewrite": "yes"}, {}, "no-appendfsync-on-rewrite is yes"),
        ({"maxmemory-policy": "volatile-ttl"}, {}, "maxmemory-policy is volatile-ttl"),
        ({}, {"role": "slave"}, "role is slave"),
        ({}, {"cluster_enabled": "1"}, "cluster-enabled is yes"),
        ({}, {"redis_version": "6.0.16"}, "6.2 or later"),
        ({}, {"redis_version": "unstable"}, "6.2 or later"),
        ({}, {"aof_rewrite_in_progress": "1"}, "aof_rewrite_in_progress is 1"),
    ],
)
def test_one_fault_is_one_sentence(config, info, said):
    found = complaints({**SAFE, **config}, {**INFO, **info})
    assert len(found) == 1 and said in found[0]


def test_what_a_server_does_not_say_counts_against_it():
    assert len(complaints({}, {})) == len(NEEDED) + 2


def test_info_is_read_line_by_line():
    assert parse_info("# Server\r\nredis_version:7.0.15\r\n\r\nrole:master\r\n") == {
        "redis_version": "7.0.15",
        "role": "master",
    }
