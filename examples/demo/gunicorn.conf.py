"""Gunicorn's configuration for the demo; ``make run`` starts it."""

from obskit_gunicorn import ObskitGunicornConfig


class Config(ObskitGunicornConfig):
    """Four workers that are replaced every now and then, so that there is something to see."""

    # The application answers on both, so that metrics are found where Prometheus looks for them.
    bind = ["127.0.0.1:8000", "127.0.0.1:9464"]  # noqa: RUF012 - Gunicorn's setting is a list
    workers = 4
    max_requests = 500
    max_requests_jitter = 100
