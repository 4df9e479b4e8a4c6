"""A FastAPI application that obskit instruments, and that serves ``/metrics`` as obskit shows."""

from __future__ import annotations

from fastapi import FastAPI
from fastapi.responses import PlainTextResponse
from obskit import instrument_fastapi
from obskit.metrics.registry import generate_latest
from prometheus_client import Counter

ORDERS = Counter("shop_orders", "Orders taken.")

application = FastAPI()
instrument_fastapi(application)


@application.post("/orders")
async def order() -> dict[str, str]:
    """Take an order."""
    ORDERS.inc()
    return {"status": "taken"}


@application.get("/metrics")
async def metrics() -> PlainTextResponse:
    """Show the metrics of all workers: ``replace_registry()`` was called in gunicorn.conf.py."""
    return PlainTextResponse(generate_latest())
