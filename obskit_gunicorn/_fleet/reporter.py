"""Telling others what this host has counted: every interval, and once more at the end.

One thread for each way of telling. Whoever is told may be slow, full, or gone: that is one line in
the log, and a gauge; the next interval tries again. Nothing waits for it but the exporter's end,
and that not for long.
"""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

from obskit_gunicorn._log import log

if TYPE_CHECKING:
    from collections.abc import Callable

LAST_SECONDS = 4.0
"""How long the end of the exporter waits for what is told last."""

_RETRY_SECONDS = 0.2


class Reporter:
    """Calls a function every interval. Thread-safe.

    Attributes:
        is_up: Whether the last call has succeeded; ``None`` before the first one.
    """

    def __init__(
        self, send: Callable[[bool, bool], object], interval: float, *, what: str, effect: str
    ) -> None:
        """Name the function; nothing is called.

        Args:
            send: Tells; is given whether nobody counts any more, and whether this process ends;
                raises what is wrong.
            interval: How often, in seconds.
            what: What is told, for the log.
            effect: What is missing when it fails, for the log.
        """
        self.is_up: bool | None = None
        self._send, self._interval = send, interval
        self._what, self._effect = what, effect
        self._is_over = threading.Event()
        self._lock = threading.Lock()
        self._turn = threading.Lock()

    def start(self) -> None:
        """Start the thread, which calls the function at once for the first time."""
        threading.Thread(target=self._run, name=f"obskit {self._what}", daemon=True).start()

    def end(self, *, ended: bool) -> None:
        """Stop the thread, and call the function once more; waits a few seconds at most.

        Args:
            ended: Nobody counts any more; otherwise another process goes on.
        """
        deadline = time.monotonic() + LAST_SECONDS
        self._is_over.set()
        thread = threading.Thread(target=self._run_last, args=(ended, deadline), daemon=True)
        thread.start()
        thread.join(LAST_SECONDS)
        if thread.is_alive():
            self._note("it takes too long", is_last=True)

    def _run(self) -> None:
        while not self._is_over.is_set():
            started = time.monotonic()
            self._note(self._try(ended=False, is_last=False))
            self._is_over.wait(max(0.0, self._interval - (time.monotonic() - started)))

    def _run_last(self, ended: bool, deadline: float) -> None:
        while error := self._try(ended=ended, is_last=True):
            if time.monotonic() + _RETRY_SECONDS > deadline:
                self._note(error, is_last=True)
                return
            time.sleep(_RETRY_SECONDS)

    def _try(self, *, ended: bool, is_last: bool) -> str:
        """Call the function; return what is wrong, if anything."""
        try:
            with self._turn:
                self._send(ended, is_last)
        except Exception as error:
            return str(error) or type(error).__name__
        return ""

    def _note(self, error: str, *, is_last: bool = False) -> None:
        """Log what has changed."""
        with self._lock:
            was_up, self.is_up = self.is_up, not error
        if is_last:
            log.error("%s failed at the end: %s; what was counted last is lost", self._what, error)
        elif error and was_up is not False:
            log.warning(
                "%s failed: %s. Tried again every %g s; until then %s",
                self._what,
                error.rstrip("."),
                self._interval,
                self._effect,
            )
        elif not error and was_up is False:
            log.warning("%s works again", self._what)
