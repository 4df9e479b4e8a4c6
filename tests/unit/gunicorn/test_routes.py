"""Which template a request was routed by, asked of the frameworks themselves."""

from __future__ import annotations

import asyncio
import copy
import functools
import pickle
import sys
import types
from typing import TYPE_CHECKING, Any

import django
import django.conf
import django.core.handlers.asgi
import django.core.handlers.wsgi
import django.http
import django.urls
import falcon
import falcon.asgi
import fastapi
import flask
import pytest
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Host, Mount, Route, Router
from werkzeug.middleware.dispatcher import DispatcherMiddleware

from obskit_gunicorn._gunicorn import routes
from tests.support.wsgi import environ_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@pytest.fixture(autouse=True)
def found(monkeypatch: pytest.MonkeyPatch) -> Iterator[routes.Found]:
    """Begin with nothing found, as each worker does."""
    nothing = routes.Found()
    monkeypatch.setattr(routes, "found", nothing)
    yield nothing
    flask.request_started.receivers.clear()


def wsgi(application: Any, path: str, **more: str) -> tuple[str, str]:
    """Serve one request; return status and template."""
    environ, statuses = environ_of(path, **more), []
    body = application(environ, lambda status, headers, *rest: statuses.append(status[:3]))
    b"".join(body)
    if hasattr(body, "close"):
        body.close()
    return statuses[-1], routes.found.of_environ(environ)


def asgi(application: Any, path: str, **more: Any) -> tuple[int, str]:
    """Serve one request; return status and template."""
    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "GET",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "root_path": "",
        "headers": [(b"host", b"shop.example")],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 80),
        **more,
    }
    statuses = []
    incoming = [{"type": "http.request", "body": b""}]

    async def receive() -> dict[str, Any]:
        if not incoming:
            await asyncio.Event().wait()
        return incoming.pop()

    async def send(message: dict[str, Any]) -> None:
        if message["type"] == "http.response.start":
            statuses.append(message["status"])

    async def serve() -> None:
        try:
            await application(scope, receive, send)
        except ZeroDivisionError:  # Starlette answers, and raises it again for the server's log
            pass

    asyncio.run(serve())
    return statuses[-1], routes.found.of_scope(scope)


# ------------------------------------------------------------------------------------------------
# Starlette and FastAPI


async def ok(request: Any) -> PlainTextResponse:
    """Answer."""
    return PlainTextResponse("ok")


async def fails(request: Any) -> PlainTextResponse:
    """Do not answer."""
    raise ZeroDivisionError


class Middleware:
    """As people write them."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Pass on."""
        await self.app(scope, receive, send)


def starlette() -> Starlette:
    """Return an application with everything that contains routes."""
    inner = Starlette(routes=[Route("/a/{a}", ok), Route("/same", ok), Route("/alike", ok)])
    return Starlette(
        routes=[
            Route("/", ok),
            Route("/items/{id:int}", ok, methods=["GET"]),
            Route("/fails", fails),
            Mount("/one", inner),
            Mount("/two/{tenant}", inner),
            Mount("/wrapped", Middleware(inner)),
            Mount("/foreign", PlainTextResponse("ok")),
            Host("other.example", Router([Route("/hosted/{h}", ok)])),
        ]
    )


@pytest.mark.parametrize(
    ("path", "status", "template"),
    [
        ("/", 200, "/"),
        ("/items/5", 200, "/items/{id:int}"),
        ("/items/five", 404, ""),
        ("/items/5/", 307, ""),
        ("/fails", 500, "/fails"),
        ("/one/a/x", 200, "/one/a/{a}"),
        ("/two/T/a/x", 200, "/two/{tenant}/a/{a}"),
        ("/two/T/same", 200, "/two/{tenant}/same"),
        ("/one/alike", 200, "/one/alike"),
        ("/wrapped/a/x", 200, "/wrapped/a/{a}"),
        ("/foreign/x", 200, "/foreign"),
        ("/one/missing", 404, "/one"),
        ("/missing", 404, ""),
    ],
)
def test_starlette(path: str, status: int, template: str) -> None:
    """A template has those of all that contains it, and what nothing matches has none."""
    assert asgi(starlette(), path) == (status, template)


