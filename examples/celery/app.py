"""A WSGI application that takes orders, and leaves it to Celery to pack them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client import Counter
from tasks import pack

if TYPE_CHECKING:
    from collections.abc import Iterable

    from _typeshed.wsgi import StartResponse, WSGIEnvironment

PRODUCTS = {"/tea": "tea", "/coffee": "coffee"}
TAKEN = Counter("shop_orders_taken", "Orders taken.", ["product"])


def application(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """Take an order."""
    product = PRODUCTS.get(environ["PATH_INFO"])
    if product is None:
        start_response("404 Not Found", [("Content-Type", "text/plain")])
        return [b"We have /tea and /coffee\n"]
    TAKEN.labels(product).inc()
    pack.delay(product)
    start_response("202 Accepted", [("Content-Type", "text/plain")])
    return [b"It is being packed\n"]
