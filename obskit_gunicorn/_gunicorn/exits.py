"""Why workers end, and counting it.

A worker that leaves by itself counts its own end, in ``worker_exit``. The arbiter counts the rest.
Gunicorn tells it nothing but "this worker is gone" and whether it had timed out; how the process
has ended is asked from the kernel at SIGCHLD, before Gunicorn reaps it.

What runs in signal context only notes; counting is done by the next core that runs elsewhere.
"""

from __future__ import annotations

import os
import signal
import sys
from typing import TYPE_CHECKING, Any, NamedTuple

from obskit_gunicorn._store.identity import start_ticks
from obskit_gunicorn._store.membership import membership

if TYPE_CHECKING:
    from gunicorn.arbiter import Arbiter
    from gunicorn.workers.base import Worker

_SIGNALS: dict[int, str] = {
    signal.SIGKILL: "killed",
    signal.SIGTERM: "graceful",  # Uvicorn's worker ends so
    signal.SIGINT: "interrupted",
    signal.SIGQUIT: "interrupted",
}

_BOOT_ERRORS = (3, 4)
"""The exit statuses of a Gunicorn worker that cannot boot: WORKER_BOOT_ERROR, APP_LOAD_ERROR."""


class Leaving:
    """Why this worker leaves; set in signal context.

    Attributes:
        is_interrupted: SIGINT or SIGQUIT has stopped it.
        is_aborted: SIGABRT has.
    """

    def __init__(self) -> None:
        """Nothing is known yet."""
        self.is_interrupted = self.is_aborted = False

    def reason(self, worker: Worker) -> str | None:
        """Return why a worker ends, called in its ``worker_exit``; ``None`` if it is not to say.

        Gunicorn calls that hook while the SystemExit that ends the worker is on its way.
        """
        if self.is_aborted:
            return None  # the arbiter knows whether that was a time-out
        if not worker.booted:
            return "boot_error"
        error = sys.exc_info()[1]
        if isinstance(error, SystemExit) and error.code not in (0, None):
            return "error"
        if self.is_interrupted:
            return "interrupted"
        if worker.nr >= worker.max_requests or _is_uvicorn_recycling(worker):
            return "max_requests"
        return "graceful"


leaving = Leaving()
"""Why this process leaves, if it is a worker."""


class _End(NamedTuple):
    """The end of a worker, as the arbiter has noted it."""

    pid: int
    is_timeout: bool


class _Status(NamedTuple):
    """How a process has ended, as the kernel says; see waitid(2)."""

    code: int
    number: int
    start_ticks: int


_ends: list[_End] = []
_statuses: dict[int, _Status] = {}
_MOST_STATUSES = 1000


class _Watched:
    """Whose workers are looked at."""

    pid = 0
    workers: Any = ()


def watch(server: Arbiter) -> None:
    """Look at the workers of this arbiter from now on."""
    if hasattr(os, "waitid"):  # macOS: from Python 3.13 on
        _Watched.pid, _Watched.workers = os.getpid(), server.WORKERS


def look() -> None:
    """Ask the kernel which workers have ended, and how; reaping them is left to Gunicorn.

    Safe in signal context. Does nothing outside the arbiter.
    """
    if os.getpid() != _Watched.pid:
        return
    # Any child first: one that has ended at once is not among Gunicorn's workers yet.
    for kind, pid in ((os.P_ALL, 0), *((os.P_PID, pid) for pid in list(_Watched.workers))):
        try:
            found = os.waitid(kind, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except OSError:
            continue
        if found is not None:
            _statuses[found.si_pid] = _Status(
                found.si_code, found.si_status, start_ticks(found.si_pid)
            )
            while len(_statuses) > _MOST_STATUSES:  # of children that are not workers
                _statuses.pop(next(iter(_statuses)), None)


def note(worker: Worker) -> None:
    """Note in ``child_exit`` that a worker has ended; safe in signal context."""
    look()  # Gunicorn reaps the next one at once, perhaps before SIGCHLD tells of it
    pid = getattr(worker, "pid", None)
    if isinstance(pid, int):
        _ends.append(_End(pid, bool(getattr(worker, "aborted", False))))


def flush() -> None:
    """Count what was noted; runs in the arbiter, not in signal context."""
    if not _ends:
        return
    from obskit_gunicorn._gunicorn import telemetry

    while _ends:
        end = _ends.pop(0)
        status = _statuses.pop(end.pid, None)
        directory = membership.directory
        started = 0 if status is None else status.start_ticks
        record = directory.last_record(end.pid, started) if directory is not None else {}
        # A worker that ended in order has counted itself, also if nothing of it is left to read.
        is_in_order = not record and status is not None and status[:2] == (os.CLD_EXITED, 0)
        if not record.get("is_counted") and not is_in_order:
            telemetry.count_exit(_reason(end, status, record))


def _reason(end: _End, status: _Status | None, record: dict[str, Any]) -> str:
    if end.is_timeout:
        return "timeout"
    if status is None:
        return "killed"
    has_exited, number = status.code == os.CLD_EXITED, status.number
    if not has_exited and number in _SIGNALS:
        return _SIGNALS[number]
    # A worker that has booted has had a lease, where leases can be had.
    had_booted = record.get("state") != "booting" if record else membership.lease is None
    if not had_booted or (has_exited and number in _BOOT_ERRORS):
        return "boot_error"
    return "graceful" if has_exited and number == 0 else "error"


def _is_uvicorn_recycling(worker: Worker) -> bool:
    """Return whether it is Uvicorn's worker, which comes here only after ``max_requests``.

    Stopped by a signal it sends itself that signal again, and ends without ``worker_exit``.
    """
    config = getattr(worker, "config", None)
    return getattr(config, "limit_max_requests", None) not in (None, 0, sys.maxsize)