def test_a_host_adds_nothing() -> None:
    """What is chosen by the host has its own path."""
    headers = [(b"host", b"other.example")]
    assert asgi(starlette(), "/hosted/x", headers=headers) == (200, "/hosted/{h}")


def test_a_method_that_a_route_does_not_have() -> None:
    """The route has refused it, and is known."""
    assert asgi(starlette(), "/items/5", method="POST") == (405, "/items/{id:int}")


def test_a_root_path_is_never_shown() -> None:
    """What a proxy has removed, or left, is no part of a template."""
    application, more = starlette(), {"root_path": "/behind/a/proxy"}
    for path, template in [
        ("/items/5", "/items/{id:int}"),
        ("/behind/a/proxy/items/5", "/items/{id:int}"),
        ("/behind/a/proxy/two/T/same", "/two/{tenant}/same"),
    ]:
        assert asgi(application, path, **more) == (200, template)


def fastapi_application() -> fastapi.FastAPI:
    """Return an application with routers in routers, some of them included twice."""
    application, inner, outer = fastapi.FastAPI(), fastapi.APIRouter(), fastapi.APIRouter()

    async def answer() -> str:
        return "ok"

    inner.get("/x/{n}")(answer)
    inner.add_route("/plain/{p}", ok)
    outer.include_router(inner, prefix="/v1")
    outer.include_router(inner, prefix="/v2")
    application.get("/x/{n}")(answer)
    application.include_router(outer, prefix="/api/{tenant}")
    below = fastapi.FastAPI()
    below.include_router(inner, prefix="/inc")
    application.mount("/below", below)
    return application


@pytest.mark.parametrize(
    ("path", "template"),
    [
        ("/x/1", "/x/{n}"),
        ("/api/T/v1/x/1", "/api/{tenant}/v1/x/{n}"),
        ("/api/T/v2/x/1", "/api/{tenant}/v2/x/{n}"),
        ("/api/T/v2/plain/1", "/api/{tenant}/v2/plain/{p}"),
        ("/below/inc/x/1", "/below/inc/x/{n}"),
        ("/below/docs", "/below/docs"),
    ],
)
def test_fastapi(path: str, template: str) -> None:
    """The prefix of a router that is included belongs to the template, each time another one."""
    application = fastapi_application()
    assert asgi(application, path) == (200, template)
    assert asgi(application, path) == (200, template)  # now it is known


def test_a_route_that_does_not_say_so_below_one_that_does() -> None:
    """Not each kind of route leaves itself in the scope; the mount above it is not taken for it."""
    application = Starlette(routes=[Mount("/below", fastapi.FastAPI())])
    assert asgi(application, "/below/docs") == (200, "/below/docs")


def test_another_framework_below_a_mount() -> None:
    """It has the template of the mount, because its own would begin nowhere."""
    below: Any = falcon.asgi.App()
    below.add_route("/items/{item}", AsyncItem())
    application = Starlette(routes=[Mount("/below", below)])
    routes.watch(application)
    assert asgi(application, "/below/items/5") == (404, "/below")
    assert routes.found.frameworks >= {"Starlette"}
    assert "Falcon" not in routes.found.frameworks


def test_an_endpoint_that_another_route_gets_later(found: routes.Found) -> None:
    """Where only the endpoint is in the scope, the path says which of its routes it was."""

    async def endpoint(request: Any) -> PlainTextResponse:
        return PlainTextResponse("ok")

    router = Router([Route("/first/{x}", endpoint)])
    scope: dict[str, Any] = {"router": router, "endpoint": endpoint}
    assert found.of_scope({**scope, "path": "/first/1"}) == "/first/{x}"
    router.routes.append(Route("/second/{x}", endpoint))
    assert found.of_scope({**scope, "path": "/second/1"}) == "/second/{x}"
    assert found.of_scope({**scope, "path": "/first/1"}) == "/first/{x}"


