"""What a scrape costs: ours against prometheus_client and the Rust speedups, in one run.

Real processes write the metrics, with our value class or with prometheus_client's, and change their
values between scrapes: none, some anywhere, the same hot ones in each, or all. Figures are
milliseconds of CPU, the median of several rounds, the sides in turn; ratios say how many times
faster ours is.

``prometheus-client-python-speedups`` takes part where it is installed; ``make bench`` installs it.

Run it with ``make bench``, or ``python -m benchmarks.scrape``; ``OBSKIT_BENCH_SIZES=4x300`` names
other sizes.
"""

from __future__ import annotations

import http.client
import os
import platform
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client import make_wsgi_app as make_their_app
from prometheus_client.multiprocess import MultiProcessCollector as TheirCollector

from benchmarks.support.writers import Change, Writers
from obskit_gunicorn._scrape.collector import DirectoryCollector

SIZES = tuple(
    (int(workers), int(series))
    for workers, _, series in (
        each.partition("x")
        for each in os.environ.get(
            "OBSKIT_BENCH_SIZES", "4x100,4x9000,32x2000,32x9000,4x50000,128x9000,512x100"
        ).split(",")
    )
)
CHANGES = (Change(0), Change(0.01), Change(0.1, is_hot=True), Change(1))
LARGE = 200_000
"""From so many series on, fewer rounds are measured."""

RECYCLES = (1, 100, 10_000)
HOST = "127.0.0.1"
ACCEPT = "application/openmetrics-text;version=1.0.0"
_PLACE = "/dev/shm" if os.path.isdir("/dev/shm") else None

Timed = Callable[[], object]


def spent(function: Timed) -> float:
    """Return how many milliseconds of CPU a call takes in this process."""
    started = time.process_time()
    function()
    return (time.process_time() - started) * 1e3


def median(rounds: int, function: Callable[[], float]) -> float:
    """Return the median of several calls."""
    return statistics.median(function() for _ in range(rounds))


def rust_merge(directory: Path) -> Timed | None:
    """Return the Rust speedups' merge of a directory, if they are installed."""
    try:
        from prometheus_client_python_speedups import merge
    except ImportError:
        return None
    return lambda: merge([str(path) for path in directory.glob("*.db")])


@contextmanager
def writers(
    workers: int, series: int, *, theirs: bool = False, mixed: bool = False
) -> Iterator[tuple[Path, Writers]]:
    """Yield a directory and the processes that write to it."""
    with (
        tempfile.TemporaryDirectory(dir=_PLACE) as name,
        Writers(Path(name), workers, series, theirs=theirs, mixed=mixed) as started,
    ):
        yield Path(name), started


def compare(workers: int, series: int, *, theirs: bool = False) -> None:
    """Print the lines of one size."""
    rounds = 3 if workers * series >= LARGE else 9
    with writers(workers, series, theirs=theirs) as (directory, started):
        registry = CollectorRegistry()
        TheirCollector(registry, str(directory))  # type: ignore[no-untyped-call]
        merge = rust_merge(directory)
        first = median(
            3, lambda: spent(lambda: DirectoryCollector(str(directory)).collect().text())
        )
        collector = DirectoryCollector(str(directory))

        def ours() -> bytes:
            return collector.collect().text()

        assert sorted(ours().split(b"\n")) == sorted(generate_latest(registry).split(b"\n"))
        stock, rust = [], []
        lines: list[tuple[str, float]] = []
        for change in CHANGES:
            warm = []
            for _ in range(3):
                for _ in range(rounds):
                    started.change(change)
                    warm.append(spent(ours))
                stock.append(spent(lambda: generate_latest(registry)))
                if merge is not None:
                    rust.append(spent(merge))
            lines.append((change.name, statistics.median(warm)))
        assert sorted(ours().split(b"\n")) == sorted(generate_latest(registry).split(b"\n"))
    reference = statistics.median(stock)
    merged = statistics.median(rust) if rust else None
    size = f"{workers} x {series}{' theirs' if theirs else ''}"
    print(
        f"{size:<18}{'stock':<14}{reference:>9.2f}"
        f"{'' if merged is None else f'   rust merge {merged:.2f}'}"
    )
    for name, each in (("first", first), *lines):
        against = "" if merged is None else f"{merged / each:>8.0f}x"
        print(f"{'':<18}{name:<14}{each:>9.2f}{reference / each:>8.0f}x{against}")


def over_http(workers: int, series: int) -> None:
    """Print what the real exporter takes for a request with OpenMetrics and gzip."""
    with writers(workers, series) as (directory, started), exporter(directory) as (port, pid):
        registry = CollectorRegistry()
        TheirCollector(registry, str(directory))  # type: ignore[no-untyped-call]
        app = make_their_app(registry)
        environ = {
            "REQUEST_METHOD": "GET",
            "PATH_INFO": "/metrics",
            "QUERY_STRING": "",
            "HTTP_ACCEPT": ACCEPT,
            "HTTP_ACCEPT_ENCODING": "gzip",
        }

        def stock() -> None:
            app(environ, lambda *_: None)

        def ours() -> float:
            before = cpu_milliseconds(pid)
            connection = http.client.HTTPConnection(HOST, port, timeout=60)
            asked = {"Accept": ACCEPT, "Accept-Encoding": "gzip"}
            connection.request("GET", "/metrics", headers=asked)
            response = connection.getresponse()
            body = response.read()
            assert response.status == 200, response.status
            assert body.startswith(b"\x1f\x8b")
            connection.close()
            time.sleep(0.02)  # its thread ends
            return cpu_milliseconds(pid) - before

        ours()
        reference = median(3, lambda: spent(stock))
        print(f"{f'{workers} x {series}':<18}{'stock':<14}{reference:>9.2f}")
        for change in CHANGES:

            def scrape(change: Change = change) -> float:
                started.change(change)
                return ours()

            each = median(15, scrape)
            print(f"{'':<18}{change.name:<14}{each:>9.2f}{reference / each:>8.0f}x")


