"""The application that pages speak of: what their pieces of Python import from ``shop``."""

from __future__ import annotations

__all__ = ["SHOP"]

SHOP = {
    "shop/__init__.py": """
import io

from prometheus_client import Counter

ORDERS = Counter("shop_orders", "Orders taken.")


def app(environ, start_response):
    if environ["REQUEST_METHOD"] == "POST":
        ORDERS.inc()
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"hello\\n"]


class TestClient:
    def post(self, path):
        environ = {"REQUEST_METHOD": "POST", "PATH_INFO": path, "wsgi.input": io.BytesIO()}
        return app(environ, lambda status, headers: None)


app.test_client = TestClient


def open_database_pool(): pass
def close_database_pool(): pass
def warm_up(): pass
def report(hook, error): pass
def forked(server, worker): pass
def set_defaults(names): names.setdefault("workers", 2)
""",
    "shop/queue.py": """
class Queue:
    def length(self):
        return 3


def connect():
    return Queue()
""",
    "shop_defaults.py": "workers = 2\n",
    "admin.py": "from shop import app\n",
}
"""Its files."""
