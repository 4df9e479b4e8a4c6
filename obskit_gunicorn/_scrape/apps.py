"""WSGI and ASGI applications that serve the exposition.

``name[]`` filtering is prometheus_client's own encoding of the same families.
"""

from __future__ import annotations

import gzip
import re
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs

from obskit_gunicorn._scrape.formats import negotiated
from obskit_gunicorn._scrape.registry import (
    SharedRegistry,
    current_registry,
    setup_multiprocess_registry,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

    from prometheus_client.core import CollectorRegistry

_GZIP_LEVEL = 1
"""A tenth of the default level's time for a few per cent more bytes."""


def make_wsgi_app(registry: CollectorRegistry | None = None) -> Callable[..., Iterable[bytes]]:
    """Return a WSGI application that serves the exposition.

    It serves all processes' metrics in multiprocess mode, and prometheus_client's own registry
    otherwise, so that one line works in development and under Gunicorn.

    Args:
        registry: Another registry to serve instead.
    """

    def application(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        status, headers, body = _respond(
            registry or current_registry(),
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
            registry or current_registry(),
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


def _respond(
    registry: CollectorRegistry, method: str, accept: str, accept_encoding: str, query: str
) -> tuple[str, list[tuple[str, str]], bytes]:
    """Return status, headers and body of a response, as prometheus_client's applications do."""
    allowed = ("Allow", "GET, HEAD, OPTIONS")
    if method == "OPTIONS":
        return "200 OK", [allowed, ("Content-Length", "0")], b""
    if method not in ("GET", "HEAD"):
        body = f"# {method} is not for metrics; use GET, HEAD or OPTIONS\n".encode()
        kind = ("Content-Type", "text/plain; charset=utf-8")
        return "405 Method Not Allowed", [allowed, kind, ("Content-Length", str(len(body)))], body
    format_, content_type = negotiated(accept)
    names = parse_qs(query).get("name[]")
    if names:
        body = format_.encode(registry.restricted_registry(names))
    elif isinstance(registry, SharedRegistry):
        body = registry.exposed(format_)
    else:
        body = format_.encode(registry)
    headers = [("Content-Type", content_type)]
    if _takes_gzip(accept_encoding):
        body = gzip.compress(body, _GZIP_LEVEL)
        headers.append(("Content-Encoding", "gzip"))
    headers.append(("Content-Length", str(len(body))))
    return "200 OK", headers, b"" if method == "HEAD" else body


def _takes_gzip(accept_encoding: str) -> bool:
    for accepted in accept_encoding.lower().split(","):
        name, *parameters = (part.strip() for part in accepted.split(";"))
        if name in ("gzip", "x-gzip"):
            return not any(re.fullmatch(r"q\s*=\s*0(\.0*)?", each) for each in parameters)
    return False
