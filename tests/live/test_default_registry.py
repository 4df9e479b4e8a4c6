"""An application that serves prometheus_client's default registry, with and without the call."""

from __future__ import annotations

import importlib.util

import pytest

from tests.live.test_applications import complaints
from tests.support.process import (
    GunicornProcess,
    Interpreter,
    Metrics,
    parse_metrics,
    wait_until,
)

WORKERS = 3
REQUESTS = 40
SCRAPES = 12
WARNING = "shows the metrics of one worker only"

CONFIG = """
from obskit_gunicorn import ObskitGunicornConfig, replace_registry

{call}


class Config(ObskitGunicornConfig):
    workers = 3
    worker_class = {worker_class!r}
    {more}
"""

PLAIN = """
from prometheus_client import REGISTRY, Counter, Gauge, Info, generate_latest, make_wsgi_app
from prometheus_client.core import CounterMetricFamily

HITS = Counter("app_hits", "Requests.", ["path"])
Counter("app_idle", "Nothing.", ["path"])
Info("app_build", "What runs.").info({"version": "1"})
DEPTH = Gauge("app_depth", "Of queues.", ["queue"], multiprocess_mode="max")
DEPTH.labels("a").set_function(lambda: 5)
DEPTH.labels("b").set(7)


class Stock:
    def collect(self):
        yield CounterMetricFamily("app_stock", "What there is.", 3)


REGISTRY.register(Stock())
metrics = make_wsgi_app()


def application(environ, start_response):
    if environ["PATH_INFO"] == "/metrics":
        return metrics(environ, start_response)
    if environ["PATH_INFO"] == "/sample":
        body = str(REGISTRY.get_sample_value("app_hits_total", {"path": "/hit"})).encode()
    elif environ["PATH_INFO"] == "/latest":
        body = generate_latest()
    else:
        body = b"ok"
        HITS.labels(environ["PATH_INFO"]).inc()
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [body]
"""

OBSKIT = """
from fastapi import FastAPI
from fastapi.responses import PlainTextResponse
from obskit import instrument_fastapi

application = FastAPI()
instrument_fastapi(application)


@application.get("/hit")
async def hit():
    return {}


@application.get("/pid")
async def pid():
    return {}


@application.get("/metrics")
async def metrics():
    from obskit.metrics.registry import generate_latest

    return PlainTextResponse(generate_latest())
"""

OBSKIT_HOOK = """
    def post_fork(self, server, worker):
        from obskit import configure_observability

        configure_observability(service_name="shop", environment="production", version="1.0.0")
"""


def hit(server: GunicornProcess) -> None:
    """Send requests until every worker has answered one."""
    server.wait_for_workers(WORKERS)
    for _ in range(REQUESTS):
        assert server.get("/hit").status == 200


def samples(text: str) -> Metrics:
    """Return the samples of an exposition in which every family stands once."""
    names = [line.split()[2] for line in text.splitlines() if line.startswith("# TYPE ")]
    assert len(set(names)) == len(names)
    return parse_metrics(text)


def test_replaced_registry_answers_for_all(interpreter: Interpreter) -> None:
    """Every page of the application is exact, whichever worker answers; what it leaves out."""
    config = CONFIG.format(call="replace_registry()", worker_class="gthread", more="threads = 2")
    with GunicornProcess(interpreter, config, PLAIN, exporter=True) as server:
        hit(server)
        label = frozenset({("path", "/hit")})
        for path in ("/metrics", "/latest") * SCRAPES:
            text = server.get(path).body
            found = samples(text)
            assert found["app_hits_total", label] == REQUESTS
            assert found["app_build_info", frozenset({("version", "1")})] == 1
            assert found["app_depth", frozenset({("queue", "a")})] == 5
            assert found["app_depth", frozenset({("queue", "b")})] == 7
            assert found["app_stock_total", frozenset()] == 3
            assert "# TYPE app_idle_total counter" in text
            names = {name for name, _labels in found}
            assert not [name for name in names if name.startswith(("process_", "python_gc_"))]
            assert not [name for name in names if "gunicorn_" in name]
            assert "python_info" in names
        only = samples(server.get("/metrics?name[]=app_hits_total&name[]=app_build_info").body)
        assert {name for name, _labels in only} == {"app_hits_total", "app_build_info"}
        assert server.get("/sample").body == str(float(REQUESTS))
        assert server.scrape()["app_hits_total", label] == REQUESTS
        assert WARNING not in server.log()


def test_default_registry_of_one_worker_is_warned_of(interpreter: Interpreter) -> None:
    """Without the call the first scrape is one line that names it; asking for a sample is none."""
    config = CONFIG.format(call="", worker_class="sync", more="")
    with GunicornProcess(interpreter, config, PLAIN) as server:
        server.get("/sample")
        assert WARNING not in server.log()
        for _ in range(SCRAPES):
            server.get("/latest")
        (line,) = [line for line in complaints(server) if WARNING in line]
        assert f"{server.root}/app.py:" in line
        assert "replace_registry()" in line


@pytest.mark.skipif(importlib.util.find_spec("obskit") is None, reason="obskit is not installed")
def test_obskit(newest: Interpreter) -> None:
    """The package obskit, as its documentation shows it, is exact on its own page too."""
    config = CONFIG.format(
        call="replace_registry()",
        worker_class="uvicorn_worker.UvicornWorker",
        more=OBSKIT_HOOK,
    )
    with GunicornProcess(newest, config, OBSKIT, exporter=True) as server:
        hit(server)
        name = ("shop_requests_total", frozenset({("operation", "hit"), ("status", "success")}))
        exporter = wait_until(lambda: server.scrape().get(name), "the exporter counts")
        assert exporter == REQUESTS
        for _ in range(SCRAPES):
            assert samples(server.get("/metrics").body)[name] == REQUESTS
