"""The wheel as users have it: installed beside nothing but what it asks for, far from its source.

pip may need its index for that; without one the tests are skipped, and fail under CI.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from obskit_gunicorn import __version__
from tests.support.exporters import wait_until_scraped
from tests.support.missing import missing
from tests.support.process import GunicornProcess, Interpreter, get, interpreters

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.live, pytest.mark.timeout(600)]  # pip, and its index

NEWEST = interpreters()[-1]

CONFIG = """
from obskit_gunicorn import ObskitGunicornConfig


class Config(ObskitGunicornConfig):
    workers = 2
"""

RIGHT = CONFIG + """
    timeout = 30
    metrics_bind = "127.0.0.1:9764"

    def when_ready(self, server: object) -> None:
        print("ready")
"""
WRONG = CONFIG + """
    timeout = "thirty"
"""

EXTRAS = {
    "auth": "import bcrypt, obskit_gunicorn._exporter.passwords",
    "redis": "import redis, obskit_gunicorn._fleet.store",
    "push": "import cramjam, obskit_gunicorn._fleet.push",
    "cli": "import rich, obskit_gunicorn._terminal.top",
    "typing": "import importlib.metadata; importlib.metadata.version('types-gunicorn')",
}


class Installed:
    """An environment in which the wheel is installed.

    Attributes:
        place: A directory to work in, outside of the checkout.
        python: The interpreter of the environment.
    """

    def __init__(self, python: str, wheel: Path, place: Path, extras: str = "") -> None:
        """Make it.

        Args:
            python: An interpreter to make it with.
            wheel: The wheel.
            place: Where; a directory that is there.
            extras: As in ``"[redis]"``.
        """
        self.place = place
        self._bin = place / "venv" / "bin"
        self.python = str(self._bin / "python")
        made = self._done(python, "-m", "venv", "--without-pip", str(place / "venv"))
        assert made.returncode == 0, made.stdout
        pip = (sys.executable, "-m", "pip", "--python", self.python, "install", "--quiet")
        done = self._done(*pip, f"{wheel}{extras}")
        if done.returncode:
            missing(f"the wheel cannot be installed, perhaps without a network: {done.stdout}")

    def run(self, program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run a program of the environment."""
        return self._done(str(self._bin / program), *arguments)

    def _done(self, *command: str) -> subprocess.CompletedProcess[str]:
        ours = ("OBSKIT_", "PROMETHEUS_", "PYTHON", "GUNICORN_", "VIRTUAL_ENV")
        return subprocess.run(
            command,
            cwd=self.place,
            env={name: text for name, text in os.environ.items() if not name.startswith(ours)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=300,
            check=False,
        )


def test_as_installed(
    wheel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server of the wheel is scraped and seen, and its command looks at it."""
    monkeypatch.delenv("PYTHONPATH", raising=False)  # or the server would find the checkout
    installed = Installed(NEWEST.path, wheel, tmp_path)
    code = "import obskit_gunicorn; print(obskit_gunicorn.__file__)"
    assert installed.run("python", "-c", code).stdout.startswith(str(tmp_path / "venv"))
    version = installed.run("obskit-gunicorn", "--version")
    assert (version.returncode, version.stdout) == (0, f"obskit-gunicorn {__version__}\n")
    server = GunicornProcess(
        Interpreter(installed.python, NEWEST.version), CONFIG, shared=True, exporter=True
    )
    with server:
        for _ in range(7):
            assert server.get("/").status == 200
        wait_until_scraped(server)
        assert server.scrape()["app_requests_total", frozenset()] == 7
        page = get(server.metrics_port, "/")
        assert page.status == 200
        linked = re.findall(r'(?:src|<link rel="stylesheet" href)="([^"]+)"', page.body)
        assert sorted(linked) == ["-/page.css", "-/page.js"]
        for path in linked:
            assert get(server.metrics_port, f"/{path}").status == 200
        status = get(server.metrics_port, "/-/status")
        assert json.loads(status.body)["requests"]["total"]
        shown = installed.run("obskit-gunicorn", "inspect", str(server.metrics_directory))
        assert shown.returncode == 0, shown.stdout
        assert len(re.findall(r"\bworker\b", shown.stdout)) >= 2, shown.stdout
        assert server.stop() == 0
    (tmp_path / "gunicorn.conf.py").write_text(CONFIG)
    (tmp_path / "app.py").write_text("def application(environ, start_response):\n    return []\n")
    checked = installed.run("obskit-gunicorn", "check", "app:application")
    assert checked.returncode in (0, 1), checked.stdout  # 1: /dev/shm or a port may be in use
    assert f"obskit-gunicorn {__version__}" in checked.stdout, checked.stdout


@pytest.mark.load
def test_extras(wheel: Path, tmp_path: Path) -> None:
    """Each extra brings what it is for, and a type checker knows settings and hooks."""
    installed = Installed(NEWEST.path, wheel, tmp_path, f"[{','.join(EXTRAS)}]")
    for code in EXTRAS.values():
        done = installed.run("python", "-c", code)
        assert done.returncode == 0, done.stdout
    for text, status in ((RIGHT, 0), (WRONG, 1)):
        (tmp_path / "conf.py").write_text(text)
        done = installed.run("python", "--version")
        checked = subprocess.run(
            [sys.executable, "-m", "mypy", "--strict", "--python-executable", installed.python]
            + ["--cache-dir", str(tmp_path / "cache"), "conf.py"],
            cwd=tmp_path,
            env={"PATH": os.environ["PATH"]},
            stdout=subprocess.PIPE,
            text=True,
            timeout=300,
            check=False,
        )
        assert checked.returncode == status, checked.stdout
    assert 'has type "str"' in checked.stdout, checked.stdout
