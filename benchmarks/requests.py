"""What counting requests costs each of them: the same application with it and without, in pairs.

The request path of Gunicorn's sync worker is run in this process, with a socket pair in place of a
client, so that nothing but the hooks differs and the network adds no noise. Both sides take turns;
the median of many turns is printed.

Run it with ``make bench``, or ``python -m benchmarks.requests``.
"""

from __future__ import annotations

import os
import platform
import socket
import statistics
import tempfile
import time
from typing import Any

from gunicorn.config import Config as Settings
from gunicorn.glogging import Logger
from gunicorn.http.parser import RequestParser
from gunicorn.workers.sync import SyncWorker

os.environ.setdefault("PROMETHEUS_MULTIPROC_DIR", tempfile.mkdtemp(prefix="obskit-bench-"))

import obskit_gunicorn.multiprocess
from obskit_gunicorn import ObskitGunicornConfig, as_options

REQUESTS = 300
TURNS = 60
REQUEST = b"GET /path?x=1 HTTP/1.1\r\nHost: localhost\r\nAccept: */*\r\nUser-Agent: bench\r\n\r\n"


class With(ObskitGunicornConfig):
    """Counts requests."""

    metrics_bind = None


class Without(ObskitGunicornConfig):
    """Does not."""

    metrics_bind = None
    metrics_requests = False


def application(environ: dict[str, Any], start_response: Any) -> list[bytes]:
    """Answer a request."""
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", "3")])
    return [b"ok\n"]


def worker(config: type[ObskitGunicornConfig]) -> SyncWorker:
    """Return a worker that has not been forked and serves nobody."""
    settings = Settings()
    for name, value in as_options(config).items():
        settings.set(name, value)
    nobody: Any = None
    made = SyncWorker(1, os.getppid(), [], nobody, 30, settings, Logger(settings))
    served: Any = application
    made.wsgi = served
    return made


def turn(made: SyncWorker, listener: socket.socket) -> float:
    """Serve so many requests; return the microseconds of each."""
    spent = 0.0
    for _ in range(REQUESTS):
        ours, theirs = socket.socketpair()
        theirs.sendall(REQUEST)
        request: Any = next(RequestParser(made.cfg, ours, ("127.0.0.1", 1)))
        started = time.perf_counter()
        made.handle_request(listener, request, ours, ("127.0.0.1", 1))
        spent += time.perf_counter() - started
        ours.close()
        theirs.close()
    return spent / REQUESTS * 1e6


def main() -> None:
    """Run everything."""
    obskit_gunicorn.multiprocess.take_lease()
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        sides = {"without": worker(Without), "with": worker(With)}
        figures: dict[str, list[float]] = {side: [] for side in sides}
        for number in range(TURNS):
            for side in sides if number % 2 else reversed(sides):
                figures[side].append(turn(sides[side], listener))
    pairs = zip(figures["with"], figures["without"], strict=True)
    added = statistics.median(counted - plain for counted, plain in pairs)
    print(f"\nPython {platform.python_version()}; request telemetry, microseconds a request")
    for side, values in figures.items():
        print(f"{side:<10}{statistics.median(values):>8.1f}")
    print(f"{'added':<10}{added:>8.1f}")


if __name__ == "__main__":
    main()
