"""WSGI and ASGI applications that serve the exposition."""

from __future__ import annotations

import re
from functools import partial
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs

from obskit_gunicorn._scrape.bodies import Bodies, BusyError, Form, UnavailableError
from obskit_gunicorn._scrape.formats import negotiated
from obskit_gunicorn._scrape.registry import (
    Exposition,
    current_registry,
    setup_multiprocess_registry,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

    from prometheus_client.core import CollectorRegistry

Response = tuple[str, list[tuple[str, str]], bytes]
"""Status, headers and body."""

METHODS = ("GET", "HEAD")
"""The methods that are for metrics."""

_ALLOWED = ("Allow", "GET, HEAD, OPTIONS")
_PLAIN = ("Content-Type", "text/plain; charset=utf-8")
_BUSY = ("503 Service Unavailable", [_PLAIN], b"# too many scrapes at once; ask again later\n")


def make_wsgi_app(registry: CollectorRegistry | None = None) -> Callable[..., Iterable[bytes]]:
    """Return a WSGI application that serves the exposition.

    In multiprocess mode it serves the metrics of all processes, otherwise prometheus_client's own
    registry. So the same line works in development and under Gunicorn.

    Args:
        registry: The registry to serve instead.
    """
    bodies = Bodies(lambda: Exposition(registry or current_registry()))
    return wsgi_application(partial(_respond, bodies))


def wsgi_application(
    respond: Callable[[str, str, str, str], Response],
) -> Callable[..., Iterable[bytes]]:
    """Return a WSGI application.

    Args:
        respond: Is given method, ``Accept``, ``Accept-Encoding`` and query; returns the response.
    """

    def application(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        status, headers, body = respond(
            environ["REQUEST_METHOD"],
            environ.get("HTTP_ACCEPT", ""),
            environ.get("HTTP_ACCEPT_ENCODING", ""),
            environ.get("QUERY_STRING", ""),
        )
        start_response(status, headers)
        return [body]

    return application


def make_asgi_app(registry: CollectorRegistry | None = None) -> Callable[..., Awaitable[None]]:
    """Return an ASGI application that serves the exposition; see :func:`make_wsgi_app`.

    It collects on the event loop. To keep this work out of the workers, use the exporter.
    """
    bodies = Bodies(lambda: Exposition(registry or current_registry()))

    async def respond(method: str, accept: str, accept_encoding: str, query: str) -> Response:
        return _respond(bodies, method, accept, accept_encoding, query)

    return asgi_application(respond)


def asgi_application(
    respond: Callable[[str, str, str, str], Awaitable[Response]],
) -> Callable[..., Awaitable[None]]:
    """Return an ASGI application.

    Args:
        respond: Is given method, ``Accept``, ``Accept-Encoding`` and query; returns the response.
    """

    async def application(
        scope: dict[str, Any],
        receive: Callable[..., Awaitable[Any]],
        send: Callable[..., Awaitable[Any]],
    ) -> None:
        if scope["type"] != "http":
            raise ValueError(f"the metrics application serves http, not {scope['type']}")
        asked = {
            name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]
        }
        status, headers, body = await respond(
            scope["method"],
            asked.get("accept", ""),
            asked.get("accept-encoding", ""),
            scope.get("query_string", b"").decode("latin-1"),
        )
        while (await receive()).get("more_body"):
            pass
        raw = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers]
        start = {"type": "http.response.start", "status": int(status[:3]), "headers": raw}
        await send(start)
        await send({"type": "http.response.body", "body": body})

    return application


def make_multiprocess_app(path: str | None = None) -> Callable[..., Iterable[bytes]]:
    """Return a WSGI application that serves a multiprocess directory in any mode.

    Args:
        path: The directory; by default the one that this process uses at the time of the scrape.
    """
    return make_wsgi_app(setup_multiprocess_registry(path))


def busy(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    """Say that too many scrapes are being answered; a WSGI application."""
    status, headers, body = complete(environ["REQUEST_METHOD"], *_BUSY)
    start_response(status, headers)
    return [body]


def complete(method: str, status: str, headers: Iterable[tuple[str, str]], body: bytes) -> Response:
    """Return a response with its length, and for HEAD without its body."""
    length = ("Content-Length", str(len(body)))
    return status, [*headers, length], b"" if method == "HEAD" else body


def _respond(
    bodies: Bodies, method: str, accept: str, accept_encoding: str, query: str
) -> Response:
    """Return status, headers and body of a response, like prometheus_client's applications."""
    if method == "OPTIONS":
        return complete(method, "200 OK", [_ALLOWED], b"")
    if method not in METHODS:
        body = f"# {method} is not for metrics; use GET, HEAD or OPTIONS\n".encode()
        return complete(method, "405 Method Not Allowed", [_ALLOWED, _PLAIN], body)
    names = parse_qs(query).get("name[]")
    form = Form(
        negotiated(accept), frozenset(names) if names else None, _takes_gzip(accept_encoding)
    )
    try:
        body = bodies.get(form)
    except BusyError:
        return complete(method, *_BUSY)
    except UnavailableError as error:
        body = f"# {error}\n".encode(errors="replace")
        return complete(method, "503 Service Unavailable", [_PLAIN], body)
    packed = [("Content-Encoding", "gzip")] if form.is_packed else []
    return complete(method, "200 OK", [("Content-Type", form.format.name), *packed], body)


def _takes_gzip(accept_encoding: str) -> bool:
    for accepted in accept_encoding.lower().split(","):
        name, *parameters = (part.strip() for part in accepted.split(";"))
        if name in ("gzip", "x-gzip"):
            return not any(re.fullmatch(r"q\s*=\s*0(\.0*)?", each) for each in parameters)
    return False
