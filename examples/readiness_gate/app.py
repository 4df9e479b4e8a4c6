"""The application behind the gate: it counts what it answers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client import Counter

if TYPE_CHECKING:
    from collections.abc import Iterable

    from _typeshed.wsgi import StartResponse, WSGIEnvironment

ANSWERS = Counter("shop_answers", "Requests answered.")


def application(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """Answer."""
    ANSWERS.inc()
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"ok\n"]
