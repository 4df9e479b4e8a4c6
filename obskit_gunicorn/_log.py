"""The log of this package.

Lines go to the logger ``obskit_gunicorn``; in Gunicorn's processes they go to its error log, as its
settings say. Must not be used in signal context.
"""

from __future__ import annotations

import contextlib
import logging
import mmap
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Iterator

_Note = TypeVar("_Note")


class Log:
    """A logger whose target may change while modules keep a reference to it.

    Attributes:
        target: Where lines go: anything with the methods of a :class:`logging.Logger`.
    """

    def __init__(self) -> None:
        """Log to the logger of this package."""
        self.target: Any = logging.getLogger("obskit_gunicorn")
        self._waiting: list[str] = []

    def later(self, line: str) -> None:
        """Keep a line for :meth:`use`: a configuration is loaded before Gunicorn has a log."""
        if line not in self._waiting:
            self._waiting.append(line)

    def use(self, target: Any) -> None:
        """Send lines to Gunicorn's log from now on, and first those that have waited for it."""
        self.target = target
        for line in taken(self._waiting):
            target.info("%s", line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.target, name)


log = Log()
"""The log of this process."""


def taken(notes: list[_Note]) -> Iterator[_Note]:
    """Yield and remove what was noted where it could not be said or counted at once.

    Each note once, whatever handlers of signals and other threads do meanwhile.
    """
    with contextlib.suppress(IndexError):
        while True:
            yield notes.pop(0)


class Once:
    """Whether something is still to be said, by this process or any that was forked from it."""

    def __init__(self) -> None:
        """Begin with nothing said, in memory that forks share."""
        self._said = mmap.mmap(-1, 1)

    def first(self) -> bool:
        """Return whether nobody has asked before."""
        before, self._said[0] = self._said[0], 1
        return not before
