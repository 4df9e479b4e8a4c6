"""What statsd and OpenTelemetry cost a worker, and what they count, beside ours, in one run.

- A count: CPU time of one call, the sides in turn, each in a fresh interpreter; the best of several
  rounds is kept. A datagram of statsd goes to a socket that is there, and that nobody reads.
- A request: what Gunicorn's own ``statsd_host`` adds to it, and what our two hooks do.
- A scrape: CPU time of making the exposition of four workers. OpenTelemetry's has no sum
  over workers: each has an exposition of its own, and all four have to be scraped.
- A count of a server whose workers are recycled, and one of which is killed: how many of 300
  requests are shown in the end.

There is no statsd_exporter and no OpenTelemetry Collector in it: what is measured is their side in
the worker. The receiver of statsd is a socket that counts datagrams, that of OpenTelemetry's push a
file. Run it with ``make bench``, or ``python -m benchmarks.alternatives``.
"""

from __future__ import annotations

import contextlib
import http.client
import importlib.util
import json
import os
import platform
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.support.writers import Change, Writers

if TYPE_CHECKING:
    from collections.abc import Iterator

HOST = "127.0.0.1"
ROUNDS = 5
WORKERS, SERIES = 4, 1_000
REQUESTS, BEFORE_KILL = 300, 170
PUSH_SECONDS = 1.0

# ------------------------------------------------------------------------------------------------
# A count, and a request

COMMON = """
import json, os, sys, time, timeit
port, series = int(sys.argv[1]), int(sys.argv[2])

def each(function, number=50_000):
    times = timeit.repeat(function, timer=time.process_time, number=number, repeat=5)
    return 1e6 * min(times) / number
"""

PROMETHEUS = """
from prometheus_client import Counter, Histogram
counter = Counter("bench_requests", "Requests.", ["method", "path"])
seconds = Histogram("bench_seconds", "Seconds.", ["path"])
child, timed = counter.labels("GET", "/item"), seconds.labels("/item")
print(json.dumps({
    "count": each(child.inc),
    "count, labels looked up": each(lambda: counter.labels("GET", "/item").inc()),
    "observe": each(lambda: timed.observe(0.3)),
    "observe, labels looked up": each(lambda: seconds.labels("/item").observe(0.3)),
}))
"""

MEASURES = {
    "obskit_gunicorn": COMMON + "import obskit_gunicorn.multiprocess\n" + PROMETHEUS,
    "prometheus_client": COMMON + PROMETHEUS,
    "OpenTelemetry": COMMON
    + """
from opentelemetry.exporter.prometheus import PrometheusMetricReader
from opentelemetry.sdk.metrics import MeterProvider
from prometheus_client import REGISTRY, generate_latest
meter = MeterProvider(metric_readers=[PrometheusMetricReader()]).get_meter("bench")
counter = meter.create_counter("bench_requests")
seconds = meter.create_histogram("bench_seconds")
asked, path = {"method": "GET", "path": "/item"}, {"path": "/item"}
found = {
    "count": each(lambda: counter.add(1)),
    "count, labels looked up": each(lambda: counter.add(1, asked)),
    "observe": each(lambda: seconds.record(0.3)),
    "observe, labels looked up": each(lambda: seconds.record(0.3, path)),
}
for number in range(series // 2):
    counter.add(1, {"method": "GET", "path": f"/item/{number}"})
for number in range(series // 2 // 17):
    seconds.record(0.3, {"path": f"/item/{number}"})
generate_latest(REGISTRY)
found["scrape"] = each(lambda: generate_latest(REGISTRY), number=5)
print(json.dumps(found))
""",
    "statsd": COMMON
    + """
from statsd import StatsClient
client = StatsClient("127.0.0.1", port)
print(json.dumps({
    "count": each(lambda: client.incr("bench.requests"), number=10_000),
    "observe": each(lambda: client.timing("bench.seconds", 300), number=10_000),
}))
""",
    "Gunicorn's statsd_host": COMMON
    + """
from datetime import timedelta
from gunicorn.config import Config
from gunicorn.glogging import Logger
from gunicorn.instrument.statsd import Statsd

class Response:
    status, status_code, sent, headers = "200 OK", 200, 3, []

settings = Config()
settings.set("statsd_host", f"127.0.0.1:{port}")
logger, plain, took = Statsd(settings), Logger(Config()), timedelta(milliseconds=3)
print(json.dumps({"request": each(lambda: logger.access(Response, None, {}, took), number=5_000)
    - each(lambda: plain.access(Response, None, {}, took), number=5_000)}))
""",
}
"""What each side prints: microseconds by what was measured."""

PACKAGES = {
    "OpenTelemetry": "opentelemetry.exporter.prometheus",
    "statsd": "statsd",
    "OpenTelemetry, scraped": "opentelemetry.exporter.prometheus",
    "OpenTelemetry, pushed": "opentelemetry.sdk.metrics",
}
"""What a side needs, apart from what is there anyhow."""


def is_installed(side: str) -> bool:
    """Return whether a side can be measured."""
    package = PACKAGES.get(side, "os")
    with contextlib.suppress(ModuleNotFoundError):
        return importlib.util.find_spec(package) is not None
    return False


