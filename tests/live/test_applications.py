"""What applications do behind our back: put back, or said in one line."""

from __future__ import annotations

import contextlib
import signal

import pytest

from tests.support.process import GunicornProcess, Interpreter, wait_until

WORKERS = 3
REQUESTS = 40
UNSHOWN = "not shown, because files cannot hold them: "

CONFIG = """
from obskit_gunicorn import ObskitGunicornConfig


class Config(ObskitGunicornConfig):
    workers = 3
    preload_app = {preload}
    {more}
"""

ANSWER = """
from prometheus_client import CollectorRegistry, Counter, generate_latest, multiprocess

REQUESTS = Counter("app_requests", "Requests to /.")
early = CollectorRegistry()
multiprocess.MultiProcessCollector(early)


def application(environ, start_response):
    body = b"ok"
    if environ["PATH_INFO"] == "/":
        REQUESTS.inc()
    elif environ["PATH_INFO"] == "/metrics":
        body = generate_latest(early)
    elif environ["PATH_INFO"] == "/late":
        late = CollectorRegistry()
        multiprocess.MultiProcessCollector(late)
        body = generate_latest(late)
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [body]
"""

UNSHARED = """
from prometheus_client import REGISTRY, Counter, Enum, Gauge, Info
from prometheus_client.core import GaugeMetricFamily

REQUESTS = Counter("shop_requests", "Requests.")
Info("shop_build", "What runs.").info({"version": "1"})
Enum("shop_state", "How it is.", states=["open", "closed"])
Gauge("shop_depth", "Of a queue.", multiprocess_mode="max").set_function(lambda: 5)
Gauge("shop_lag", "Of each.", ["of"]).labels("a").set_function(lambda: 5)
Gauge("shop_plain", "Is fine.").set(1)


class Queue:
    def collect(self):
        yield GaugeMetricFamily("shop_queue", "Its length.", 3)


class Stock:
    def collect(self):
        yield GaugeMetricFamily("shop_stock", "What there is.", 3)


REGISTRY.register(Queue())
REGISTRY.register(Stock())


def application(environ, start_response):
    REQUESTS.inc(exemplar={"trace_id": "a"})
    start_response("200 OK", [])
    return [b"ok"]
"""


def send(server: GunicornProcess) -> None:
    """Send requests that the application counts, once all workers have booted."""

    def booted() -> bool:
        with contextlib.suppress(OSError):  # the exporter starts beside the workers
            return server.scrape().get(("gunicorn_workers_ready", frozenset())) == WORKERS
        return False

    # The first one speaks for all, and others may serve while it still loads the application.
    wait_until(booted, "all workers have booted")
    for _ in range(REQUESTS):
        assert server.get("/").status == 200


def total(server: GunicornProcess, path: str) -> float | None:
    """Return what a page of the application shows."""
    name = "app_requests_total "
    lines = [each for each in server.get(path).body.splitlines() if each.startswith(name)]
    return float(lines[0].removeprefix(name)) if lines else None


def complaints(server: GunicornProcess) -> list[str]:
    """Return the lines of ours that are not just information."""
    lines = server.log().splitlines()
    return [line for line in lines if "obskit: " in line and "[INFO]" not in line]


def test_what_cannot_be_shown_is_named(interpreter: Interpreter) -> None:
    """One line names it, again after a reload; what runs in the exporter is not named."""
    config = CONFIG.format(preload=False, more='metrics_collectors = ["app:Stock"]')
    with GunicornProcess(interpreter, config, UNSHARED, exporter=True) as server:
        send(server)
        server.wait_for_log(UNSHOWN)
        server.send_signal(signal.SIGHUP)
        server.wait_for_log(UNSHOWN, count=2)
        wait_until(lambda: len(server.booted_pids()) == 2 * WORKERS, "all workers have booted")
        named = [line.partition(UNSHOWN)[2] for line in complaints(server) if UNSHOWN in line]
        assert [line.partition("; run them")[0] for line in named] == 2 * [
            "shop_depth (set_function; shown as 0), shop_lag (set_function; shown as 0), app.Queue"
        ]
        found = server.scrape()
        assert found["shop_build_info", frozenset({("version", "1")})] == 1
        assert found["shop_state", frozenset({("shop_state", "open")})] == 1
        assert not [line for line in complaints(server) if UNSHOWN not in line]


