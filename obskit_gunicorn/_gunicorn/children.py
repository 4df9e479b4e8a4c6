"""The one handler of SIGCHLD that the arbiter adds to Gunicorn's.

Gunicorn has no hook for the end of a child that is not a worker, and no hook that runs by the
clock. At each SIGCHLD this handler asks how workers have ended, calls Gunicorn's own handler, and
restarts an exporter that has ended. Runs in signal context.

A message of the exporter is a SIGCHLD too. If the exporter has found that the directory was taken
away, it is made again at once if the signal has come while Gunicorn's main loop waits for signals:
then nothing else is under way in this thread, and what is done here can take locks and write to the
log like any hook. At any other moment it is left to the exporter's next message.
"""

from __future__ import annotations

import contextlib
import signal
from typing import TYPE_CHECKING, Any

from obskit_gunicorn._gunicorn import exits
from obskit_gunicorn._gunicorn.supervisor import supervisor
from obskit_gunicorn._store import forks

if TYPE_CHECKING:
    import types
    from collections.abc import Callable

    from gunicorn.arbiter import Arbiter

_WAITING = ("sleep", "wait_for_signals")
"""Where the main loop waits: before Gunicorn 24, and from then on."""

_previous: Any = None
_begin_anew: Callable[[], object] = bool


def listen(server: Arbiter, begin_anew: Callable[[], object]) -> None:
    """Install the handler; runs in the arbiter, may be called again.

    Gunicorn's own handler must be installed already.

    Args:
        server: The arbiter.
        begin_anew: Makes the directory again; must not raise.
    """
    global _previous, _begin_anew  # noqa: PLW0603 - a process has one handler of a signal
    _begin_anew = begin_anew
    exits.watch(server)
    # Only once: a handler with which the application has replaced ours may call ours.
    if _previous is None:
        with contextlib.suppress(ValueError):  # not on the main thread
            _previous = signal.signal(signal.SIGCHLD, _on_child)


def _on_child(number: int, frame: types.FrameType | None) -> None:
    def handle() -> None:
        exits.look()
        if callable(_previous):
            _previous(number, frame)

    supervisor.child_ended(handle)
    if not _is_waiting(frame) or not forks.guard().acquire(blocking=False):
        return
    try:
        if supervisor.has_lost_directory():
            _begin_anew()
    finally:
        forks.guard().release()


def _is_waiting(frame: types.FrameType | None) -> bool:
    """Return whether the signal has interrupted nothing but the wait of Gunicorn's main loop."""
    return (
        frame is not None
        and frame.f_globals.get("__name__") == "gunicorn.arbiter"
        and frame.f_code.co_name in _WAITING
    )
