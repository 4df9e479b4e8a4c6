"""Websockets under the workers that serve them, with real clients."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
from typing import TYPE_CHECKING, Any

import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from tests.live.test_telemetry import by_label, value, wait_for, wait_until_counted
from tests.support.metrics_page import documented
from tests.support.process import HOST, GunicornProcess

if TYPE_CHECKING:
    from tests.support.process import Interpreter, Metrics

CONFIG = """
from obskit_gunicorn import ObskitGunicornConfig


class Config(ObskitGunicornConfig):
    workers = 2
    worker_class = {worker_class!r}
    graceful_timeout = 1
"""

APP = """
import asyncio
import os


async def application(scope, receive, send):
    if scope["type"] == "http":
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": str(os.getpid()).encode()})
        return
    if scope["type"] != "websocket":
        return
    path = scope["path"]
    await receive()
    if path == "/refuse":
        return await send({"type": "websocket.close"})
    if path == "/refuse-silently":
        return
    if path == "/deny":
        await send({"type": "websocket.http.response.start", "status": 401, "headers": []})
        return await send({"type": "websocket.http.response.body", "body": b"who are you?"})
    if path == "/fail":
        raise ZeroDivisionError("on purpose")
    await send({"type": "websocket.accept"})
    if path == "/raise":
        raise ZeroDivisionError("on purpose")
    if path == "/return":
        return
    if path == "/close":
        return await send({"type": "websocket.close", "code": 4321})
    if path == "/talk":
        try:
            while True:
                await send({"type": "websocket.send", "text": "x"})
                await asyncio.sleep(0.02)
        except OSError:
            return
    await send({"type": "websocket.send", "text": str(os.getpid())})
    while (await receive())["type"] != "websocket.disconnect":
        pass
"""


def ask(running: GunicornProcess, path: str = "/") -> Any:
    """Open a websocket; a context manager."""
    return connect(f"ws://{HOST}:{running.port}{path}", compression=None, open_timeout=20)


def converse(running: GunicornProcess, path: str) -> str:
    """Open a websocket that the application ends; return how the client sees that."""
    try:
        with ask(running, path) as client:
            client.recv(timeout=20)
    except InvalidStatus as error:
        return str(error.response.status_code)
    except ConnectionClosed as error:
        return "closed" if error.rcvd is None else str(error.rcvd.code)
    return "a message"


def progress(metrics: Metrics) -> float:
    """Return how many are open."""
    return value(metrics, "gunicorn_websockets_in_progress")


def changed(metrics: Metrics, name: str) -> dict[str, float]:
    """Return the samples with a single label that are not 0."""
    return {labels[0]: number for labels, number in by_label(metrics, name).items() if number}


@pytest.mark.parametrize("worker_class", ["asgi", "uvicorn_worker.UvicornWorker"])
def test_websockets(newest: Interpreter, worker_class: str) -> None:
    """Each handshake has an outcome and each end a code; those of killed workers are not open."""
    config = CONFIG.format(worker_class=worker_class)
    with (
        GunicornProcess(newest, config, app=APP, exporter=True) as running,
        contextlib.ExitStack() as clients,
    ):
        wait_until_counted(running)
        found = wait_for(
            running,
            lambda m: ("gunicorn_websockets_in_progress", frozenset[Any]()) in m,
            "they are shown",
        )
        shown = {(name, *sorted(dict(labels))) for name, labels in found if "_websockets_" in name}
        assert shown == {
            (name, *labels)
            for name, (_kind, labels) in documented().items()
            if "_websockets_" in name
        }
        assert by_label(found, "gunicorn_websockets_total") == dict.fromkeys(
            [("abandoned",), ("accepted",), ("refused",)], 0
        )
        assert len(by_label(found, "gunicorn_websockets_closed_total")) == 10

        # What the application does.
        seen = {
            path: converse(running, f"/{path}")
            for path in ("refuse", "refuse-silently", "deny", "fail", "close", "raise", "return")
        }
        assert seen["refuse"] == "403"
        assert seen["close"] == "4321"
        found = wait_for(
            running,
            lambda m: (
                sum(changed(m, "gunicorn_websockets_closed_total").values()) == 3
                and sum(changed(m, "gunicorn_websockets_total").values()) == 7
                and progress(m) == 0
            ),
            "they are counted",
        )
        assert changed(found, "gunicorn_websockets_total") == {"refused": 4, "accepted": 3}
        assert changed(found, "gunicorn_websockets_closed_total") == {"4xxx": 1, "1011": 2}

        # What clients do: say goodbye, in several ways or not at all.
        for code in (1000, 1001, 3001):
            with ask(running) as client:
                client.close(code)
        for path in ("/", "/talk"):
            with ask(running, path) as client:
                client.recv(timeout=20)
                client.socket.shutdown(socket.SHUT_RDWR)  # nothing but the end of the connection
        # Uvicorn tells an application that nothing was said; one that sends is told by an error.
        gone = {"1006": 2} if worker_class == "asgi" else {"1005": 1, "1006": 1}
        closed = {"4xxx": 1, "1011": 2, "1000": 1, "1001": 1, "3xxx": 1, **gone}
        wait_for(
            running,
            lambda m: changed(m, "gunicorn_websockets_closed_total") == closed and progress(m) == 0,
            f"clients have left: {closed}",
        )

        # A killed worker takes its own with it.
        opened = [clients.enter_context(ask(running)) for _ in range(8)]
        pids = [int(client.recv(timeout=20)) for client in opened]
        wait_for(running, lambda m: progress(m) == 8, "all are open")
        os.kill(pids[0], signal.SIGKILL)
        left = len(pids) - pids.count(pids[0])
        wait_for(
            running,
            lambda m: progress(m) == left and value(m, "gunicorn_workers_ready") == 2,
            "those of the other worker are open",
        )
        # A reload ends the others gracefully, and they are counted.
        running.send_signal(signal.SIGHUP)
        found = wait_for(
            running,
            lambda m: (
                value(m, "gunicorn_worker_boots_total") == 5
                and progress(m) == 0
                and sum(changed(m, "gunicorn_websockets_closed_total").values()) == 8 + left
            ),
            f"after the reload {left} are closed",
        )
        assert changed(found, "gunicorn_websockets_total") == {"refused": 4, "accepted": 16}
        ended = changed(found, "gunicorn_websockets_closed_total")
        assert ended.get("1012", 0) == left, ended
        # Websockets are no requests.
        assert sum(by_label(found, "gunicorn_requests_total").values()) == 1
