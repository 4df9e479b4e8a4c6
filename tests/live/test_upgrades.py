"""SIGUSR2 for servers that were started with ``python -m``."""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import gunicorn
import pytest

from tests.support import apps
from tests.support.process import GunicornProcess, wait_until

if TYPE_CHECKING:
    from tests.support.process import Interpreter

CONFIG = """
from beside import WORKERS
from obskit_gunicorn import ObskitGunicornConfig


class Config(ObskitGunicornConfig):
    workers = WORKERS
"""

SHOP = """
from gunicorn.app.wsgiapp import run

from . import name

if __name__ == "__main__":
    run(prog=name)
"""


PLAIN = """
def application(environ, start_response):
    start_response("200 OK", [])
    return [b"ok"]
"""


@pytest.mark.parametrize("module", ["gunicorn", "shop.serve"])
def test_upgrade_of_a_module_that_is_run(interpreter: Interpreter, module: str) -> None:
    """The new arbiter finds Python's modules and those beside the configuration; totals go on."""
    server = GunicornProcess(
        interpreter,
        CONFIG,
        app=f"import http.client\n{apps.WSGI}",
        exporter=True,
        files={
            "beside.py": "WORKERS = 2",
            "shop/__init__.py": 'name = "shop"',
            "shop/serve.py": SHOP,
        },
    )
    server.command[1:2] = ["-m", module]
    with server:
        for _ in range(3):
            assert server.get("/").status == 200
        old = server.arbiter_pid
        new = server.start_upgrade()
        server.send_signal(signal.SIGTERM, old)
        wait_until(
            lambda: server.pid_path.exists() and server.arbiter_pid == new, "the old one has ended"
        )
        assert server.get("/").status == 200
        assert server.metric("app_requests_total") == 4 == server.tally()
        assert server.scrape()["gunicorn_upgrades_total", frozenset()] == 1
        assert "there are no metrics" not in server.log()


@pytest.mark.parametrize("place", ["venv", "link"])
def test_gunicorns_directory_hides_pythons(newest: Interpreter, tmp_path: Path, place: str) -> None:
    """Who runs Gunicorn's file by its path is told what hides Python's modules, and is served."""
    server = GunicornProcess(newest, CONFIG, files={"beside.py": "WORKERS = 1"}, app=PLAIN)
    server.command[1] = str(Path(gunicorn.__file__).with_name("__main__.py"))
    if place == "link":  # as one to the newest release, where each has its own folder
        (tmp_path / "current").symlink_to(sys.prefix)
        for position in (0, 1):
            below = Path(server.command[position]).relative_to(sys.prefix)
            server.command[position] = str(tmp_path / "current" / below)
    with server:
        (line,) = [line for line in server.log().splitlines() if "there are no metrics" in line]
        assert "hides modules of Python's; start Gunicorn by its command" in line
        assert "pip install" not in line
