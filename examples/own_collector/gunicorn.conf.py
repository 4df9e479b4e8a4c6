"""Gunicorn's configuration for the example of a collector of one's own."""

from obskit_gunicorn import ObskitGunicornConfig


class Config(ObskitGunicornConfig):
    """Two workers; the exporter has two collectors besides theirs."""

    bind = "127.0.0.1:8000"
    workers = 2
    metrics_collectors = ("stock:Queue", "stock:build")
