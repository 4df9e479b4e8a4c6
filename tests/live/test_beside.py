"""Exemplars, Infos and Enums of real servers, while their workers are killed and replaced."""

from __future__ import annotations

import contextlib
import re
import signal
import urllib.request
from typing import TYPE_CHECKING

import pytest

from tests.live.test_prometheus import Prometheus
from tests.support import apps
from tests.support.openmetrics import OPENMETRICS, exemplars, is_whole
from tests.support.process import HOST, GunicornProcess, Interpreter, wait_until
from tests.support.releases import has_class

if TYPE_CHECKING:
    from pathlib import Path

UVICORN = "uvicorn_worker.UvicornWorker"

SAID = """
import os
from prometheus_client import CollectorRegistry, Counter, Enum, Histogram, Info

BUILD = Info("app_build", "What runs.")
BUILD.info({"version": "1"})
LAST = Info("app_last", "The last request of each kind.", ["kind"], registry=CollectorRegistry())
DOOR = Enum("app_door", "How it is.", states=["open", "shut"], registry=None)
TOOK = Histogram("app_took_seconds", "Time.", ["kind"], buckets=(0.1, 1.0), registry=None)
ASKED = Counter("app_asked", "Requests.")


def said(query):
    kind, number = query.split("=")
    if kind in ("even", "odd"):
        ASKED.inc(exemplar={"number": number})
        TOOK.labels(kind).observe(0.5, exemplar={"number": number})
        LAST.labels(kind).info({"number": number})
        DOOR.state("open" if kind == "even" else "shut")
    elif kind == "nul":
        ASKED.inc(exemplar={"number": "\\0"})
    elif kind == "remove":
        LAST.remove(number)
    return str(os.getpid()).encode()
"""

WSGI = (
    SAID
    + """

def application(environ, start_response):
    body = said(environ["QUERY_STRING"] or "pid=0")
    start_response("200 OK", [("Content-Length", str(len(body)))])
    return [body]
"""
)

ASGI = (
    SAID
    + """
from opentelemetry.instrumentation.asgi import OpenTelemetryMiddleware
from opentelemetry.sdk.trace import TracerProvider


"""
    + apps.LIFESPAN
    + """    body = said(scope["query_string"].decode() or "pid=0")
    headers = [(b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


application = OpenTelemetryMiddleware(application, tracer_provider=TracerProvider())
"""
)

CONFIG = """
from obskit_gunicorn import ObskitGunicornConfig


class Config(ObskitGunicornConfig):
    workers = 2
    worker_class = {worker_class!r}
    threads = 3 if worker_class == "gthread" else 1
    metrics_exemplars = True
    preload_app = {preload}
    metrics_collectors = ["app:BUILD"]
"""


def openmetrics(server: GunicornProcess) -> str:
    """Scrape the exporter, as Prometheus does."""
    request = urllib.request.Request(
        f"http://{HOST}:{server.metrics_port}/metrics", headers={"Accept": OPENMETRICS}
    )
    text = ""

    def scraped() -> bool:
        nonlocal text
        with urllib.request.urlopen(request, timeout=10) as response:
            text = response.read().decode()
        return is_whole(text)

    wait_until(scraped, "no histogram is being made")
    return text


def states(server: GunicornProcess) -> set[str]:
    """Return what Infos and Enums of the application say, without what is 0."""
    return {
        line.rpartition(" ")[0]
        for line in openmetrics(server).splitlines()
        if re.match(r"app_(build|last)_info|app_door{", line) and line.endswith(" 1.0")
    }


