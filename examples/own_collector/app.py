"""A WSGI application that puts an order into a queue for each request."""

from __future__ import annotations

import tempfile
from typing import TYPE_CHECKING

from prometheus_client import Counter
from stock import QUEUE

if TYPE_CHECKING:
    from collections.abc import Iterable

    from _typeshed.wsgi import StartResponse, WSGIEnvironment

ORDERS = Counter("shop_orders", "Orders taken.")
QUEUE.mkdir(exist_ok=True)


def application(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """Take an order."""
    with tempfile.NamedTemporaryFile(dir=QUEUE, suffix=".order", delete=False):
        ORDERS.inc()
    start_response("202 Accepted", [("Content-Type", "text/plain")])
    return [b"It waits\n"]
