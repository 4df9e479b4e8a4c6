"""A WSGI application whose requests wait for something else, many at a time."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from prometheus_client import Counter, Gauge

if TYPE_CHECKING:
    from collections.abc import Iterable

    from _typeshed.wsgi import StartResponse, WSGIEnvironment

ANSWERS = Counter("shop_answers", "Requests answered.")
WAITING = Gauge("shop_requests_waiting", "Requests that wait now.", multiprocess_mode="livesum")


def application(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """Wait as for a database, and answer."""
    with WAITING.track_inprogress():
        time.sleep(0.5)  # gevent's: other requests go on meanwhile
    ANSWERS.inc()
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"ok\n"]
