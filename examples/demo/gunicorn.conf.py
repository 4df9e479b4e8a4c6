"""Gunicorn's configuration for the demo; ``make run`` starts it."""

from obskit_gunicorn import ObskitGunicornConfig


class Config(ObskitGunicornConfig):
    """Four workers that are replaced now and then, so that there is something to see."""

    bind = "127.0.0.1:8000"
    workers = 4
    max_requests = 500
    max_requests_jitter = 100
