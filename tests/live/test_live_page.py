"""The live page in a real browser, on real servers."""

from __future__ import annotations

import json
import sys
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.browser import Browser
from tests.support.exporters import server, wait_until_scraped
from tests.support.forks import Nursery, act, join
from tests.support.process import HOST, GunicornProcess, get, interpreters, wait_until
from tests.support.serving import ServeProcess

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.live

HOSTILE = "</th><script>document.title='owned'</script><img src=x onerror=document.title='owned'>"
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
NEW = interpreters()[-1]
_leases: list[Any] = []


@pytest.fixture(name="browser")
def _browser() -> Iterator[Browser]:
    with Browser() as browser:
        yield browser


@pytest.fixture(name="running", scope="module")
def _running() -> Iterator[GunicornProcess]:
    with server(NEW) as running:
        wait_until_scraped(running)
        yield running


def _status(port: int) -> dict[str, Any]:
    with urllib.request.urlopen(f"http://{HOST}:{port}/-/status", timeout=10) as answer:
        assert answer.headers["content-type"] == "application/json; charset=utf-8"
        found: dict[str, Any] = json.load(answer)
        return found


def _cells(browser: Browser, table: str) -> list[list[str]]:
    found: list[list[str]] = browser.run(
        f"[...document.querySelectorAll('#{table} tbody tr')]"
        ".map(row => [...row.cells].map(cell => cell.textContent))"
    )
    return found


def _wait_for_live(browser: Browser) -> None:
    wait_until(
        lambda: browser.run(
            "document.getElementById('state').textContent === 'Live'"
            " && document.querySelectorAll('#cards li').length === 6"
        ),
        "the page has taken two answers",
    )


def _hold_workers(directory: str, count: int) -> None:
    """Hold as many slots as so many workers."""
    from obskit_gunicorn._store.directory import SlotDirectory

    for _ in range(count):
        lease = SlotDirectory(directory).acquire("worker")
        lease.note(state="booted")
        _leases.append(lease)


def test_shows_a_server(running: GunicornProcess, browser: Browser) -> None:
    """Requests, workers and their figures are those of the server, and they go on."""
    for _ in range(5):
        running.get("/")
    port = running.metrics_port
    # The one that asked whether it answers is counted too; each of them after its answer.
    before = wait_until(
        lambda: (total := sum(_status(port)["requests"]["total"].values())) >= 6 and total,
        "all are counted",
    )
    browser.show(f"http://{HOST}:{port}/")
    _wait_for_live(browser)
    pids = {row[1] for row in _cells(browser, "workers")}
    assert pids == {str(pid) for pid in running.worker_pids()}
    for _ in range(7):
        running.get("/")
    wait_until(
        lambda: sum(int(row[1]) for row in _cells(browser, "classes")) >= before + 7,
        "the page shows more requests",
    )
    assert browser.run("document.querySelectorAll('#cards polyline').length") == 8
    browser.look()
    assert browser.errors == []
    own = f"http://{HOST}:{port}/"
    assert set(browser.requests) == {
        own,
        *(f"{own}-/{n}" for n in ("page.js", "page.css", "status")),
    }


@pytest.mark.parametrize(
    ("width", "dark", "script"),
    [(1280, False, True), (1280, True, True), (390, False, True), (390, True, False)],
)
def test_accessible(
    running: GunicornProcess, browser: Browser, width: int, dark: bool, script: bool
) -> None:
    """axe-core finds nothing, in both themes and on a phone; nothing is wider than the window."""
    browser.show(f"http://{HOST}:{running.metrics_port}/", width=width, dark=dark, script=script)
    if script:
        _wait_for_live(browser)
    assert browser.violations() == []
    assert browser.run("document.documentElement.scrollWidth <= window.innerWidth")


def test_without_script(running: GunicornProcess, browser: Browser) -> None:
    """Without JavaScript the figures stand there."""
    running.get("/")
    browser.show(f"http://{HOST}:{running.metrics_port}/", script=False)
    assert {row[1] for row in _cells(browser, "workers")} == {
        str(pid) for pid in running.worker_pids()
    }
    assert int(_cells(browser, "classes")[0][1]) >= 1
    assert browser.run("document.getElementById('pause').hidden")


