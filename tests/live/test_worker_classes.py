"""Worker classes of other packages, and of users: what is counted under them, and what is shown."""

from __future__ import annotations

import contextlib
import functools
import http.client
import signal
from typing import TYPE_CHECKING

import pytest

from tests.live.test_telemetry import by_label, send, value, wait_for
from tests.support.process import GunicornProcess, get, wait_until

if TYPE_CHECKING:
    from tests.support.process import Interpreter

CONFIG = """
from obskit_gunicorn import ObskitGunicornConfig


class Config(ObskitGunicornConfig):
    workers = 2
    worker_class = {worker_class!r}
    threads = 3
    worker_connections = 50
"""

MINE = """
import wsgiref.simple_server

from gunicorn.workers.base import Worker
from gunicorn.workers.gthread import ThreadWorker


class Threads(ThreadWorker):
    pass


class Silent(Worker):
    calls = False

    def run(self):
        listener = self.sockets[0].sock
        listener.settimeout(0.2)
        server = wsgiref.simple_server.WSGIServer(("127.0.0.1", 0), Handler, False)
        server.server_name, server.server_port = listener.getsockname()
        server.setup_environ()
        server.set_app(self.wsgi)
        while self.alive:
            self.notify()
            try:
                connection, address = listener.accept()
            except TimeoutError:
                continue
            if self.calls:
                self.cfg.pre_request(self, self)
            server.process_request(connection, address)
            if self.calls:
                self.cfg.post_request(self, self, {}, Response)


class Calls(Silent):
    calls = True
    method, path = "GET", "/"


class Handler(wsgiref.simple_server.WSGIRequestHandler):
    def log_message(self, *args):
        pass


class Response:
    status_code = 200
"""

WSGI = """
import time


def application(environ, start_response):
    path = environ["PATH_INFO"]
    if path == "/raise":
        raise ZeroDivisionError("on purpose")
    if path == "/sleep":
        time.sleep(1)
    start_response("404 Not Found" if path == "/missing" else "200 OK", [("Content-Length", "2")])
    return [b"ok"]
"""

TORNADO = """
import asyncio

import tornado.web


class Answer(tornado.web.RequestHandler):
    async def get(self):
        if self.request.path == "/raise":
            raise ZeroDivisionError("on purpose")
        if self.request.path == "/sleep":
            await asyncio.sleep(1)
        self.write("ok")

    post = get


application = tornado.web.Application([("/(?:pid|raise|sleep)?", Answer)])
"""

AIOHTTP = """
import asyncio

from aiohttp import web


async def answer(request):
    if request.path == "/raise":
        raise ZeroDivisionError("on purpose")
    if request.path == "/sleep":
        await asyncio.sleep(1)
    return web.Response(text="ok")


application = web.Application()
application.add_routes(
    [web.route("*", path, answer) for path in ("/", "/pid", "/raise", "/sleep")]
)
"""

FACTORY = (
    AIOHTTP.replace("application =", "made =").replace("application.", "made.")
    + """

async def application():
    return web.AppRunner(made)
"""
)


def server(interpreter: Interpreter, worker_class: str, app: str = WSGI) -> GunicornProcess:
    """Return a server with an exporter."""
    config = CONFIG.format(worker_class=worker_class)
    return GunicornProcess(interpreter, config, app=app, exporter=True, files={"mine.py": MINE})


@pytest.mark.parametrize(
    ("worker_class", "app"),
    [
        ("gevent_pywsgi", WSGI),
        ("tornado", WSGI),
        ("tornado", TORNADO),
        ("aiohttp.GunicornWebWorker", AIOHTTP),
        ("aiohttp.GunicornWebWorker", FACTORY),
    ],
    ids=["gevent_pywsgi", "tornado-wsgi", "tornado", "aiohttp", "aiohttp-factory"],
)
def test_requests_that_no_hook_sees(newest: Interpreter, worker_class: str, app: str) -> None:
    """Requests are counted under servers that call no hooks, each once, with its code."""
    shows_progress = app is not TORNADO
    with server(newest, worker_class, app) as running:
        found = wait_for(
            running,
            lambda m: (
                value(m, "gunicorn_workers_ready") == 2
                and value(m, "gunicorn_requests_total", method="GET", code="200") == 1
            ),
            "ready",
        )
        assert (("gunicorn_requests_in_progress", frozenset()) in found) == shows_progress
        for method, path in [*[("GET", "/")] * 3, ("POST", "/"), ("GET", "/missing")]:
            send(running, method, path)
        for _ in range(2):
            with contextlib.suppress(OSError, http.client.HTTPException):
                get(running.port, "/raise", timeout=1)  # Tornado leaves a WSGI client waiting
        with pytest.raises(TimeoutError):
            get(running.port, "/sleep", timeout=0.3)
        if shows_progress:
            wait_for(running, lambda m: value(m, "gunicorn_requests_in_progress") == 1, "one")
        found = wait_for(
            running,
            lambda m: sum(by_label(m, "gunicorn_requests_total").values()) == 9,
            "all are counted",
        )
        counts = by_label(found, "gunicorn_requests_total")
        # That the client has left is noticed by one of them.
        left = counts.pop(("499", "GET"), 0)
        assert counts.pop(("200", "GET")) == 5 - left
        assert counts == {("200", "POST"): 1, ("404", "GET"): 1, ("500", "GET"): 2}
        durations = by_label(found, "gunicorn_request_duration_seconds_count")
        assert durations == {("GET",): 8, ("POST",): 1}
        assert value(found, "gunicorn_requests_in_progress") == 0
        assert "requests are not counted" not in running.log()


