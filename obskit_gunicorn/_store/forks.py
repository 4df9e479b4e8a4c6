"""What happens around a fork: one lock that keeps forks away, one order of starting over.

A child forked between the opening of a file and its registration would own a copy of the descriptor
that nobody knows of, and so keep the lock after its parent's end. Whoever opens or locks files
holds :func:`guard`, and a fork waits for it. Under it root has only the rights of the workers' user
over files: see :func:`obskit_gunicorn._store.identity.act_as_owner`.

A forked child starts over room by room, the lowest first: see :data:`ORDER`.
"""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING

from obskit_gunicorn._store import identity

if TYPE_CHECKING:
    from collections.abc import Callable

ORDER = ("membership", "values", "collectors", "exporter")
"""Who starts over in a forked child, in this order."""


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
    """Return the lock that keeps forks away; re-entrant, and a fresh one in each forked child."""
    return _guard


def in_child(name: str, step: Callable[[], object]) -> None:
    """Run a step in every forked child, at its turn in :data:`ORDER`.

    Args:
        name: Whose step it is; one of :data:`ORDER`.
        step: Runs between the fork and the child's first line of Python; must not log, import or
            wait.
    """
    _steps[ORDER[ORDER.index(name)]] = step


def start_over() -> None:
    """Start over in a forked child.

    Runs by itself after :func:`os.fork`; a child that was forked without Python's knowledge calls
    it when it notices.
    """
    global _guard  # noqa: PLW0603 - a fresh lock is the only safe one after a fork
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