@pytest.mark.parametrize("worker_class", ["sync", "gthread", "gevent", "asgi", UVICORN])
def test_what_was_said_last(newest: Interpreter, worker_class: str) -> None:
    """By any worker, through a SIGKILL and a reload, and counts are exact."""
    if not has_class(newest, worker_class):
        pytest.skip(f"this Gunicorn has no {worker_class}")
    is_asgi = worker_class in ("asgi", UVICORN)
    config = CONFIG.format(worker_class=worker_class, preload=worker_class == "gthread")
    with GunicornProcess(newest, config, ASGI if is_asgi else WSGI, exporter=True) as server:
        wait_until(lambda: len(server.booted_pids()) == 2, "both workers have booted")
        asked = 0

        def ask(times: int) -> None:
            nonlocal asked
            for _ in range(times):
                kind = "odd" if asked % 2 else "even"
                assert server.get(f"/?{kind}={asked}").status == 200
                asked += 1

        def check() -> None:
            last = str(asked - 1)
            even, odd = sorted((asked - 1, asked - 2), key=lambda number: number % 2)
            text = openmetrics(server)
            assert f"\napp_asked_total {asked}.0 # " in text
            shown = exemplars(text)
            assert shown["app_asked_total"] == {"number": last}
            for kind, number in (("even", even), ("odd", odd)):
                bucket = f'app_took_seconds_bucket{{kind="{kind}",le="1.0"}}'
                assert shown[bucket] == {"number": str(number)}
            durations = {
                name: labels
                for name, labels in shown.items()
                if name.startswith("gunicorn_request_duration_seconds_bucket")
            }
            if is_asgi:
                assert durations
                for labels in durations.values():
                    assert re.fullmatch("[0-9a-f]{32}", labels["trace_id"])
                    assert re.fullmatch("[0-9a-f]{16}", labels["span_id"])
            else:
                assert not durations  # no trace is known
            assert states(server) == {
                'app_build_info{version="1"}',
                f'app_last_info{{kind="even",number="{even}"}}',
                f'app_last_info{{kind="odd",number="{odd}"}}',
                f'app_door{{app_door="{"shut" if (asked - 1) % 2 else "open"}"}}',
            }

        ask(21)
        check()
        for pid in server.booted_pids():
            server.send_signal(signal.SIGKILL, pid)
        wait_until(lambda: len(server.booted_pids()) == 4, "two others have booted")
        check()
        ask(5)
        check()
        old = server.worker_pids()
        server.send_signal(signal.SIGHUP)
        server.wait_for_workers(2, without=old)  # one that is ending may close connections
        wait_until(lambda: len(server.booted_pids()) == 6, "two more have booted")
        check()
        ask(4)
        check()
        if worker_class == "sync":
            arbiter = server.arbiter_pid
            server.send_signal(signal.SIGUSR2)
            new = wait_until(server.upgraded_arbiter_pid, "there is a new arbiter")
            wait_until(lambda: len(server.worker_pids(new)) == 2, "it has workers")
            ask(4)
            server.send_signal(signal.SIGTERM, arbiter)

            def is_replaced() -> bool:
                with contextlib.suppress(FileNotFoundError):  # while the file is renamed
                    return server.arbiter_pid == new
                return False

            wait_until(is_replaced, "the old one has ended")
            check()
            ask(4)
            check()
        assert server.get("/?remove=odd").status == 200
        assert not [name for name in states(server) if 'kind="odd"' in name]
        ask(2)
        check()
        problems = [line for line in server.log().splitlines() if "obskit: " in line]
        assert not [line for line in problems if "[INFO]" not in line]


def test_prometheus_keeps_exemplars(newest: Interpreter, tmp_path: Path) -> None:
    """A real Prometheus with exemplar storage shows them, and no scrape of it fails."""
    config = CONFIG.format(worker_class="sync", preload=False)
    with GunicornProcess(newest, config, WSGI, exporter=True) as server:
        target = f"{HOST}:{server.metrics_port}"
        prometheus = Prometheus(tmp_path, [target], features="exemplar-storage")
        with prometheus.running():
            for number in range(3):
                assert server.get(f"/?even={number}").status == 200

                def seen(number: int = number) -> bool:
                    found = prometheus.exemplars("app_asked_total")
                    return {"number": str(number)} in found

                wait_until(seen, "Prometheus has the exemplar")
            assert prometheus.exemplars("app_took_seconds_bucket")
            assert prometheus.last("up") == {target: 1}
            assert prometheus.last("min_over_time(up[1m])") == {target: 1}
            # At a NUL Prometheus would give up the whole scrape, so it costs the exemplar.
            assert server.get("/?nul=0").status == 200
            assert server.get("/?odd=7").status == 200
            wait_until(
                lambda: {"number": "7"} in prometheus.exemplars("app_asked_total"),
                "Prometheus has what came after it",
            )
            assert prometheus.last("min_over_time(up[1m])") == {target: 1}
            assert "an exemplar of app_asked is left out" in server.log()
