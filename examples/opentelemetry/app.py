"""A WSGI application with a trace for each request, and metrics beside it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from opentelemetry import trace
from opentelemetry.instrumentation.wsgi import OpenTelemetryMiddleware
from prometheus_client import Counter

if TYPE_CHECKING:
    from collections.abc import Iterable

    from _typeshed.wsgi import StartResponse, WSGIEnvironment

ORDERS = Counter("shop_orders", "Orders taken.")
tracer = trace.get_tracer("shop")


def take_order(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """Take an order."""
    with tracer.start_as_current_span("pack"):
        ORDERS.inc()
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"Thank you\n"]


def keep_span(span: trace.Span, environ: WSGIEnvironment) -> None:
    """Keep the span of a request until the request is counted."""
    environ["obskit_gunicorn.span"] = span


application = OpenTelemetryMiddleware(take_order, request_hook=keep_span)
