"""Gunicorn's configuration for the gevent example."""

from obskit_gunicorn import ObskitGunicornConfig


class Config(ObskitGunicornConfig):
    """Two workers with up to a hundred requests each at a time."""

    bind = "127.0.0.1:8000"
    workers = 2
    worker_class = "gevent"
    worker_connections = 100
