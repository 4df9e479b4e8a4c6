"""A program that starts Gunicorn by itself, without a configuration file."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from gunicorn.app.base import BaseApplication
from prometheus_client import Counter

from obskit_gunicorn import ObskitGunicornConfig, as_options

if TYPE_CHECKING:
    from collections.abc import Iterable

    from _typeshed.wsgi import StartResponse, WSGIEnvironment

GREETINGS = Counter("shop_greetings", "People greeted.")


def greet(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """Greet somebody."""
    GREETINGS.inc()
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"Hello\n"]


class Config(ObskitGunicornConfig):
    """Two workers."""

    bind = os.environ.get("BIND", "127.0.0.1:8000")
    workers = 2


class Server(BaseApplication):
    """Gunicorn, with the settings of the class and one application."""

    def load_config(self) -> None:
        """Hand the settings and hooks of the class to Gunicorn."""
        for name, value in as_options(Config).items():
            self.cfg.set(name, value)

    def load(self) -> Any:
        """Return the application; runs in each worker."""
        return greet


if __name__ == "__main__":
    Server().run()
