"""Packages that make prometheus_client's collector themselves, unchanged, on our directory.

Each of them is a real application behind a real Gunicorn. Three ways: as it is; with the one call
in the application; with it in the configuration file, and the application preloaded.
"""

from __future__ import annotations

import struct
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

import pytest

from tests.support.client import Load, Watch
from tests.support.process import (
    GunicornProcess,
    Interpreter,
    Metrics,
    free_port,
    get,
    metric_files,
    parse_metrics,
    wait_until,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

UVICORN = "uvicorn_worker.UvicornWorker"
WORKERS = 2  # each loads the package anew, which is what these tests cost

CONFIG = """
from obskit_gunicorn import ObskitGunicornConfig


class Config(ObskitGunicornConfig):
    worker_class = {worker_class!r}
    workers = {workers}
    threads = 2 if worker_class == "gthread" else 1
    max_requests = 40
    max_requests_jitter = 20
    preload_app = {preload}
"""

REPLACE = """
from obskit_gunicorn import replace_collector

replace_collector()
"""

# What each application starts with: its own count of what it has answered, see tests.support.apps.
TALLY = """
import os

tally = None


def count():
    global tally
    if tally is None:
        path = os.environ["OBSKIT_TEST_TALLY"]
        tally = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    os.write(tally, b".")
"""

FASTAPI = """
from fastapi import FastAPI
from prometheus_fastapi_instrumentator import Instrumentator

application = FastAPI()
Instrumentator(should_instrument_requests_inprogress=True).instrument(application).expose(
    application
)


@application.get("/")
async def index():
    count()
    return {}


@application.get("/pid")
async def pid():
    return os.getpid()
"""

STARLETTE = """
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette_exporter import PrometheusMiddleware, handle_metrics


def index(request):
    count()
    return PlainTextResponse("ok")


def pid(request):
    return PlainTextResponse(str(os.getpid()))


application = Starlette(
    routes=[Route("/", index), Route("/pid", pid), Route("/metrics", handle_metrics)]
)
application.add_middleware(PrometheusMiddleware)
"""

FLASK = """
from flask import Flask
from prometheus_flask_exporter.multiprocess import {kind}

application = Flask(__name__)
metrics = {kind}(application, excluded_paths=["/pid"])
metrics.info("app_info", "What runs.", version="1")


@application.route("/")
def index():
    count()
    return "ok"


@application.route("/pid")
def pid():
    return str(os.getpid())
"""

DJANGO = """
from django.conf import settings

settings.configure(
    ALLOWED_HOSTS=["*"],
    SECRET_KEY="none",
    ROOT_URLCONF=__name__,
    INSTALLED_APPS=["django_prometheus"],
    MIDDLEWARE=[
        "django_prometheus.middleware.PrometheusBeforeMiddleware",
        "django_prometheus.middleware.PrometheusAfterMiddleware",
    ],
)

from django.core.wsgi import get_wsgi_application
from django.http import HttpResponse
from django.urls import include, path


def index(request):
    count()
    return HttpResponse("ok")


def pid(request):
    return HttpResponse(str(os.getpid()))


urlpatterns = [
    path("", index, name="index"),
    path("pid", pid, name="pid"),
    path("", include("django_prometheus.urls")),
]
application = get_wsgi_application()
"""


class Package(NamedTuple):
    """A package, and what it must show.

    Attributes:
        name: Its name.
        app: The application, without its tally.
        worker_class: Gunicorn's setting.
        counts: Samples that count the requests to ``/``: a name, and labels among those it has.
        others: Samples of other kinds and what each is in a scrape that runs alone.
    """

    name: str
    app: str
    worker_class: str
    counts: dict[str, dict[str, str]]
    others: dict[str, float]


PACKAGES = (
    Package(
        "prometheus-fastapi-instrumentator",
        FASTAPI,
        UVICORN,
        {
            "http_requests_total": {"handler": "/", "status": "2xx"},
            "http_request_duration_seconds_count": {"handler": "/"},
            "http_response_size_bytes_count": {"handler": "/"},
        },
        {"http_requests_inprogress": 1},  # the scrape itself
    ),
    Package(
        "starlette_exporter",
        STARLETTE,
        UVICORN,
        {
            "starlette_requests_total": {"path": "/", "status_code": "200"},
            "starlette_request_duration_seconds_count": {"path": "/"},
        },
        {"starlette_requests_in_progress": 1},
    ),
    Package(
        "prometheus-flask-exporter",
        FLASK.format(kind="GunicornInternalPrometheusMetrics"),
        "gthread",
        {
            "flask_http_request_total": {"status": "200"},
            "flask_http_request_duration_seconds_count": {"path": "/"},
        },
        {"app_info": 1},
    ),
    Package(
        "django-prometheus",
        DJANGO,
        "sync",
        {
            "django_http_responses_total_by_status_view_method_total": {"view": "index"},
            "django_http_requests_latency_seconds_by_view_method_count": {"view": "index"},
        },
        {},
    ),
)

WAYS = ("unchanged", "application", "configuration")


@contextmanager
def serving(
    newest: Interpreter, package: Package, way: str, more_config: str = ""
) -> Iterator[GunicornProcess]:
    """Run a package's application in one of the three ways."""
    in_file = way == "configuration"
    config = CONFIG.format(worker_class=package.worker_class, workers=WORKERS, preload=in_file)
    with GunicornProcess(
        newest,
        (REPLACE if in_file else "") + config + more_config,
        TALLY + package.app + (REPLACE if way == "application" else ""),
    ) as server:
        yield server


def counted(metrics: Metrics, package: Package) -> dict[str, float]:
    """Return what the package has counted of the requests to ``/``."""
    return {
        name: sum(
            value
            for (sample, labels), value in metrics.items()
            if sample == name and wanted.items() <= dict(labels).items()
        )
        for name, wanted in package.counts.items()
    }


def check_exact(server: GunicornProcess, package: Package, load: Load, port: int) -> None:
    """Compare all counts with the application's tally and with what clients know."""
    tally = server.tally()
    assert load.answered <= tally <= load.answered + len(load.unknown), load.unknown
    assert tally > 0

    def shown() -> dict[str, float]:
        response = server.page("/metrics", port=port)
        assert response.status == 200, response
        return counted(parse_metrics(response.body), package)

    # Some packages count after the response has been sent.
    wait_until(lambda: min(shown().values()) >= tally, "the last requests have been counted")
    assert shown() == dict.fromkeys(package.counts, tally)


def damage(server: GunicornProcess) -> None:
    """Put files that nobody can read into the metrics directory."""
    directory = server.metrics_directory
    (directory / "counter_slot98.db").write_bytes(b"\xff" * 100)
    longer_than_it_is = struct.pack("=i", 4096) + bytes(4) + b"\x40\0\0\0no key"
    (directory / "counter_slot99.db").write_bytes(longer_than_it_is)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("package", PACKAGES, ids=[package.name for package in PACKAGES])
def test_counts(newest: Interpreter, package: Package, way: str) -> None:
    """Its own /metrics counts exactly over recycled workers; damage fails it only without us."""
    with serving(newest, package, way) as server:
        with Load(server.port) as load, Watch(server) as watch:
            wait_until(
                lambda: len(server.booted_pids()) > 2 * WORKERS, "workers have been recycled"
            )
            load.wait_for(20)
        # Unlike ours, their sums of seconds may drop by a rounding error.
        rounding = () if way != "unchanged" else ("_sum{",)
        assert not [line for line in watch.wrong if not any(name in line for name in rounding)]
        assert watch.scrapes > 5
        check_exact(server, package, load, server.port)

        def others() -> dict[str, float]:
            metrics = server.metrics()
            return {name: value for (name, _), value in metrics.items() if name in package.others}

        # The last request is in progress until a little after its client has its answer.
        wait_until(lambda: others() == package.others, f"there is {package.others}")
        files = metric_files(server.metrics_directory)
        assert files["counter"]
        for names in files.values():
            assert all("slot" in name for name in names)
            assert len(names) < len(server.booted_pids())

        damage(server)
        if way == "unchanged":
            assert server.page("/metrics").status == 500
            return
        with load_goes_on(server, load) as more:
            more.wait_for(60)
        check_exact(server, package, more, server.port)
        assert "counter_slot99.db is left out of scrapes" in server.log()


@contextmanager
def load_goes_on(server: GunicornProcess, before: Load) -> Iterator[Load]:
    """Send more requests to a server, and go on counting where a load before has ended."""
    load = Load(server.port)
    load.answered, load.unknown = before.answered, list(before.unknown)
    with load:
        yield load


FLASK_PORT = """
    def when_ready(self, server):
        from prometheus_flask_exporter.multiprocess import GunicornPrometheusMetrics

        super().when_ready(server)
        GunicornPrometheusMetrics.start_http_server_when_ready({port}, "127.0.0.1")

    def child_exit(self, server, worker):
        from prometheus_flask_exporter.multiprocess import GunicornPrometheusMetrics

        super().child_exit(server, worker)
        GunicornPrometheusMetrics.mark_process_dead_on_child_exit(worker.pid)
"""


@pytest.mark.parametrize("way", ["unchanged", "configuration"])
def test_port_of_the_arbiter(newest: Interpreter, way: str) -> None:
    """Flask's exporter on a port of its own, which the arbiter serves, shows the same counts."""
    flask = next(package for package in PACKAGES if "flask" in package.name)
    package = flask._replace(app=FLASK.format(kind="GunicornPrometheusMetrics"))
    port = free_port()
    with serving(newest, package, way, FLASK_PORT.format(port=port)) as server:
        with Load(server.port) as load:
            wait_until(
                lambda: len(server.booted_pids()) >= 2 * WORKERS, "workers have been recycled"
            )
        check_exact(server, package, load, port)
        damage(server)
        if way == "unchanged":
            assert get(port, "/metrics").status == 500
        else:
            check_exact(server, package, load, port)
