"""Where requests are seen under workers that do not call Gunicorn's request hooks.

Their servers are not Gunicorn's. What each of them offers in public is used: the protocol of the
application, a middleware, a method that is meant to be overridden. All runs in the worker, once,
before it serves. What is heavy, above all asyncio, is imported only where it is there anyway.
"""

from __future__ import annotations

import functools
import importlib
import inspect
from collections.abc import Callable
from time import perf_counter
from typing import Any

from obskit_gunicorn._gunicorn import telemetry
from obskit_gunicorn._gunicorn.telemetry import CLIENT_CLOSED, Requests
from obskit_gunicorn._log import log
from obskit_gunicorn._problem import Problem

MakeRequests = Callable[..., Requests]

_ASGI3 = "an ASGI 3 application"


def count(worker: Any, seam: str, make: MakeRequests) -> None:
    """Begin to count the requests of a worker, or say that its application does not allow it.

    Args:
        worker: The worker.
        seam: One of :data:`SEAMS`.
        make: Makes the :class:`Requests`; called only if they can be counted.
    """
    expected = SEAMS[seam](worker, make)
    if expected:
        _say_uncounted(worker.wsgi, expected)


def uncounted(seam: str, application: Any) -> Problem | None:
    """Return why the requests of an application will not be counted, as far as one sees.

    Args:
        seam: How its worker class shows requests, see :func:`worker_classes.kind_of`.
        application: The application, as it was loaded.
    """
    from obskit_gunicorn._gunicorn import asgi

    if seam != "uvicorn" or asgi.is_asgi3(application):
        return None
    return _uncounted(application, _ASGI3)


def _say_uncounted(application: Any, expected: str) -> None:
    log.warning("obskit: %s", _uncounted(application, expected))


def _uncounted(application: Any, expected: str) -> Problem:
    return Problem(
        f"requests are not counted: {application!r} is not {expected}",
        "choose a worker class that is made for it (docs/metrics.md)",
    )


def _asgi(worker: Any, make: MakeRequests) -> str:
    from obskit_gunicorn._gunicorn import asgi

    requests, websockets = make(telemetry.ASGI), telemetry.websockets()
    worker.asgi = asgi.CountedApplication(worker.asgi, requests, worker, websockets)
    return ""


def _uvicorn(worker: Any, make: MakeRequests) -> str:
    from obskit_gunicorn._gunicorn import asgi

    if not asgi.is_asgi3(worker.wsgi):
        return _ASGI3
    requests, websockets = make(telemetry.ASGI), telemetry.websockets()
    worker.wsgi = asgi.CountedApplication(worker.wsgi, requests, worker, websockets)
    return ""


def _wsgi(worker: Any, make: MakeRequests) -> str:
    from obskit_gunicorn._gunicorn import wsgi

    worker.wsgi = wsgi.CountedApplication(worker.wsgi, make(telemetry.WSGI))
    return ""


def _tornado(worker: Any, make: MakeRequests) -> str:
    if isinstance(worker.wsgi, importlib.import_module("tornado.wsgi").WSGIContainer):
        return "a WSGI application or a tornado.web.Application"
    if not isinstance(worker.wsgi, importlib.import_module("tornado.web").Application):
        return _wsgi(worker, make)
    # It has a method for the end of a request, and none for its arrival.
    requests, application = make(telemetry.TORNADO), worker.wsgi
    log_request = application.log_request

    @functools.wraps(log_request)
    def counted(handler: Any) -> None:
        request = handler.request
        started = perf_counter() - request.request_time()
        requests.answered(request.method, handler.get_status(), started, request)
        log_request(handler)

    application.log_request = counted
    return ""


def _aiohttp(worker: Any, make: MakeRequests) -> str:
    web = importlib.import_module("aiohttp.web")
    if not inspect.iscoroutinefunction(worker.wsgi):
        return _add_middleware(web, worker.wsgi, make)
    factory = worker.wsgi

    @functools.wraps(factory)
    async def counted() -> Any:
        made = await factory()
        application = made.app if isinstance(made, web.AppRunner) else made
        expected = _add_middleware(web, application, make)
        if expected:
            _say_uncounted(application, expected)
        return made

    worker.wsgi = counted
    return ""


SEAMS: dict[str, Callable[[Any, MakeRequests], str]] = {
    "asgi": _asgi,
    "uvicorn": _uvicorn,
    "wsgi": _wsgi,
    "tornado": _tornado,
    "aiohttp": _aiohttp,
}
"""How requests are seen, by the names in :mod:`worker_classes`.

Each returns what it has expected of the application in vain; nothing if it counts.
"""


def _add_middleware(web: Any, application: Any, make: MakeRequests) -> str:
    """Put a middleware around all others of an aiohttp application."""
    if not isinstance(application, web.Application) or application.frozen:
        return "an aiohttp.web.Application that can be given a middleware"
    from asyncio import CancelledError

    requests = make(telemetry.AIOHTTP)

    @web.middleware  # type: ignore[untyped-decorator]
    async def counted(request: Any, handler: Callable[[Any], Any]) -> Any:
        if request.headers.get("Upgrade", "").lower() == "websocket":
            return await handler(request)
        started, code = requests.arrived(), 500
        try:
            response = await handler(request)
            code = getattr(response, "status", code)
        except web.HTTPException as response:
            code = response.status
            raise
        except CancelledError:
            code = CLIENT_CLOSED
            raise
        finally:
            requests.answered(request.method, code, started, request)
        return response

    application.middlewares.insert(0, counted)
    return ""