def test_routes_that_are_added_later() -> None:
    """A route is known from its first request on, and those of before stay known."""
    application = starlette()
    assert asgi(application, "/one/a/x") == (200, "/one/a/{a}")
    for number in range(20):
        application.router.routes.append(Route(f"/late{number}/{{x}}", ok))
        assert asgi(application, f"/late{number}/y") == (200, f"/late{number}/{{x}}")
    assert asgi(application, "/one/a/x") == (200, "/one/a/{a}")


def test_routes_without_end(found: routes.Found) -> None:
    """An application that makes routers and routes for each request leaves a bounded trace."""
    for number in range(40):
        below = Starlette(routes=[Route(f"/r{number}", ok)])
        expected = f"/r{number}" if number < routes._MOST_ROUTERS else ""
        assert asgi(below, f"/r{number}")[1].startswith(expected)
    assert len(found._routers) == routes._MOST_ROUTERS

    router = routes._Router(Router([]), builds=3)
    for number in range(20):
        scope = {"route": Route(f"/r{number}", ok), "path": "/"}
        assert router.template(scope) == f"/r{number}"
    assert len(router._elsewhere) == 3


def test_a_scope_of_another_shape(found: routes.Found, caplog: pytest.LogCaptureFixture) -> None:
    """What says its route in another way has none; one line says so, and nothing is raised."""
    for _ in range(3):
        assert found.of_scope({"router": object(), "route": object(), "path": "/"}) == ""
        assert found.of_environ(None) == ""
        assert found.of_aiohttp(None) == ""
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert found.of_scope({"router": Router([]), "route": Route("/x", ok)}) == "/x"


class Odd(Route):
    """A route of another shape."""

    @property
    def path_regex(self) -> Any:
        """Fail."""
        raise ZeroDivisionError

    @path_regex.setter
    def path_regex(self, value: Any) -> None:
        pass


def test_one_route_of_another_shape(caplog: pytest.LogCaptureFixture) -> None:
    """The others are known, and one line says that something is not."""
    scope = {"router": Router([Odd("/odd", ok), known := Route("/x/{x}", ok)]), "route": known}
    assert routes.found.of_scope({**scope, "path": "/x/1"}) == "/x/{x}"
    assert "ZeroDivisionError" in caplog.text


# ------------------------------------------------------------------------------------------------
# Flask


def flask_application() -> flask.Flask:
    """Return an application with a blueprint."""
    application, shop = flask.Flask(__name__), flask.Blueprint("shop", __name__)

    @shop.get("/items/<int:item>")
    def items(item: int) -> str:
        return str(1 // item)

    application.register_blueprint(shop, url_prefix="/shop")
    return application


def outside(application: Any) -> Callable[..., Any]:
    """Wrap an application as middleware does."""

    def wrapped(*args: Any) -> Any:
        return application(*args)

    return wrapped


@pytest.mark.parametrize(
    ("path", "status", "template"),
    [
        ("/shop/items/5", "200", "/shop/items/<int:item>"),
        ("/shop/items/0", "500", "/shop/items/<int:item>"),
        ("/shop/items/x", "404", ""),
        ("/missing", "404", ""),
        ("/static/x.css", "404", "/static/<path:filename>"),
    ],
)
@pytest.mark.parametrize("wrap", [lambda app: app, outside], ids=["bare", "wrapped"])
def test_flask(wrap: Any, path: str, status: str, template: str) -> None:
    """A rule is known whatever comes of the request, and however the application is wrapped."""
    application = wrap(flask_application())
    routes.watch(application)
    assert wsgi(application, path) == (status, template)


def test_a_dispatcher_says_where_applications_are() -> None:
    """What is mounted has the place in its template, and a proxy's prefix is not in it."""

    def other(environ: Any, start_response: Any) -> list[bytes]:
        start_response("200 OK", [])
        return []

    mounts: Any = {"/one": flask_application(), "/one/two": other}
    dispatcher = DispatcherMiddleware(flask_application(), mounts)
    application = outside(dispatcher)
    routes.watch(application)
    assert wsgi(application, "/shop/items/5") == ("200", "/shop/items/<int:item>")
    assert wsgi(application, "/one/shop/items/5") == ("200", "/one/shop/items/<int:item>")
    more = {"SCRIPT_NAME": "/behind/a/proxy"}
    assert wsgi(application, "/one/shop/items/5", **more)[1] == "/one/shop/items/<int:item>"
    assert wsgi(application, "/shop/items/5", **more)[1] == "/shop/items/<int:item>"
    assert wsgi(application, "/one/two/x") == ("200", "/one/two")


def test_a_dispatcher_below_another_one() -> None:
    """A template has the places of both, and the right one of an application that has two."""
    inner = DispatcherMiddleware(flask_application(), {"/inner": flask_application()})
    shared = flask_application()
    mounts: Any = {"/outer": outside(inner), "/inner": shared, "/other": shared}
    application = DispatcherMiddleware(flask_application(), mounts)
    routes.watch(application)
    for place in ("", "/outer", "/outer/inner", "/inner", "/other"):
        template = f"{place}/shop/items/<int:item>"
        assert wsgi(application, f"{place}/shop/items/5") == ("200", template)


def test_quart_is_not_flask(monkeypatch: pytest.MonkeyPatch) -> None:
    """It imports Flask, but sends no signal of it; where Flask serves too, that is known."""
    quart = types.ModuleType("quart")
    quart.Quart = type("Quart", (), {})  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "quart", quart)
    application = quart.Quart()
    routes.watch(application)
    assert routes.found.frameworks == set()
    application.beside = flask_application()
    routes.watch(application)
    assert routes.found.frameworks == {"Flask"}


