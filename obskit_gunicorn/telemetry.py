"""Metrics about Gunicorn itself: requests, workers, what ended them.

Counted by the process in which the thing happens, never in signal context, and shared like every
other metric. What can be read from leases and from /proc is read by who is scraped, and costs
workers nothing: see :mod:`obskit_gunicorn.exposition` and :mod:`obskit_gunicorn.processes`.
"""

from __future__ import annotations

import functools
import sys
import time
from typing import TYPE_CHECKING, Any

from prometheus_client import Counter, Gauge, Histogram

if TYPE_CHECKING:
    from gunicorn.http.message import Request
    from gunicorn.http.wsgi import Response

__all__ = [
    "Requests",
    "count_boot",
    "count_exit",
    "count_hook_failure",
    "count_reload",
    "requests",
]

_METHODS = frozenset(
    {"CONNECT", "DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT", "TRACE"}
)
_OTHER = "other"
"""What a client may call a method has no bound, so the rest have one name."""

_BOOT_BUCKETS = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)


class Requests:
    """The requests of this process. Thread-safe; the calls never raise.

    The metrics are in no registry: they are shared by file, and an application may have metrics of
    these names in its own.
    """

    def __init__(self, buckets: tuple[float, ...]) -> None:
        """Make the metrics; only after the value class was installed.

        Args:
            buckets: Upper bounds of the durations, in seconds.
        """
        self._total = Counter(
            "gunicorn_requests",
            "Requests that workers have answered, by method and status code.",
            ["method", "code"],
            registry=None,
        )
        self._duration = Histogram(
            "gunicorn_request_duration_seconds",
            "Time from a request's arrival in a worker to the end of its response.",
            ["method"],
            buckets=buckets,
            registry=None,
        )
        self._in_progress = Gauge(
            "gunicorn_requests_in_progress",
            "Requests that workers are answering.",
            multiprocess_mode="livesum",
            registry=None,
        )
        self._children: dict[tuple[str, int], tuple[Any, Any]] = {}

    def begin(self) -> float:
        """Note that a request has arrived; return what :meth:`end` wants to know."""
        self._in_progress.inc()
        return time.perf_counter()

    def end(self, method: str, code: int, started: float | None) -> None:
        """Note that a request was answered.

        Args:
            method: Its method, whatever the client has sent.
            code: The status code of the response.
            started: What :meth:`begin` has returned; ``None`` if it was not called.
        """
        key = (method if method in _METHODS else _OTHER, code)
        children = self._children.get(key)
        if children is None:
            total = self._total.labels(key[0], str(code))
            children = self._children[key] = (total, self._duration.labels(key[0]))
        children[0].inc()
        if started is not None:
            children[1].observe(time.perf_counter() - started)
            self._in_progress.dec()

    def begin_hook(self, req: Request) -> None:
        """Note in ``pre_request`` that a request has arrived."""
        started = self.begin()
        try:
            req.obskit_started = started  # type: ignore[attr-defined]
        except AttributeError:  # a request that takes no notes has no duration
            self._in_progress.dec()

    def end_hook(self, req: Request, resp: Response | None) -> None:
        """Note in ``post_request`` that a request was answered.

        Gunicorn calls that hook in the ``finally`` of the request, so an exception of the
        application is on its way. If nothing had been sent, Gunicorn answers 500.
        """
        code = getattr(resp, "status_code", None)
        if code is None:
            code = 500
        elif not getattr(resp, "headers_sent", True):
            error = sys.exc_info()[1]
            if error is not None and not isinstance(error, OSError):
                code = 500
        method = getattr(req, "method", None)
        self.end(method or _OTHER, code, getattr(req, "obskit_started", None))


@functools.cache
def requests(buckets: tuple[float, ...]) -> Requests:
    """Return this process's requests, made when they are first needed."""
    return Requests(buckets)


@functools.cache
def _counter(name: str, text: str, *labels: str) -> Counter:
    # Made when it is first needed, so that it never exists before the value class is installed.
    return Counter(name, text, labels, registry=None)


@functools.cache
def _boot_seconds() -> Histogram:
    return Histogram(
        "gunicorn_worker_boot_seconds",
        "Time from a worker's fork until it serves.",
        buckets=_BOOT_BUCKETS,
        registry=None,
    )


def count_boot(seconds: float | None) -> None:
    """Count a worker that serves now; runs in the worker.

    Args:
        seconds: The time since it was forked, ``None`` if unknown.
    """
    _counter("gunicorn_worker_boots", "Workers that have come to serve.").inc()
    if seconds is not None:
        _boot_seconds().observe(seconds)


def count_exit(reason: str) -> None:
    """Count a worker that has ended, or is about to; not for signal context.

    Args:
        reason: Why, one of those in ``docs/metrics.md``.
    """
    text = "Workers that have ended, by reason."
    _counter("gunicorn_worker_exits", text, "reason").labels(reason).inc()


def count_reload() -> None:
    """Count a SIGHUP; runs in the arbiter."""
    _counter("gunicorn_reloads", "Reloads of the configuration by SIGHUP.").inc()


def count_hook_failure(hook: str) -> None:
    """Count an exception that was contained; not for signal context.

    Args:
        hook: The name of the server hook.
    """
    text = "Exceptions in overridden server hooks that were contained."
    _counter("gunicorn_hook_failures", text, "hook").labels(hook).inc()
