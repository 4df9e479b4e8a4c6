"""Take the pictures of the documentation from a running demo: live page, ``top``, and dashboard.

Needs the Debian packages chromium and prometheus. Run it with ``make pictures``.
"""

from __future__ import annotations

import io
import json
import random
import re
import signal
import sys
import tempfile
import threading
import time
import urllib.request
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))  # for the browser of the tests, and for their servers
sys.path.insert(0, str(ROOT / "docs"))

from draw_dashboard import Source, draw  # noqa: E402
from rich.console import Console  # noqa: E402

from obskit_gunicorn._terminal.top import Screen  # noqa: E402
from tests.support.browser import Browser  # noqa: E402
from tests.support.databases import Database  # noqa: E402
from tests.support.exporters import wait_until_scraped  # noqa: E402
from tests.support.process import HOST, GunicornProcess, get, interpreters  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Iterator

PICTURES = ROOT / "docs" / "pictures"
DEMO = ROOT / "examples" / "demo"
SECONDS = 60.0
"""So long the demo is used, so that there are curves."""

RATE_SECONDS = 10
"""What rates of the dashboard go over."""

PATHS = ("/", "/", "/hello/you", "/hello/me", "/slow", "/nowhere")
INSTANCES = ("web-1:9764", "web-2:9764")
"""What the servers of the dashboard are called."""

BROKEN = """
_served = application


def application(environ, start_response):
    if environ["PATH_INFO"] != "/broken":
        return _served(environ, start_response)
    start_response("500 Internal Server Error", [("Content-Length", "0")])
    return []
"""
"""So that there are errors."""


def use(port: int, is_over: threading.Event, paths: tuple[str, ...] = PATHS) -> None:
    """Ask for pages, now faster and now more slowly."""
    while not is_over.is_set():
        try:
            get(port, random.choice(paths))
        except OSError:  # one of those that was killed
            continue
        time.sleep(random.expovariate(30 + 25 * (int(time.monotonic()) % 7)))


@contextmanager
def used(port: int, users: int, paths: tuple[str, ...] = PATHS) -> Iterator[None]:
    """Have a server used."""
    is_over = threading.Event()
    threads = [
        threading.Thread(target=use, args=(port, is_over, paths), daemon=True) for _ in range(users)
    ]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        is_over.set()
        for thread in threads:
            thread.join(10)


def demo(*, recycles: bool) -> GunicornProcess:
    """Return the demo's server."""
    config = (DEMO / "gunicorn.conf.py").read_text()
    config = config.replace('    bind = "127.0.0.1:8000"\n', "")
    if not recycles:
        config = config.replace("max_requests", "# max_requests")
    app = (DEMO / "app.py").read_text() + BROKEN
    return GunicornProcess(interpreters()[-1], config, app, exporter=True, serving=False)


def take_page_and_top() -> None:
    """Take the pictures of one server."""
    with demo(recycles=False) as server, Browser() as browser:
        wait_until_scraped(server)
        source = f"{HOST}:{server.metrics_port}"
        browser.show(f"http://{source}/", width=1280, height=550)
        with used(server.port, 3):
            screen = Screen(source)
            deadline = time.monotonic() + SECONDS
            while time.monotonic() < deadline:
                with urllib.request.urlopen(f"http://{source}/-/status", timeout=10) as answer:
                    screen.take(json.load(answer))
                time.sleep(1)
            browser.screenshot(PICTURES / "page.png")
        console = Console(record=True, width=100, file=io.StringIO(), force_terminal=True)
        console.print(screen.drawn(24))
        # Its fonts would be asked for from another host by whoever looks at the page.
        svg = re.sub(
            r"@font-face \{.*?\}", "", console.export_svg(title="obskit-gunicorn top"), flags=re.S
        )
        (PICTURES / "top.svg").write_text(svg)


def take_dashboard() -> None:
    """Draw the dashboard from two servers, one of which loses a worker and is reloaded."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        servers = [stack.enter_context(demo(recycles=True)) for _ in INSTANCES]
        targets = [
            {"targets": [f"{HOST}:{server.metrics_port}"], "labels": {"instance": instance}}
            for server, instance in zip(servers, INSTANCES, strict=True)
        ]
        scrapes = {
            "global": {"scrape_interval": "1s", "scrape_timeout": "1s"},
            "scrape_configs": [{"job_name": "shop", "static_configs": targets}],
        }
        database = Database("prometheus", folder, scrapes=json.dumps(scrapes))
        for server in servers:
            wait_until_scraped(server)
        stack.enter_context(database.running())
        began = time.time() + RATE_SECONDS
        stack.enter_context(used(servers[0].port, 3, (*PATHS * 4, "/broken")))
        stack.enter_context(used(servers[1].port, 2))
        time.sleep(RATE_SECONDS + SECONDS / 3)
        servers[0].kill_a_worker()
        time.sleep(SECONDS / 3)
        servers[0].send_signal(signal.SIGHUP)
        servers[1].send_signal(signal.SIGTTIN)
        time.sleep(SECONDS)
        variables = {"$__rate_interval": f"{RATE_SECONDS}s", "$job": ".+", "$instance": ".+"}
        source = Source(f"{HOST}:{database.port}", began, time.time(), variables)
        board = json.loads((ROOT / "docs" / "grafana" / "gunicorn.json").read_text())
        draw(board, source, PICTURES / "dashboard.png")


def main() -> None:
    """Take those that are named on the command line, by default all."""
    PICTURES.mkdir(exist_ok=True)
    chosen = sys.argv[1:] or ["page", "dashboard"]
    if "page" in chosen:
        take_page_and_top()
    if "dashboard" in chosen:
        take_dashboard()


if __name__ == "__main__":
    main()