def test_flask_without_signals(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Without the package for signals one line says so, and requests are served."""
    monkeypatch.setitem(sys.modules, "flask", types.ModuleType("flask"))
    routes.watch(None)
    assert "routes of Flask are not known" in caplog.text
    assert routes.found.frameworks == set()


# ------------------------------------------------------------------------------------------------
# Falcon


class Item:
    """A resource that serves both kinds."""

    def on_get(self, req: Any, resp: Any, item: str) -> None:
        """Answer."""
        resp.text = str(1 // len(item.strip("x")))


class AsyncItem:
    """A resource."""

    async def on_get(self, req: Any, resp: Any, item: str) -> None:
        """Answer."""
        resp.text = str(1 // len(item.strip("x")))


def test_falcon(capsys: pytest.CaptureFixture[str]) -> None:
    """The template is known whatever comes of the request, under WSGI and ASGI."""
    old, new = falcon.App(), falcon.asgi.App()
    old.add_route("/items/{item}", Item())
    new.add_route("/items/{item}", AsyncItem())
    for application in (old, new):
        routes.watch(outside(application))
    for path, status, template in [
        ("/items/5", 200, "/items/{item}"),
        ("/items/x", 500, "/items/{item}"),
        ("/missing", 404, ""),
    ]:
        assert wsgi(old, path) == (str(status), template)
        assert asgi(new, path) == (status, template)
    assert routes.found.frameworks >= {"Falcon"}


# ------------------------------------------------------------------------------------------------
# Django


@pytest.fixture(scope="module", autouse=True)
def django_is_set_up() -> None:
    """Make Django usable; its settings cannot be made twice."""
    urls = types.ModuleType("routes_urls")
    nested = [django.urls.path("items/<int:item>/", django_view)]
    urls.urlpatterns = [  # type: ignore[attr-defined]
        django.urls.path("", django_view),
        django.urls.path("shop/", django.urls.include(nested)),
        django.urls.re_path(r"^old/(?P<item>\d+)$", django_view),
    ]
    sys.modules["routes_urls"] = urls
    if not django.conf.settings.configured:
        django.conf.settings.configure(
            ROOT_URLCONF="routes_urls", ALLOWED_HOSTS=["*"], SECRET_KEY="x", LOGGING_CONFIG=None
        )
        django.setup()


def django_view(request: Any, item: str = "1") -> django.http.HttpResponse:
    """Answer."""
    return django.http.HttpResponse(str(1 // int(item)))


@pytest.mark.parametrize(
    ("path", "status", "template"),
    [
        ("/", 200, "/"),
        ("/shop/items/5/", 200, "/shop/items/<int:item>/"),
        ("/shop/items/0/", 500, "/shop/items/<int:item>/"),
        ("/old/5", 200, r"/old/(?P<item>\d+)$"),
        ("/shop/items/x/", 404, ""),
    ],
)
def test_django(path: str, status: int, template: str) -> None:
    """The pattern is known whatever comes of the request, under WSGI and ASGI, wrapped or not."""
    for wrap in (lambda app: app, outside):
        old = wrap(django.core.handlers.wsgi.WSGIHandler())
        routes.watch(old)
        assert wsgi(old, path) == (str(status), template)
        new = wrap(django.core.handlers.asgi.ASGIHandler())
        routes.watch(new)
        assert asgi(new, path) == (status, template)
    assert "request_class" not in vars(django.core.handlers.wsgi.WSGIHandler())


def test_requests_of_django_stay_what_they_are() -> None:
    """Their class has its name; copies and pickles of them are of Django's own class."""
    handler = django.core.handlers.wsgi.WSGIHandler()
    own = handler.request_class
    routes.watch(handler)
    request = handler.request_class(environ_of("/"))
    assert isinstance(request, own)
    assert type(request) is not own
    assert repr(request) == "<WSGIRequest: GET '/'>"
    assert request.resolver_match is None
    match = request.resolver_match = django.urls.resolve("/shop/items/5/")
    assert request.resolver_match is match
    assert type(copy.copy(request)) is own
    request.resolver_match = None  # Django's own request cannot be pickled with one
    del request.environ["wsgi.input"], request.environ["wsgi.errors"]
    assert type(pickle.loads(pickle.dumps(request))) is own


# ------------------------------------------------------------------------------------------------
# Finding them


class Slotted:
    """A wrapper without a dictionary."""

    __slots__ = ("application", "unset")

    def __init__(self, application: Any) -> None:
        self.application = application

    def __call__(self, *args: Any) -> Any:
        """Serve."""
        return self.application(*args)


class Lazy:
    """An object that must not be looked at."""

    def __getattribute__(self, name: str) -> Any:
        raise AssertionError("it was evaluated")


GLOBAL = falcon.App()


def by_name(environ: Any, start_response: Any) -> Any:
    """Serve with an application that only the code names."""
    return GLOBAL(environ, start_response)


class ByName:
    """The same, as a class."""

    lazy = Lazy()

    def __init__(self) -> None:
        self.lazy = Lazy()

    def __call__(self, environ: Any, start_response: Any) -> Any:
        """Serve."""
        return GLOBAL(environ, start_response)


@pytest.mark.parametrize(
    "wrap",
    [
        Slotted,
        lambda app: Slotted(Slotted(outside(app))),
        lambda app: functools.partial(outside(app)),
        lambda app: Slotted(app).__call__,
        lambda app: outside({"http": app, "websocket": Lazy()}),
        lambda app: by_name,
        lambda app: ByName(),
    ],
)
def test_where_an_application_is_found(wrap: Any) -> None:
    """Behind objects, functions, methods and names."""
    routes.watch(wrap(falcon.App()))
    assert "Falcon" in routes.found.frameworks


def test_a_search_has_an_end() -> None:
    """A large application, and one that contains itself, are looked at in part."""
    large: list[Any] = [[] for _ in range(10_000)]
    large.append(large)
    assert len(list(routes._reachable(large))) == routes._MOST_OBJECTS
    application = Slotted(large)
    routes.watch(application)


def test_an_application_says_it_itself(found: routes.Found) -> None:
    """What it puts into environ or scope counts, if it is text."""
    for of in (found.of_environ, found.of_scope):
        assert of({routes.KEY: "/mine/{x}"}) == "/mine/{x}"
        assert of({routes.KEY: b"/mine"}) == ""
        assert of({}) == ""
    assert found.of_scope({routes.KEY: "/mine", "router": Router([]), "route": 1}) == "/mine"
