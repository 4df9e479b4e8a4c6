"""Gunicorn's configuration for the Flask example."""

from obskit_gunicorn import ObskitGunicornConfig


class Config(ObskitGunicornConfig):
    """Three workers with two threads each."""

    bind = "127.0.0.1:8000"
    workers = 3
    threads = 2
