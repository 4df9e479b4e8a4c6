"""The one handler of SIGCHLD that the arbiter adds to Gunicorn's.

Gunicorn has no hook that tells of a child that is not a worker, and none that runs by the clock. At
each SIGCHLD this asks how workers have ended, calls Gunicorn's own handler, and brings an exporter
back that has ended. Runs in signal context.
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
    """Handle SIGCHLD from now on; runs in the arbiter, may be called again.

    Gunicorn's own handler must be in place already.
    """
    global _previous  # noqa: PLW0603 - a process has one handler of a signal
    exits.watch(server)
    # Once: a handler that the application has put in ours' place may call ours.
    if _previous is None:
        with contextlib.suppress(ValueError):  # not on the main thread; the next fork is
            _previous = signal.signal(signal.SIGCHLD, _on_child)


def _on_child(number: int, frame: types.FrameType | None) -> None:
    def handle() -> None:
        exits.look()
        if callable(_previous):
            _previous(number, frame)

    supervisor.child_ended(handle)
