"""This process's membership of a multiprocess directory: the directory, the role and the lease.

Each process has one :data:`membership`. A forked child keeps the directory and drops the lease.
Safe with threads and forks. Must not run in signal context, unless a method says otherwise.
"""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import sys
import time
import traceback
from typing import TYPE_CHECKING, Any

from obskit_gunicorn._store import forks, private
from obskit_gunicorn._store.directory import LOCK_WAIT_SECONDS, SlotDirectory
from obskit_gunicorn._store.identity import owner, set_owner
from obskit_gunicorn._store.locks import pause

if TYPE_CHECKING:
    from collections.abc import Callable

    from obskit_gunicorn._store.leases import Lease, Role

DIRECTORY_VARIABLE = "PROMETHEUS_MULTIPROC_DIR"
"""The environment variable that every user of prometheus_client knows."""

_DYING_SECONDS = 1.0
_POLL_SECONDS = 0.02
_PASSING = (errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ETIMEDOUT)
"""Errors that may pass: a process cannot take a lease now, but the directory is usable."""


class NotYetError(OSError):
    """This process may not take a lease yet: it has not dropped root."""


class Membership:
    """The directory, the role and the lease of this process.

    Attributes:
        directory: The multiprocess directory, or ``None`` while metrics stay in memory.
        is_private: Whether we created the directory, and its last holder removes it.
        role: What the process is.
        lease: The lease, or ``None`` before the first metric.
        is_configuring: Whether a configuration was loaded but its arbiter has not begun yet. Until
            it begins nothing is touched, so that ``--check-config`` leaves no trace.
    """

    def __init__(self) -> None:
        """Start without a directory."""
        self.directory: SlotDirectory | None = None
        self.is_private = False
        self.role: Role = "process"
        self.lease: Lease | None = None
        self.is_configuring = False
        self.not_kept: OSError | None = None
        self._wanted: str | None = None
        self._arbiter_pid = 0
        self._begun: dict[str, dict[str, Any] | None] = {}
        self._place: mmap.mmap | None = None
        self._facts: dict[str, object] = {}

    def begin(
        self,
        path: str | None,
        *,
        keep: bool,
        user: int,
        group: int,
        keep_unpublished: bool = False,
    ) -> bool:
        """Become the arbiter of a directory.

        May be called again. For the same directory the second call never wipes: an arbiter begins
        one generation.

        Args:
            path: The directory, created if it is missing; ``None`` for a new private one.
            keep: Continue from the totals of earlier runs.
            user: The uid that workers will run as.
            group: Their gid.
            keep_unpublished: Keep what a killed server has counted and nobody has published.

        Returns:
            Whether a new generation was started.

        Raises:
            OSError: The directory cannot be used, or no lease can be taken in it.
        """
        with forks.guard():
            self.release()
            self.role, self.is_configuring, self._wanted = "arbiter", False, None
            self._arbiter_pid = os.getpid()
            lost = self.directory if self.is_private else None
            if path is None or self.directory is None or self.directory.path != path:
                self.directory, self.is_private = None, False
        set_owner(user, group)
        if path is not None:
            return self._begin_in(
                SlotDirectory(path),
                keep=keep,
                user=user,
                group=group,
                keep_unpublished=keep_unpublished,
            )
        with forks.guard():
            continued = None if lost is None else self._begun.get(lost.path)
            if not keep_unpublished:
                private.remove_leftovers(user)  # first, for the room that they take
            self.directory, self.lease = private.make(
                user, continued=continued, keep_unpublished=keep_unpublished
            )
            if keep_unpublished:
                private.remove_leftovers(user, unpublished_to=self.directory.path)
            self.is_private = True
            self._note_begun(self.directory)
            return True

    def _begin_in(
        self,
        directory: SlotDirectory,
        *,
        keep: bool,
        user: int,
        group: int,
        keep_unpublished: bool,
    ) -> bool:
        again = directory.path in self._begun
        continued = self._begun.setdefault(directory.path, None)
        is_private = private.is_private(directory) or self.is_private
        directory.provide(user, group, mode=0o700 if is_private else 0o755)
        with forks.guard():
            try:
                self.lease, wiped, self.not_kept = directory.start_generation(
                    keep=keep or again,
                    private=is_private,
                    continued=continued,
                    keep_unpublished=keep_unpublished,
                )
            except OSError as error:
                # If the error may pass, keep the directory: workers, and later this process, may
                # still be able to take a lease.
                if error.errno in _PASSING:
                    self.directory, self.is_private = directory, is_private
                raise
            self.directory, self.is_private = directory, is_private
            self._note_begun(directory)
            return wiped

    def _note_begun(self, directory: SlotDirectory) -> None:
        """Note which generation has begun, and tell the workers where the arbiter is."""
        generation = directory.generation()
        names = {"started", "id"} & generation.keys()
        known: dict[str, Any] = {name: generation[name] for name in names}
        self._begun[directory.path] = known or None
        if self._place is None:
            self._place = mmap.mmap(-1, mmap.PAGESIZE)  # shared with every fork
        path = os.fsencode(directory.path) + b"\0"
        if len(path) <= len(self._place):
            self._place[0] = 0  # until the rest is there, it says nothing
            self._place[1 : len(path)] = path[1:]
            self._place[0] = path[0]

    def _follow(self) -> None:
        """Go where the arbiter is, if a private directory was lost with the place it was in."""
        path = b"" if self._place is None else self._place[:].partition(b"\0")[0]
        if self.is_private and path:
            self.directory = SlotDirectory(os.fsdecode(path))

    def join(self, path: str) -> None:
        """Use a directory in a process that Gunicorn did not start; takes no lease yet.

        Args:
            path: The directory, created if it is missing.

        Raises:
            OSError: The directory cannot be created.
        """
        directory = SlotDirectory(path)
        os.makedirs(directory.path, mode=0o755, exist_ok=True)
        self.directory = directory

    def join_later(self, path: str) -> None:
        """Join a directory at the first metric, unless this process becomes an arbiter first.

        For a directory that is named while a configuration is being loaded.
        """
        self._wanted = path

    def find_directory(self) -> SlotDirectory | None:
        """Return the directory; first join the one of :meth:`join_later` if it is time."""
        path = self._wanted
        if path is not None and not self.is_configuring and not is_loading_configuration():
            self._wanted = None
            with contextlib.suppress(OSError):
                self.join(path)
        return self.directory

    @property
    def has_ever_begun(self) -> bool:
        """Whether this process, or one that it was forked from, has begun a generation."""
        return bool(self._begun)

    @property
    def is_led(self) -> bool:
        """Whether an arbiter decides on the directory: this process or one it was forked from."""
        return self._arbiter_pid != 0

    def has_begun_in(self, path: str | None) -> bool:
        """Return whether this arbiter has begun a generation in a directory and is still there."""
        return (
            self.directory is not None
            and self.directory.path == path
            and path in self._begun
            and self.lease is not None
            and self.lease.is_in_place()
            and "started" in self.directory.generation()
        )

    def acquire(self, *, wait_seconds: float = LOCK_WAIT_SECONDS) -> Lease:
        """Return the lease of this process; take one if it has none.

        Args:
            wait_seconds: How long to wait for the directory lock.

        Raises:
            NotYetError: The process has not dropped root yet.
            OSError: No lease can be taken.
        """
        with forks.guard():
            if self.lease is None:
                self._follow()
                if self.directory is None:
                    raise OSError(errno.ENOENT, "there is no multiprocess directory")
                ids = owner()
                if self.role == "worker" and ids is not None and os.geteuid() != ids[0]:
                    raise NotYetError(errno.EAGAIN, "the worker has not dropped root yet")
                self.lease = self.directory.acquire(self.role, wait_seconds=wait_seconds)
                self.lease.note(**self._facts)
            return self.lease

    def move(self, leave: Callable[[], object]) -> Lease:
        """Take another lease in place of one that readers no longer find.

        This process is seen all the time: the first lease ends when there is another one.

        Args:
            leave: Closes the files of the first lease; called when there is another one.

        Returns:
            The other lease.

        Raises:
            NotYetError: The process has not dropped root yet.
            OSError: No other lease can be taken; the first one stays.
        """
        with forks.guard():
            first, self.lease = self.lease, None
            try:
                other = self.acquire(wait_seconds=0.0)
            except BaseException:
                self.lease = first
                raise
            leave()
            if first is not None:
                first.release()
            return other

    def note(self, **facts: object) -> None:
        """Change the record of the current lease, and of all later leases of this process.

        Never raises.
        """
        self._facts.update(facts)
        if self.lease is not None:
            self.lease.note(**facts)

    def remove_live_gauges(self) -> None:
        """Remove the live-gauge files of processes that have ended, for other readers.

        Safe in signal context: it never waits. Never raises.
        """
        if self.directory is not None:
            with contextlib.suppress(OSError):
                self.directory.remove_live_gauges(wait_seconds=0)

    def release(self) -> None:
        """End the lease, if there is one."""
        with forks.guard():
            lease, self.lease = self.lease, None
            if lease is not None:
                lease.release()

    def leave(self) -> None:
        """Leave the directory for good, and remove a private one that nobody else uses."""
        with forks.guard():
            self.release()
            directory, self.directory = self.directory, None
        if directory is None or not self.is_private:
            return
        with contextlib.suppress(OSError):
            deadline = time.monotonic() + _DYING_SECONDS
            # Workers that were killed at the end of a stop may not have ended yet: wait for them.
            # But if another arbiter uses the directory, it stays.
            while not directory.remove_if_unused() and time.monotonic() < deadline:
                held = [record for record in directory.records().values() if record is not None]
                if any(record.get("role") == "arbiter" for record in held):
                    return
                pause(_POLL_SECONDS)

    def is_in_charge(self) -> bool:
        """Return whether this process must leave the directory, and remove a private one, at exit.

        True of the arbiter and, if the arbiter was killed, of workers in a private directory.
        """
        orphaned = self.role == "worker" and os.getppid() != self._arbiter_pid
        return self.role == "arbiter" or (orphaned and self.is_private)

    def describe(self) -> str:
        """Return one line for people: where metrics are kept, and this process's role and slot."""
        if self.directory is None:
            return "metrics stay in the memory of each process"
        kind = "a private directory" if self.is_private else "directory"
        held = f", {self.role} in {self.lease.slot}" if self.lease else ""
        return f"metrics are shared in {kind} {self.directory.path}{held}"

    def start_over(self) -> None:
        """Drop the parent's lease in a forked child; the parent keeps it."""
        lease, self.lease = self.lease, None
        if lease is not None:
            lease.drop()
        self.role = "process"
        self._facts = {}


membership = Membership()
"""The membership of this process."""

forks.in_child("membership", membership.start_over)


def is_loading_configuration() -> bool:
    """Return whether Gunicorn, loading its configuration, called this directly or indirectly."""
    return any(
        frame.f_code.co_name == "do_load_config"
        and frame.f_globals.get("__name__") == "gunicorn.app.base"
        for frame, _line in traceback.walk_stack(sys._getframe())
    )
