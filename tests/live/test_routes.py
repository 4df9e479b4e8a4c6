"""Requests by the template of their route: real frameworks behind real workers."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.live.test_telemetry import by_label, send, value, wait_for
from tests.support.missing import missing
from tests.support.process import GunicornProcess

if TYPE_CHECKING:
    from tests.support.process import Interpreter, Metrics

OLDER_FASTAPI = Path(__file__).parents[2] / ".venvs" / "older-fastapi"

CONFIG = """
from obskit_gunicorn import ObskitGunicornConfig


class Config(ObskitGunicornConfig):
    workers = 2
    worker_class = {worker_class!r}
    threads = 2 if worker_class == "gthread" else 1
    metrics_routes = {routes}
"""

# Each has /pid, and below /shop/items the number of an item; 0 is an error of the application.
# Some are wrapped, as applications are.
FLASK = """
import flask

shop = flask.Blueprint("shop", __name__)


@shop.get("/items/<int:item>")
def get_item(item):
    return str(1 // item)


app = flask.Flask(__name__)
app.get("/pid")(lambda: "1")
app.register_blueprint(shop, url_prefix="/shop")


def application(environ, start_response):
    return app(environ, start_response)
"""

DJANGO = """
import django
from django.conf import settings
from django.core.handlers.{protocol} import {handler}
from django.http import HttpResponse
from django.urls import include, path
from django.views.decorators.http import require_GET


@require_GET
def get_item(request, item=1):
    return HttpResponse(str(1 // item))


urlpatterns = [
    path("pid", get_item),
    path("shop/", include([path("items/<int:item>", get_item)])),
]
settings.configure(ROOT_URLCONF=__name__, ALLOWED_HOSTS=["*"], LOGGING_CONFIG=None)
django.setup()
application = {handler}()
"""

FALCON = """
import falcon


class Item:
    def on_get(self, req, resp, item="1"):
        resp.text = str(1 // int(item))


app = falcon.App()
app.add_route("/pid", Item())
app.add_route("/shop/items/{item:int}", Item())


class Wrapper:
    __slots__ = ("wrapped",)

    def __init__(self, wrapped):
        self.wrapped = wrapped

    def __call__(self, environ, start_response):
        return self.wrapped(environ, start_response)


application = Wrapper(app)
"""

FALCON_ASGI = (
    FALCON.replace("import falcon", "import falcon.asgi")
    .replace("falcon.App", "falcon.asgi.App")
    .replace("def on_get", "async def on_get")
    .partition("class Wrapper")[0]
    + "application = app\n"
)

FASTAPI = """
import fastapi

router = fastapi.APIRouter(prefix="/items")


@router.get("/{item}")
async def get_item(item: int) -> int:
    return 1 // item


shop = fastapi.APIRouter()
shop.include_router(router, prefix="/shop")
application = fastapi.FastAPI(openapi_url=None)
application.include_router(shop)


@application.get("/pid")
def get_pid() -> int:
    return 1
"""

STARLETTE = """
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Mount, Route


def get_item(request):
    return PlainTextResponse(str(1 // request.path_params.get("item", 1)))


application = Starlette(
    routes=[
        Route("/pid", get_item),
        Mount("/shop", Starlette(routes=[Route("/items/{item:int}", get_item)])),
    ]
)
"""

AIOHTTP = """
from aiohttp import web


async def get_item(request):
    return web.Response(text=str(1 // int(request.match_info.get("item", 1))))


async def application():
    shop = web.Application()
    shop.router.add_get("/items/{item:[0-9]+}", get_item)
    made = web.Application()
    made.router.add_get("/pid", get_item)
    made.add_subapp("/shop", shop)
    return made
"""

UVICORN = "uvicorn_worker.UvicornWorker"
DJANGO_WSGI = DJANGO.format(protocol="wsgi", handler="WSGIHandler")
DJANGO_ASGI = DJANGO.format(protocol="asgi", handler="ASGIHandler")

CASES = {
    "flask-sync": ("sync", FLASK, "/shop/items/<int:item>", ""),
    "flask-gevent": ("gevent", FLASK, "/shop/items/<int:item>", ""),
    "flask-pywsgi": ("gevent_pywsgi", FLASK, "/shop/items/<int:item>", ""),
    "django-gthread": ("gthread", DJANGO_WSGI, "/shop/items/<int:item>", None),
    "django-asgi": ("asgi", DJANGO_ASGI, "/shop/items/<int:item>", None),
    "falcon-gevent": ("gevent", FALCON, "/shop/items/{item:int}", None),
    "falcon-uvicorn": (UVICORN, FALCON_ASGI, "/shop/items/{item:int}", None),
    "fastapi-asgi": ("asgi", FASTAPI, "/shop/items/{item}", None),
    "fastapi-uvicorn": (UVICORN, FASTAPI, "/shop/items/{item}", None),
    "older-fastapi-asgi": ("asgi", FASTAPI, "/shop/items/{item}", None),
    "older-fastapi-uvicorn": (UVICORN, FASTAPI, "/shop/items/{item}", None),
    "starlette-asgi": ("asgi", STARLETTE, "/shop/items/{item:int}", None),
    "aiohttp": ("aiohttp.GunicornWebWorker", AIOHTTP, "/shop/items/{item}", ""),
    "starlette-uvicorn": (UVICORN, STARLETTE, "/shop/items/{item:int}", None),
}
"""Worker class, application, the template, and that of a method that it does not have."""

LONG = {
    *("flask-gevent", "flask-pywsgi", "django-asgi", "falcon-gevent", "older-fastapi-uvicorn"),
    *("fastapi-uvicorn", "starlette-asgi"),
}
"""What only ``make soak`` runs: the same framework is met under another worker class."""


def by_route(metrics: Metrics) -> dict[tuple[str, ...], float]:
    """Return what was counted, by code, method and route."""
    return by_label(metrics, "gunicorn_route_requests_total")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.load] * (name in LONG)) for name in CASES]
)
def test_routes(newest: Interpreter, name: str) -> None:
    """Each request is counted by its template, exactly, through a kill and a reload."""
    worker_class, app, template, of_other_method = CASES[name]
    environment = {}
    if name.startswith("older"):
        if not (OLDER_FASTAPI / "fastapi").is_dir():
            missing("an older FastAPI is missing: make .venvs/older-fastapi/.ready")
        environment = {"PYTHONPATH": str(OLDER_FASTAPI)}
    config = CONFIG.format(worker_class=worker_class, routes=True)
    with GunicornProcess(
        newest, config, app=app, exporter=True, environment=environment
    ) as running:
        wait_for(
            running,
            lambda m: (
                value(m, "gunicorn_workers_ready") == 2
                and by_route(m) == {("200", "GET", "/pid"): 1}
            ),
            "the first request is counted",
        )
        other = template if of_other_method is None else of_other_method
        script = {
            ("GET", "/shop/items/1"): (3, ("200", "GET", template)),
            ("GET", "/shop/items/22"): (2, ("200", "GET", template)),
            ("GET", "/shop/items/0"): (1, ("500", "GET", template)),
            ("POST", "/shop/items/1"): (1, ("405", "POST", other)),
            ("GET", "/missing"): (2, ("404", "GET", "")),
            ("GET", "/missing/%2e%2e/shop/items/1"): (1, ("404", "GET", "")),
        }
        expected = {("200", "GET", "/pid"): 1.0}
        for happens in ("nothing", "a kill", "a reload"):
            old = running.worker_pids()
            if happens == "a kill":
                running.kill_a_worker()
                boots = 3.0
            elif happens == "a reload":
                running.send_signal(signal.SIGHUP)
                # One that is ending may leave a request without an answer.
                running.wait_for_workers(2, without=old)
                boots = 5.0
            if happens != "nothing":
                wait_for(
                    running,
                    lambda m: (
                        value(m, "gunicorn_worker_boots_total") == boots  # noqa: B023
                        and value(m, "gunicorn_workers_ready") == 2
                    ),
                    happens,
                )
            for (method, path), (times, labels) in script.items():
                for _ in range(times):
                    send(running, method, path)
                expected[labels] = expected.get(labels, 0) + times
            found = wait_for(
                running,
                lambda m: sum(by_route(m).values()) == sum(expected.values()),
                f"all are counted after {happens}",
            )
            assert by_route(found) == expected
        durations: dict[tuple[str, ...], float] = {}
        for (_code, method, route), number in expected.items():
            durations[method, route] = durations.get((method, route), 0) + number
        name = "gunicorn_route_request_duration_seconds_count"
        assert by_label(found, name) == durations
        # The others are as they are without routes.
        assert {labels for sample, labels in found if sample == "gunicorn_requests_total"} == {
            frozenset({("method", method), ("code", code)}) for code, method, _route in expected
        }
        assert "metrics_routes" not in running.log()


@pytest.mark.parametrize("worker_class", ["sync", "asgi"])
def test_an_application_says_it_itself(newest: Interpreter, worker_class: str) -> None:
    """Without a framework that is known the application may say routes; a line says how."""
    if worker_class == "asgi":
        app = """
async def application(scope, receive, send):
    if scope["type"] == "http":
        if scope["path"] != "/missing":
            scope["obskit_gunicorn.route"] = "/mine/{x}"
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"ok"})
"""
    else:
        app = """
def application(environ, start_response):
    if environ["PATH_INFO"] != "/missing":
        environ["obskit_gunicorn.route"] = "/mine/{x}"
    start_response("200 OK", [])
    return [b"ok"]
"""
    config = CONFIG.format(worker_class=worker_class, routes=True)
    with GunicornProcess(newest, config, app=app, exporter=True) as running:
        send(running, "GET", "/missing")
        expected = {("200", "GET", "/mine/{x}"): 1, ("200", "GET", ""): 1}
        wait_for(running, lambda m: by_route(m) == expected, "both are counted")
        assert running.log().count("metrics_routes is on") == 1


def test_no_routes(newest: Interpreter) -> None:
    """Without the option there is nothing of it."""
    config = CONFIG.format(worker_class="sync", routes=False)
    with GunicornProcess(newest, config, app=FLASK, exporter=True) as running:
        found = wait_for(
            running,
            lambda m: value(m, "gunicorn_requests_total", method="GET", code="200") == 1,
            "the first request is counted",
        )
        assert not [name for name, _labels in found if "_route_" in name]