def measure(side: str) -> dict[str, float]:
    """Return microseconds by what was measured."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as unread, scratch() as directory:
        unread.bind((HOST, 0))
        done = subprocess.run(
            [sys.executable, "-c", MEASURES[side], str(unread.getsockname()[1]), str(SERIES)],
            env={**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(directory)}
            if "_" in side
            else {key: os.environ[key] for key in os.environ if key != "PROMETHEUS_MULTIPROC_DIR"},
            stdout=subprocess.PIPE,
            check=True,
        )
    found: dict[str, float] = json.loads(done.stdout)
    return found


@contextmanager
def scratch() -> Iterator[Path]:
    """Make a directory in memory, if there is any."""
    place = "/dev/shm" if os.path.isdir("/dev/shm") else None
    with tempfile.TemporaryDirectory(dir=place) as directory:
        yield Path(directory)


SCRAPE = """
import sys, time
from obskit_gunicorn.multiprocess import generate_latest
generate_latest()
print("ready", flush=True)
best = None
for line in sys.stdin:
    start = time.process_time()
    generate_latest()
    spent = time.process_time() - start
    best = spent if best is None else min(best, spent)
    print(best, flush=True)
"""


def measure_our_scrape() -> float:
    """Return the microseconds of a scrape of four workers, a tenth of whose values have changed."""
    with scratch() as directory, Writers(directory, WORKERS, SERIES) as writers:
        reader = subprocess.Popen(
            [sys.executable, "-c", SCRAPE],
            env={**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(directory)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert reader.stdin is not None
        assert reader.stdout is not None
        reader.stdout.readline()
        best = 0.0
        for _ in range(20):
            writers.change(Change(0.1))
            reader.stdin.write("\n")
            reader.stdin.flush()
            best = float(reader.stdout.readline())
        reader.communicate()
    return best * 1e6


# ------------------------------------------------------------------------------------------------
# A server whose workers come and go

SERVE = """
import os

{count}

def application(environ, start_response):
    body = str(os.getpid()).encode()
    if environ["PATH_INFO"] == "/metrics":
        body = exposition()
    else:
        count()
    start_response("200 OK", [("Content-Length", str(len(body)))])
    return [body]
"""

COUNTS = {
    "obskit_gunicorn": """
from obskit_gunicorn.multiprocess import generate_latest as exposition
from prometheus_client import Counter

count = Counter("bench_served", "Requests.").inc
""",
    "OpenTelemetry, scraped": """
from opentelemetry.exporter.prometheus import PrometheusMetricReader
from opentelemetry.sdk.metrics import MeterProvider
from prometheus_client import generate_latest as exposition

meter = MeterProvider(metric_readers=[PrometheusMetricReader()]).get_meter("bench")
counter = meter.create_counter("bench_served")

def count():
    counter.add(1)
""",
    "OpenTelemetry, pushed": """
import json
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import (
    MetricExporter, MetricExportResult, PeriodicExportingMetricReader
)

class Pushed(MetricExporter):
    def export(self, metrics_data, timeout_millis=10_000, **others):
        total = sum(
            point.value
            for resource in metrics_data.resource_metrics
            for scope in resource.scope_metrics
            for metric in scope.metrics
            if metric.name == "bench_served"
            for point in metric.data.data_points
        )
        with open(f"pushed-{os.getpid()}", "w") as file:
            file.write(str(total))
        return MetricExportResult.SUCCESS

    def force_flush(self, timeout_millis=10_000):
        return True

    def shutdown(self, timeout_millis=30_000, **others):
        pass

reader = PeriodicExportingMetricReader(
    Pushed(), export_interval_millis=1000 * float(os.environ["PUSH_SECONDS"])
)
counter = MeterProvider(metric_readers=[reader]).get_meter("bench").create_counter("bench_served")

def count():
    counter.add(1)
""",
    "statsd": """
from statsd import StatsClient

client = StatsClient("127.0.0.1", int(os.environ["STATSD_PORT"]))

def count():
    client.incr("bench.served")
""",
}

CONFIG = """
from obskit_gunicorn import ObskitGunicornConfig

class Config(ObskitGunicornConfig):
    workers = 2
    max_requests = 40
    metrics_bind = None
