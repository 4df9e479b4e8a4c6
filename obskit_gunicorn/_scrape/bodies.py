"""Response bodies: made one at a time, and once for all who ask the same.

Who asks joins a round. A round reads the directory once, when the one before it is done, and makes
one body for each form that is asked of it. So nobody gets numbers older than his request, and many
clients cost no more than one. A body is kept only until the last one who has asked has got it.
"""

from __future__ import annotations

import os
import threading
import time
from collections import Counter
from typing import TYPE_CHECKING, NamedTuple, Protocol

from obskit_gunicorn._scrape.blocks import Zipped

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from obskit_gunicorn._scrape.blocks import Block
    from obskit_gunicorn._scrape.formats import Format, Names

LONGEST_SECONDS = 10.0
"""How long to wait for one's turn; as long as Prometheus waits for an answer."""


class Form(NamedTuple):
    """What a client asks for."""

    format: Format
    names: Names | None
    """The samples to show; ``None`` for all."""

    is_packed: bool
    """Whether it is to be compressed with gzip."""


class UnavailableError(Exception):
    """What is asked for cannot be had now; the text says why."""


class BusyError(Exception):
    """So many different bodies are asked for that one's turn has not come."""


class _Exposition(Protocol):
    def rendered(self, format_: Format, names: Names | None) -> bytes: ...

    def blocks(self, format_: Format, names: Names | None) -> tuple[Sequence[Block], bytes]: ...


class _Round:
    """One reading, and what is made of it.

    Attributes:
        exposition: The reading; ``None`` until the round's turn comes.
        waiting: How many wait for each form.
        bodies: What is made, and was not taken by everybody who waits for it.
    """

    def __init__(self) -> None:
        self.exposition: _Exposition | None = None
        self.waiting: Counter[Form] = Counter()
        self.bodies: dict[Form, bytes] = {}


class Bodies:
    """The bodies of one application. Thread-safe."""

    def __init__(self, read: Callable[[], _Exposition]) -> None:
        """Name what reads; nothing is read."""
        self._read = read
        self._maker = _Maker(read)

    def get(self, form: Form) -> bytes:
        """Return a body whose numbers are no older than this call.

        Raises:
            BusyError: There are too many others.
            Exception: What reading or rendering raises.
        """
        maker = self._maker
        if maker.pid != os.getpid():  # forked, perhaps while another thread was making a body
            maker = self._maker = _Maker(self._read)
        return maker.get(form)


class _Maker:
    """Makes bodies in one process."""

    def __init__(self, read: Callable[[], _Exposition]) -> None:
        self.pid = os.getpid()
        self._read = read
        self._changed = threading.Condition()
        self._is_making = False
        self._now, self._next = _Round(), _Round()
        self._zipped: dict[str, Zipped] = {}  # by format, of which there is a fixed number

    def get(self, form: Form) -> bytes:
        with self._changed:
            mine = self._next
            mine.waiting[form] += 1
            try:
                while form not in mine.bodies:
                    self._wait_for_turn(mine, form)
                    if form not in mine.bodies:
                        self._make(mine, form)
                return mine.bodies[form]
            finally:
                mine.waiting[form] -= 1
                if not mine.waiting[form]:
                    del mine.waiting[form]
                    mine.bodies.pop(form, None)
                if not mine.waiting:
                    mine.exposition = None
                self._changed.notify_all()

    def _wait_for_turn(self, mine: _Round, form: Form) -> None:
        """Wait until the body is there, or this thread may make it."""
        deadline = time.monotonic() + LONGEST_SECONDS
        while form not in mine.bodies:
            # A round is done when everybody has what he waits for.
            if not self._is_making and (mine is self._now or not self._now.waiting):
                return
            if not self._changed.wait(deadline - time.monotonic()):
                raise BusyError

    def _make(self, mine: _Round, form: Form) -> None:
        """Make a body, and let go of the lock meanwhile."""
        if mine is not self._now:
            self._now, self._next = mine, _Round()
        self._is_making = True
        self._changed.release()
        try:
            if mine.exposition is None:
                mine.exposition = self._read()
            if form.is_packed:
                kept = self._zipped.setdefault(form.format.name, Zipped())
                zipped = Zipped() if form.names else kept
                body = zipped.packed(*mine.exposition.blocks(form.format, form.names))
            else:
                body = mine.exposition.rendered(form.format, form.names)
        finally:
            self._changed.acquire()
            self._is_making = False
        mine.bodies[form] = body
