"""What being scraped costs the application, and what the exporter weighs.

A real Gunicorn server with two workers answers a client that sends a request every few
milliseconds. 32 more processes with 9,000 series each write to its directory, and change a tenth of
them twice a second. In turns of a few seconds the exporter is scraped ten times a second, with gzip
as Prometheus asks for it, and left alone. The turns of each kind are put together, and the
percentiles of both are printed, with those of each turn beside them: how far turns of the same kind
are from one another is the noise.

Run it with ``make bench``, or ``python -m benchmarks.exporter``.
"""

from __future__ import annotations

import http.client
import os
import platform
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.support.writers import Change, Writers

TURNS = int(os.environ.get("OBSKIT_BENCH_TURNS", "6"))
TURN_SECONDS = 4.0
SCRAPES_PER_SECOND = 10
REQUESTS_PER_SECOND = 200
HOST = "127.0.0.1"
WORKERS, SERIES = 32, 9_000
CHANGE = Change(0.1, is_hot=True)

CONFIG = """
from obskit_gunicorn import ObskitGunicornConfig


class Config(ObskitGunicornConfig):
    workers = 2
    worker_class = "gthread"
    threads = 2
    keepalive = 30
"""

APPLICATION = """
from prometheus_client import Counter

REQUESTS = Counter("bench_requests", "Requests.")


def application(environ, start_response):
    REQUESTS.inc()
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", "3")])
    return [b"ok\\n"]
"""


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


@contextmanager
def server(root: Path, directory: Path) -> Iterator[tuple[int, int, int]]:
    """Run Gunicorn; yield its port, its exporter's port, and the exporter's pid."""
    (root / "gunicorn.conf.py").write_text(CONFIG)
    (root / "app.py").write_text(APPLICATION)
    port, metrics_port = free_port(), free_port()
    with (root / "log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "gunicorn", "--bind", f"{HOST}:{port}", "app:application"],
            cwd=root,
            env={
                **os.environ,
                "PROMETHEUS_MULTIPROC_DIR": str(directory),
                "OBSKIT_METRICS_BIND": f"{HOST}:{metrics_port}",
            },
            stderr=log,
        )
    try:
        deadline = time.monotonic() + 30
        while True:
            try:
                ask(http.client.HTTPConnection(HOST, metrics_port, timeout=5), "/-/ready")
                break
            except (OSError, AssertionError):
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.1)
        yield port, metrics_port, exporter_pid(process.pid)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)


def exporter_pid(arbiter: int) -> int:
    """Return the pid of an arbiter's exporter."""
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                command = Path(f"/proc/{name}/cmdline").read_bytes()
                parent = int(Path(f"/proc/{name}/stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue
            if parent == arbiter and b"gunicorn: metrics exporter" in command:
                return int(name)
    raise RuntimeError("there is no exporter")


def ask(connection: http.client.HTTPConnection, path: str) -> int:
    """Send one request; return how many bytes came back."""
    connection.request("GET", path, headers={"Accept-Encoding": "gzip"})
    response = connection.getresponse()
    body = response.read()
    assert response.status == 200, response.status
    return len(body)


def proportional_megabytes(pid: int) -> float:
    """Return a process's proportional set size."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError("no Pss")


class Scraper:
    """A thread that scrapes while it is told to."""

    def __init__(self, port: int) -> None:
        """Start the thread; it waits."""
        self.durations: list[float] = []
        self.may_run = threading.Event()
        self._port = port
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        while True:
            self.may_run.wait()
            started = time.perf_counter()
            ask(http.client.HTTPConnection(HOST, self._port, timeout=10), "/metrics")
            taken = time.perf_counter() - started
            self.durations.append(taken)
            time.sleep(max(0.0, 1 / SCRAPES_PER_SECOND - taken))


def turn(port: int) -> list[float]:
    """Send requests at a steady rate for a while; return how long each took, in milliseconds."""
    connection = http.client.HTTPConnection(HOST, port, timeout=10)
    durations = []
    start = time.perf_counter()
    number = 0
    while (at := start + number / REQUESTS_PER_SECOND) < start + TURN_SECONDS:
        time.sleep(max(0.0, at - time.perf_counter()))
        sent = time.perf_counter()
        ask(connection, "/")
        durations.append((time.perf_counter() - sent) * 1e3)
        number += 1
    connection.close()
    return durations


@contextmanager
def changing(writers: Writers) -> Iterator[None]:
    """Change values twice a second."""
    is_over = threading.Event()

    def change() -> None:
        while not is_over.wait(0.5):
            writers.change(CHANGE)

    thread = threading.Thread(target=change)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()


def percentile(durations: list[float], share: float) -> float:
    """Return a percentile."""
    return sorted(durations)[int(len(durations) * share)]


def main() -> None:
    """Run everything."""
    print(f"\nPython {platform.python_version()}; the exporter")
    place = "/dev/shm" if os.path.isdir("/dev/shm") else None
    with tempfile.TemporaryDirectory(dir=place) as name:
        root = Path(name)
        directory = root / "metrics"
        directory.mkdir()
        with server(root, directory) as (port, metrics_port, pid):
            scraper = Scraper(metrics_port)
            ask(http.client.HTTPConnection(HOST, metrics_port, timeout=10), "/metrics")
            print(f"proportional set size, idle: {proportional_megabytes(pid):.1f} MB")
            with Writers(directory, WORKERS, SERIES) as writers, changing(writers):
                turn(port)
                ask(http.client.HTTPConnection(HOST, metrics_port, timeout=30), "/metrics")
                alone: list[list[float]] = []
                scraped: list[list[float]] = []
                for number in range(2 * TURNS):
                    is_scraped = number % 4 in (1, 2)  # so that a drift touches both alike
                    if is_scraped:
                        scraper.may_run.set()
                    else:
                        scraper.may_run.clear()
                    (scraped if is_scraped else alone).append(turn(port))
                scraper.may_run.clear()
                print(
                    f"proportional set size at {WORKERS} x {SERIES}: "
                    f"{proportional_megabytes(pid):.1f} MB"
                )
    print(
        f"{len(scraper.durations)} scrapes, median "
        f"{statistics.median(scraper.durations) * 1e3:.0f} ms over HTTP"
    )
    print(f"requests of the application, ms{'':>6}{'p50':>8}{'p99':>8}   p99 of each turn")
    for text, turns in (("nobody scrapes", alone), ("scraped 10 times a second", scraped)):
        together = [duration for durations in turns for duration in durations]
        each = " ".join(f"{percentile(durations, 0.99):.2f}" for durations in turns)
        p50, p99 = percentile(together, 0.5), percentile(together, 0.99)
        print(f"{text:<32}{p50:>8.2f}{p99:>8.2f}   {each}")


if __name__ == "__main__":
    main()