def test_keyboard(running: GunicornProcess, browser: Browser) -> None:
    """Tab reaches the pause button and the heads of the table, and Enter uses them."""
    browser.show(f"http://{HOST}:{running.metrics_port}/")
    _wait_for_live(browser)

    def go_to(text: str) -> None:
        for _ in range(40):
            browser.press("Tab", 9)
            if browser.run("document.activeElement.textContent") == text:
                return
        raise AssertionError(f"Tab does not reach {text}")

    go_to("PID")
    assert browser.run("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    browser.press("Enter", 13)
    head = "document.querySelector('th[data-key=pid]').getAttribute('aria-sort')"
    assert browser.run(head) == "ascending"
    pids = [int(row[1]) for row in _cells(browser, "workers")]
    assert pids == sorted(pids)
    browser.press("Enter", 13)
    assert browser.run(head) == "descending"
    assert [int(row[1]) for row in _cells(browser, "workers")] == sorted(pids, reverse=True)
    browser.run("document.getElementById('pause').focus()")
    browser.press("Enter", 13)
    assert browser.run("document.getElementById('state').textContent") == "Paused"


def test_headers(running: GunicornProcess) -> None:
    """The policy is strict everywhere, and nothing of a request comes back."""
    port = running.metrics_port
    for path in ("/", "/-/status", "/-/page.js", "/-/page.css", "/-/healthy", "/%3Cscript%3E"):
        request = urllib.request.Request(
            f"http://{HOST}:{port}{path}", headers={"User-Agent": "<script>", "Host": "<script>"}
        )
        try:
            answer = urllib.request.urlopen(request, timeout=10)
        except urllib.error.HTTPError as error:
            answer = error
        with answer:
            text = answer.read().decode()
            assert answer.headers["content-security-policy"] == POLICY
            assert answer.headers["x-content-type-options"] == "nosniff"
            assert "<script>" not in text
            assert (answer.status == 404) == (path == "/%3Cscript%3E")


@pytest.mark.parametrize("count", [pytest.param(500, marks=pytest.mark.load), 100, 0])
def test_many_workers_and_none(
    nursery: Nursery, directory: str, browser: Browser, count: int
) -> None:
    """Many workers are rows of a table that scrolls, and none is said in words."""
    process = nursery.start()
    process.call(_hold_workers, directory, count)
    with ServeProcess(directory) as served:
        browser.show(f"http://{served.bind}/")
        _wait_for_live(browser)
        rows = _cells(browser, "workers")
        assert [row[0] for row in rows] == [f"slot{number}" for number in range(count)]
        assert browser.violations() == []
        note = browser.run("document.getElementById('workers-note').textContent")
        assert note == ("" if count else "No worker holds a slot.")
        assert browser.run("document.querySelector('.scroll').clientHeight") < 600
        browser.look()
        assert browser.errors == []


def test_hostile_names(nursery: Nursery, tmp_path: Path, browser: Browser) -> None:
    """A label, a state, a path of the directory or of the exposition does nothing."""
    directory = tmp_path / "<img src=x onerror=document.title='owned'>"
    directory.mkdir()
    process = nursery.start()
    process.call(join, str(directory))
    process.call(act, "counter", "hits", "inc", 1, labels={"who": HOSTILE})
    labels = {"method": HOSTILE, "code": "<b>"}
    process.call(act, "counter", "gunicorn_requests", "inc", 1, labels=labels)
    process.call(act, "counter", "gunicorn_worker_exits", "inc", 1, labels={"reason": HOSTILE})
    process.call(_note, HOSTILE)
    with ServeProcess(directory, "--path", "/<script>document.title='owned'</script>") as served:
        for script in (True, False):
            browser.show(f"http://{served.bind}/", script=script)
            if script:
                _wait_for_live(browser)
            assert browser.run("document.title") == "Gunicorn"
            assert browser.run("document.querySelectorAll('img').length") == 0
            assert browser.run("document.scripts.length") == 1
            assert _cells(browser, "exits") == [[HOSTILE, "1"]]
            assert _cells(browser, "workers")[0][2] == HOSTILE
        browser.look()
        assert browser.errors == []


def _note(state: str) -> None:
    from obskit_gunicorn._store.membership import membership

    membership.note(role="worker", state=state)


def test_it_says_when_nobody_answers(directory: str, browser: Browser) -> None:
    """The figures stay when the exporter ends, and a line says so."""
    with ServeProcess(directory) as served:
        browser.show(f"http://{served.bind}/")
        _wait_for_live(browser)
    wait_until(
        lambda: (
            browser.run("document.getElementById('state').textContent")
            == "The exporter does not answer"
        ),
        "it says so",
    )
    assert browser.run("document.querySelectorAll('#cards li').length") == 6


def test_it_can_be_taken_away() -> None:
    """``metrics_page = False`` leaves the exposition and the probes, and no page."""
    with server(NEW, "metrics_page = False") as running:
        wait_until_scraped(running)
        nothing = get(running.metrics_port, "/nowhere")
        for path in ("/", "/-/status", "/-/page.js", "/-/page.css"):
            found = get(running.metrics_port, path)
            assert (found.status, found.body) == (404, nothing.body)
        assert nothing.body == "Not found. Available paths: /metrics, /-/healthy, /-/ready\n"
        assert get(running.metrics_port, "/metrics").status == 200


def test_it_costs_nothing_while_nobody_looks(directory: str) -> None:
    """What makes the page is not even loaded before somebody asks for it."""
    import subprocess

    done = subprocess.run(
        [
            sys.executable,
            "-c",
            "import sys\n"
            "from obskit_gunicorn._exporter import pages, program\n"
            "print([name for name in sys.modules if 'status' in name or 'live_page' in name])",
        ],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert "obskit_gunicorn" not in done.stdout
