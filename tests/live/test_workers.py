"""How workers leave and what occupies them, class by class, against scripted faults."""

from __future__ import annotations

import contextlib
import http.client
import signal
import socket
from typing import TYPE_CHECKING

import pytest

from obskit_gunicorn._store.directory import SlotDirectory
from obskit_gunicorn.multiprocess import MultiProcessCollector
from tests.live.test_telemetry import UVICORN, by_label, value, wait_for
from tests.support import apps
from tests.support.process import HOST, GunicornProcess, Interpreter, get, wait_until
from tests.support.releases import has_class

if TYPE_CHECKING:
    from pathlib import Path

WSGI = (
    apps.COUNTED
    + """

def application(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    if environ["PATH_INFO"] == "/block":
        block(60)
    return stream() if environ["PATH_INFO"] == "/stream" else [b"ok"]


def stream():
    while True:
        yield b"x"
        time.sleep(0.2)
"""
)

ASGI = (
    apps.COUNTED
    + """
import asyncio


"""
    + apps.LIFESPAN
    + """    await send({"type": "http.response.start", "status": 200, "headers": []})
    while scope["path"] == "/stream":
        await send({"type": "http.response.body", "body": b"x", "more_body": True})
        await asyncio.sleep(0.2)
    await send({"type": "http.response.body", "body": b"ok"})
"""
)

APPLICATIONS = {"sync": WSGI, "gthread": WSGI, "gevent": WSGI, "asgi": ASGI, UVICORN: ASGI}

CONFIG = """
import time

from obskit_gunicorn import ObskitGunicornConfig


class Config(ObskitGunicornConfig):
    workers = 1
    worker_class = {worker_class!r}
    threads = 2 if worker_class == "gthread" else 1
    keepalive = 30
    {settings}
"""


def server(
    interpreter: Interpreter,
    worker_class: str,
    settings: str,
    *arguments: str,
    shared: bool = False,
) -> GunicornProcess:
    """Return a server with one worker and an exporter."""
    if not has_class(interpreter, worker_class):
        pytest.skip("this Gunicorn has no asgi worker")
    config = CONFIG.format(worker_class=worker_class, settings=settings)
    app = APPLICATIONS[worker_class]
    return GunicornProcess(
        interpreter, config, app=app, exporter=True, shared=shared, arguments=arguments
    )


WITHOUT_LOCKS = """
    def post_fork(self, server, worker):
        super().post_fork(server, worker)
        import fcntl
        flock, until = fcntl.flock, time.monotonic() + 3

        def late(descriptor, operation):
            if time.monotonic() < until:
                raise OSError(37, "No locks available")
            flock(descriptor, operation)

        fcntl.flock = late
"""


@pytest.mark.parametrize("worker_class", list(APPLICATIONS))
def test_idle_worker_gets_its_lease(interpreter: Interpreter, worker_class: str) -> None:
    """A worker that cannot have a lease at first gets one soon, though nobody sends a request."""
    settings = f"metrics_requests = False\n    timeout = 4{WITHOUT_LOCKS}"
    with server(interpreter, worker_class, settings) as running:
        wait_until(lambda: "stay in its memory" in running.log(), "there is no lease")
        assert value(running.scrape(), "gunicorn_workers_ready") == 0
        wait_for(running, lambda found: value(found, "gunicorn_workers_ready") == 1, "it has one")


def exits_in(directory: Path) -> dict[str, float]:
    """Return how many workers have ended, by reason, as the files of a directory have it."""
    return {
        sample.labels["reason"]: sample.value
        for family in MultiProcessCollector(None, str(directory)).collect()
        for sample in family.samples
        if sample.name == "gunicorn_worker_exits_total" and sample.value
    }


def request(running: GunicornProcess, path: str) -> socket.socket:
    """Send a request, and return its connection when an answer has begun."""
    connection = socket.create_connection((HOST, running.port), timeout=10)
    connection.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    connection.recv(100)
    return connection


@pytest.mark.releases_differ
@pytest.mark.parametrize("worker_class", ["gthread", "gevent", "asgi", UVICORN])
def test_draining_worker_is_not_ready(interpreter: Interpreter, worker_class: str) -> None:
    """A recycled worker with a stream is not ready; if its time is up, that is no time-out."""
    settings = "max_requests = 4\n    timeout = 4"
    patience = ("--graceful-timeout", "60")
    with server(interpreter, worker_class, settings, *patience) as running:
        wait_for(running, lambda m: value(m, "gunicorn_workers_ready") == 1, "ready")
        stream = request(running, "/stream")

        def is_leaving() -> bool:
            with contextlib.suppress(OSError, http.client.HTTPException):
                get(running.port, "/", timeout=0.3)
            with contextlib.suppress(ValueError):
                (record,) = (
                    record
                    for record in SlotDirectory(str(running.metrics_directory)).records().values()
                    if record is not None and record["role"] == "worker"
                )
                return (record["state"], record["reason"]) == ("leaving", "max_requests")
            return False

        wait_until(is_leaving, "the worker leaves")
        assert running.page("/-/ready", port=running.metrics_port).status == 503
        found = running.scrape()
        assert value(found, "gunicorn_workers_ready") == 0
        assert value(found, "gunicorn_capacity") == 0
        assert stream.recv(1)
        if worker_class in ("gthread", "gevent"):  # they give signs of life; others time out
            stream.close()
        found = wait_for(
            running,
            lambda m: value(m, "gunicorn_worker_exits_total", reason="max_requests") == 1,
            "the end is counted",
        )
        stream.close()
        assert sum(by_label(found, "gunicorn_worker_exits_total").values()) == 1
        wait_for(running, lambda m: value(m, "gunicorn_workers_ready") == 1, "another is ready")
        assert running.page("/-/ready", port=running.metrics_port).status == 200


