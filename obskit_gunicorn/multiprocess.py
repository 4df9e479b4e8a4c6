"""Sharing a process's metrics; and the names of a drop-in.

The names that code written for ``prometheus_client.multiprocess`` looks for are here under the
same names. Importing this module installs the value class in any process whose environment names a
multiprocess directory: a child started by ``spawn``, a job, a management command. Under Gunicorn
the configuration class has done it before the application is imported.
"""

from __future__ import annotations

import contextlib
import glob
import os
from typing import TYPE_CHECKING

from prometheus_client.multiprocess import MultiProcessCollector as _TheirCollector
from prometheus_client.multiprocess import mark_process_dead as _their_mark_process_dead

from obskit_gunicorn import _prometheus
from obskit_gunicorn._scrape.apps import make_asgi_app, make_multiprocess_app, make_wsgi_app
from obskit_gunicorn._scrape.collector import MultiProcessCollector, directory_collector
from obskit_gunicorn._scrape.registry import (
    generate_latest,
    is_multiprocess_mode,
    setup_multiprocess_registry,
)
from obskit_gunicorn._store.directory import SlotDirectory
from obskit_gunicorn._store.membership import DIRECTORY_VARIABLE, membership
from obskit_gunicorn._values import sharing

if TYPE_CHECKING:
    from collections.abc import Iterable

    from gunicorn.arbiter import Arbiter
    from gunicorn.workers.base import Worker
    from prometheus_client.core import Metric

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
    "setup_multiprocess_registry",
]


def mark_process_dead(pid: int | str, path: str | None = None) -> None:
    """Remove the live-gauge files of a process that has ended.

    Needed only for readers that do not know of leases. A slot that is leased is left alone,
    whatever the caller believes.

    Args:
        pid: The process; in a directory with slots the pid is not needed to tell who is alive.
        path: The multiprocess directory; the environment's by default.
    """
    if not str(pid).startswith("slot"):
        _their_mark_process_dead(pid, path)  # type: ignore[no-untyped-call]
    directory = path or os.environ.get(DIRECTORY_VARIABLE)
    if directory:
        with contextlib.suppress(OSError):
            SlotDirectory(directory).remove_live_gauges()


def child_exit(server: Arbiter, worker: Worker) -> None:
    """Remove the live-gauge files of workers that have ended; a ``child_exit`` hook.

    Safe in signal context: plain file work that gives up when somebody holds the directory lock.
    """
    membership.remove_live_gauges()


def replace_collector() -> None:
    """Make prometheus_client's own collector class collect as ours does.

    For code that makes a ``prometheus_client.multiprocess.MultiProcessCollector`` itself and whose
    import line stays as it is, such as instrumentation packages. Call it once, anywhere: in
    ``gunicorn.conf.py`` or a preloaded application the arbiter runs it and workers inherit it by
    the fork, in an application each worker runs it for itself. When does not matter: the methods
    ``collect`` and ``merge`` of the class are set, so collectors that exist, names that were
    imported earlier, and subclasses that do not override them have them too. Calling it again
    changes nothing; there is no way back.

    This is the only place where this project changes a class of prometheus_client, and only who
    calls it has it changed. The constructor stays: it takes the directory from
    ``PROMETHEUS_MULTIPROC_DIR`` and raises ``ValueError`` if that is none.

    What is collected is the same, except that live gauges count only while their slot is leased,
    and that a damaged file costs what is unreadable in it, with one line in the log, and never
    fails the scrape. A directory that was removed later is an empty scrape, as without the call.
    """
    _TheirCollector.collect = _collect  # type: ignore[method-assign]
    _TheirCollector.merge = staticmethod(MultiProcessCollector.merge)  # type: ignore[method-assign]


def _collect(collector: _TheirCollector) -> Iterable[Metric]:
    """Collect in the place of prometheus_client's method; what that one allows is allowed."""
    path = _prometheus.collector_path(collector) or os.environ[DIRECTORY_VARIABLE]
    if type(collector).merge is not _TheirCollector.merge:
        # A subclass that overrides merge() expects to be handed the files.
        files = glob.glob(os.path.join(path, "*.db"))
        merged: Iterable[Metric] = collector.merge(files)  # type: ignore[no-untyped-call]
        return merged
    try:
        return list(directory_collector(path).collect().metrics())
    except (FileNotFoundError, NotADirectoryError):
        return []  # removed after the collector was made: nothing is there to collect


sharing.join()
