"""Which trace a request belongs to, as the real OpenTelemetry and its instrumentations say it."""

from __future__ import annotations

import asyncio
import re
import sys
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from opentelemetry import trace
from opentelemetry.instrumentation.asgi import OpenTelemetryMiddleware as AsgiMiddleware
from opentelemetry.instrumentation.flask import FlaskInstrumentor
from opentelemetry.instrumentation.wsgi import OpenTelemetryMiddleware as WsgiMiddleware
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ALWAYS_ON

from obskit_gunicorn._gunicorn import asgi, telemetry, traces, wsgi
from tests.unit.gunicorn.test_asgi import HTTP, START, Counts, body

if TYPE_CHECKING:
    from collections.abc import Iterable

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
SPAN = "00f067aa0ba902b7"


def provider(*, sampled: bool = True) -> TracerProvider:
    """Return what makes spans, without anybody who wants them."""
    return TracerProvider(sampler=ALWAYS_ON if sampled else ALWAYS_OFF)


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        (f"00-{TRACE}-{SPAN}-01", {"trace_id": TRACE}),
        (f" 00-{TRACE}-{SPAN}-03 ", {"trace_id": TRACE}),
        (f"01-{TRACE}-{SPAN}-01-more", {"trace_id": TRACE}),
        (f"00-{TRACE}-{SPAN}-00", None),
        (f"00-{'0' * 32}-{SPAN}-01", None),
        (f"00-{TRACE.upper()}-{SPAN}-01", None),
        (f"00-{TRACE}\0-{SPAN}-01", None),
        (f"00-{TRACE}-{SPAN}-01\n00", None),
        ("", None),
        (None, None),
        (5, None),
    ],
)
def test_of_a_header(header: Any, expected: dict[str, str] | None) -> None:
    """A trace that is sampled and well-formed, without a span: that is the client's."""
    assert traces.of_header(header) == expected
    assert traces.of_environ({"HTTP_TRACEPARENT": header}) == expected
    assert traces.of_request(SimpleNamespace(headers={"traceparent": header})) == expected


def test_without_opentelemetry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the application has not imported it nothing is named, whatever clients send."""
    monkeypatch.delitem(sys.modules, "opentelemetry.trace")
    assert traces.of_scope() is None
    assert traces.of_header(f"00-{TRACE}-{SPAN}-01") is None
    assert traces.of_environ({traces.OUR_KEY: object()}) is None


def test_what_is_no_span() -> None:
    """Whatever somebody else has put into the environ, nothing raises."""
    for odd in (object(), 5, "span", trace.INVALID_SPAN):
        assert traces.of_environ({traces.OUR_KEY: odd}) is None
    assert traces.of_environ(None) is None
    assert traces.of_scope() is None


@pytest.mark.parametrize("sampled", [True, False])
def test_of_an_asgi_application(sampled: bool) -> None:
    """The span that its instrumentation has made of the request; none of one not sampled."""
    seen: list[Any] = []

    async def application(scope: Any, receive: Any, send: Any) -> None:
        seen.append(trace.get_current_span().get_span_context())
        await send(START)
        await send(body(b"part", more=True))
        await send(body())

    async def nothing(*_: Any) -> dict[str, Any]:
        return {"type": "http.request"}

    traced = AsgiMiddleware(application, tracer_provider=provider(sampled=sampled))
    counts = Counts(telemetry.ASGI)
    counted: Any = asgi.CountedApplication(traced, counts)  # type: ignore[arg-type]
    asyncio.run(counted({**HTTP, "headers": [], "query_string": b""}, nothing, nothing))
    (exemplar,) = counts.exemplars
    if sampled:
        assert exemplar == {
            "trace_id": f"{seen[0].trace_id:032x}",
            "span_id": f"{seen[0].span_id:016x}",
        }
    else:
        assert exemplar is None


def answered(application: Any, **environ: Any) -> dict[str, str] | None:
    """Serve one request of a WSGI application, and return the exemplar of its answer."""
    counts = Counts(telemetry.WSGI)
    counted: Any = wsgi.CountedApplication(application, counts)  # type: ignore[arg-type]
    found = counted(
        {
            "REQUEST_METHOD": "GET",
            "PATH_INFO": "/",
            "SERVER_NAME": "localhost",
            "SERVER_PORT": "80",
            "wsgi.url_scheme": "http",
            **environ,
        },
        lambda *_: lambda _data: None,
    )
    list(found)
    found.close()
    (exemplar,) = counts.exemplars
    return exemplar


def test_of_a_flask_application() -> None:
    """Its instrumentation keeps the span in the environ."""
    import flask

    application = flask.Flask("app")
    seen: list[Any] = []

    @application.get("/")
    def page() -> str:
        seen.append(trace.get_current_span().get_span_context())
        return "page"

    FlaskInstrumentor().instrument_app(  # type: ignore[no-untyped-call]
        application, tracer_provider=provider()
    )
    assert answered(application) == {
        "trace_id": f"{seen[0].trace_id:032x}",
        "span_id": f"{seen[0].span_id:016x}",
    }


def test_of_a_wsgi_application() -> None:
    """Its own span if the application keeps it, else the trace of the client."""
    seen: list[Any] = []

    def application(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        seen.append(trace.get_current_span().get_span_context())
        start_response("200 OK", [])
        return [b"page"]

    def keep(span: Any, environ: dict[str, Any]) -> None:
        environ[traces.OUR_KEY] = span

    header = f"00-{TRACE}-{SPAN}-01"
    plain = WsgiMiddleware(application, tracer_provider=provider())
    assert answered(plain) is None
    assert answered(plain, HTTP_TRACEPARENT=header) == {"trace_id": TRACE}
    keeping = WsgiMiddleware(application, request_hook=keep, tracer_provider=provider())
    found = answered(keeping, HTTP_TRACEPARENT=header)
    assert found == {"trace_id": TRACE, "span_id": f"{seen[-1].span_id:016x}"}
    assert re.fullmatch("[0-9a-f]{16}", found["span_id"])