@pytest.mark.parametrize("preload", [False, True])
def test_moved_directory_is_put_back(interpreter: Interpreter, preload: bool) -> None:
    """Its own page shows all workers, through collectors made before and after; a line says so."""
    moved = "import os\nos.makedirs('own', exist_ok=True)\n"
    moved += "os.environ['PROMETHEUS_MULTIPROC_DIR'] = os.path.abspath('own')\n"
    config = CONFIG.format(preload=preload, more="")
    with GunicornProcess(
        interpreter, config, moved + ANSWER, exporter=True, shared=preload
    ) as server:
        send(server)
        assert {total(server, path) for path in ("/metrics", "/late") * 6} == {REQUESTS}
        assert server.scrape()["app_requests_total", frozenset()] == REQUESTS
        (line,) = wait_until(lambda: complaints(server), "a line")
        assert "has set PROMETHEUS_MULTIPROC_DIR to " in line
        assert not list((server.root / "own").iterdir())
        server.send_signal(signal.SIGHUP)
        wait_until(lambda: len(server.booted_pids()) == 2 * WORKERS, "all workers have booted")
        assert server.scrape()["app_requests_total", frozenset()] == REQUESTS


OF_TELEMETRY = """
import os
import tempfile
import prometheus_client.values

os.environ["PROMETHEUS_MULTIPROC_DIR"] = tempfile.mkdtemp(dir=".")
prometheus_client.values.ValueClass = prometheus_client.values.get_value_class()
"""

IDENTIFIER = """
    def post_fork(self, server, worker):
        from prometheus_client import values

        super().post_fork(server, worker)
        values.ValueClass = values.MultiProcessValue(lambda: f"w{worker.age}")
"""

FOREIGN = """
from prometheus_client import values


class Mine:
    _multiprocess = False

    def __init__(self, *args, **kwargs):
        self.number = 0.0

    def inc(self, amount):
        self.number += amount

    set = inc

    def get(self):
        return self.number

    def set_exemplar(self, exemplar):
        pass

    def get_exemplar(self):
        return None


values.ValueClass = Mine
"""


@pytest.mark.parametrize("way", ["telemetry", "telemetry-preloaded", "identifier"])
def test_replaced_value_class_is_put_back(interpreter: Interpreter, way: str) -> None:
    """Whoever replaces it, in the application or in a hook, nothing of what is counted is lost."""
    in_hook = way == "identifier"
    config = CONFIG.format(preload=way.endswith("preloaded"), more=IDENTIFIER if in_hook else "")
    app = ANSWER if in_hook else OF_TELEMETRY + ANSWER
    with GunicornProcess(interpreter, config, app, exporter=True) as server:
        send(server)
        assert {total(server, path) for path in ("/metrics", "/late") * 6} == {REQUESTS}
        metrics = server.scrape()
        assert metrics["app_requests_total", frozenset()] == REQUESTS
        assert metrics["obskit_gunicorn_values_not_shared", frozenset()] == 0
        answered = {name: value for (name, _), value in metrics.items() if "requests_total" in name}
        assert answered["gunicorn_requests_total"] >= REQUESTS
        lines = wait_until(lambda: complaints(server), "a line")
        assert "had replaced prometheus_client.values.ValueClass" in lines[0]
        assert len(lines) == (1 if in_hook else 2)


@pytest.mark.parametrize("preload", [False, True])
def test_value_class_of_others_is_an_error(newest: Interpreter, preload: bool) -> None:
    """One line and a gauge say that the metrics of another value class are not shared."""
    config = CONFIG.format(preload=preload, more="")
    with GunicornProcess(newest, config, FOREIGN + ANSWER, exporter=True) as server:
        send(server)
        gauge = ("obskit_gunicorn_values_not_shared", frozenset[tuple[str, str]]())
        wait_until(lambda: server.scrape()[gauge] >= WORKERS, "the gauge counts all workers")
        server.send_signal(signal.SIGTTIN)
        wait_until(lambda: len(server.booted_pids()) == WORKERS + 1, "there is one worker more")
        wait_until(lambda: server.scrape()[gauge] > WORKERS, "the gauge counts it too")
        (line,) = wait_until(lambda: complaints(server), "a line")
        assert "[ERROR]" in line
        assert "ValueClass by app.Mine" in line
