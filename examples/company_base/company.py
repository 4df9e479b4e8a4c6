"""What all services of a company have in common; in real life a package of its own.

Each mixin does one thing and calls ``super()``, so that they can be combined in any order. They
derive from ``ObskitGunicornConfig`` for the sake of type checkers and editors.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from prometheus_client import Counter

from obskit_gunicorn import ObskitGunicornConfig

if TYPE_CHECKING:
    from gunicorn.workers.base import Worker

BOOTS = Counter("company_worker_boots", "Workers that have loaded the application.", ["team"])
SLOW = Counter("company_slow_requests", "Requests slower than the service allows.", ["team"])


class Owned(ObskitGunicornConfig):
    """Says whose service it is, and counts its workers."""

    team = "nobody"

    def post_worker_init(self, worker: Worker) -> None:
        """Count the worker."""
        super().post_worker_init(worker)
        BOOTS.labels(self.team).inc()


class Watched(ObskitGunicornConfig):
    """Counts requests that take long; each service says what that is."""

    team = "nobody"
    slow_seconds = 1.0

    def pre_request(self, worker: Worker, req: Any) -> None:
        """Note when the request began."""
        super().pre_request(worker, req)
        req.began = time.monotonic()

    def post_request(self, worker: Worker, req: Any, environ: Any = None, resp: Any = None) -> None:
        """Count the request if it took long."""
        super().post_request(worker, req, environ, resp)
        if time.monotonic() - req.began >= self.slow_seconds:
            SLOW.labels(self.team).inc()


class CompanyConfig(Owned, Watched):
    """What every service derives from."""

    timeout = 20
    max_requests = 1000
    max_requests_jitter = 200
