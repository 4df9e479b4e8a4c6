"""The background jobs. A Celery worker counts in the directory that Gunicorn's workers use."""

from __future__ import annotations

import os
from pathlib import Path

from celery import Celery
from celery.signals import worker_init
from prometheus_client import Counter

# Celery's processes have no gunicorn.conf.py: this import makes them share their metrics.
import obskit_gunicorn.multiprocess  # noqa: F401

STARTS = Counter("shop_packing_starts", "Starts of Celery.")
PACKED = Counter("shop_orders_packed", "Orders packed.", ["product"])

app = Celery("shop", broker=os.environ.get("CELERY_BROKER_URL", "filesystem://"))
if app.conf.broker_url == "filesystem://":  # no server to install; for trying things out
    folder = Path(__file__).parent / "queue"
    folder.mkdir(exist_ok=True)
    app.conf.broker_transport_options = {
        "data_folder_in": str(folder),
        "data_folder_out": str(folder),
        "control_folder": str(folder / "control"),
        "polling_interval": 0.1,
    }


@worker_init.connect
def count_start(**_signal: object) -> None:
    """Count the start, in Celery's main process.

    A process is in the directory from its first series on (a metric without labels has one when it
    is made, one with labels when it is first used), and Gunicorn wipes no directory that somebody
    is in. Celery's children come and go; this process stays.
    """
    STARTS.inc()


@app.task(ignore_result=True)
def pack(product: str) -> None:
    """Pack an order."""
    PACKED.labels(product).inc()
