"""The application of ``make run``: a WSGI application without a framework, with four metrics.

Every worker counts its own requests; the exporter, a separate process, shows the sum.
"""

from __future__ import annotations

import os
import random
import sys
import time
from collections.abc import Callable, Iterable
from typing import Any

from prometheus_client import Counter, Gauge, Histogram

REQUESTS = Counter("demo_requests", "Requests by path template.", ["path", "code"])
DURATION = Histogram("demo_request_duration_seconds", "Time to answer a request.", ["path"])
IN_PROGRESS = Gauge(
    "demo_requests_in_progress", "Requests being answered now.", multiprocess_mode="livesum"
)
OLDEST_WORKER = Gauge(
    "demo_worker_start_time_seconds", "When the oldest worker started.", multiprocess_mode="livemin"
)
OLDEST_WORKER.set_to_current_time()

PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><title>obskit_gunicorn demo</title>
<style>body {{ max-width: 45em; margin: 2em auto; font: 1em/1.5 sans-serif }}</style>
<h1>obskit_gunicorn demo</h1>
<p>Four Gunicorn workers serve this page; process {pid} has answered you.
<ul>
<li><a href="http://127.0.0.1:9764/metrics">http://127.0.0.1:9764/metrics</a> shows
    <code>demo_requests_total</code>: the requests of all workers together. A separate process
    answers there, so no worker has to.
<li><a href="/">this page</a>, <a href="/hello/you">/hello/you</a>, <a href="/slow">/slow</a> and
    <a href="/nowhere">/nowhere</a> are counted by path template.
</ul>
<p>Things to try, while the counter goes up and never down:
<pre>
for i in $(seq 100); do curl -s http://127.0.0.1:8000/hello/$i >/dev/null; done
curl -s http://127.0.0.1:9764/metrics | grep demo_requests_total
kill -9 {pid}          # this worker; another one takes its slot and continues its counts
kill -HUP {ppid}         # reload: all workers are replaced
kill -TTIN {ppid}        # one more worker
{python} -m obskit_gunicorn inspect {directory}
</pre>
"""

StartResponse = Callable[[str, list[tuple[str, str]]], Any]


def application(environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
    """Answer one request; a WSGI application."""
    path = environ["PATH_INFO"]
    started = time.perf_counter()
    with IN_PROGRESS.track_inprogress():
        template, code, content_type, body = _answer(path)
    # Before the response is sent, so that an answered request has always been counted.
    REQUESTS.labels(template, code.split()[0]).inc()
    DURATION.labels(template).observe(time.perf_counter() - started)
    start_response(code, [("Content-Type", content_type), ("Content-Length", str(len(body)))])
    return [body]


def _answer(path: str) -> tuple[str, str, str, bytes]:
    """Return the path's template, the status, the content type and the body."""
    if path == "/":
        directory = os.environ.get("PROMETHEUS_MULTIPROC_DIR", "")
        page = PAGE.format(
            pid=os.getpid(), ppid=os.getppid(), directory=directory, python=sys.executable
        )
        return "/", "200 OK", "text/html; charset=utf-8", page.encode()
    if path.startswith("/hello/"):
        name = path.removeprefix("/hello/")
        return "/hello/{name}", "200 OK", "text/plain; charset=utf-8", f"Hello {name}\n".encode()
    if path == "/slow":
        time.sleep(random.uniform(0.1, 0.5))  # so that the histogram has something to show
        return "/slow", "200 OK", "text/plain", b"That took a while\n"
    # One template for all of them: a label value that clients choose has no bound.
    return "other", "404 Not Found", "text/plain", b"Nothing here\n"
