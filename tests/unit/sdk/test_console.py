"""Who may look at the console, what its answers let a page do, and what it says where nothing answers."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from murmura.api.dataset.v1 import dataset_pb2
from murmura.console import app, server
from murmura.console.guard import COOKIE
from murmura.console.reader import Reader
from murmura.errors import MurmuraError

KEY = "the-key"
PAGES = ("/", "/activity", "/datasets/d", "/trainingJobs/j", "/adapters/a", "/adapters/a/report")


@pytest.fixture
def visitor() -> TestClient:
    """Somebody at a console whose services are all away."""
    console = app.application(Reader("grpc://127.0.0.1:1", "a.b.c"), KEY)
    return TestClient(console, base_url="http://127.0.0.1:7410", follow_redirects=False)


@pytest.fixture
def holder(visitor: TestClient) -> TestClient:
    """The same, with the key."""
    visitor.cookies.set(COOKIE, KEY)
    return visitor


@pytest.mark.parametrize("path", [*PAGES, "/static/console.js", "/nothing"])
@pytest.mark.parametrize("key", ["", "?key=", "?key=the-kez", "?key=%C3%A9"])
def test_without_the_key_there_is_nothing(visitor: TestClient, path: str, key: str) -> None:
    answer = visitor.get(path + key)
    assert answer.status_code == 403 and "murmura console" in answer.text
    assert COOKIE not in answer.cookies


def test_the_key_leaves_the_address(visitor: TestClient) -> None:
    answer = visitor.get(f"/datasets/d?key={KEY}")
    assert (answer.status_code, answer.headers["location"]) == (303, "/datasets/d")
    kept = answer.headers["set-cookie"]
    assert f"{COOKIE}={KEY}" in kept and "HttpOnly" in kept and "SameSite=strict" in kept
    assert KEY not in visitor.get("/").text


@pytest.mark.parametrize("host", ["attacker.example", "attacker.example:7410", "127.0.0.1.attacker.example", ""])
def test_another_name_is_refused_even_with_the_key(holder: TestClient, host: str) -> None:
    """A foreign page that has the browser ask under a name of its own (DNS rebinding) gets nothing."""
    assert holder.get("/", headers={"host": host}).status_code == 400
    assert holder.get(f"/?key={KEY}", headers={"host": host}).status_code == 400


def test_a_foreign_address_is_no_redirect(visitor: TestClient) -> None:
    answer = visitor.get(f"http://127.0.0.1:7410//attacker.example/?key={KEY}")
    assert answer.status_code == 303
    assert not answer.headers["location"].startswith("//")


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE"])
@pytest.mark.parametrize("path", PAGES)
def test_nothing_can_be_changed(holder: TestClient, method: str, path: str) -> None:
    assert holder.request(method, path).status_code == 405


@pytest.mark.parametrize("path", [*PAGES, "/static/console.js", "/nothing"])
def test_nothing_foreign_runs_on_a_page_or_frames_it(holder: TestClient, path: str) -> None:
    headers = holder.get(path).headers
    policy = dict(rule.split(" ", 1) for rule in headers["content-security-policy"].split("; "))
    assert (policy["default-src"], policy["script-src"], policy["frame-ancestors"]) == ("'none'", "'self'", "'none'")
    # Only the report, which is a file of its own and has no script, carries its style with it.
    assert policy["style-src"] == ("'unsafe-inline'" if path.endswith("/report") else "'self'")
    assert (headers["cache-control"], headers["referrer-policy"]) == ("no-store", "no-referrer")


@pytest.mark.parametrize(("path", "parts"), [("/", 4), ("/activity", 1)])
def test_services_that_are_away_take_their_parts_and_no_more(holder: TestClient, path: str, parts: int) -> None:
    answer = holder.get(path)
    assert answer.status_code == 200
    assert answer.text.count("does not answer") == answer.text.count('class="problem"><strong>') == parts
    assert "murmura status" in answer.text


@pytest.mark.parametrize("path", PAGES[2:])
def test_a_page_of_what_cannot_be_asked_for_says_so(holder: TestClient, path: str) -> None:
    answer = holder.get(path)
    assert answer.status_code == 502 and "does not answer" in answer.text


def test_a_budget_that_the_ledger_does_not_know_is_said_so() -> None:
    class Forgetful(Reader):
        def all(self, call, field):
            lost = dataset_pb2.Dataset(name="datasets/d", account="accounts/lost")
            return [lost] if field == "datasets" else []

        def each(self, call, field):
            return iter(())

    console = app.application(Forgetful("grpc://127.0.0.1:1", "a.b.c"), KEY)
    visitor = TestClient(console, base_url="http://127.0.0.1:7410", cookies={COOKIE: KEY})
    answer = visitor.get("/")
    assert answer.status_code == 200 and "The ledger does not know this budget." in answer.text


def test_no_such_page(holder: TestClient) -> None:
    answer = holder.get("/nothing")
    assert answer.status_code == 404 and "There is nothing here" in answer.text


@pytest.mark.parametrize("path", ["/static/../guard.py", "/static/%2e%2e/guard.py", "/static/..%2fguard.py"])
def test_only_what_is_static_is_served(holder: TestClient, path: str) -> None:
    assert holder.get(path).status_code == 404


def test_a_port_that_is_taken_says_what_to_do() -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        with pytest.raises(MurmuraError, match=r"is taken.*--port 0"):
            server.serve(Reader("grpc://127.0.0.1:1", "a.b.c"), other.getsockname()[1], lambda address: None)


def test_the_pages_need_nothing_from_elsewhere() -> None:
    folder = Path(app.__file__).parent
    for path in [*folder.glob("static/*"), *folder.glob("templates/*")]:
        assert "://" not in path.read_text(), path
