"""Why workers end, and counting it.

A worker that leaves by itself counts its own end, in ``worker_exit``. The arbiter counts the rest.
Gunicorn tells it only that a worker is gone and whether it had timed out. So the arbiter asks the
kernel at SIGCHLD, before Gunicorn reaps the process, how it has ended.

What runs in signal context only takes notes. The next core that runs elsewhere counts them.
"""

from __future__ import annotations

import os
import signal
import sys
from typing import TYPE_CHECKING, Any, NamedTuple

from obskit_gunicorn._store.identity import start_ticks
from obskit_gunicorn._store.membership import membership

if TYPE_CHECKING:
    from collections.abc import Iterator

    from gunicorn.arbiter import Arbiter
    from gunicorn.workers.base import Worker

_SIGNALS: dict[int, str] = {
    signal.SIGKILL: "killed",
    signal.SIGTERM: "graceful",  # this is how Uvicorn's worker ends
    signal.SIGINT: "interrupted",
    signal.SIGQUIT: "interrupted",
}

_BOOT_ERRORS = (3, 4)
"""The exit statuses of a Gunicorn worker that cannot boot: WORKER_BOOT_ERROR, APP_LOAD_ERROR."""


class Leaving:
    """Why this worker leaves; set in signal context."""

    is_interrupted = False
    """Whether SIGINT or SIGQUIT has stopped it."""

    is_aborted = False
    """Whether SIGABRT has stopped it."""

    def reason(self, worker: Worker) -> str | None:
        """Return why a worker ends, called in ``worker_exit``; ``None`` if the arbiter must say.

        Gunicorn calls that hook while the SystemExit that ends the worker is in flight.
        """
        if self.is_aborted:
            return None  # the arbiter knows whether it was a time-out
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


class _Status(NamedTuple):
    """How a process has ended, according to the kernel; see waitid(2)."""

    code: int
    number: int
    start_ticks: int


_ends: list[tuple[int, bool]] = []
"""The workers whose end is not counted yet: the pid, and whether it had timed out."""

_statuses: dict[int, _Status] = {}
_MOST_STATUSES = 1000


class _Watched:
    """The arbiter that looks, and its workers."""

    pid = 0
    workers: Any = ()


def watch(server: Arbiter) -> None:
    """Let :func:`look` look at the workers of this arbiter."""
    if hasattr(os, "waitid"):  # macOS: from Python 3.13 on
        _Watched.pid, _Watched.workers = os.getpid(), server.WORKERS


def look() -> None:
    """Ask the kernel which workers have ended, and how, but leave them for Gunicorn to reap.

    Safe in signal context. Does nothing outside the arbiter.
    """
    if os.getpid() != _Watched.pid:
        return
    # First any child: a worker that ended at once is not among Gunicorn's workers yet.
    for kind, pid in ((os.P_ALL, 0), *((os.P_PID, pid) for pid in list(_Watched.workers))):
        try:
            found = os.waitid(kind, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except OSError:
            continue
        if found is not None:
            _statuses[found.si_pid] = _Status(
                found.si_code, found.si_status, start_ticks(found.si_pid)
            )
            while len(_statuses) > _MOST_STATUSES:  # some are of children that are not workers
                _statuses.pop(next(iter(_statuses)), None)


def note(worker: Worker) -> None:
    """Note in ``child_exit`` that a worker has ended; safe in signal context."""
    look()  # Gunicorn may reap the next worker before its SIGCHLD arrives
    pid = getattr(worker, "pid", None)
    if isinstance(pid, int):
        _ends.append((pid, bool(getattr(worker, "aborted", False))))


def flush() -> Iterator[str]:
    """Yield the reasons to count of what was noted; runs in the arbiter, not in signal context."""
    while _ends:
        pid, is_timeout = _ends.pop(0)
        status = _statuses.pop(pid, None)
        directory = membership.directory
        started = 0 if status is None else status.start_ticks
        record = directory.last_record(pid, started) if directory is not None else {}
        # A worker that ended in good order has counted itself, even if its record is gone.
        is_in_order = not record and status is not None and status[:2] == (os.CLD_EXITED, 0)
        if not record.get("is_counted") and not is_in_order:
            yield "timeout" if is_timeout else _reason(status, record)


def _reason(status: _Status | None, record: dict[str, Any]) -> str:
    if status is None:
        return "killed"
    has_exited, number = status.code == os.CLD_EXITED, status.number
    if not has_exited and number in _SIGNALS:
        return _SIGNALS[number]
    # If there are leases at all, a worker that has booted has had one.
    had_booted = record.get("state") != "booting" if record else membership.lease is None
    if not had_booted or (has_exited and number in _BOOT_ERRORS):
        return "boot_error"
    return "graceful" if has_exited and number == 0 else "error"


def _is_uvicorn_recycling(worker: Worker) -> bool:
    """Return whether it is Uvicorn's worker, which calls this hook only after ``max_requests``.

    If a signal stops it, it sends itself that signal again, and ends without ``worker_exit``.
    """
    config = getattr(worker, "config", None)
    return getattr(config, "limit_max_requests", None) not in (None, 0, sys.maxsize)