"""
PLAIN = "workers = 2\nmax_requests = 40\n"


class Receiver:
    """A statsd server that only counts datagrams."""

    def __init__(self) -> None:
        """Open the socket."""
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.bind((HOST, 0))
        self.socket.settimeout(0.5)
        self.count = 0
        self._thread = threading.Thread(target=self._run)
        self._is_over = False

    def __enter__(self) -> Receiver:
        """Begin to count."""
        self._thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        """Close the socket."""
        self._is_over = True
        self._thread.join()
        self.socket.close()

    def _run(self) -> None:
        while not self._is_over:
            with contextlib.suppress(TimeoutError):
                self.count += self.socket.recv(1500).startswith(b"bench.served:1|c")


def ask(port: int, path: str) -> bytes:
    """Ask a server for a page; ask again if the worker was about to end."""
    deadline = time.monotonic() + 30
    while True:
        connection = http.client.HTTPConnection(HOST, port, timeout=10)
        try:
            connection.request("GET", path)
            return connection.getresponse().read()
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)
        finally:
            connection.close()


def shown_after_recycling(side: str) -> float:
    """Return how many of the requests are shown, by what the last of a series would show."""
    with scratch() as root, Receiver() as receiver, socket.socket() as probe:
        probe.bind((HOST, 0))
        port = int(probe.getsockname()[1])
        probe.close()
        (root / "gunicorn.conf.py").write_text(CONFIG if side == "obskit_gunicorn" else PLAIN)
        (root / "app.py").write_text(SERVE.format(count=COUNTS[side]))
        (root / "metrics").mkdir()
        unset = {"PROMETHEUS_MULTIPROC_DIR", "OBSKIT_METRICS_BIND"}
        with (root / "log").open("wb") as log:
            server = subprocess.Popen(
                [sys.executable, "-m", "gunicorn", "--bind", f"{HOST}:{port}", "app:application"],
                cwd=root,
                env={
                    **{key: value for key, value in os.environ.items() if key not in unset},
                    "PUSH_SECONDS": str(PUSH_SECONDS),
                    "STATSD_PORT": str(receiver.socket.getsockname()[1]),
                },
                stderr=log,
            )
        try:
            for number in range(REQUESTS):
                pid = int(ask(port, "/"))
                if number == BEFORE_KILL:
                    os.kill(pid, signal.SIGKILL)
            shown = 0.0
            if side in {"obskit_gunicorn", "OpenTelemetry, scraped"}:
                lines = ask(port, "/metrics").decode().splitlines()
                shown = sum(
                    float(line.split()[-1])
                    for line in lines
                    if line.startswith("bench_served_total")
                )
        finally:
            server.send_signal(signal.SIGTERM)
            server.wait(30)
        if side == "statsd":
            time.sleep(0.2)
            return receiver.count
        pushed = sum(float(path.read_text()) for path in root.glob("pushed-*"))
        return shown or pushed


def lost_by_a_busy_receiver(calls: int) -> int:
    """Return how many of so many datagrams are gone when their receiver reads again."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as busy:
        busy.bind((HOST, 0))
        subprocess.run(
            [
                sys.executable, "-c",
                "import sys; from statsd import StatsClient\n"
                "client = StatsClient('127.0.0.1', int(sys.argv[1]))\n"
                "for _ in range(int(sys.argv[2])): client.incr('bench.served')",
                str(busy.getsockname()[1]), str(calls),
            ],
            check=True,
        )  # fmt: skip
        busy.setblocking(False)
        for lost in range(calls, 0, -1):
            try:
                busy.recv(1500)
            except BlockingIOError:
                return lost
    return 0


# ------------------------------------------------------------------------------------------------


def main() -> None:
    """Measure all sides and print what came of it."""
    print(f"Python {platform.python_version()}, best of {ROUNDS} rounds; microseconds of CPU time")
    best: dict[str, dict[str, float]] = {side: {} for side in MEASURES if is_installed(side)}
    for _round in range(ROUNDS):
        for side, figures in best.items():
            for name, value in measure(side).items():
                figures[name] = min(value, figures.get(name, value))
    ours = best["obskit_gunicorn"]
    names = ["count", "count, labels looked up", "observe", "observe, labels looked up"]
    print(
        f"{'':<28}{'ours':>10}"
        + "".join(f"{side:>26}" for side in best if side != "obskit_gunicorn")
    )
    for name in names:
        line = f"{name:<28}{ours[name]:>10.2f}"
        for side, figures in best.items():
            if side != "obskit_gunicorn":
                shown = "-"
                if name in figures:
                    shown = f"{figures[name]:.2f} ({figures[name] / ours[name]:.1f} x)"
                line += f"{shown:>26}"
        print(line)
    added = best["Gunicorn's statsd_host"]["request"]
    print(
        f"\na request, by Gunicorn's statsd_host: {added:.1f}; ours: python -m benchmarks.requests"
    )
    our_scrape = min(measure_our_scrape() for _ in range(3))
    print(f"\na scrape of {WORKERS} workers with {SERIES} series each, milliseconds")
    print(f"  obskit_gunicorn, one sum, a tenth has changed   {our_scrape / 1000:>8.2f}")
    if "OpenTelemetry" in best:
        theirs = WORKERS * best["OpenTelemetry"]["scrape"]
        print(f"  OpenTelemetry, {WORKERS} expositions, one of each worker {theirs / 1000:>8.2f}")
    print(
        f"\nshown of {REQUESTS} requests, workers recycled every 40, one killed after {BEFORE_KILL}"
    )
    for side in COUNTS:
        shown = f"{shown_after_recycling(side):.0f}" if is_installed(side) else "not installed"
        print(f"  {side:<26}{shown:>8}")
    if is_installed("statsd"):
        lost = lost_by_a_busy_receiver(20_000)
        print(f"  statsd, 20000 calls while its receiver is busy: {lost} lost")


if __name__ == "__main__":
    main()
