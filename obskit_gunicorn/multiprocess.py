"""A drop-in for ``prometheus_client.multiprocess``, with the same names.

Importing this module starts sharing metrics in any process whose environment names a multiprocess
directory: a child started by ``spawn``, a job, a management command. Under Gunicorn the
configuration class has done so before the application is imported.
"""

from __future__ import annotations

import contextlib
import glob
import os
from typing import TYPE_CHECKING

from prometheus_client.multiprocess import MultiProcessCollector as _TheirCollector
from prometheus_client.multiprocess import mark_process_dead as _their_mark_process_dead

from obskit_gunicorn import _prometheus
from obskit_gunicorn._scrape import apps
from obskit_gunicorn._scrape.apps import make_multiprocess_app
from obskit_gunicorn._scrape.collector import MultiProcessCollector, directory_collector
from obskit_gunicorn._scrape.default_registry import replace_registry
from obskit_gunicorn._scrape.registry import (
    generate_latest,
    is_multiprocess_mode,
    setup_multiprocess_registry,
)
from obskit_gunicorn._store.directory import SlotDirectory
from obskit_gunicorn._store.membership import DIRECTORY_VARIABLE, membership
from obskit_gunicorn._values import sharing

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

    from gunicorn.arbiter import Arbiter
    from gunicorn.workers.base import Worker
    from prometheus_client.core import CollectorRegistry, Metric

__all__ = [
    "MultiProcessCollector",
    "child_exit",
    "generate_latest",
    "is_multiprocess_mode",
    "make_asgi_app",
    "make_multiprocess_app",
    "make_wsgi_app",
    "mark_process_dead",
    "replace_collector",
    "replace_registry",
    "setup_multiprocess_registry",
]


def make_wsgi_app(
    registry: CollectorRegistry | None = None, *, fleet: bool = False
) -> Callable[..., Iterable[bytes]]:
    """Return a WSGI application that serves the exposition.

    In multiprocess mode it serves the metrics of all processes, otherwise prometheus_client's own
    registry. So the same line works in development and under Gunicorn.

    Args:
        registry: The registry to serve instead.
        fleet: Serve the metrics of all hosts, where ``metrics_redis`` brings them together. For
            platforms that reach an application at one URL only. The exporter is asked over a Unix
            socket in the multiprocess directory; if it cannot be reached, or the store cannot, the
            answer is 503. Outside of multiprocess mode it makes no difference.

    Raises:
        ValueError: Both arguments are given.
    """
    _check_alone(registry, fleet=fleet)
    if fleet and is_multiprocess_mode():
        from obskit_gunicorn._fleet.forward import make_wsgi

        return make_wsgi()
    return apps.make_wsgi_app(registry)


def make_asgi_app(
    registry: CollectorRegistry | None = None, *, fleet: bool = False
) -> Callable[..., Awaitable[None]]:
    """Return an ASGI application that serves the exposition; see :func:`make_wsgi_app`.

    It collects on the event loop. To keep this work out of the workers, use the exporter. With
    ``fleet`` the exporter does it.
    """
    _check_alone(registry, fleet=fleet)
    if fleet and is_multiprocess_mode():
        from obskit_gunicorn._fleet.forward import make_asgi

        return make_asgi()
    return apps.make_asgi_app(registry)


def _check_alone(registry: CollectorRegistry | None, *, fleet: bool) -> None:
    if registry is not None and fleet:
        raise ValueError("fleet=True shows all metrics of all hosts: leave out the registry")


def mark_process_dead(pid: int | str, path: str | None = None) -> None:
    """Remove the live-gauge files of a process that has ended.

    Only readers that do not know leases need this. It never removes files of a leased slot.

    Args:
        pid: The process. It matters only for files named after pids; for slots, the lease decides.
        path: The multiprocess directory; by default the one in the environment.
    """
    if not str(pid).startswith("slot"):
        _their_mark_process_dead(pid, path)  # type: ignore[no-untyped-call]
    directory = path or os.environ.get(DIRECTORY_VARIABLE)
    if directory:
        with contextlib.suppress(OSError):
            SlotDirectory(directory).remove_live_gauges()


def child_exit(server: Arbiter, worker: Worker) -> None:
    """Remove the live-gauge files of workers that have ended; a ``child_exit`` hook.

    Safe in signal context: it gives up if another process holds the directory lock.
    """
    membership.remove_live_gauges()


def replace_collector() -> None:
    """Make prometheus_client's own collector class collect like ours.

    For code that creates a ``prometheus_client.multiprocess.MultiProcessCollector`` itself and that
    you cannot change, such as instrumentation packages. Call it once, anywhere. In
    ``gunicorn.conf.py`` or a preloaded application the arbiter runs it and workers inherit it; in
    an application that is not preloaded each worker runs it. It may be called at any time: it sets
    the methods ``collect`` and ``merge`` of the class, so it also affects existing collectors,
    earlier imports, and subclasses that do not override these methods. Calling it again changes
    nothing, and it cannot be undone.

    No other function of this project changes a class of prometheus_client. The constructor is not
    changed: it takes the directory from ``PROMETHEUS_MULTIPROC_DIR`` and raises ``ValueError`` if
    this is not a directory.

    The result is the same, with two exceptions. Live gauges count only while their slot is leased.
    A damaged file never fails the scrape: its readable part counts, and one line in the log says
    so. If the directory is removed later, the scrape is empty, as it is without the call.
    """
    _TheirCollector.collect = _collect  # type: ignore[method-assign]
    _TheirCollector.merge = staticmethod(MultiProcessCollector.merge)  # type: ignore[method-assign]


def _collect(collector: _TheirCollector) -> Iterable[Metric]:
    """Collect instead of prometheus_client's method, for everything that it supports."""
    path = _prometheus.collector_path(collector) or os.environ[DIRECTORY_VARIABLE]
    if type(collector).merge is not _TheirCollector.merge:
        # A subclass that overrides merge() expects to be handed the files.
        files = glob.glob(os.path.join(path, "*.db"))
        merged: Iterable[Metric] = collector.merge(files)  # type: ignore[no-untyped-call]
        return merged
    try:
        return list(directory_collector(path).collect().metrics())
    except (FileNotFoundError, NotADirectoryError):
        return []  # the directory was removed after the collector was created


sharing.join()
