"""Applications for live tests, as text: a test writes one beside its configuration file.

All of them answer

========== ========================================================================================
path       what it does
========== ========================================================================================
/          counts one request, *before* the response is sent, and writes one byte into the tally
/metrics   the exposition
/pid       the process; counts nothing
/sleep?s=  answers after so many seconds, other requests go on where the worker class allows it
/block?s=  the same, and holds the whole worker up
/label?x=  counts with that label
/kill      the worker ends at once, without an answer
========== ========================================================================================

The tally is the truth that counters are compared with: a file that grows by one byte for each
request that was counted, in an order that makes it no larger than the counter at any moment.
"""

from __future__ import annotations

__all__ = ["ASGI", "COUNTED", "TALLY_VARIABLE", "WSGI"]

TALLY_VARIABLE = "OBSKIT_TEST_TALLY"

COUNTED = """
import os
import signal
import time

from prometheus_client import Counter, Gauge, Histogram, Summary

REQUESTS = Counter("app_requests", "Requests to /.")
LABELLED = Counter("app_labelled", "Requests to /label.", ["x"])
DURATION = Histogram("app_duration_seconds", "Time to answer /.", buckets=(0.1, 1.0))
SIZE = Summary("app_size_bytes", "Size of the answers to /.")
GAUGES = {
    mode: Gauge(f"app_{mode}", f"A gauge of mode {mode}.", multiprocess_mode=mode)
    for mode in ("all", "liveall", "sum", "livesum", "max", "livemax", "min", "livemin",
                 "mostrecent", "livemostrecent")
}
LEVEL = GAUGES["livesum"]

tally = None


def count():
    global tally
    REQUESTS.inc()
    DURATION.observe(0.0625)  # sums of it are exact
    SIZE.observe(3)
    for mode in ("max", "livemax", "min", "livemin", "mostrecent", "livemostrecent"):
        GAUGES[mode].set(7)
    for mode in ("sum", "livesum", "all", "liveall"):
        GAUGES[mode].inc()
    if tally is None:
        path = os.environ["OBSKIT_TEST_TALLY"]
        tally = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    os.write(tally, b".")


def block(seconds):
    try:
        from gevent import monkey
    except ImportError:
        sleep = time.sleep
    else:
        sleep = monkey.get_original("time", "sleep")
    sleep(seconds)


def parameter(query, default):
    return query.partition("=")[2] or default
"""

WSGI = (
    COUNTED
    + """
from obskit_gunicorn.multiprocess import make_wsgi_app

metrics = make_wsgi_app()


def application(environ, start_response):
    path, query = environ["PATH_INFO"], environ["QUERY_STRING"]
    if path == "/metrics":
        return metrics(environ, start_response)
    body = b"ok\\n"
    if path == "/":
        count()
    elif path == "/pid":
        body = str(os.getpid()).encode()
    elif path == "/sleep":
        time.sleep(float(parameter(query, "1")))
    elif path == "/block":
        block(float(parameter(query, "1")))
    elif path == "/label":
        LABELLED.labels(parameter(query, "none")).inc()
    elif path == "/kill":
        os.kill(os.getpid(), signal.SIGKILL)
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))])
    return [body]
"""
)

LIFESPAN = """
async def application(scope, receive, send):
    if scope["type"] == "lifespan":
        while True:
            message = await receive()
            await send({"type": message["type"] + ".complete"})
            if message["type"] == "lifespan.shutdown":
                return
"""
"""The beginning of an ASGI application, which serves the lifespan; what follows is indented."""

ASGI = (
    COUNTED
    + """
import asyncio

from obskit_gunicorn.multiprocess import make_asgi_app

metrics = make_asgi_app()


"""
    + LIFESPAN
    + """    path, query = scope["path"], scope["query_string"].decode()
    if path == "/metrics":
        return await metrics(scope, receive, send)
    body = b"ok\\n"
    if path == "/":
        count()
    elif path == "/pid":
        body = str(os.getpid()).encode()
    elif path == "/sleep":
        await asyncio.sleep(float(parameter(query, "1")))
    elif path == "/block":
        block(float(parameter(query, "1")))
    elif path == "/label":
        LABELLED.labels(parameter(query, "none")).inc()
    elif path == "/kill":
        os.kill(os.getpid(), signal.SIGKILL)
    headers = [(b"content-type", b"text/plain"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})
"""
)
