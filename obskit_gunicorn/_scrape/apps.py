"""WSGI and ASGI applications that serve the exposition."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs

from obskit_gunicorn._scrape.bodies import Bodies, BusyError, Form
from obskit_gunicorn._scrape.formats import negotiated
from obskit_gunicorn._scrape.registry import (
    Exposition,
    current_registry,
    setup_multiprocess_registry,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

    from prometheus_client.core import CollectorRegistry

_Response = tuple[str, list[tuple[str, str]], bytes]
"""Status, headers and body."""


def make_wsgi_app(registry: CollectorRegistry | None = None) -> Callable[..., Iterable[bytes]]:
    """Return a WSGI application that serves the exposition.

    It serves all processes' metrics in multiprocess mode, and prometheus_client's own registry
    otherwise, so that one line works in development and under Gunicorn.

    Args:
        registry: Another registry to serve instead.
    """
    bodies = Bodies(lambda: Exposition(registry or current_registry()))

    def application(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        status, headers, body = _respond(
            bodies,
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

    It collects on the event loop: serving the exposition from a process of its own keeps it off the
    workers.
    """
    bodies = Bodies(lambda: Exposition(registry or current_registry()))

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
        status, headers, body = _respond(
            bodies,
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
    """Return a WSGI application that serves one multiprocess directory, whatever the mode.

    Args:
        path: The directory; by default the one this process uses at each scrape.
    """
    return make_wsgi_app(setup_multiprocess_registry(path))


def busy(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    """Say that too many scrapes are being answered; a WSGI application."""
    status, headers, body = _BUSY
    start_response(status, list(headers))
    return [] if environ["REQUEST_METHOD"] == "HEAD" else [body]


def _line(status: str, text: str, *headers: tuple[str, str]) -> _Response:
    """Return a response of one line."""
    body = f"# {text}\n".encode()
    kind = ("Content-Type", "text/plain; charset=utf-8")
    return status, [*headers, kind, ("Content-Length", str(len(body)))], body


_BUSY = _line("503 Service Unavailable", "too many scrapes at once; ask again later")


def _respond(
    bodies: Bodies, method: str, accept: str, accept_encoding: str, query: str
) -> _Response:
    """Return status, headers and body of a response, as prometheus_client's applications do."""
    allowed = ("Allow", "GET, HEAD, OPTIONS")
    if method == "OPTIONS":
        return "200 OK", [allowed, ("Content-Length", "0")], b""
    if method not in ("GET", "HEAD"):
        text = f"{method} is not for metrics; use GET, HEAD or OPTIONS"
        return _line("405 Method Not Allowed", text, allowed)
    names = parse_qs(query).get("name[]")
    form = Form(
        negotiated(accept), frozenset(names) if names else None, _takes_gzip(accept_encoding)
    )
    try:
        body = bodies.get(form)
    except BusyError:
        status, headers, body = _BUSY
    else:
        packed = [("Content-Encoding", "gzip")] if form.is_packed else []
        length = ("Content-Length", str(len(body)))
        status, headers = "200 OK", [("Content-Type", form.format.name), *packed, length]
    return status, headers, b"" if method == "HEAD" else body


def _takes_gzip(accept_encoding: str) -> bool:
    for accepted in accept_encoding.lower().split(","):
        name, *parameters = (part.strip() for part in accepted.split(";"))
        if name in ("gzip", "x-gzip"):
            return not any(re.fullmatch(r"q\s*=\s*0(\.0*)?", each) for each in parameters)
    return False
