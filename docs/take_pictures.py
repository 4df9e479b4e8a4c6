"""Take the pictures of the documentation from a running demo: the live page, and ``top``.

Needs the Debian package chromium. Run it with ``make pictures``.
"""

from __future__ import annotations

import io
import json
import random
import re
import sys
import threading
import time
import urllib.request
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))  # for the browser of the tests, and for their servers

from rich.console import Console  # noqa: E402

from obskit_gunicorn._terminal.top import Screen  # noqa: E402
from tests.support.browser import Browser  # noqa: E402
from tests.support.exporters import wait_until_scraped  # noqa: E402
from tests.support.process import HOST, GunicornProcess, get, interpreters  # noqa: E402

PICTURES = ROOT / "docs" / "pictures"
DEMO = ROOT / "examples" / "demo"
SECONDS = 60.0
"""So long the demo is used, so that there are curves."""

PATHS = ("/", "/", "/hello/you", "/hello/me", "/slow", "/nowhere")


def use(port: int, is_over: threading.Event) -> None:
    """Ask for pages, now faster and now more slowly."""
    while not is_over.is_set():
        get(port, random.choice(PATHS))
        time.sleep(random.expovariate(30 + 25 * (int(time.monotonic()) % 7)))


def main() -> None:
    """Start the demo, use it, and take the pictures."""
    PICTURES.mkdir(exist_ok=True)
    config = (DEMO / "gunicorn.conf.py").read_text().replace("max_requests", "# max_requests")
    config = config.replace('    bind = "127.0.0.1:8000"\n', "")
    app = (DEMO / "app.py").read_text()
    is_over = threading.Event()
    with (
        GunicornProcess(
            interpreters()[-1],
            config,
            app,
            exporter=True,
            serving=False,
        ) as server,
        Browser() as browser,
    ):
        wait_until_scraped(server)
        source = f"{HOST}:{server.metrics_port}"
        browser.show(f"http://{source}/", width=1280, height=550)
        users = [
            threading.Thread(target=use, args=(server.port, is_over), daemon=True) for _ in range(3)
        ]
        for user in users:
            user.start()
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
        is_over.set()
        for user in users:
            user.join(10)


if __name__ == "__main__":
    main()
