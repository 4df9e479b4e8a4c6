"""What a scrape costs: ours against prometheus_client and the Rust speedups, in one run.

The files are written as by so many workers with so many series each, half counters and half
histograms. Between two warm scrapes every value of every file is changed. Times are the best of
several rounds, the sides in turn; ratios say how many times faster ours is.

``prometheus-client-python-speedups`` takes part where it is installed; ``make bench`` installs it.

Run it with ``make bench``, or ``python -m benchmarks.scrape``.
"""

from __future__ import annotations

import gzip
import json
import os
import platform
import random
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector as TheirCollector

from obskit_gunicorn._scrape.collector import DirectoryCollector
from obskit_gunicorn._store.fileformat import pack_entry

SIZES = ((4, 300), (16, 2_000), (32, 9_000))
RECYCLES = (1, 100, 10_000)
BOUNDS = ("0.005", "0.01", "0.025", "0.05", "0.1", "0.25", "0.5", "1.0", "2.5", "5.0", "+Inf")


def keys(series: int) -> dict[str, list[bytes]]:
    """Return the keys of one worker's files, by metric type."""
    found: dict[str, list[bytes]] = {"counter": [], "histogram": []}
    for number in range(series // 2):
        labels = {"method": "GET", "path": f"/item/{number}"}
        key = ["app_requests", "app_requests_total", labels, "Requests."]
        found["counter"].append(json.dumps(key).encode())
    number = 0
    while len(found["counter"]) + len(found["histogram"]) < series:
        labels = {"path": f"/item/{number}"}
        key = ["app_seconds", "app_seconds_sum", labels, "Durations."]
        found["histogram"].append(json.dumps(key).encode())
        for bound in BOUNDS:
            key = ["app_seconds", "app_seconds_bucket", {"le": bound, **labels}, "Durations."]
            found["histogram"].append(json.dumps(key).encode())
        number += 1
    return found


def write_files(directory: Path, workers: int, series: int, first: int = 0) -> None:
    """Write the files of so many workers, with values that differ from the last time."""
    for prefix, names in keys(series).items():
        for worker in range(first, first + workers):
            body = b"".join(pack_entry(key, float(random.randrange(10_000)), 0.0) for key in names)
            path = directory / f"{prefix}_slot{worker}.db"
            header = struct.pack("i", 8 + len(body)) + b"\1\2\3\4"
            if path.exists():
                with path.open("r+b") as file:  # the same file, as a worker would
                    file.write(header + body)
            else:
                size = 4096
                while size < 8 + len(body):
                    size += min(size, 1 << 20)
                path.write_bytes((header + body).ljust(size, b"\0"))


def best(function: Callable[[], object], rounds: int, before: Callable[[], None]) -> float:
    """Return the shortest time of several calls, each after ``before``."""
    shortest = float("inf")
    for _ in range(rounds):
        before()
        started = time.perf_counter()
        function()
        shortest = min(shortest, time.perf_counter() - started)
    return shortest


def rust_merge(directory: Path) -> Callable[[], object] | None:
    """Return the Rust speedups' merge of a directory, if they are installed."""
    try:
        from prometheus_client_python_speedups import merge
    except ImportError:
        return None
    return lambda: merge([str(path) for path in directory.glob("*.db")])


def compare(workers: int, series: int, place: str | None) -> None:
    """Print one line of the table."""
    with tempfile.TemporaryDirectory(dir=place) as name:
        directory = Path(name)

        def change() -> None:
            write_files(directory, workers, series)

        change()
        registry = CollectorRegistry()
        TheirCollector(registry, name)  # type: ignore[no-untyped-call]
        rounds = 3 if series > 5_000 else 5
        theirs = best(lambda: generate_latest(registry), rounds, change)
        rust = rust_merge(directory)
        merged = best(rust, rounds, change) if rust is not None else None
        first = best(lambda: DirectoryCollector(name).collect().text(), rounds, change)
        collector = DirectoryCollector(name)
        collector.collect()
        warm = best(lambda: collector.collect().text(), 2 * rounds, change)
        assert sorted(collector.collect().text().split(b"\n")) == sorted(
            generate_latest(registry).split(b"\n")
        )
        text = collector.collect().text()
        zipped = best(lambda: gzip.compress(text, 1), rounds, lambda: None)
        print(
            f"{workers:>3} x {series:<6}{theirs * 1e3:>11.1f}"
            f"{'-' if merged is None else f'{merged * 1e3:.1f}':>11}"
            f"{first * 1e3:>11.1f}{warm * 1e3:>11.2f}{theirs / first:>9.0f}x{theirs / warm:>9.0f}x"
            f"{'-' if merged is None else f'{merged / warm:.0f}x':>9}{zipped * 1e3:>9.1f}"
        )


def history(place: str | None) -> None:
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
        started = time.perf_counter()
        collector.collect().text()
        best = min(best, time.perf_counter() - started)
    files = len([n for n in os.listdir(sys.argv[1]) if n.endswith(".db")])
    print(recycles, best, files)
"""
    with tempfile.TemporaryDirectory(dir=place) as name:
        done = subprocess.run(
            [sys.executable, "-c", program, name, *map(str, RECYCLES)],
            env={**os.environ, "PROMETHEUS_MULTIPROC_DIR": name},
            capture_output=True,
            text=True,
            check=True,
        )
    print("\nworkers that have ended, scrape in ms, metric files")
    lines = [line.split() for line in done.stdout.splitlines()]
    for recycles, seconds, files in lines:
        ratio = float(seconds) / float(lines[0][1])
        print(f"{recycles:>8}{float(seconds) * 1e3:>10.3f}{files:>6}{ratio:>8.2f}x")


def memory(place: str | None) -> None:
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
    workers, series = SIZES[-1]
    print(f"\nreading process at {workers} x {series}, MB: before, after three scrapes, at most")
    with tempfile.TemporaryDirectory(dir=place) as name:
        write_files(Path(name), workers, series)
        for side, program in sides.items():
            measured = (
                "import sys\n"
                "def kilobytes(field):\n"
                "    lines = open('/proc/self/status').read().splitlines()\n"
                "    return next(line.split()[1] for line in lines if line.startswith(field))\n"
                f"{program}"
                "before = kilobytes('VmRSS')\n"
                "for _ in range(3): scrape()\n"
                "print(before, kilobytes('VmRSS'), kilobytes('VmHWM'))\n"
            )
            done = subprocess.run(
                [sys.executable, "-c", measured, name], capture_output=True, text=True, check=True
            )
            figures = "".join(f"{int(number) / 1024:>8.0f}" for number in done.stdout.split())
            print(f"{side:<8}{figures}")


class Growing:
    """Files of many workers that meet new label sets, each perhaps in an order of its own."""

    def __init__(self, directory: Path, *, mixed: bool) -> None:
        """Write nothing yet."""
        self._directory, self._mixed = directory, mixed
        self._ends: dict[Path, int] = {}
        self._known = 0

    def grow(self, label_sets: int) -> None:
        """Have every worker meet so many more label sets."""
        fresh = list(range(self._known, self._known + label_sets))
        self._known += label_sets
        for worker in range(SIZES[-1][0]):
            order = random.sample(fresh, len(fresh)) if self._mixed else fresh
            entries = b"".join(
                pack_entry(json.dumps(["c", "c_total", {"path": f"/{each}"}, "C."]).encode(), 1, 0)
                for each in order
            )
            path = self._directory / f"counter_slot{worker}.db"
            at = self._ends.get(path, 8)
            self._ends[path] = at + len(entries)
            if at == 8:
                path.write_bytes(struct.pack("i", 8) + b"\1\2\3\4" + bytes(4 << 20))
            with path.open("r+b") as file:
                file.seek(at)
                file.write(entries)
                file.seek(0)
                file.write(struct.pack("i", self._ends[path]))

    def change(self) -> None:
        """Change a value of every worker."""
        for path, end in self._ends.items():
            with path.open("r+b") as file:
                file.seek(end - 16)
                file.write(struct.pack("d", random.randrange(10_000)))


def growth(place: str | None) -> None:
    """Print what a scrape costs when each brings 1 % new series, in whatever order."""
    workers, series = SIZES[-1]
    print(f"\n{workers} x {series}, CPU ms of a scrape: nothing new, 1 % new series, their ratio")
    for mixed in (False, True):
        with tempfile.TemporaryDirectory(dir=place) as name:
            growing = Growing(Path(name), mixed=mixed)
            growing.grow(series)
            collector = DirectoryCollector(name)
            collector.collect()
            spent: dict[bool, list[float]] = {False: [], True: []}
            for number in range(16):
                grows = number % 2 == 1
                growing.grow(series // 100 if grows else 0)
                growing.change()
                started = time.process_time()
                collector.collect().text()
                spent[grows].append((time.process_time() - started) * 1e3)
        same, new = (sorted(each)[len(each) // 2] for each in spent.values())
        order = "each worker in its order" if mixed else "all in one order"
        print(f"{order:<26}{same:>8.1f}{new:>8.1f}{new / same:>8.2f}x")


def main() -> None:
    """Run everything."""
    place = "/dev/shm" if os.path.isdir("/dev/shm") else None
    print(f"Python {platform.python_version()}; milliseconds, best of several rounds")
    print(
        f"{'workers x series':<12}{'theirs':>9}{'rust':>11}{'ours first':>11}{'ours warm':>11}"
        f"{'first':>10}{'warm':>10}{'vs rust':>9}{'gzip':>9}"
    )
    for workers, series in SIZES:
        compare(workers, series, place)
    growth(place)
    history(place)
    memory(place)


if __name__ == "__main__":
    main()
