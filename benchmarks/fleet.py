"""What many hosts in one store cost: an increment, a publication, a scrape of the whole fleet.

A real Redis runs for the benchmark. An increment of ours is compared with one of
gunicorn-prometheus-exporter 0.2.4, which keeps each value in the store; it takes part where it is
installed (``pip install gunicorn-prometheus-exporter==0.2.4``). Then a host with 9,000 series
publishes, with every value changed, and a fleet of 1 to 100 such hosts is scraped. Times are CPU
time of this process, and the least of several rounds.

Run it with ``make bench``, or ``python -m benchmarks.fleet``.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.support.writers import Change, Writers
from obskit_gunicorn._scrape.collector import DirectoryCollector

if TYPE_CHECKING:
    from collections.abc import Callable

SERIES = 9_000
WORKERS = 4
HOSTS = (1, 10, 50, 100)
ROUNDS = 5
CALLS = 2_000
HOST = "127.0.0.1"

INCREMENTS = """
import os, sys, time
SETUP
from prometheus_client import Counter, Gauge, Histogram
import redis
client = redis.Redis(port=int(os.environ["REDIS_PORT"]))
counter = Counter("bench_things", "Things.", ["kind"]).labels("x")
histogram = Histogram("bench_seconds", "Seconds.", ["kind"]).labels("x")
gauge = Gauge("bench_level", "Level.", ["kind"]).labels("x")
def commands():
    return client.info("stats")["total_commands_processed"]
for name, call in (("inc()", counter.inc), ("observe()", lambda: histogram.observe(0.1)),
                   ("set()", lambda: gauge.set(1))):
    call()
    least = float("inf")
    calls = CALLS
    before = commands()
    for _ in range(3):
        started = time.perf_counter()
        for _ in range(calls):
            call()
        least = min(least, time.perf_counter() - started)
    sent = (commands() - before - 1) / (3 * calls)
    print(f"{name} {sent:.0f} {least / calls * 1e6:.2f}")
