"""Servers with an exporter, and what can be seen of the exporter from outside."""

from __future__ import annotations

import contextlib
import http.client
import os
import socket
from typing import TYPE_CHECKING

from tests.support.process import (
    HOST,
    GunicornProcess,
    Interpreter,
    Metrics,
    get,
    parse_metrics,
    wait_until,
)

if TYPE_CHECKING:
    from pathlib import Path

__all__ = [
    "descriptors",
    "is_free",
    "is_scraped",
    "scrape_socket",
    "server",
    "wait_for_another_exporter",
    "wait_until_scraped",
]

CONFIG = """
import os, signal, sys, time

from obskit_gunicorn import ObskitGunicornConfig


class Config(ObskitGunicornConfig):
    workers = 2
    {settings}
"""


def server(interpreter: Interpreter, settings: str = "", **options: object) -> GunicornProcess:
    """Return a server with an exporter; ``settings`` are statements of its class."""
    lines = "\n    ".join(settings.strip().splitlines())
    return GunicornProcess(
        interpreter,
        CONFIG.format(settings=lines),
        exporter=True,
        **options,  # type: ignore[arg-type]
    )


def is_scraped(port: int) -> bool:
    """Return whether an exporter answers at a port."""
    try:
        return get(port, "/-/healthy", timeout=5).status == 200
    except (OSError, http.client.HTTPException):
        return False


def wait_until_scraped(running: GunicornProcess) -> None:
    """Wait until the exporter answers."""
    wait_until(lambda: is_scraped(running.metrics_port), "the exporter answers")


def wait_for_another_exporter(running: GunicornProcess, old: int) -> int:
    """Wait until another exporter than the one that has ended answers, and return it."""

    def found() -> int:
        pids = running.exporter_pids()
        return pids.pop() if len(pids) == 1 and old not in pids else 0

    pid = wait_until(found, "there is another exporter")
    wait_until_scraped(running)
    return pid


def is_free(port: int) -> bool:
    """Return whether nobody listens at a port; a process that ends closes it a little later."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
    return True


def descriptors(pid: int) -> dict[int, str]:
    """Return what a process has open, by number, as /proc shows it."""
    found = {}
    for name in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(FileNotFoundError):
            found[int(name)] = os.readlink(f"/proc/{pid}/fd/{name}")
    return found


def scrape_socket(path: Path) -> Metrics:
    """Scrape the exporter at a Unix socket once.

    Raises:
        OSError: Nobody is there.
    """
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(10)
        client.connect(str(path))
        client.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
        answer = b"".join(iter(lambda: client.recv(1 << 16), b""))
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b" 200 " in head.splitlines()[0], head
    return parse_metrics(body.decode())
