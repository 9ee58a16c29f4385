"""A steward at the console, in a real browser, with real services: what there is, what goes on, and what is away.

With `MURMURA_SCREENSHOT=file.png` the first test leaves a picture of the overview.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import expect, sync_playwright

import murmura
from murmura import Canaries, Client
from murmura.api.dataset.v1 import dataset_pb2
from murmura.calls import jobs
from murmura.console.history import Journals, standings
from murmura.llm import LLM
from murmura.local import deployment, processes
from murmura.local.layout import Layout

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.e2e,
    pytest.mark.slow,
    pytest.mark.timeout(420),
    pytest.mark.skipif(CHROMIUM is None, reason="needs a browser: no chromium on this machine"),
]
FLAGS = ("--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-background-networking", "--disable-sync")
PATIENCE_MS = 20_000
SECRET = "quicksilver"
HOSTILE = "<img src=x onerror=alert(1)> ward"


@contextmanager
def console(layout: Layout, port: str = "0") -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """`murmura console`, and the address that it prints."""
    process = subprocess.Popen(
        [sys.executable, "-c", "from murmura.cli.app import main; main()", "console", "--no-open", "--port", port],
        env=os.environ | {"MURMURA_PROFILE": str(layout.profile)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        assert process.stdout
        line = process.stdout.readline()
        found = re.search(r"http://\S+", line)
        assert found, line
        yield found.group(), process
    finally:
        process.terminate()
        process.wait(20)


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    with sync_playwright() as driver:
        found = driver.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS))
        yield found
        found.close()


@pytest.fixture(scope="module")
def town(murmura_for_all: Callable[[str], Layout], tmp_path_factory: pytest.TempPathFactory) -> Layout:
    """A Murmura with two datasets, one of them with a private and an ordinary model and a cap that is to be raised."""
    layout = murmura_for_all("tiny")
    steward, analyst = Client(profile=layout.profile, role="steward"), Client(profile=layout.profile)
    for name, title in (("notes", HOSTILE), ("letters", "")):
        source = tmp_path_factory.mktemp("rows") / f"{name}.jsonl"
        rows = [{"patient": f"p{number // 2}", "text": f"{number} {name} {SECRET}"} for number in range(80)]
        source.write_text("".join(json.dumps(row) + "\n" for row in rows))
        policy = dataset_pb2.Policy(epsilon=10.0, delta=1e-3, unlimited_allowed=name == "notes")
        steward.register(name, source, privacy_unit="patient", policy=policy, display_name=title)
    for epsilon in (4.0, "unlimited"):
        wish = LLM("tiny", analyst).fit(analyst.dataset("notes").as_pandas(), epochs=1, lora_rank=2, max_length=32)
        canaries = Canaries("{name} suffers from |{word}", count=20)
        murmura.eval(wish, target_epsilon=epsilon, canaries=canaries).served_name()
    steward.steward.propose_cap("notes", 12.0, "a second study <b>was</b> approved")
    steward.steward.grant("letters", "analyst@local", 5.0)
    return layout


@pytest.fixture(scope="module")
def address(town: Layout) -> Iterator[str]:
    """Where the console is, with its key."""
    with console(town) as (found, _):
        yield found


@pytest.fixture
def page(chromium: Any, address: str) -> Iterator[Any]:
    """The overview, opened as the command says; whatever goes wrong on a page fails the test."""
    wrong: list[str] = []
    context = chromium.new_context(viewport={"width": 1100, "height": 900})
    context.set_default_timeout(PATIENCE_MS)
    found = context.new_page()
    found.on("console", lambda message: wrong.append(message.text) if message.type == "error" else None)
    found.on("pageerror", lambda error: wrong.append(str(error)))
    found.on("dialog", lambda dialog: wrong.append(dialog.message))
    found.goto(address)
    yield found
    context.close()
    assert not [words for words in wrong if "status of 404" not in words]


def start_a_long_job(client: Client) -> str:
    """Start a job that goes on until somebody stops it; returns its name."""
    wish = LLM("tiny", client).fit(client.dataset("letters").as_pandas(), epochs=3000, lora_rank=2, max_length=32)
    spec = wish.spec(target_epsilon=2.0)
    return str(client.run(jobs.create_job(spec, str(uuid.uuid4()))).training_job.name)


def breaches(page: Any) -> list[str]:
    """What a checker of accessibility finds on a page: rules, and where they are broken."""
    found = Axe().run(page).response["violations"]
    return [f"{one['id']}: {one['nodes'][0]['html']}" for one in found]


def test_a_steward_sees_what_there_is(page: Any, town: Layout) -> None:
    if file := os.environ.get("MURMURA_SCREENSHOT"):
        page.screenshot(path=file, full_page=True)
    assert "key=" not in page.url and page.title() == "Overview · Murmura"
    # What a steward wrote is shown as it was written, and is no part of the page.
    assert page.locator("#datasets h3", has_text=HOSTILE).count() == 1
    assert page.locator("img").count() == 0
    bars = [bar.get_attribute("aria-label") for bar in page.locator("svg.bar").all()]
    assert "0 % spent, 0 % pending, 100 % left" in bars and len(bars) == 2
    adapters = page.locator("#adapters tbody tr")
    assert adapters.count() == 2
    assert "none" in adapters.nth(0).inner_text() and "nothing promised" in adapters.nth(0).inner_text()
    assert "ε = 3.9" in adapters.nth(1).inner_text() and "kept" in adapters.nth(1).inner_text()
    assert "a second study <b>was</b> approved" in page.locator("#lately").inner_text()

    page.get_by_role("link", name=HOSTILE).click()
    page.wait_for_url("**/datasets/notes")
    told = page.locator("main").inner_text()
    client = Client(profile=town.profile, role="steward")
    account = client.account("notes")
    assert f"ε = {account.spent_epsilon:.4g}" in told and "steward@local proposes a cap of ε = 12" in told
    assert "allowed: true" in page.locator("#policy pre").inner_text()
    assert page.locator("#deeds tbody tr").count() == 6
    assert "now" in page.locator("svg.burn-down").get_attribute("aria-label")
    last = standings(Journals(client).of(account.name), account.name)[-1]
    assert (last.capacity, last.spent, last.pending) == (account.capacity.units, account.spent.units, 0)

    page.locator("#jobs th a").nth(1).click()
    page.get_by_role("link", name="The adapter that it made").click()
    page.wait_for_url("**/adapters/*")
    assert "✓ kept" in page.locator("#audit").inner_text() and page.locator("#audit svg").count() == 2
    assert "stewards, and nobody else" in page.locator("#served").inner_text()
    page.get_by_role("link", name="Its privacy report").click()
    page.wait_for_url("**/report")
    assert "That is within what was promised." in page.locator("body").inner_text()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_pages_are_for_everybody(page: Any, scheme: str) -> None:
    page.emulate_media(color_scheme=scheme)
    links = page.locator("a[href^='/datasets/'], a[href^='/trainingJobs/'], a[href^='/adapters/']").all()
    paths = {"/", "/activity", "/datasets/nothing", *(link.get_attribute("href") for link in links)}
    report = {f"{path}/report" for path in paths if path.startswith("/adapters/")}
    assert len(paths) >= 8 and report
    for path in sorted(paths | report):
        page.goto(page.url.partition("/")[0] + "//" + page.url.split("/")[2] + path)
        assert breaches(page) == [], path
        page.set_viewport_size({"width": 360, "height": 700})
        # It is laid out anew a moment later.
        page.wait_for_function("() => document.documentElement.scrollWidth <= 360")
        page.set_viewport_size({"width": 1100, "height": 900})
        assert SECRET not in page.content()


def test_a_running_job_is_followed_and_its_end_is_said(page: Any, town: Layout) -> None:
    client = Client(profile=town.profile)
    page.evaluate("window.unchanged = true")
    name = start_a_long_job(client)
    row = page.locator("#jobs tbody tr", has_text=name.rpartition("/")[2][:8])
    # The page looks anew by itself, and more often while a job runs.
    row.get_by_role("progressbar").wait_for()
    page.wait_for_function("() => document.body.dataset.refresh === '2'")
    expect(row.locator(".state")).to_have_text("running", timeout=60_000)
    bar = row.get_by_role("progressbar")
    expect(bar).not_to_have_attribute("value", "0", timeout=90_000)
    before = int(bar.get_attribute("value"))
    page.wait_for_function("before => document.querySelector('progress')?.value > before", arg=before)
    assert page.locator("#datasets svg.bar").evaluate_all("bars => bars.map(bar => bar.ariaLabel)") != []
    held = client.account("letters")
    assert held.pending.units > 0
    expect(page.locator("#datasets")).not_to_contain_text("0 % held by running jobs 100 % left")
    client.run(jobs.cancel_job(name, client.subject))
    expect(page.get_by_role("status")).to_have_text(f"Job {name.rpartition('/')[2]}: cancelled")
    expect(row.locator(".state")).to_have_text("cancelled")
    assert page.evaluate("window.unchanged"), "it was not loaded again, only kept up to date"


def test_who_has_only_keys(page: Any, town: Layout) -> None:
    press, focused = page.keyboard.press, "document.activeElement.textContent.trim()"
    press("Tab")
    assert page.evaluate(focused) == "Skip to the content"
    assert page.evaluate("document.activeElement.getBoundingClientRect().left") >= 0
    press("Enter")
    press("Tab")
    assert page.evaluate(focused) == "letters", "the first link behind the headings"
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    press("Tab")
    press("Enter")
    page.wait_for_url("**/datasets/notes")
    # A wide table is reached and scrolled with keys.
    page.set_viewport_size({"width": 500, "height": 700})
    for _ in range(40):
        press("Tab")
        if page.evaluate("document.activeElement.ariaLabel") == "Deeds, as a table":
            break
    press("ArrowRight")
    page.wait_for_function("() => document.activeElement.scrollLeft > 0")
    # What is put in place anew leaves the keyboard, and what is scrolled, where they were.
    page.evaluate("document.querySelector('#deeds tbody td').textContent = 'old'")
    page.evaluate("refresh()")
    page.wait_for_function("() => document.querySelector('#deeds tbody td').textContent !== 'old'")
    assert page.evaluate("document.activeElement.ariaLabel") == "Deeds, as a table"
    assert page.evaluate("document.activeElement.scrollLeft") > 0
    for _ in range(80):
        press("Shift+Tab")
        if page.evaluate(focused) == "Who did what":
            break
    press("Enter")
    page.wait_for_url("**/activity")


def test_without_scripts_it_is_the_same_page(chromium: Any, address: str) -> None:
    context = chromium.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(address)
    assert page.locator("#datasets svg.bar").count() == 2
    assert "refresh" in page.content()
    context.close()


def test_what_is_away_is_said_and_comes_back(page: Any, town: Layout) -> None:
    list(processes.stop(town, ("trainer",)))
    page.evaluate("refresh()")
    expect(page.locator("#jobs .problem")).to_contain_text("The trainer service at 127.0.0.1")
    expect(page.locator("#jobs .problem")).to_contain_text("murmura up")
    assert page.locator("#datasets svg.bar").count() == 2, "the rest stays"
    assert page.locator("#adapters tbody tr").count() == 2
    assert breaches(page) == []
    deployment.up(town, base_port=0)
    # Nobody needs to do anything: the page goes on looking.
    expect(page.locator("#jobs .problem")).to_have_count(0, timeout=PATIENCE_MS)


def test_a_console_that_ends_leaves_word(chromium: Any, town: Layout) -> None:
    context = chromium.new_context()
    with console(town) as (address, process):
        page = context.new_page()
        page.goto(address)
        process.terminate()
        process.wait(20)
        page.evaluate("refresh()")
        expect(page.get_by_role("alert")).to_contain_text("The console does not answer")
        expect(page.get_by_role("alert")).to_contain_text("What you see is from")
        assert page.locator("#datasets svg.bar").count() == 2, "and what was there can still be read"
    port = re.search(r":(\d+)/", address)
    assert port
    with console(town, port.group(1)):
        page.evaluate("refresh()")
        expect(page.get_by_role("alert")).to_contain_text("open the new address")
    context.close()
