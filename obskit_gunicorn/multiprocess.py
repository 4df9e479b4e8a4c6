"""Set-up and clean-up: sharing a process's metrics; and the names of a drop-in.

The names that code written for ``prometheus_client.multiprocess`` looks for are here under the
same names. Importing this module installs the value class in any process whose environment names a
multiprocess directory: a child started by ``spawn``, a job, a management command. Under Gunicorn
the configuration class has done it before the application is imported.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import glob
import os
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from prometheus_client import values as prometheus_values
from prometheus_client.metrics import MetricWrapperBase
from prometheus_client.multiprocess import MultiProcessCollector as _TheirCollector
from prometheus_client.multiprocess import mark_process_dead as _their_mark_process_dead

from obskit_gunicorn import slots, values
from obskit_gunicorn.collector import MultiProcessCollector, directory_collector
from obskit_gunicorn.exposition import (
    generate_latest,
    is_multiprocess_mode,
    make_asgi_app,
    make_multiprocess_app,
    make_wsgi_app,
    setup_multiprocess_registry,
)
from obskit_gunicorn.options import DIRECTORY_VARIABLE

if TYPE_CHECKING:
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


def install() -> list[str]:
    """Install the value class and take over the metrics that exist already.

    Returns:
        The names of metrics that could not be taken over: they were made before the value class
        was installed, by code that keeps their values where we cannot find them.
    """
    if values.is_installed():
        return []
    values.install()
    return _take_over()


def begin(path: str | None, *, keep: bool, user: int, group: int) -> None:
    """Take the arbiter's place in a directory; runs in the arbiter.

    Called again it does nothing, unless the directory is another one, was removed, or was cleaned
    by somebody. Never raises because of the directory: when it cannot be used, that is one line in
    the log and metrics stay in memory.

    Args:
        path: The directory, ``None`` for a private one.
        keep: Go on from the totals of earlier runs.
        user: The uid that workers run as.
        group: Their gid.
    """
    process = slots.process
    before = process.directory
    if process.has_begun() and before is not None and before.path == path:
        return
    if before is not None and process.lease is not None:
        if before.path != path:
            process.log.warning("obskit: metrics directory %s is left for another", before.path)
        elif not process.lease.is_in_place():
            process.log.warning(
                "obskit: metrics directory %s was removed or cleaned while in use; what was only "
                "there is lost, counting goes on",
                before.path,
            )
    # Not in on_exit: metrics may be written until the very end, and Gunicorn skips on_exit in some
    # ends. Workers inherit it.
    atexit.unregister(_leave)
    atexit.register(_leave)
    # In this process nothing may be bound while the directory is wiped.
    values.withdraw(take_along=not process.has_ever_begun)
    try:
        process.begin(path, keep=keep, user=user, group=group)
    except OSError as error:
        problem = slots.explain(error, path or "private directory")
        if [problem] != _last_problem:
            _last_problem[:] = [problem]
            process.log.error(
                "obskit: metrics stay in the memory of each process, none are shared: %s", problem
            )
    else:
        _last_problem.clear()
    values.share()


def take_lease(**facts: object) -> None:
    """Make sure that this process has a lease, and write down facts about it; never raises.

    Args:
        **facts: What to change in the record beside the lease.
    """
    values.share(now=True)
    slots.process.note(**facts)


_last_problem: list[str] = []
"""What begin() has said last, so that it says it once and not at every fork."""


def _leave() -> None:
    """Leave the directory when this process ends, if it is the one to tidy up."""
    if slots.process.is_in_charge():
        values.close_files()
        slots.process.end()


def _join() -> None:
    """Share this process's metrics if the environment says where; runs at import."""
    path = os.environ.get(DIRECTORY_VARIABLE)
    process = slots.process
    if not path or process.directory is not None:
        return
    stray = install()
    if stray:
        process.log.warning(
            "obskit: %s made before obskit_gunicorn.multiprocess was imported, not shared by slot",
            ", ".join(stray),
        )
    if process.is_configuring or slots.is_loading_configuration():
        # An arbiter will begin, or, if no class is published, this process and its forks join
        # when they use a metric.
        process.pending = path
        return
    try:
        process.join(path)
    except OSError as error:
        process.log.error(
            "obskit: metrics of this process stay in its memory: %s", slots.explain(error, path)
        )
    values.share()


def _take_over() -> list[str]:
    """Give metrics that were made with prometheus_client's own values ours instead."""
    old_values = [found for found in gc.get_objects() if _is_their_value(found)]
    if not old_values:
        return []
    for metric in [found for found in gc.get_objects() if isinstance(found, MetricWrapperBase)]:
        _take_over_metric(metric)
    # Their own files of this process go: what they hold goes on in ours.
    their_close = getattr(prometheus_values, "close_all_multiprocess_files", None)
    if their_close is not None:
        their_close()
    values.install()
    directory = os.environ.get(DIRECTORY_VARIABLE)
    if directory:
        for path in glob.glob(os.path.join(glob.escape(directory), f"*_{os.getpid()}.db")):
            with contextlib.suppress(OSError):
                os.unlink(path)
    del old_values
    return sorted({_name_of(found) for found in gc.get_objects() if _is_their_value(found)})


def _is_their_value(found: object) -> bool:
    kind = type(found)
    return kind is prometheus_values.MutexValue or (
        kind.__name__ == "MmapedValue" and kind.__module__ == prometheus_values.__name__
    )


def _name_of(value: Any) -> str:
    params = getattr(value, "_params", None)
    if params:
        return str(params[1])
    owners = {type(owner).__qualname__ for owner in gc.get_referrers(value)}
    return "a value held by " + ", ".join(sorted(owners - {"list", "frame"}) or ["nobody known"])


def _take_over_metric(metric: Any) -> None:
    before = dict(vars(metric))
    held = {name: value for name, value in before.items() if _holds_their_values(value)}
    if not held:
        return
    metric._metric_init()
    for name, value in before.items():
        if name not in held:
            setattr(metric, name, value)
            continue
        old = value if isinstance(value, list) else [value]
        new = getattr(metric, name)
        for theirs, ours in zip(old, new if isinstance(new, list) else [new], strict=True):
            if theirs.get():
                ours.set(theirs.get(), getattr(theirs, "_timestamp", None))


def _holds_their_values(value: object) -> bool:
    if isinstance(value, list):
        return bool(value) and all(_is_their_value(item) for item in value)
    return _is_their_value(value)


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
            slots.SlotDirectory(directory).remove_live_gauges()


def child_exit(server: Arbiter, worker: Worker) -> None:
    """Remove the live-gauge files of workers that have ended; a ``child_exit`` hook.

    Safe in signal context: plain file work that gives up when somebody holds the directory lock.
    """
    directory = slots.process.directory
    if directory is not None:
        with contextlib.suppress(OSError):
            directory.remove_live_gauges(wait_seconds=0)


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
    path = collector._path
    if type(collector).merge is not _TheirCollector.merge:
        # A subclass that overrides merge() expects to be handed the files.
        files = glob.glob(os.path.join(path, "*.db"))
        merged: Iterable[Metric] = collector.merge(files)  # type: ignore[no-untyped-call]
        return merged
    try:
        return list(directory_collector(path).collect().metrics())
    except (FileNotFoundError, NotADirectoryError):
        return []  # removed after the collector was made: nothing is there to collect


_join()
