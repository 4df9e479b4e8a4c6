"""Which trace a request belongs to, where OpenTelemetry is on: the labels of its exemplar.

OpenTelemetry is never imported here: where the application has not imported it, there is no trace.
A trace that is not sampled leads nowhere, so it is not named.
"""

from __future__ import annotations

import re
import sys
from typing import Any

Labels = dict[str, str]

OUR_KEY = "obskit_gunicorn.span"
"""Where an application may put the span of a request, in the environ of WSGI."""

_SPAN_KEYS = (
    OUR_KEY,
    "opentelemetry-flask.span_key",
    "opentelemetry-falcon.span_key",
    "opentelemetry-pyramid.span_key",
    "opentelemetry-instrumentor-django.span_key",
)
"""Where OpenTelemetry's instrumentations for WSGI put it. Django's takes it away at the end."""

_TRACEPARENT = re.compile(r"[0-9a-f]{2}-([0-9a-f]{32})-[0-9a-f]{16}-([0-9a-f]{2})(?:-.*)?")
_SAMPLED = 1
_NO_TRACE = "0" * 32


def of_scope(_scope: Any = None) -> Labels | None:
    """Return the trace of an ASGI request that is being answered: that of the current span."""
    trace = sys.modules.get("opentelemetry.trace")
    return None if trace is None else _of_span(trace.get_current_span())


def of_environ(environ: Any) -> Labels | None:
    """Return the trace of a WSGI request that has ended.

    Its span is not current any more. So this is the span that its instrumentation has put into the
    environ; or else the trace that the client belongs to, without a span.
    """
    if "opentelemetry.trace" not in sys.modules or not isinstance(environ, dict):
        return None
    for key in _SPAN_KEYS:
        span = environ.get(key)
        if span is not None:
            return _of_span(span)
    return of_header(environ.get("HTTP_TRACEPARENT"))


def of_request(request: Any) -> Labels | None:
    """Return the trace that a client belongs to, from a framework's own request.

    Args:
        request: It has ``headers``, a mapping in which the case of a name does not matter.
    """
    return of_header(request.headers.get("traceparent"))


def of_header(traceparent: str | None) -> Labels | None:
    """Return the trace that a client belongs to, if it is sampled; without a span."""
    if "opentelemetry.trace" not in sys.modules or not isinstance(traceparent, str):
        return None
    found = _TRACEPARENT.fullmatch(traceparent.strip())
    if found is None or found[1] == _NO_TRACE or not int(found[2], 16) & _SAMPLED:
        return None
    return {"trace_id": found[1]}


def _of_span(span: Any) -> Labels | None:
    try:
        context = span.get_span_context()
        if not (context.is_valid and context.trace_flags & _SAMPLED):
            return None
        return {"trace_id": f"{context.trace_id:032x}", "span_id": f"{context.span_id:016x}"}
    except Exception:  # what somebody else has put there
        return None
