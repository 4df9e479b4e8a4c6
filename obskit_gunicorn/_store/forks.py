"""What happens at a fork: a lock that delays it, and the steps that reset the child.

If a thread forks while another has opened a file but not yet registered it, the child has a copy of
the descriptor that nobody knows about, and keeps the lock after its parent has ended. So code that
opens or locks files holds :func:`guard`, and forks wait for it. While it is held, root has only the
file rights of the workers' user; see :func:`obskit_gunicorn._store.identity.act_as_owner`.

A forked child resets its modules from the lowest to the highest: see :data:`ORDER`.
"""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING

from obskit_gunicorn._store import identity

if TYPE_CHECKING:
    from collections.abc import Callable

ORDER = ("membership", "values", "states", "collectors", "exporter")
"""The names of the steps, in the order in which a forked child runs them."""


class _Guard:
    """A re-entrant lock; whoever holds it touches files as the workers' user."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._depth = 0
        self.acquire, self.release = self._lock.acquire, self._lock.release

    def __enter__(self) -> None:
        self._lock.acquire()
        self._depth += 1
        if self._depth == 1:
            identity.act_as_owner()

    def __exit__(self, *_error: object) -> None:
        self._depth -= 1
        if self._depth == 0:
            identity.act_as_oneself()
        self._lock.release()


_guard = _Guard()
_steps: dict[str, Callable[[], object]] = {}


def guard() -> _Guard:
    """Return the lock that forks wait for; it is re-entrant, and new in each forked child."""
    return _guard


def in_child(name: str, step: Callable[[], object]) -> None:
    """Register a step that every forked child runs, at its turn in :data:`ORDER`.

    Args:
        name: The name of the step; one of :data:`ORDER`.
        step: Runs before any other Python code of the child; must not log, import or wait.
    """
    _steps[ORDER[ORDER.index(name)]] = step


def start_over() -> None:
    """Run the steps in a forked child.

    Called automatically after :func:`os.fork`. A child that was forked without Python's knowledge
    calls it when it notices.
    """
    global _guard  # noqa: PLW0603 - only a new lock is safe after a fork
    _guard = _Guard()
    identity.act_as_oneself()
    for name in ORDER:
        if name in _steps:
            _steps[name]()


def _before() -> None:
    _guard.acquire()


def _after() -> None:
    _guard.release()


os.register_at_fork(before=_before, after_in_parent=_after, after_in_child=start_over)
