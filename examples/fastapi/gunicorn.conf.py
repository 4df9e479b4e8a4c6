"""Gunicorn's configuration for the FastAPI example: Uvicorn's workers, obskit in each of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from obskit_gunicorn import ObskitGunicornConfig, replace_registry

if TYPE_CHECKING:
    from gunicorn.arbiter import Arbiter
    from gunicorn.workers.base import Worker

# obskit serves prometheus_client's default registry: let it answer for all workers.
replace_registry()


class Config(ObskitGunicornConfig):
    """Two of Uvicorn's workers."""

    bind = "127.0.0.1:8000"
    workers = 2
    worker_class = "uvicorn_worker.UvicornWorker"

    def post_fork(self, server: Arbiter, worker: Worker) -> None:
        """Set up obskit in each worker: what it starts does not survive a fork."""
        super().post_fork(server, worker)
        from obskit import configure_observability

        configure_observability(service_name="shop", environment="production", version="1.0.0")
