"""A real Redis: which one is trusted with the journal, and what happens when it or the way to it fails."""

import ssl
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from services.ledger.journal import Head, StoreUnusable
from services.ledger.redis_store import RedisStore
from services.ledger.state import Event
from services.ledger.writer import Writer
from tests.support.journal import TERMS, chain

UNSAFE = {
    "appendonly": "no",
    "appendfsync": "everysec",
    "no-appendfsync-on-rewrite": "yes",
    "maxmemory-policy": "allkeys-lru",
}


@pytest.mark.parametrize("setting", UNSAFE)
def test_an_unsafe_setting_is_named_with_its_remedy(redis_server, setting):
    server = redis_server(**{setting: UNSAFE[setting]})
    with pytest.raises(StoreUnusable) as caught:
        RedisStore(server.url)
    text = str(caught.value)
    assert f"{setting} is {UNSAFE[setting]} and must be" in text
    remedy = text.split("`redis-cli ")[1].split("`")[0].split()
    server.client().execute_command(*remedy)
    if setting == "appendonly":
        while server.client().info("persistence")["aof_rewrite_in_progress"]:
            pass
    RedisStore(server.url).close()


def test_all_that_is_wrong_is_said_at_once(redis_server):
    server = redis_server(**UNSAFE)
    with pytest.raises(StoreUnusable) as caught:
        RedisStore(server.url)
    assert all(setting in str(caught.value) for setting in UNSAFE)


def test_the_service_does_not_start_on_an_unsafe_server(redis_server, ledger):
    server = redis_server(appendfsync="everysec")
    process = ledger(STORE="redis", REDIS_URL=server.url)
    assert process.launch().wait(timeout=60) == 2
    assert "MURMURA_REDIS_URL" in process.log() and "appendfsync is everysec" in process.log()
    assert "Traceback" not in process.log()


def test_a_server_that_was_configured_anew_is_found_out_at_the_next_connection(redis_server):
    server = redis_server()
    store, entries = RedisStore(server.url), chain(2)
    store.append(Head(), entries[:1])
    server.client().config_set("appendfsync", "everysec")
    server.client().client_kill_filter(_type="normal", skipme=True)
    with pytest.raises(StoreUnusable, match="appendfsync is everysec"):
        store.append(Head.of(entries[0]), entries[1:])
    server.client().config_set("appendfsync", "always")
    store.append(Head.of(entries[0]), entries[1:])
    assert list(store.read()) == entries


def test_a_replica_is_not_trusted(redis_server):
    primary, other = redis_server(), redis_server()
    store, entries = RedisStore(other.url), chain(1)
    other.client().replicaof("127.0.0.1", primary.port)
    with pytest.raises(StoreUnusable):
        store.append(Head(), entries)
    with pytest.raises(StoreUnusable, match="role is slave and must be master"):
        RedisStore(other.url)
    other.client().replicaof("NO", "ONE")
    store.append(Head(), entries)
    assert list(store.read()) == entries


def test_a_server_that_is_away_is_waited_for_by_nobody_and_comes_back(redis_server):
    server = redis_server()
    store, entries = RedisStore(server.url), chain(2)
    store.append(Head(), entries[:1])
    server.kill()
    with pytest.raises(StoreUnusable, match=f"Redis at 127.0.0.1:{server.port} cannot be used"):
        store.read()
    server.start()
    store.append(Head.of(entries[0]), entries[1:])
    assert list(store.read()) == entries


async def test_an_append_whose_answer_is_lost_is_recorded_once(redis_server, proxy):
    server = redis_server()
    between = proxy(server.port)
    store = RedisStore(f"redis://127.0.0.1:{between.port}")
    writer = Writer(store)
    await writer.start()
    await writer.submit(Event("open", "accounts/a", "1", "b", "ann", {"terms": TERMS, "capacity": [100, 100]}))
    for number in range(2, 6):
        between.lose_reply_to = b"EVAL"
        share = {"principal": "ann", "share": [number, 1]}
        head = await writer.submit(Event("grant", "accounts/a", str(number), "b", "ann", share))
        assert head.sequence == number
    assert between.lost == 4
    await writer.stop()
    found = [entry.event()[0].request_id for entry in RedisStore(server.url).read()]
    assert found == ["1", "2", "3", "4", "5"]


def test_two_ledgers_in_one_server_do_not_see_each_other(redis_server):
    server = redis_server()
    one, two = RedisStore(server.url, "one:ledger"), RedisStore(server.url, "two:ledger")
    one.append(Head(), chain(3))
    one.save_snapshot("one")
    assert (list(two.read()), two.snapshot()) == ([], None)
    assert all(server.client().ttl(key) == -1 for key in server.client().keys("*"))


def test_a_password_opens_and_is_never_said(redis_server, tmp_path, ledger):
    server = redis_server(requirepass="s3cret-of-the-house")
    RedisStore(server.url, password="s3cret-of-the-house").close()
    for wrong in (None, "s3cret-of-another"):
        with pytest.raises(StoreUnusable) as caught:
            RedisStore(server.url, password=wrong)
        assert "s3cret" not in str(caught.value)
    (tmp_path / "password").write_text("s3cret-of-another\n")
    process = ledger(STORE="redis", REDIS_URL=server.url, REDIS_PASSWORD_FILE=str(tmp_path / "password"))
    assert process.launch().wait(timeout=60) == 2
    assert "s3cret" not in process.log()


def test_tls_is_checked_against_the_authority(redis_server, proxy, tmp_path):
    server = redis_server()
    for name in ("house", "stranger"):
        certify(tmp_path, name)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "house.pem", tmp_path / "house.key")
    between = proxy(server.port, lambda raw: context.wrap_socket(raw, server_side=True))
    url = f"rediss://127.0.0.1:{between.port}?ssl_ca_certs={tmp_path}"
    store, entries = RedisStore(f"{url}/house.pem"), chain(2)
    store.append(Head(), entries)
    assert list(RedisStore(server.url).read()) == entries
    with pytest.raises(StoreUnusable, match="certificate verify failed"):
        RedisStore(f"{url}/stranger.pem")


def certify(directory, name):
    """Make a key and a certificate that vouches for itself."""
    key, subject = ec.generate_private_key(ec.SECP256R1()), x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    (directory / f"{name}.pem").write_bytes(certificate.public_bytes(pem))
    private = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (directory / f"{name}.key").write_bytes(private)
