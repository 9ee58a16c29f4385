"""What a service refuses to start with, and what it says then."""

import json

import pytest

from services.common.config import ServiceSettings
from tests.support.certificates import Authority
from tests.support.identity_provider import ED, public

PEOPLE = [{"kid": "deployment", "may_issue": ["analyst", "service"]}, {"kid": "trainer", "may_issue": ["worker"]}]


@pytest.fixture
def start(tmp_path, monkeypatch, capsys):
    """Return what loads settings from given variables, and the sentence that it ends with if it does not."""

    def load(keys=PEOPLE, **variables):
        kept = [public(ED, **key) for key in keys]
        (tmp_path / "trusted.json").write_text(json.dumps({"keys": kept}))
        (tmp_path / "token").write_text("a.b.c\n")
        given = {
            "STATE_DIR": str(tmp_path),
            "TRUSTED_KEYS": str(tmp_path / "trusted.json"),
            "SERVICE_TOKEN_FILE": str(tmp_path / "token"),
            **variables,
        }
        with monkeypatch.context() as patch:
            for name, value in given.items():
                if value is not None:
                    patch.setenv(f"MURMURA_{name}", value)
            try:
                return ServiceSettings.load()
            except SystemExit as ended:
                assert ended.code == 2
                return capsys.readouterr().err

    return load


@pytest.fixture
def ledger(tmp_path):
    return Authority(tmp_path / "tls").service("ledger").environment()


WORKERS = PEOPLE[1:]


@pytest.mark.parametrize("listen", ["0.0.0.0:7402", "[::]:7402", "10.0.0.7:7402", "ledger.hospital:7402", ":7402"])
def test_in_the_clear_a_service_listens_on_this_machine_only(start, listen):
    said = start(WORKERS, LISTEN=listen)
    assert "Traceback" not in said
    for name in ("MURMURA_LISTEN", "MURMURA_TLS_CERTIFICATE", "MURMURA_TLS_KEY", "MURMURA_TLS_AUTHORITY"):
        assert name in said


@pytest.mark.parametrize("listen", ["127.0.0.1:7402", "localhost:0", "[::1]:0", "unix:/run/ledger"])
def test_on_this_machine_it_needs_no_tls(start, listen):
    assert start(LISTEN=listen).local


def test_with_tls_it_listens_anywhere(start, ledger):
    settings = start(WORKERS, LISTEN="0.0.0.0:7402", SERVICES_LISTEN="0.0.0.0:7412", **ledger)
    assert not settings.local
    assert settings.certificates is not None


def test_tokens_that_a_deployment_mints_are_for_one_machine(start, ledger):
    for listen in ({"LISTEN": "0.0.0.0:7402"}, {"SERVICES_LISTEN": "0.0.0.0:7412"}):
        said = start(**listen, **ledger)
        assert "MURMURA_TRUSTED_KEYS: the key 'deployment' may issue analyst, service" in said
        assert "MURMURA_OIDC_ISSUER" in said
    assert start(**ledger).roles_of_keys >= {"analyst", "service"}
    assert start(WORKERS, LISTEN="0.0.0.0:7402", **ledger).roles_of_keys == {"worker"}


def test_the_three_files_come_together(start, ledger):
    for missing in ledger:
        rest = {name: value for name, value in ledger.items() if name != missing}
        assert "come all or none" in start(**rest)
    assert "MURMURA_SERVICES_LISTEN needs TLS" in start(SERVICES_LISTEN="127.0.0.1:0")


def test_files_that_do_not_fit_are_named(start, ledger, tmp_path):
    other = Authority(tmp_path / "other").service("ledger")
    assert f"{other.key} is not the key of" in start(**(ledger | {"TLS_KEY": str(other.key)}))
    assert "No such file" in start(**(ledger | {"TLS_KEY": str(tmp_path / "none")}))
    (tmp_path / "rubbish").write_text("rubbish")
    assert "not all are PEM files" in start(**(ledger | {"TLS_AUTHORITY": str(tmp_path / "rubbish")}))


def test_without_tls_a_service_shows_a_token(start, ledger):
    assert "MURMURA_SERVICE_TOKEN_FILE" in start(SERVICE_TOKEN_FILE=None)
    assert start(SERVICE_TOKEN_FILE=None, **ledger).certificates is not None


def test_groups_make_people_only(start):
    assert "no group can be service" in start(OIDC_ROLES='{"admins": "service"}')
    settings = start(OIDC_ISSUER="https://id.example", OIDC_ROLES='{"doctors": "analyst"}')
    assert settings.oidc().roles == {"doctors": "analyst"}
    assert start().oidc() is None


@pytest.mark.parametrize("url", ["http://id.example", "ftp://id.example", "id.example", "file:///etc/passwd"])
def test_keys_come_from_nowhere_that_others_could_pose_as(start, url):
    assert "MURMURA_OIDC_ISSUER: must be an https:// URL" in start(OIDC_ISSUER=url)
    assert "MURMURA_OIDC_JWKS_URL: must be an https:// URL" in start(OIDC_JWKS_URL=url)