"""

OURS = """
from obskit_gunicorn import multiprocess
"""

PEER = """
from gunicorn_prometheus_exporter.backend import setup_redis_metrics
assert setup_redis_metrics()
"""


def increments(side: str, port: int) -> dict[str, tuple[str, str]]:
    """Return commands and microseconds of each call, as a side makes it in its own process."""
    setup = {"ours": OURS, "peer": PEER}[side]
    program = INCREMENTS.replace("SETUP", setup).replace(
        "CALLS", str(CALLS if side == "ours" else CALLS // 20)
    )
    with tempfile.TemporaryDirectory() as directory:
        environment = {
            **os.environ,
            "REDIS_ENABLED": "true",
            "REDIS_HOST": HOST,
            "REDIS_PORT": str(port),
            "PROMETHEUS_METRICS_PORT": "19999",
            "PROMETHEUS_BIND_ADDRESS": HOST,
            "GUNICORN_WORKERS": "1",
        }
        if side == "ours":
            environment["PROMETHEUS_MULTIPROC_DIR"] = directory
        done = subprocess.run(
            [sys.executable, "-c", program],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            check=True,
        )
    rows = (line.split() for line in done.stdout.splitlines() if line.count(" ") == 2)
    return {name: (commands, spent) for name, commands, spent in rows}


def cpu(function: Callable[[], object], before: Callable[[], object] = lambda: None) -> float:
    """Return the least CPU time of several calls in milliseconds, each after ``before``."""
    least = float("inf")
    for _ in range(ROUNDS):
        before()
        started = time.process_time()
        function()
        least = min(least, time.process_time() - started)
    return least * 1e3


def publications(url: str, client: Any) -> None:
    """Print what a publication and a scrape of the fleet cost."""
    from obskit_gunicorn._fleet.publisher import Publisher, Reading
    from obskit_gunicorn._fleet.source import FleetSource
    from obskit_gunicorn._fleet.store import Store

    with (
        tempfile.TemporaryDirectory() as directory,
        Writers(Path(directory), WORKERS, SERIES) as writers,
    ):
        collector = DirectoryCollector(directory)
        collector.keep_parts()

        def reader(number: int) -> Callable[[], Reading]:
            def read() -> Reading:
                return Reading(directory, f"host{number}", collector.collect().parts, ())

            return read

        def change() -> None:
            writers.change(Change(1))

        def publisher(number: int) -> Publisher:
            store = Store(url, "bench")
            return Publisher(
                store, reader(number), host=f"host{number}", interval=3600.0, returns=False
            )

        collector.collect()
        publishers = [publisher(0)]
        started = time.process_time()
        publishers[0].publish()
        print(f"{'first publication':<40}{(time.process_time() - started) * 1e3:>8.1f} ms CPU")
        alone = cpu(collector.collect, change)
        whole = cpu(publishers[0].publish, change)
        same = cpu(publishers[0].publish)
        print(f"{'reading the directory alone':<40}{alone:>8.1f} ms CPU")
        print(f"{'a publication, all values changed':<40}{whole:>8.1f} ms CPU")
        print(f"{'a publication, nothing changed':<40}{same:>8.1f} ms CPU")
        client.config_resetstat()
        publishers[0].publish()
        statistics = client.info("commandstats")["cmdstat_evalsha"]
        print(
            f"{'the store, for a publication':<40}{statistics['usec'] / 1e3:>8.2f} ms, "
            f"{statistics['calls']} command"
        )
        print()
        print(f"{'hosts':>6}{'first':>12}{'warm':>12}{'store':>12}{'bytes there':>14}")
        for hosts in HOSTS:
            while len(publishers) < hosts:
                publishers.append(publisher(len(publishers)))
                publishers[-1].publish()
            source = FleetSource(Store(url, "bench"))
            started = time.process_time()
            source.read().snapshot.text()
            first = (time.process_time() - started) * 1e3

            def change_all() -> None:
                change()
                for each in publishers:
                    each.publish()
                client.config_resetstat()

            warm = cpu(lambda source=source: source.read().snapshot.text(), change_all)  # type: ignore[misc]
            store = client.info("commandstats")["cmdstat_evalsha"]["usec"] / 1e3
            size = client.memory_usage("obskit:bench", samples=0)
            print(f"{hosts:>6}{first:>9.0f} ms{warm:>9.1f} ms{store:>9.1f} ms{size:>14,}")


def main() -> None:
    """Run everything."""
    program = shutil.which("redis-server")
    if program is None or importlib.util.find_spec("redis") is None:
        print("redis-server or redis-py is not installed: nothing to measure")
        return
    import redis

    with socket.socket() as free:
        free.bind((HOST, 0))
        port = free.getsockname()[1]
    server = subprocess.Popen(
        [program, "--port", str(port), "--bind", HOST, "--save", "", "--loglevel", "warning"],
        stdout=subprocess.DEVNULL,
    )
    try:
        client = redis.Redis(port=port)
        for _ in range(100):
            try:
                client.ping()
                break
            except redis.ConnectionError:
                time.sleep(0.05)
        version = client.info("server")["redis_version"]
        print(f"\nPython {platform.python_version()}, Redis {version}; {SERIES} series a host")
        ours = increments("ours", port)
        has_peer = importlib.util.find_spec("gunicorn_prometheus_exporter") is not None
        peer = increments("peer", port) if has_peer else {}
        print(f"{'':<12}{'ours':>10}{'':>8}{'the peer':>16}")
        for name, (commands, spent) in ours.items():
            other = ""
            if name in peer:
                ratio = float(peer[name][1]) / float(spent)
                other = f"{peer[name][0]:>4} commands{peer[name][1]:>10} us{ratio:>8.0f} x"
            print(f"{name:<12}{commands:>2} commands{spent:>8} us{other or '   not installed'}")
        print()
        publications(f"redis://{HOST}:{port}/0", client)
    finally:
        server.terminate()
        server.wait()


if __name__ == "__main__":
    main()
