"""What counting requests costs each of them: the same application with it and without, in pairs.

The request path of Gunicorn's sync worker is run in a process, with a socket pair in place of a
client, so that nothing but the counting differs and no network adds its noise. Requests come in
pairs, one of each side; the median of their differences is printed.
``gunicorn-prometheus-exporter`` stands beside it where it is installed; it does not run on every
Gunicorn that we run on. Then what the two hooks cost alone, called in a loop, in CPU time.

Run it with ``make bench``, or ``python -m benchmarks.requests``.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import platform
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import timeit
from typing import Any

from gunicorn import __version__ as gunicorn_version
from gunicorn.config import Config as Settings
from gunicorn.glogging import Logger
from gunicorn.http.parser import RequestParser
from gunicorn.workers.sync import SyncWorker

PAIRS = 8000
REQUEST = b"GET /path?x=1 HTTP/1.1\r\nHost: localhost\r\nAccept: */*\r\nUser-Agent: bench\r\n\r\n"


def application(environ: dict[str, Any], start_response: Any) -> list[bytes]:
    """Answer a request."""
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", "3")])
    return [b"ok\n"]


def worker(kind: Any, options: dict[str, Any]) -> SyncWorker:
    """Return a worker that has not been forked and serves nobody."""
    settings = Settings()
    for name, value in options.items():
        settings.set(name, value)
    made: SyncWorker = kind(1, os.getppid(), [], None, 30, settings, Logger(settings))
    served: Any = application
    made.wsgi = served
    return made


def ours() -> tuple[SyncWorker, SyncWorker]:
    """Return a worker that counts requests and one that does not."""
    importlib.import_module("obskit_gunicorn.multiprocess")  # joins the directory
    importlib.import_module("obskit_gunicorn._values.sharing").take_lease()
    package = importlib.import_module("obskit_gunicorn")
    # What a worker does when it has booted.
    counting = importlib.import_module("obskit_gunicorn._gunicorn.lifecycle").counting
    telemetry = importlib.import_module("obskit_gunicorn._gunicorn.telemetry")
    counting.requests = telemetry.requests(package.ObskitGunicornConfig.metrics_buckets)
    options = [
        package.as_options(
            type("Config", (package.ObskitGunicornConfig,), {"metrics_requests": counts})
        )
        for counts in (True, False)
    ]
    return worker(SyncWorker, options[0]), worker(SyncWorker, options[1])


def peer() -> tuple[SyncWorker, SyncWorker]:
    """Return a worker of gunicorn-prometheus-exporter and Gunicorn's own."""
    os.environ.setdefault("PROMETHEUS_METRICS_PORT", "19999")
    os.environ.setdefault("PROMETHEUS_BIND_ADDRESS", "127.0.0.1")
    os.environ.setdefault("GUNICORN_WORKERS", "1")
    plugin = importlib.import_module("gunicorn_prometheus_exporter.plugin")
    return worker(plugin.PrometheusWorker, {}), worker(SyncWorker, {})


def serve(made: SyncWorker, listener: socket.socket) -> float:
    """Serve one request; return how many microseconds it took."""
    client, server = socket.socketpair()
    client.sendall(REQUEST)
    request: Any = next(RequestParser(made.cfg, server, ("127.0.0.1", 1)))
    started = time.perf_counter()
    made.handle_request(listener, request, server, ("127.0.0.1", 1))
    spent = time.perf_counter() - started
    client.close()
    server.close()
    return spent * 1e6


def measure(side: str) -> None:
    """Print what a side costs; in a process of its own."""
    counting, plain = {"ours": ours, "peer": peer}[side]()
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        pairs = []
        for number in range(PAIRS):
            if number % 2:
                pairs.append((serve(counting, listener), serve(plain, listener)))
            else:
                pairs.append((serve(plain, listener), serve(counting, listener))[::-1])
    added = statistics.median(with_it - without for with_it, without in pairs)
    figures = [statistics.median(column) for column in zip(*pairs, strict=True)]
    print(f"{figures[1]:>10.1f}{figures[0]:>10.1f}{added:>10.1f}")


ENVIRON = {"obskit_gunicorn.route": "/items/{id}"}


class _Request:
    method = "GET"


class _Response:
    status_code = 200
    headers_sent = True


def measure_hooks(*, has_routes: bool = False) -> None:
    """Print what the hooks cost; in a process of its own.

    Args:
        has_routes: Whether requests are counted by their routes too, which are known.
    """
    importlib.import_module("obskit_gunicorn.multiprocess")  # joins the directory
    importlib.import_module("obskit_gunicorn._values.sharing").take_lease()
    package = importlib.import_module("obskit_gunicorn")
    telemetry = importlib.import_module("obskit_gunicorn._gunicorn.telemetry")
    buckets = package.ObskitGunicornConfig.metrics_buckets
    requests = telemetry.requests(buckets, has_routes=has_routes)
    arrived, answered = requests.arrived_hook, requests.answered_hook
    request, response = _Request(), _Response()

    def serve_one() -> None:
        arrived(request)
        answered(request, response, ENVIRON)

    times = timeit.repeat(serve_one, timer=time.process_time, number=20_000, repeat=15)
    best = min(times) / 20_000
    print(f"{best * 1e6:>30.2f}")


def main() -> None:
    """Run everything."""
    print(f"\nPython {platform.python_version()}, Gunicorn {gunicorn_version}; request telemetry")
    print(f"{'microseconds a request':<32}{'without':>10}{'with':>10}{'added':>10}")
    sides = {"ours": "obskit_gunicorn", "peer": "gunicorn_prometheus_exporter"}
    for side, package in sides.items():
        if importlib.util.find_spec(package) is None:
            print(f"{package:<32}not installed")
            continue
        print(f"{package:<32}{in_a_process(f'measure({side!r})')}")
    print(f"{'its two hooks, alone':<32}{in_a_process('measure_hooks()')}")
    print(f"{'the same, by route too':<32}{in_a_process('measure_hooks(has_routes=True)')}")


def in_a_process(call: str) -> str:
    """Call something of this module in a process with a directory of its own; return its line."""
    with tempfile.TemporaryDirectory() as directory:
        done = subprocess.run(
            [sys.executable, "-c", f"import benchmarks.requests as here; here.{call}"],
            env={**os.environ, "PROMETHEUS_MULTIPROC_DIR": directory},
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
    return done.stdout.rstrip()


if __name__ == "__main__":
    main()
