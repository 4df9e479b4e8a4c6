"""A Flask application with metrics of its own, which also serves them at ``/metrics``."""

from __future__ import annotations

from flask import Flask, abort
from prometheus_client import Counter, Histogram
from werkzeug.middleware.dispatcher import DispatcherMiddleware

from obskit_gunicorn.multiprocess import make_wsgi_app

PRODUCTS = {"tea", "coffee"}

ORDERS = Counter("shop_orders", "Orders taken.", ["product"])
PIECES = Histogram("shop_order_pieces", "Pieces in an order.", buckets=(1, 5, 10))

application = Flask(__name__)


@application.post("/orders/<product>/<int:pieces>")
def order(product: str, pieces: int) -> str:
    """Take an order."""
    if product not in PRODUCTS:  # a label's values must not be for clients to choose
        abort(404)
    ORDERS.labels(product).inc()
    PIECES.observe(pieces)
    return "Thank you\n"


# The exporter is enough. This is for whoever already has a scraper that asks the application.
application.wsgi_app = DispatcherMiddleware(  # type: ignore[method-assign]
    application.wsgi_app, {"/metrics": make_wsgi_app()}
)