@pytest.mark.parametrize("name", ["gunicorn.workers.gthread.ThreadWorker", "mine.Threads"])
def test_a_class_by_its_path(interpreter: Interpreter, name: str) -> None:
    """A class that is named by its path, or derived from one, is known as what it is."""
    with server(interpreter, name) as running:
        found = wait_for(running, lambda m: value(m, "gunicorn_workers_ready") == 2, "ready")
        assert value(found, "gunicorn_capacity") == 6
        assert ("gunicorn_connections", frozenset()) in found
        assert "requests are not counted" not in running.log()


@pytest.mark.parametrize("name", ["Silent", "Calls"])
def test_a_class_of_the_users(interpreter: Interpreter, name: str) -> None:
    """Nothing is shown as 0 that is not counted, and one line says so; hooks that run count."""
    with server(interpreter, f"mine.{name}") as running:
        wait_for(running, lambda m: value(m, "gunicorn_workers_ready") == 2, "ready")
        running.kill_a_worker()
        wait_for(running, lambda m: value(m, "gunicorn_worker_boots_total") == 3, "another one")
        for _ in range(3):
            send(running, "GET", "/")

        names = {"gunicorn_requests_in_progress", "gunicorn_requests_total"}
        shown = names if name == "Calls" else set()
        if name == "Calls":
            found = wait_for(
                running,
                lambda m: sum(by_label(m, "gunicorn_requests_total").values()) == 4,
                "they are counted",
            )
        else:
            found = running.scrape()
        assert {sample for sample, _labels in found} & names == shown
        assert running.log().count("requests are not counted") == 1
        assert ("gunicorn_capacity", frozenset()) not in found


def test_resizes_and_upgrades(interpreter: Interpreter) -> None:
    """TTIN, TTOU and USR2 are counted beside reloads, and a reload's own change is no resize."""
    with server(interpreter, "sync") as running:

        def counts() -> tuple[float, ...]:
            found = running.scrape()
            return (
                *(value(found, "gunicorn_resizes_total", direction=d) for d in ("up", "down")),
                value(found, "gunicorn_reloads_total"),
                value(found, "gunicorn_upgrades_total"),
            )

        def has_counted(expected: tuple[float, ...]) -> bool:
            return counts() == expected

        shown = ("gunicorn_upgrades_total", frozenset[tuple[str, str]]())
        wait_for(running, lambda m: shown in m, "all is shown as 0")
        assert counts() == (0, 0, 0, 0)
        for number, size, expected in [
            (signal.SIGTTIN, 3, (1, 0, 0, 0)),
            (signal.SIGTTIN, 4, (2, 0, 0, 0)),
            (signal.SIGTTOU, 3, (2, 1, 0, 0)),
            (signal.SIGHUP, 2, (2, 1, 1, 0)),
            (signal.SIGTTOU, 1, (2, 2, 1, 0)),
            (signal.SIGTTOU, 1, (2, 2, 1, 0)),  # Gunicorn keeps the last worker
        ]:
            running.send_signal(number)
            running.wait_for_workers(size)
            wait_until(functools.partial(has_counted, expected), f"{number.name}: {expected}")
        old = running.arbiter_pid
        running.send_signal(signal.SIGUSR2)
        wait_for(running, lambda m: value(m, "gunicorn_worker_boots_total") >= 8, "it serves")
        assert counts() == (2, 2, 1, 1)
        running.send_signal(signal.SIGTERM, old)
