"""Gunicorn's configuration for the Django example."""

from obskit_gunicorn import ObskitGunicornConfig


class Config(ObskitGunicornConfig):
    """Two workers, which share the memory of the application that was loaded before them."""

    bind = "127.0.0.1:8000"
    wsgi_app = "shop.wsgi"
    workers = 2
    preload_app = True
