"""The one handler of SIGCHLD that the arbiter adds to Gunicorn's.

Gunicorn has no hook for the end of a child that is not a worker, and no hook that runs by the
clock. At each SIGCHLD this handler asks how workers have ended, calls Gunicorn's own handler, and
restarts an exporter that has ended. Runs in signal context.
"""

from __future__ import annotations

import contextlib
import signal
from typing import TYPE_CHECKING, Any

from obskit_gunicorn._gunicorn import exits
from obskit_gunicorn._gunicorn.supervisor import supervisor

if TYPE_CHECKING:
    import types

    from gunicorn.arbiter import Arbiter

_previous: Any = None


def listen(server: Arbiter) -> None:
    """Install the handler; runs in the arbiter, may be called again.

    Gunicorn's own handler must be installed already.
    """
    global _previous  # noqa: PLW0603 - a process has one handler of a signal
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
