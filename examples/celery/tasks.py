"""The background jobs. A Celery worker counts in the directory that Gunicorn's workers use."""

from __future__ import annotations

import os
from pathlib import Path

from celery import Celery
from prometheus_client import Counter

# Celery's processes have no gunicorn.conf.py: this import makes them share their metrics.
import obskit_gunicorn.multiprocess  # noqa: F401

PACKED = Counter("shop_orders_packed", "Orders packed.", ["product"])

app = Celery("shop", broker=os.environ.get("CELERY_BROKER_URL", "filesystem://"))
if app.conf.broker_url == "filesystem://":  # no server to install; for trying things out
    folder = Path(__file__).parent / "queue"
    folder.mkdir(exist_ok=True)
    app.conf.broker_transport_options = {
        "data_folder_in": str(folder),
        "data_folder_out": str(folder),
        "control_folder": str(folder / "control"),
    }


@app.task(ignore_result=True)
def pack(product: str) -> None:
    """Pack an order."""
    PACKED.labels(product).inc()
