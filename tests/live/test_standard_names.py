"""The standard names, connections and busy seconds of real servers, against what /proc says."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
import time
from pathlib import Path

import pytest

from obskit_gunicorn._exporter.procfs import boot_time
from tests.live.test_telemetry import UVICORN, by_label, value, wait_for
from tests.support import apps
from tests.support.process import HOST, GunicornProcess, Interpreter, Metrics, get, wait_until

TICKS = os.sysconf("SC_CLK_TCK")

WSGI = (
    apps.COUNTED
    + """
import gc


def application(environ, start_response):
    path = environ["PATH_INFO"]
    if path == "/collect":
        gc.collect()
    if path == "/burn":
        burn()
    if path == "/block":
        block(float(parameter(environ["QUERY_STRING"], "1")))
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"ok"]


def burn():
    end = time.process_time() + 0.1
    while time.process_time() < end:
        pass


gc.disable()
"""
)

ASGI = (
    WSGI.replace("def application(", "def unused(")
    + apps.LIFESPAN
    + """    if scope["path"] == "/collect":
        gc.collect()
    if scope["path"] == "/burn":
        burn()
    headers = [(b"content-length", b"2")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": b"ok"})
"""
)

APPLICATIONS = {"sync": WSGI, "gthread": WSGI, "gevent": WSGI, "asgi": ASGI, UVICORN: ASGI}

CONFIG = """
from obskit_gunicorn import ObskitGunicornConfig


class Config(ObskitGunicornConfig):
    workers = 2
    worker_class = {worker_class!r}
    threads = 4 if worker_class == "gthread" else 1
    keepalive = 30
    {settings}
"""

COLLECTIONS = "python_gc_collections_total"


def server(
    interpreter: Interpreter, worker_class: str, settings: str = "pass", *arguments: str
) -> GunicornProcess:
    """Return a server with an exporter."""
    config = CONFIG.format(worker_class=worker_class, settings=settings)
    app = APPLICATIONS[worker_class]
    return GunicornProcess(interpreter, config, app=app, exporter=True, arguments=arguments)


def stat(pid: int) -> list[str]:
    """Return the fields of a process's status; the first is its state, which proc(5) calls 3."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def cpu(arbiter: int) -> float:
    """Return the CPU time of an arbiter and of all its children, those that have ended too."""
    children = [
        each
        for each in map(int, filter(str.isdigit, os.listdir("/proc")))
        if _parent(each) == arbiter
    ]
    ticks = 0
    for pid in (arbiter, *children):
        with contextlib.suppress(OSError):
            ticks += sum(map(int, stat(pid)[11:15]))
    return ticks / TICKS


def _parent(pid: int) -> int:
    with contextlib.suppress(OSError):
        return int(stat(pid)[1])
    return 0


def wait_until_ready(running: GunicornProcess) -> Metrics:
    """Wait until both workers serve."""
    return wait_for(running, lambda m: value(m, "gunicorn_workers_ready") == 2, "ready")


class Watch(threading.Thread):
    """Scrapes again and again, and keeps what it has seen of counters."""

    names = ("process_cpu_seconds_total", "gunicorn_worker_busy_seconds_total", COLLECTIONS)

    def __init__(self, running: GunicornProcess) -> None:
        super().__init__()
        self._running = running
        self._over = threading.Event()
        self.seen: dict[tuple[str, frozenset[tuple[str, str]]], list[float]] = {}

    def run(self) -> None:
        """Scrape until it is over."""
        while not self._over.wait(0.05):
            for key, number in self._running.scrape().items():
                if key[0] in self.names:
                    self.seen.setdefault(key, []).append(number)

    def __enter__(self) -> Watch:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self.join()


def collect(running: GunicornProcess, times: int) -> None:
    """Have garbage collected."""
    for _ in range(times):
        assert get(running.port, "/collect").status == 200


@pytest.mark.parametrize("worker_class", APPLICATIONS)
def test_through_kill_and_reload(newest: Interpreter, worker_class: str) -> None:
    """Figures are those of the server, however its workers change; no counter ever falls."""
    with server(newest, worker_class) as running, contextlib.ExitStack() as stack:
        found = wait_until_ready(running)
        watch = stack.enter_context(Watch(running))
        start = value(found, COLLECTIONS, generation="2")
        collect(running, 7)
        for _ in range(3):
            get(running.port, "/burn")

        def is_noted() -> bool:
            get(running.port, "/")  # a worker notes once a second, when a request has ended
            return value(running.scrape(), COLLECTIONS, generation="2") == start + 7

        wait_until(is_noted, "all collections are noted")
        victim = min(running.worker_pids())
        running.send_signal(signal.SIGKILL, victim)
        before = running.wait_for_workers(2, without={victim})
        wait_until_ready(running)
        collect(running, 2)
        running.send_signal(signal.SIGHUP)
        running.wait_for_workers(2, without=before)
        wait_until_ready(running)
        if worker_class != UVICORN:  # its workers end by a signal, and note nothing then
            wait_for(
                running,
                lambda m: value(m, COLLECTIONS, generation="2") >= start + 9,
                "workers that end note what they have not noted yet",
            )

        clients = [
            stack.enter_context(socket.create_connection((HOST, running.port))) for _ in range(3)
        ]
        address = f"{HOST}:{running.port}"

        def connections() -> tuple[float, float]:
            both = by_label(running.scrape(), "gunicorn_open_connections")
            return both[address, "accepted"], both[address, "waiting"]

        # A sync worker has one connection each, others have all.
        wait_until(
            lambda: connections() == ((2, 1) if worker_class == "sync" else (3, 0)), "they are seen"
        )
        for client in clients:
            client.close()
        wait_until(lambda: connections() == (0, 0), "they are gone")

        arbiter = running.arbiter_pid
        least = cpu(arbiter)
        found = running.scrape()
        most = cpu(arbiter)
        tolerance = 10 / TICKS  # the figure of each process is rounded down
        assert least - tolerance <= value(found, "process_cpu_seconds_total") <= most + tolerance
        assert least > 0.3
        (open_fds, max_fds) = (value(found, f"process_{name}_fds") for name in ("open", "max"))
        fds = by_label(found, "gunicorn_process_open_fds")
        assert open_fds == max(
            number for (role, _slot), number in fds.items() if role != "exporter"
        )
        assert max_fds in by_label(found, "gunicorn_process_max_fds").values()
        started = by_label(found, "gunicorn_process_start_time_seconds")["arbiter", "slot0"]
        assert value(found, "process_start_time_seconds") == started
        memory = by_label(found, "gunicorn_process_proportional_memory_bytes")
        assert value(found, "process_resident_memory_bytes") == sum(memory.values())
        assert value(found, "process_virtual_memory_bytes") > sum(memory.values())
        assert len(by_label(found, "python_info")) == 1
        is_busy = ("gunicorn_worker_busy_seconds_total", frozenset()) in found
        assert is_busy == (worker_class in ("sync", "gthread"))
    for key, numbers in watch.seen.items():
        assert numbers == sorted(numbers), key
    assert len(watch.seen[COLLECTIONS, frozenset({("generation", "2")})]) > 5


def test_through_an_upgrade(newest: Interpreter) -> None:
    """The newest arbiter tells the start; both exporters say the same while there are two."""
    with server(newest, "gthread") as running:
        wait_until_ready(running)
        get(running.port, "/burn")
        old = running.arbiter_pid
        with Watch(running) as watch:
            new = running.start_upgrade()
            wait_for(running, lambda m: value(m, "gunicorn_workers_ready") == 4, "both serve")
            started = by_label(running.scrape(), "gunicorn_process_start_time_seconds")
            starts = [at for (role, _slot), at in started.items() if role == "arbiter"]
            assert len(starts) == 2
            found = running.scrape()
            assert value(found, "process_start_time_seconds") == max(starts)
            assert value(found, "process_cpu_seconds_total") >= cpu(old) - 0.2
            # Either exporter answers, and both show that of the newest arbiter.
            (exporter,) = wait_until(lambda: running.exporter_pids(new), "it has an exporter")
            assert exporters_starts(running) == {int(stat(exporter)[19]) / TICKS}
        (numbers,) = (
            numbers for (name, _labels), numbers in watch.seen.items() if "process_cpu" in name
        )
        assert numbers == sorted(numbers)
        running.send_signal(signal.SIGTERM, old)
        wait_until(
            lambda: running.pid_path.exists() and running.arbiter_pid == new, "the old one ended"
        )
        found = wait_for(running, lambda m: value(m, "gunicorn_workers_ready") == 2, "the new ones")
        wait_for(
            running,
            lambda m: value(m, "process_cpu_seconds_total") <= cpu(new) + 0.2,
            "only the new one is counted",
        )


def exporters_starts(running: GunicornProcess) -> set[float]:
    """Return when the exporter was started, by what many scrapes say, since the machine was."""
    name = "gunicorn_process_start_time_seconds"
    return {
        round(by_label(running.scrape(), name)["exporter", ""] - boot_time(), 2) for _ in range(20)
    }


def test_rollback_of_an_upgrade(newest: Interpreter) -> None:
    """When the newest arbiter ends, the exporter that is left shows itself."""
    with server(newest, "sync") as running:
        wait_until_ready(running)
        (exporter,) = running.exporter_pids()
        started = {int(stat(exporter)[19]) / TICKS}
        assert exporters_starts(running) == started
        new = running.start_upgrade()
        wait_until(lambda: len(running.exporter_pids()) == 2, "there are two")
        wait_until(lambda: exporters_starts(running).isdisjoint(started), "both show the new one")
        running.send_signal(signal.SIGTERM, new)
        wait_until(lambda: running.exporter_pids() == {exporter}, "it has ended")
        assert exporters_starts(running) == started


@pytest.mark.parametrize("worker_class", ["sync", "gthread"])
def test_busy_seconds(newest: Interpreter, worker_class: str) -> None:
    """They are the time for which connections have occupied workers or threads."""
    name = "gunicorn_worker_busy_seconds_total"
    with server(newest, worker_class, "timeout = 30") as running:
        before = value(wait_until_ready(running), name)

        def ask() -> None:
            get(running.port, "/block?s=2", timeout=20)

        threads = [threading.Thread(target=ask) for _ in range(2)]
        for thread in threads:
            thread.start()
        if worker_class == "gthread":  # it is seen while it passes
            found = wait_for(running, lambda m: value(m, name) > before + 1, "they are busy")
            assert value(found, "gunicorn_requests_in_progress") == 2
        for thread in threads:
            thread.join()
        found = wait_for(
            running,
            # The one that asked whether it answers, and these; counted after their answers.
            lambda m: (
                value(m, "gunicorn_request_duration_seconds_count", method="GET") == 3
                and value(m, name) >= before + 4
            ),
            "they were busy",
        )
        durations = by_label(found, "gunicorn_request_duration_seconds_sum")["GET",]
        assert value(found, name) >= durations - 0.01
        # Nobody was busy besides.
        assert value(found, name) - before < durations + 1


def test_slow_client_occupies_a_worker(newest: Interpreter) -> None:
    """Time in which a worker reads from a client that sends nothing is busy, and no request."""
    with server(newest, "sync") as running:
        found = wait_until_ready(running)
        before = value(found, "gunicorn_worker_busy_seconds_total")
        with socket.create_connection((HOST, running.port)) as client:
            wait_for(running, lambda m: value(m, "gunicorn_connections") == 1, "it is accepted")
            began = time.monotonic()
            wait_until(lambda: time.monotonic() > began + 1, "a second passes")
            client.sendall(b"nonsense\r\n\r\n")
            client.recv(100)
        wait_for(
            running,
            lambda m: value(m, "gunicorn_worker_busy_seconds_total") >= before + 1,
            "the second is counted",
        )


def test_unix_socket(newest: Interpreter) -> None:
    """Connections and backlog of a server at a Unix socket, under its path."""
    with server(newest, "gthread", "pass", "--bind", "unix:web.sock") as running:
        wait_until_ready(running)
        path = running.root / "web.sock"
        address = "unix:web.sock"
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))
            found = wait_for(
                running,
                lambda m: (
                    value(m, "gunicorn_open_connections", address=address, state="accepted") == 1
                ),
                "it is seen",
            )
        assert value(found, "gunicorn_listen_backlog", address=address) == 0
        assert value(found, "gunicorn_listen_backlog_limit", address=address) > 1


def test_switched_off(newest: Interpreter) -> None:
    """Without the standard names there are none, and workers note nothing for them."""
    with server(newest, "sync", "metrics_standard = False") as running:
        found = wait_until_ready(running)
        get(running.port, "/")
        names = {name for name, _labels in found}
        assert "gunicorn_process_threads" in names
        assert not [name for name in names if name.startswith(("process_", "python_"))]
        assert not [name for name in names if name.startswith("gunicorn_gc_")]
