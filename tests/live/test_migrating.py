"""The files of docs/migrating.md: each does after the change what it did before, and counts."""

from __future__ import annotations

import re
import signal
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support.checks import check_counts
from tests.support.client import Load
from tests.support.process import GunicornProcess, wait_until

if TYPE_CHECKING:
    from tests.support.process import Interpreter

PAGE = Path(__file__).parents[2] / "docs" / "migrating.md"
BLOCK = re.compile(r"^```python\n# gunicorn.conf.py, (before|after)\n(.*?)^```", re.M | re.S)

SHOP = """
import os

def called(name):
    descriptor = os.open("called", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(descriptor, f"{name}\\n".encode())
    os.close(descriptor)

def open_database_pool(): called("open")
def close_database_pool(): called("close")
def warm_up(): called("warm up")
def forked(server, worker): called("forked")
def stopped(server): called("stopped")
def set_defaults(names):
    names.setdefault("workers", 2)
    names.setdefault("post_fork", forked)
    names.setdefault("on_exit", stopped)
"""
DEFAULTS = """
from shop import forked as post_fork, stopped as on_exit
workers = 2
"""


def changes() -> list[object]:
    """Return each file of the page after a change, with the one before it, by the heading."""
    found: list[object] = []
    for section in re.split(r"^## ", PAGE.read_text(encoding="utf-8"), flags=re.M)[1:]:
        before = None
        for number, (when, code) in enumerate(BLOCK.findall(section)):
            if when == "before":
                before = code
            else:
                name = section.partition("\n")[0].replace(" ", "-")
                found.append(pytest.param(before, code, id=f"{name}-{number}"))
    return found


def test_the_page_has_files() -> None:
    """Each heading on the page that is about a shape has a file before and one after."""
    assert len(changes()) >= 8


@pytest.mark.parametrize(("before", "after"), changes())
def test_migrated_file_does_what_it_did(
    interpreter: Interpreter, before: str | None, after: str
) -> None:
    """The functions of the shop are called as often as before, and all counts are exact."""
    if before is not None:
        with start(interpreter, before) as server:
            server.wait_for_workers(2)
            calls = stop(server)
    with start(interpreter, after) as server:
        server.wait_for_workers(2)
        with Load(server.port) as load:
            load.wait_for(20)
        check_counts(server, load)
        wait_until(lambda: server.metric("gunicorn_worker_boots_total") == 2, "both have booted")
        assert before is None or stop(server) == calls
        assert "Warning" not in server.log()


def start(interpreter: Interpreter, config: str) -> GunicornProcess:
    """Return a server of the shop with a configuration file."""
    return GunicornProcess(
        interpreter, config, files={"shop.py": SHOP, "shop_defaults.py": DEFAULTS}
    )


def stop(server: GunicornProcess) -> list[str]:
    """Stop a server; return what was called in it."""
    assert server.stop(signal.SIGTERM) == 0
    path = server.root / "called"
    return sorted(path.read_text().split("\n")) if path.exists() else []