@contextmanager
def exporter(directory: Path) -> Iterator[tuple[int, int]]:
    """Yield port and pid of an exporter that serves a directory."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "obskit_gunicorn", "serve", "--directory", str(directory)]
    process = subprocess.Popen(
        [*command, "--bind", f"{HOST}:{port}"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + 20
        while True:
            try:
                socket.create_connection((HOST, port)).close()
                break
            except OSError:
                assert time.monotonic() < deadline
                time.sleep(0.05)
        yield port, process.pid
    finally:
        process.terminate()
        process.wait()


def cpu_milliseconds(pid: int) -> float:
    """Return how much CPU a process has taken, with threads that have ended."""
    return time.clock_gettime((~pid << 3) | 2) * 1e3  # as clock_getcpuclockid(3) does it


def history() -> None:
    """Print what a scrape costs after so many workers have come and gone."""
    program = """
import os, sys, time
import obskit_gunicorn.multiprocess
from obskit_gunicorn._store.membership import membership
from obskit_gunicorn._scrape.collector import DirectoryCollector
membership.acquire()
from prometheus_client import Counter
counter = Counter("app_requests", "Requests.", ["path"])
collector = DirectoryCollector(sys.argv[1])
done = 0
for recycles in map(int, sys.argv[2:]):
    while done < recycles:
        pid = os.fork()
        if pid == 0:
            for number in range(300):
                counter.labels(str(number)).inc()
            os._exit(0)
        os.waitpid(pid, 0)
        done += 1
    best = 9.0
    for _ in range(20):
        started = time.process_time()
        collector.collect().text()
        best = min(best, time.process_time() - started)
    files = len([n for n in os.listdir(sys.argv[1]) if n.endswith(".db")])
    print(recycles, best, files)
"""
    with tempfile.TemporaryDirectory(dir=_PLACE) as name:
        done = subprocess.run(
            [sys.executable, "-c", program, name, *map(str, RECYCLES)],
            env={**os.environ, "PROMETHEUS_MULTIPROC_DIR": name},
            capture_output=True,
            text=True,
            check=True,
        )
    print("\nworkers that have ended, scrape in ms of CPU, metric files")
    lines = [line.split() for line in done.stdout.splitlines()]
    for recycles, seconds, files in lines:
        ratio = float(seconds) / float(lines[0][1])
        print(f"{recycles:>8}{float(seconds) * 1e3:>10.3f}{files:>6}{ratio:>8.2f}x")


def memory(workers: int, series: int) -> None:
    """Print how much memory a reading process takes, ours and prometheus_client's."""
    sides = {
        "ours": "from obskit_gunicorn._scrape.collector import DirectoryCollector\n"
        "collector = DirectoryCollector(sys.argv[1])\n"
        "scrape = lambda: collector.collect().text()\n",
        "theirs": "from prometheus_client import CollectorRegistry, generate_latest\n"
        "from prometheus_client.multiprocess import MultiProcessCollector\n"
        "registry = CollectorRegistry()\n"
        "MultiProcessCollector(registry, sys.argv[1])\n"
        "scrape = lambda: generate_latest(registry)\n",
    }
    print(f"\nreading process at {workers} x {series}, MB: before, added by three scrapes, at most")
    with writers(workers, series) as (directory, _):
        for side, program in sides.items():
            measured = (
                "import sys\n"
                "def kilobytes(field):\n"
                "    lines = open('/proc/self/status').read().splitlines()\n"
                "    return int(next(e.split()[1] for e in lines if e.startswith(field)))\n"
                f"{program}"
                "before = kilobytes('VmRSS')\n"
                "for _ in range(3): scrape()\n"
                "print(before, kilobytes('VmRSS') - before, kilobytes('VmHWM') - before)\n"
            )
            command = [sys.executable, "-c", measured, str(directory)]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            figures = "".join(f"{int(number) / 1024:>8.1f}" for number in done.stdout.split())
            print(f"{side:<8}{figures}")


def growth(workers: int, series: int) -> None:
    """Print what a scrape costs when each brings 1 % new series, in whatever order."""
    print(f"\n{workers} x {series}, CPU ms of a scrape: nothing new, 1 % new series, their ratio")
    for mixed in (False, True):
        with writers(workers, series, mixed=mixed) as (directory, started):
            collector = DirectoryCollector(str(directory))

            def scrape(collector: DirectoryCollector = collector) -> bytes:
                return collector.collect().text()

            scrape()
            times: dict[bool, list[float]] = {False: [], True: []}
            for number in range(24):
                grows = number % 2 == 1
                if grows:
                    started.grow(series // 100)
                started.change(Change(1))
                times[grows].append(spent(scrape))
        same, new = map(statistics.median, times.values())
        order = "each worker in its order" if mixed else "all in one order"
        print(f"{order:<26}{same:>8.1f}{new:>8.1f}{new / same:>8.2f}x")


def main() -> None:
    """Run everything."""
    print(f"Python {platform.python_version()}; milliseconds of CPU, medians")
    print(f"{'workers x series':<18}{'changed':<14}{'ms':>9}{'stock':>9}{'rust':>9}")
    for workers, series in SIZES:
        compare(workers, series)
    large = SIZES[len(SIZES) // 2]
    compare(*large, theirs=True)
    print("\nover HTTP, OpenMetrics and gzip")
    over_http(*large)
    growth(*large)
    history()
    memory(*large)


if __name__ == "__main__":
    main()
