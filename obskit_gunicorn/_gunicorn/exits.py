"""Why workers end, and that each end is counted once.

The arbiter counts the ends of its workers. Gunicorn tells it only that a worker is gone and whether
it had timed out. So a worker says why it leaves, in memory that both share: that needs neither a
slot nor a file, outlives a SIGKILL, and may be written in signal context. And the arbiter asks the
kernel at SIGCHLD, before Gunicorn reaps the process, how it has ended.

A worker counts its end itself only where the arbiter cannot, or not soon; see :data:`COUNTED`.

What runs in signal context only takes notes. The next core that runs elsewhere counts them.
"""

from __future__ import annotations

import mmap
import os
import signal
import sys
from typing import TYPE_CHECKING, Any, NamedTuple

from obskit_gunicorn._log import taken

if TYPE_CHECKING:
    from collections.abc import Iterator

    from gunicorn.arbiter import Arbiter
    from gunicorn.workers.base import Worker

REASONS = ("boot_error", "error", "graceful", "interrupted", "killed", "max_requests", "timeout")
"""Why a worker ends; ``docs/metrics.md`` says what each can and cannot mean."""

_SIGNALS: dict[int, str] = {
    signal.SIGTERM: "graceful",  # this is how Uvicorn's worker ends
    signal.SIGINT: "interrupted",
    signal.SIGQUIT: "interrupted",
}

_BOOT_ERRORS = (3, 4)
"""The exit statuses of a Gunicorn worker that cannot boot: WORKER_BOOT_ERROR, APP_LOAD_ERROR."""

COUNTED = "counted"
"""What a worker says that has counted its end itself.

It does if its arbiter is gone; if it cannot boot, for then Gunicorn stops the whole server and
calls no hook for that worker in the arbiter; and before Gunicorn 24, where the arbiter hears of it
in signal context, and counts only when its next hook runs, which may be much later. It says so just
before it counts, so an end is never counted twice.
"""

_WORDS = ("", COUNTED, *REASONS)
_ATTRIBUTE = "obskit_said"
_NOTED = "obskit_end_is_noted"


class _Said:
    """What a worker says about itself to the arbiter that has forked it."""

    def __init__(self, both: mmap.mmap | bytearray) -> None:
        """Wrap the two bytes that it is said in."""
        self._bytes = both

    @property
    def has_booted(self) -> bool:
        """Whether the worker was ready once."""
        return bool(self._bytes[0])

    @has_booted.setter
    def has_booted(self, value: bool) -> None:
        self._bytes[0] = value

    @property
    def reason(self) -> str:
        """Why it leaves, one of :data:`REASONS`; empty if it has not said."""
        return _WORDS[self._bytes[1]]

    @reason.setter
    def reason(self, value: str) -> None:
        self._bytes[1] = _WORDS.index(value)


def listen_to(worker: Worker) -> None:
    """Prepare in ``pre_fork`` that a worker can speak to this arbiter.

    Raises:
        OSError: There is no memory.
    """
    setattr(worker, _ATTRIBUTE, _Said(mmap.mmap(-1, 2)))


def said(worker: Worker) -> _Said:
    """Return what a worker says, or what nobody hears if ``pre_fork`` has prepared nothing."""
    found: _Said | None = getattr(worker, _ATTRIBUTE, None)
    return found or _Said(bytearray((True, 0)))  # whether it has booted is unknown


def say(worker: Worker, reason: str) -> bool:
    """Say in a worker why it leaves; safe in signal context, and nothing in other processes.

    Args:
        worker: The worker.
        reason: One of :data:`REASONS`, or :data:`COUNTED`.

    Returns:
        Whether the arbiter hears it.
    """
    if not is_of(worker):  # its children have its handlers of signals
        return False
    said(worker).reason = reason
    return hasattr(worker, _ATTRIBUTE)


def is_of(worker: Worker) -> bool:
    """Return whether this process is the worker, and not its arbiter or a child of its own."""
    return os.getpid() == worker.pid  # type: ignore[comparison-overlap]


def own_reason(worker: Worker) -> str:
    """Return why this worker ends, called in ``worker_exit``; empty if the arbiter must say.

    Gunicorn calls that hook while the SystemExit that ends the worker is in flight.
    """
    if aborted.pid == os.getpid():
        return ""  # the arbiter knows whether it was a time-out
    if not worker.booted:
        return "boot_error"
    error = sys.exc_info()[1]
    if isinstance(error, SystemExit) and error.code not in (0, None):
        return "error"
    return said(worker).reason or ("max_requests" if is_used_up(worker) else "graceful")


def is_used_up(worker: Worker) -> bool:
    """Return whether a worker of Gunicorn's own classes has served its number of requests."""
    return worker.nr >= worker.max_requests


class _Aborted:
    """The worker that SIGABRT has stopped."""

    pid = 0


aborted = _Aborted()
"""Which process SIGABRT has stopped; set in signal context."""


class _Status(NamedTuple):
    """How a process has ended, according to the kernel; see waitid(2)."""

    code: int
    number: int


_ends: list[str] = []
"""The reasons of the ends that are not counted yet."""

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
            _statuses[found.si_pid] = _Status(found.si_code, found.si_status)
    # Some are of children that are not workers.
    for pid in list(_statuses)[:-_MOST_STATUSES]:
        _statuses.pop(pid, None)


def note(worker: Worker) -> None:
    """Note in the arbiter that a worker has ended; safe in signal context.

    Only the first call for a worker does: one that is killed at a stop is noted in ``on_exit``, and
    before Gunicorn 24 the handler of SIGCHLD may call ``child_exit`` for it at any moment of that.
    """
    look()  # Gunicorn may reap the next worker before its SIGCHLD arrives
    ours = object()
    if vars(worker).setdefault(_NOTED, ours) is not ours:  # no handler runs in the midst of it
        return
    if said(worker).reason != COUNTED:
        pid: Any = getattr(worker, "pid", None)
        _ends.append(_reason(worker, _statuses.pop(pid, None)))


def flush() -> Iterator[str]:
    """Return the reasons to count of what was noted; runs in the arbiter, not in signal context."""
    return taken(_ends)


def _reason(worker: Worker, status: _Status | None) -> str:
    """Return why a worker has ended."""
    reason = said(worker).reason
    if getattr(worker, "aborted", False):
        # By Gunicorn, perhaps while the worker waited for its last requests.
        return reason if reason == "max_requests" else "timeout"
    if status is None:
        return reason or "killed"
    has_exited, number = status.code == os.CLD_EXITED, status.number
    if not has_exited and number == signal.SIGKILL:
        return "killed"
    if not has_exited and number in _SIGNALS:
        return reason or _SIGNALS[number]
    if not said(worker).has_booted or (has_exited and number in _BOOT_ERRORS):
        return "boot_error"
    return (reason or "graceful") if has_exited and number == 0 else "error"
