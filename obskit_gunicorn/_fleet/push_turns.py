"""Whose turn it is to push a directory, and whether somebody has pushed it before.

During a reload or an upgrade there are two exporters of one directory. Their samples would cross,
and a database refuses those that come late. So one of them pushes: the one that holds a lock beside
the metric files; the other takes its turn when that one ends. The file of the lock says which
generation was pushed, so that what goes on does not begin with zeros again.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from typing import TYPE_CHECKING

from obskit_gunicorn._fleet.member import generation_of
from obskit_gunicorn._fleet.push import Push
from obskit_gunicorn._log import log
from obskit_gunicorn._store.directory import PUSH_NAME

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from prometheus_client.core import Metric

_MOST_BYTES = 200


class Pusher:
    """Pushes what a host exposes while it is its turn. Not thread-safe.

    Attributes:
        where: The endpoint, as it may be shown.
    """

    def __init__(
        self,
        url: str,
        host: str,
        read: Callable[[], Iterable[Metric]],
        directory: Callable[[], str],
    ) -> None:
        """Name the endpoint; nothing is opened.

        Args:
            url: The endpoint.
            host: This host's name.
            read: Collects what is pushed.
            directory: Returns the multiprocess directory, which may move.
        """
        self._url, self._host, self._read, self._directory = url, host, read, directory
        self._lock: int | None = None
        self._push: Push | None = None
        self.where = Push(url, host, read).where

    @property
    def held_back(self) -> int:
        """How many series are not pushed, because the endpoint refuses them."""
        return 0 if self._push is None else self._push.held_back

    def send(self, ended: bool, is_last: bool) -> None:
        """Push, if it is this process's turn.

        Args:
            ended: Nobody counts any more.
            is_last: This process ends. If others count on, their exporter pushes instead.

        Raises:
            PushError: It failed.
        """
        if is_last and not ended:
            self._give_up_turn()
            return
        if self._push is None and not self._take_turn():
            return
        assert self._push is not None
        self._push.send(ended=ended)
        self._note()

    def _take_turn(self) -> bool:
        """Begin to push unless another process does; return whether this one does now."""
        path = os.path.join(self._directory(), PUSH_NAME)
        try:
            descriptor = os.open(
                path,
                os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW,
                0o640,
            )
        except OSError as error:
            log.warning(
                "%s cannot be made (%s), so it is unknown whether somebody has pushed these counts "
                "before: what was counted before the first push is no part of increase()",
                path,
                error.strerror,
            )
            self._push = self._new(goes_on=True)
            return True
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(descriptor)
            return False
        self._lock = descriptor
        before = os.pread(descriptor, _MOST_BYTES, 0)
        self._push = self._new(goes_on=before == self._generation())
        return True

    def _new(self, *, goes_on: bool) -> Push:
        return Push(self._url, self._host, self._read, goes_on=goes_on)

    def _note(self) -> None:
        """Note in the file which generation was pushed."""
        if self._lock is not None:
            with contextlib.suppress(OSError):
                generation = self._generation()
                if os.pread(self._lock, _MOST_BYTES, 0) != generation:
                    os.ftruncate(self._lock, 0)
                    os.pwrite(self._lock, generation, 0)

    def _generation(self) -> bytes:
        try:
            return generation_of(self._directory(), self._host).name.encode()[:_MOST_BYTES]
        except OSError:
            return b""

    def _give_up_turn(self) -> None:
        lock, self._lock = self._lock, None
        if lock is not None:
            os.close(lock)
