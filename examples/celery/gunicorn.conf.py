"""Gunicorn's configuration for the Celery example."""

import os

from obskit_gunicorn import ObskitGunicornConfig


class Config(ObskitGunicornConfig):
    """Two workers, in a directory that has a name, so that Celery can be told the same."""

    bind = "127.0.0.1:8000"
    workers = 2
    multiproc_dir = os.path.abspath("metrics")