def test_last_request_that_hangs(newest: Interpreter) -> None:
    """A sync worker that hangs in its last request has timed out, whatever it would have done."""
    with server(newest, "sync", "max_requests = 2\n    timeout = 2") as running:
        wait_for(running, lambda m: value(m, "gunicorn_workers_ready") == 1, "ready")
        with pytest.raises(TimeoutError):
            get(running.port, "/block", timeout=0.3)
        found = wait_for(
            running,
            lambda m: sum(by_label(m, "gunicorn_worker_exits_total").values()) == 1,
            "the end is counted",
        )
        assert value(found, "gunicorn_worker_exits_total", reason="timeout") == 1


@pytest.mark.releases_differ
@pytest.mark.parametrize("worker_class", APPLICATIONS)
def test_killed_while_it_leaves(interpreter: Interpreter, worker_class: str) -> None:
    """One end is one end, however many have held the slot before the arbiter hears of it."""
    hook = """def worker_exit(self, server, worker):
        open("left", "w").close()
        time.sleep(60)"""
    with server(interpreter, worker_class, f"max_requests = 2\n    {hook}") as running:
        (worker,) = running.wait_for_workers(1)
        wait_for(running, lambda m: value(m, "gunicorn_workers_ready") == 1, "ready")
        with contextlib.suppress(OSError, http.client.HTTPException):
            get(running.port, "/", timeout=1)
        wait_until((running.root / "left").exists, "it leaves")
        running.send_signal(signal.SIGSTOP, running.arbiter_pid)
        running.send_signal(signal.SIGKILL, worker)
        directory = SlotDirectory(str(running.metrics_directory))
        wait_until(lambda: directory.records()["slot1"] is None, "the slot is free")
        for _ in range(3):
            lease = directory.acquire("process")
            assert lease.slot == "slot1"
            lease.release()
        running.send_signal(signal.SIGCONT, running.arbiter_pid)
        found = wait_for(
            running, lambda m: value(m, "gunicorn_worker_boots_total") == 2, "another has booted"
        )
        exits = by_label(found, "gunicorn_worker_exits_total")
        # Before Gunicorn 24, the worker has counted its end before the kill.
        expected = "killed" if interpreter.version >= (24,) else "max_requests"
        assert {reason: count for (reason,), count in exits.items() if count} == {expected: 1}


@pytest.mark.releases_differ
@pytest.mark.parametrize("worker_class", ["gthread", "gevent"])
def test_workers_without_an_arbiter(interpreter: Interpreter, worker_class: str) -> None:
    """Workers whose arbiter was killed count their ends themselves."""
    with server(interpreter, worker_class, "workers = 2", shared=True) as running:
        wait_for(running, lambda m: value(m, "gunicorn_workers_ready") == 2, "ready")
        running.send_signal(signal.SIGKILL)
        running.wait_until_gone()
        assert exits_in(running.metrics_directory) == {"graceful": 2}


SLOW_TO_COUNT = """workers = 2

    def when_ready(self, server):
        super().when_ready(server)
        from obskit_gunicorn._gunicorn import telemetry

        count = telemetry.count

        def slowly(*of):
            time.sleep(0.3)
            count(*of)

        telemetry.count = slowly
"""


@pytest.mark.releases_differ
@pytest.mark.parametrize("settings", ["workers = 2", SLOW_TO_COUNT], ids=["quick", "slow"])
def test_workers_killed_at_a_stop(interpreter: Interpreter, settings: str) -> None:
    """A worker that Gunicorn kills when it stops is counted as killed, and once.

    Gunicorn tells no hook of it; or, before 24, perhaps while the arbiter is counting it.
    """
    with server(interpreter, "sync", settings, shared=True) as running:
        wait_for(running, lambda m: value(m, "gunicorn_workers_ready") == 2, "ready")
        with pytest.raises(TimeoutError):
            get(running.port, "/block", timeout=0.3)
        running.stop()
        assert exits_in(running.metrics_directory) == {"graceful": 1, "killed": 1}


@pytest.mark.releases_differ
@pytest.mark.parametrize("worker_class", APPLICATIONS)
def test_silent_connections(interpreter: Interpreter, worker_class: str) -> None:
    """Connections that send nothing are shown where they take a place that a request could have."""
    expected = {"sync": 1, "gthread": 2 if interpreter.version >= (24,) else 0}
    with server(interpreter, worker_class, "timeout = 60") as running:
        wait_for(running, lambda m: value(m, "gunicorn_workers_ready") == 1, "ready")
        found = wait_for(running, lambda m: value(m, "gunicorn_connections") == 0, "none")
        is_known = worker_class != "asgi" or interpreter.version >= (26,)
        assert (("gunicorn_connections", frozenset()) in found) == is_known
        if not is_known:
            return
        silent = [socket.create_connection((HOST, running.port)) for _ in range(2)]
        number = expected.get(worker_class, 2)
        found = wait_for(running, lambda m: value(m, "gunicorn_connections") == number, "seen")
        assert value(found, "gunicorn_requests_in_progress") == 0
        for connection in silent:
            connection.close()
        wait_for(running, lambda m: value(m, "gunicorn_connections") == 0, "none is left")
        stream = request(running, "/stream")
        found = wait_for(running, lambda m: value(m, "gunicorn_connections") == 1, "a busy one")
        assert value(found, "gunicorn_requests_in_progress") == 1
        stream.close()
