"""Slots, leases, generations, and this process's place among them.

A *slot* is a numbered place in the multiprocess directory whose metric files one process at a time
writes: ``slot0``, ``slot1``, ... Its files outlive the process; the next process in the slot goes
on from where they stand, so there is nothing to delete, to merge or to lose when a process ends.

A *lease* is a process's exclusive hold on a slot: an ``flock`` on ``slotN.lease``. It does not
expire by time; it ends when the process releases it or ends, however it ends. Liveness is never
tested by pid, since processes of several pid namespaces may share the directory.

A *generation* is the time between two wipes. Only an arbiter wipes, once, when it starts and
nobody holds a lease.

What stands in the directory::

    slots.lock              the directory lock; its content says protocol and generation
    slotN.lease             the lease of slot N, with a record about its holder for people to read
    <type>_slotN.db         metric files (see obskit_gunicorn.mmapfile)
    <type>_slotN.new        a metric file that is not whole yet
    *.db.damaged            what was found damaged, kept for people to look at

Slot names have no ``_`` and are no numbers, so that readers which take the third part of a
file name for a pid get one whole word that cannot be a pid.

This module needs the standard library only. Taking and releasing leases is safe beside other
threads and beside forks; a fork waits until no descriptor is half taken.
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import shutil
import stat
import sys
import tempfile
import threading
import time
import types
from collections.abc import Iterator
from typing import Any, Literal

from obskit_gunicorn.locks import (
    LockedFile,
    NotAFileError,
    give_to_owner,
    open_file,
    owner,
    pause,
    set_owner,
)
from obskit_gunicorn.mmapfile import MetricFileName

__all__ = [
    "Lease",
    "NotYetError",
    "Process",
    "SlotDirectory",
    "explain",
    "fork_guard",
    "forked",
    "is_ready_worker",
    "pid_namespace",
    "process",
    "start_ticks",
]

Role = Literal["arbiter", "worker", "process"]

PROTOCOL = 1
"""The version of the rules in this module. A directory in use by a later one is left alone."""

LOCK_NAME = "slots.lock"
LOCK_WAIT_SECONDS = 4.0
"""How long to wait for the directory lock before metrics go on in memory."""

ASK_WAIT_SECONDS = 0.1
"""How long to wait for it only to ask who is there, as each scrape does."""

_PRIVATE_PREFIX = "obskit-gunicorn-"
_STALE_SECONDS = 60.0
_DYING_SECONDS = 1.0
_POLL_SECONDS = 0.02
_MOST_SLOTS = 65536
_PASSING = (errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ETIMEDOUT)
"""What may keep one process from a lease for a while, but says nothing about the directory."""


def fork_guard() -> threading.RLock:
    """Return the lock that keeps forks away while descriptors are opened and locked.

    A child forked between the opening of a file and its registration would own a copy of the
    descriptor that nobody knows of, and so keep the lock after its parent's end. Re-entrant, so
    that a signal handler which forks cannot hang on it.
    """
    return _guard


_guard = threading.RLock()

_REMEMBERED = ("pid", "pid_namespace", "start_ticks", "state", "is_counted")


class NotYetError(OSError):
    """This process may not take a lease yet: it has not dropped root."""


class Lease:
    """One process's exclusive hold on a slot.

    Made by :meth:`SlotDirectory.acquire`. Compared by identity: a process that takes the slot of
    its dead parent holds another lease than its parent did.

    Attributes:
        directory: The multiprocess directory.
        slot: The slot's name, as it stands in file names.
        record: What is written beside the lease about its holder.
    """

    __slots__ = ("_file", "directory", "record", "slot")

    def __init__(self, directory: SlotDirectory, slot: str, file: LockedFile, role: Role) -> None:
        """Wrap a locked lease file."""
        self.directory = directory
        self.slot = slot
        self._file = file
        before = _read_json(file.descriptor)
        before.pop("previous", None)
        self.record: dict[str, Any] = {
            "pid": os.getpid(),
            "pid_namespace": pid_namespace(),
            "start_ticks": start_ticks(),
            "role": role,
            "state": "booting" if role == "worker" else "",
            "reason": "",
            "values_not_shared": 0,
            # The arbiter may learn of an end when the slot has its next holder already.
            "previous": {name: before.get(name) for name in _REMEMBERED},
        }
        self._write()

    def note(self, **facts: object) -> None:
        """Change the record; never raises. Plain file work, so it may be called anywhere."""
        self.record.update(facts)
        self._write()

    def is_in_place(self) -> bool:
        """Return whether others still see this lease: its file was not removed or replaced."""
        return self._file.is_in_place()

    def hand_on(self) -> int:
        """Let the program that this process is about to execute hold the lease as well.

        Returns:
            The descriptor, which stays open through ``exec``.
        """
        os.set_inheritable(self._file.descriptor, True)
        return self._file.descriptor

    def metric_file_path(self, prefix: str) -> str:
        """Return the path of the slot's file for a metric type, as in ``gauge_max``."""
        return os.path.join(self.directory.path, f"{prefix}_{self.slot}.db")

    def moved_to(self, path: str) -> None:
        """Note that the directory has been renamed to ``path``."""
        self.directory.path = path
        self._file.path = os.path.join(path, os.path.basename(self._file.path))

    def release(self) -> None:
        """End the lease; the slot's files stay for its next holder."""
        with contextlib.suppress(OSError):
            self._file.unlock()
        self._file.close()

    def drop(self) -> None:
        """Close a forked child's copy of its parent's lease, which the parent goes on holding."""
        self._file.close()

    def _write(self) -> None:
        # For people and for telemetry only: a full volume must not cost the lease.
        with contextlib.suppress(OSError):
            self._file.write(json.dumps(self.record).encode())


class SlotDirectory:
    """A multiprocess directory and the slots in it.

    Holds no state but the path, so that it may be used from any process.

    Attributes:
        path: The directory, absolute.
    """

    def __init__(self, path: str) -> None:
        """Name the directory; nothing is touched.

        Args:
            path: The directory; a relative one is made absolute now.
        """
        self.path = os.path.abspath(path)

    @contextlib.contextmanager
    def locked(
        self, *, shared: bool = False, wait_seconds: float = LOCK_WAIT_SECONDS
    ) -> Iterator[LockedFile]:
        """Hold the directory lock.

        Whoever takes or wipes slots holds it alone; whoever only asks holds it shared, so that
        asking never makes a slot look leased to somebody who takes one.

        Args:
            shared: Share the lock with others that only ask.
            wait_seconds: How long to wait.

        Yields:
            The lock file.

        Raises:
            TimeoutError: Somebody else held it for longer.
            OSError: The directory is missing, not to be written, or has no flock.
        """
        deadline = time.monotonic() + wait_seconds
        with _guard:
            while True:
                file = self._open_lock(os.O_RDONLY if shared else os.O_RDWR | os.O_CREAT)
                try:
                    remaining = max(0.0, deadline - time.monotonic())
                    if not file.lock(shared=shared, wait_seconds=remaining):
                        raise TimeoutError(
                            errno.ETIMEDOUT, "another process holds the directory lock", file.path
                        )
                    if not file.is_in_place():
                        continue  # removed or replaced while we waited
                    yield file
                    return
                finally:
                    with contextlib.suppress(OSError):
                        file.unlock()
                    file.close()

    def begin(self, *, keep: bool, private: bool = False) -> tuple[Lease, bool]:
        """Start a generation if nobody is in the directory, and take the arbiter's lease.

        Only an arbiter calls this, once, before its workers exist. The wipe and the lease happen
        under one hold of the directory lock, so of several arbiters that start at once one wipes.

        Args:
            keep: Never wipe; go on from the totals of earlier runs.
            private: Note that the directory goes with its last holder.

        Returns:
            The lease, and whether the directory was wiped.

        Raises:
            OSError: The directory cannot be used.
        """
        with self.locked() as lock_file:
            in_use = self._is_in_use()
            wiped = not keep and not in_use
            if wiped:
                self._wipe()
            if in_use:
                self._check_protocol(lock_file)
            generation = _read_json(lock_file.descriptor)
            if wiped or not generation:
                generation = {"started": time.time(), "private": private}
            if not in_use or "protocol" not in generation:
                generation["protocol"] = PROTOCOL
                with contextlib.suppress(OSError):
                    lock_file.write(json.dumps(generation).encode())
            return self._acquire("arbiter"), wiped

    def acquire(self, role: Role, *, wait_seconds: float = LOCK_WAIT_SECONDS) -> Lease:
        """Take the lowest free slot.

        Args:
            role: What the process is, for the record.
            wait_seconds: How long to wait for the directory lock.

        Returns:
            The lease. What the slot's last holder alone meant (gauges of mode ``all`` and
            ``live*``) is gone.

        Raises:
            OSError: No lease is to be had.
        """
        with self.locked(wait_seconds=wait_seconds) as lock_file:
            self._check_protocol(lock_file)
            return self._acquire(role)

    def records(
        self, *, wait_seconds: float = ASK_WAIT_SECONDS
    ) -> dict[str, dict[str, Any] | None]:
        """Return every slot's record if the slot is leased, or ``None`` if it is free.

        Asking never makes a slot look leased. When the directory lock is not to be had, a slot
        whose state is unknown counts as leased, so that nothing alive is taken for dead.

        Raises:
            OSError: The directory cannot be read.
        """
        try:
            with self.locked(shared=True, wait_seconds=wait_seconds):
                return self._records(sure=True)
        except OSError:
            return self._records(sure=False)

    def last_record(self, pid: int, start_ticks: int) -> dict[str, Any]:
        """Return what a process of this pid namespace has left beside its lease, ended or not.

        Never raises; empty if it had no lease, or if its slot has had two more holders since.

        Args:
            pid: The process.
            start_ticks: When it was started, to tell it from others that had its pid before; 0 if
                that is not known.
        """
        with contextlib.suppress(OSError), os.scandir(self.path) as entries:
            for entry in entries:
                if not entry.name.endswith(".lease"):
                    continue
                with contextlib.suppress(OSError):
                    descriptor = open_file(entry.path, os.O_RDONLY)
                    try:
                        record = _read_json(descriptor)
                    finally:
                        os.close(descriptor)
                    for each in (record, record.get("previous") or {}):
                        is_its = each.get("pid") == pid and (
                            each.get("start_ticks") == start_ticks or not start_ticks
                        )
                        if is_its and each.get("pid_namespace") == pid_namespace():
                            return each
        return {}

    def generation(self) -> dict[str, Any]:
        """Return what the lock file says: ``protocol``, ``started`` (Unix seconds), ``private``.

        Never raises; empty where no arbiter has begun a generation.
        """
        try:
            file = self._open_lock(os.O_RDONLY)
        except OSError:
            return {}
        try:
            return _read_json(file.descriptor)
        finally:
            file.close()

    def is_private(self) -> bool:
        """Return whether we have made the directory for ourselves, and may remove it."""
        is_named_so = os.path.basename(self.path).startswith(_PRIVATE_PREFIX)
        return is_named_so and self.generation().get("private") is True

    def remove_live_gauges(self, *, wait_seconds: float = LOCK_WAIT_SECONDS) -> None:
        """Remove the live-gauge files of slots that nobody holds.

        For readers that do not know of leases; our own collector asks who holds a lease. Safe in a
        signal handler with ``wait_seconds=0``, where it gives up when the lock is taken.

        Raises:
            OSError: The directory lock is not to be had.
        """
        with self.locked(wait_seconds=wait_seconds):
            leased = {slot for slot, record in self._records(sure=True).items() if record}
            for name, parsed in self._metric_files():
                is_over = _is_slot(parsed.holder) and parsed.holder not in leased
                if parsed.is_live_gauge and is_over and self._is_free(name):
                    self._unlink(name)

    def remove_if_unused(self, *, wait_seconds: float = LOCK_WAIT_SECONDS) -> bool:
        """Remove the whole directory unless somebody holds a lease in it.

        Returns:
            Whether it was removed.

        Raises:
            OSError: The directory lock is not to be had.
        """
        with self.locked(wait_seconds=wait_seconds):
            if self._is_in_use():
                return False
            shutil.rmtree(self.path, ignore_errors=True)
            return True

    # Below: the caller holds the directory lock.

    def _acquire(self, role: Role) -> Lease:
        files: dict[str, list[str]] = {}
        for name, parsed in self._metric_files():
            files.setdefault(parsed.holder, []).append(name)
        for number in range(_MOST_SLOTS):
            slot = f"slot{number}"
            # Somebody writes them whose lease was removed by hand; making a new one here would have
            # it look free.
            if not all(self._is_free(name, writable=True) for name in files.get(slot, ())):
                continue
            path = os.path.join(self.path, f"{slot}.lease")
            try:
                file = LockedFile(path, os.O_RDWR | os.O_CREAT)
            except NotAFileError:
                continue
            except PermissionError:
                if os.path.lexists(path):
                    continue  # another user's slot
                raise
            try:
                if file.lock() and file.is_in_place():
                    give_to_owner(file.descriptor)
                    for name in files.get(slot, ()):
                        parsed_name = MetricFileName.parse(name)
                        if parsed_name is not None and parsed_name.belongs_to_one_holder:
                            self._unlink(name)
                    return Lease(self, slot, file, role)
            except BaseException:
                file.close()
                raise
            file.close()
        raise OSError(errno.EUSERS, f"all {_MOST_SLOTS} slots are leased", self.path)

    def _is_in_use(self) -> bool:
        """Return whether anybody holds a lease or writes a metric file.

        The files are asked too, because a lease may have been removed by hand under its holder.
        """
        with os.scandir(self.path) as entries:
            names = [entry.name for entry in entries]
        return not all(
            self._is_free(name)
            for name in names
            if name.endswith(".lease") or MetricFileName.parse(name)
        )

    def _is_free(self, name: str, *, writable: bool = False) -> bool:
        try:
            file = LockedFile(os.path.join(self.path, name), os.O_RDWR if writable else os.O_RDONLY)
        except FileNotFoundError:
            return True
        except NotAFileError:
            return not writable  # nobody's lease and nobody's metrics, but it stands in the way
        except PermissionError:
            return False  # not ours to judge
        try:
            return file.lock()
        finally:
            with contextlib.suppress(OSError):
                file.unlock()
            file.close()

    def _records(self, *, sure: bool) -> dict[str, dict[str, Any] | None]:
        records: dict[str, dict[str, Any] | None] = {}
        with os.scandir(self.path) as entries:
            names = sorted(entry.name for entry in entries if entry.name.endswith(".lease"))
        for name in names:
            slot = name.removesuffix(".lease")
            try:
                file = LockedFile(os.path.join(self.path, name), os.O_RDONLY)
            except OSError:
                continue
            try:
                free = sure and file.lock(shared=True)
                records[slot] = None if free else _read_json(file.descriptor) or {"state": ""}
            finally:
                with contextlib.suppress(OSError):
                    file.unlock()
                file.close()
        return records

    def _wipe(self) -> None:
        with os.scandir(self.path) as entries:
            names = [entry.name for entry in entries]
        for name in names:
            # Files of writers that know no slots go too, as prometheus_client's own advice says:
            # what is left of an earlier run would be added to this one's totals.
            if _is_ours(name) and name != LOCK_NAME:
                self._unlink(name)

    def _check_protocol(self, lock_file: LockedFile) -> None:
        protocol = _read_json(lock_file.descriptor).get("protocol", PROTOCOL)
        if protocol != PROTOCOL:
            raise OSError(
                errno.EPROTONOSUPPORT,
                f"the directory is in use with slot protocol {protocol}, this release of "
                f"obskit-gunicorn knows {PROTOCOL}",
                self.path,
            )

    def _metric_files(self) -> Iterator[tuple[str, MetricFileName]]:
        with os.scandir(self.path) as entries:
            names = [entry.name for entry in entries]
        for name in names:
            parsed = MetricFileName.parse(name)
            if parsed is not None:
                yield name, parsed

    def _unlink(self, name: str) -> None:
        with contextlib.suppress(FileNotFoundError, IsADirectoryError):
            os.unlink(os.path.join(self.path, name))

    def _open_lock(self, flags: int) -> LockedFile:
        path = os.path.join(self.path, LOCK_NAME)
        try:
            file = LockedFile(path, flags)
        except OSError as error:
            # A reader without the right to write may still lock.
            if error.errno not in (errno.EACCES, errno.EROFS, errno.EPERM):
                raise
            try:
                file = LockedFile(path, os.O_RDONLY)
            except FileNotFoundError:
                raise error from None
        if flags & os.O_CREAT:
            with contextlib.suppress(OSError):
                give_to_owner(file.descriptor)
        return file


def _working_directory() -> str:
    try:
        return os.getcwd()
    except OSError:  # removed
        return os.sep


class Process:
    """This process's place: its directory, its role and its lease. There is one, ``process``.

    A forked child starts over with the same directory and without a lease.

    Attributes:
        directory: The multiprocess directory, or ``None`` while metrics live in memory.
        is_private: Whether the directory was made by us and goes with its last holder.
        is_configuring: Whether a configuration was loaded whose arbiter has not begun yet. Until
            then nothing is touched, so that ``--check-config`` leaves no trace.
        role: What the process is.
        lease: The lease, or ``None`` before the first metric.
        log: Where lines about this process go; Gunicorn's error log under Gunicorn.
        exported: The directories that we have put into the environment ourselves, which are not
            the user's wish when the configuration is loaded again.
        started_in: Where Gunicorn was started first, before any ``chdir``, for relative paths.
        pending: A directory to join once it is clear that no arbiter will begin there.
        handed_lease: The descriptor of a lease that the arbiter which has started this one by
            SIGUSR2 has handed on, so that its directory is in use until this one has begun.
        published: What Gunicorn was last given, for a SIGHUP whose configuration is wrong.
    """

    def __init__(self) -> None:
        """Start without a directory."""
        self.directory: SlotDirectory | None = None
        self.is_private = False
        self.is_configuring = False
        self.role: Role = "process"
        self.lease: Lease | None = None
        self.log: Any = logging.getLogger("obskit_gunicorn")
        self.exported: set[str] = set()
        self.started_in = _working_directory()
        self.pending: str | None = None
        self.handed_lease: int | None = None
        self.published: dict[str, Any] | None = None
        self._arbiter_pid = 0
        self._begun: set[str] = set()
        self._facts: dict[str, object] = {}

    def begin(self, path: str | None, *, keep: bool, user: int, group: int) -> bool:
        """Take the arbiter's place in a directory; runs in the arbiter, may be called again.

        Called again for a directory it never wipes: an arbiter begins one generation.

        Args:
            path: The directory, made if it is missing; ``None`` for a new private one.
            keep: Go on from the totals of earlier runs.
            user: The uid that workers will run as.
            group: Their gid.

        Returns:
            Whether a new generation was started.

        Raises:
            OSError: The directory cannot be used, or no lease is to be had in it.
        """
        with _guard:
            try:
                return self._begin(path, keep=keep, user=user, group=group)
            finally:
                self._drop_handed_lease()

    def _begin(self, path: str | None, *, keep: bool, user: int, group: int) -> bool:
        self.release()
        self.role, self.is_configuring, self.pending = "arbiter", False, None
        self._arbiter_pid = os.getpid()
        set_owner(user, group)
        if path is None:
            self.directory = None
            _remove_leftovers(user)
            self.directory, self.lease = _make_private(user, group)
            self.is_private = True
            self._begun.add(self.directory.path)
            return True
        directory = SlotDirectory(path)
        again = directory.path in self._begun
        self._begun.add(directory.path)
        was_here = self.directory is not None and self.directory.path == directory.path
        private = directory.is_private() or (was_here and self.is_private)
        if not was_here:
            self.directory = None
        os.makedirs(directory.path, mode=0o700 if private else 0o755, exist_ok=True)
        _let_in(directory.path, user, group)
        try:
            self.lease, wiped = directory.begin(keep=keep or again, private=private)
        except OSError as error:
            if error.errno not in _PASSING:
                raise
            # Workers may have better luck, and this process when it tries again.
            self.directory, self.is_private = directory, private
            raise
        self.directory, self.is_private = directory, private
        return wiped

    def _drop_handed_lease(self) -> None:
        descriptor, self.handed_lease = self.handed_lease, None
        if descriptor is not None:
            with contextlib.suppress(OSError):
                if stat.S_ISREG(os.fstat(descriptor).st_mode):
                    os.close(descriptor)

    def join(self, path: str) -> None:
        """Use a directory from a process that Gunicorn did not start; takes no lease yet.

        Args:
            path: The directory, made if it is missing.

        Raises:
            OSError: The directory cannot be made.
        """
        directory = SlotDirectory(path)
        os.makedirs(directory.path, mode=0o755, exist_ok=True)
        self.directory = directory

    def join_pending(self) -> None:
        """Join the directory that was named while a configuration was loaded.

        Does nothing until it is clear that no configuration class will have an arbiter begin there.
        """
        path = self.pending
        if path is None or self.is_configuring or is_loading_configuration():
            return
        self.pending = None
        with contextlib.suppress(OSError):
            self.join(path)

    @property
    def has_ever_begun(self) -> bool:
        """Whether this process, or one that it was forked from, has begun a generation."""
        return bool(self._begun)

    def has_begun(self) -> bool:
        """Return whether this arbiter's generation in its directory has begun, and it holds on."""
        return (
            self.directory is not None
            and self.directory.path in self._begun
            and self.lease is not None
            and self.lease.is_in_place()
        )

    def acquire(self, *, wait_seconds: float = LOCK_WAIT_SECONDS) -> Lease:
        """Return the lease of this process, taking one if it has none.

        Args:
            wait_seconds: How long to wait for the directory lock.

        Raises:
            NotYetError: The process has not dropped root yet.
            OSError: No lease is to be had.
        """
        with _guard:
            if self.lease is None:
                if self.directory is None:
                    raise OSError(errno.ENOENT, "there is no multiprocess directory")
                ids = owner()
                if self.role == "worker" and ids is not None and os.geteuid() != ids[0]:
                    raise NotYetError(errno.EAGAIN, "the worker has not dropped root yet")
                self.lease = self.directory.acquire(self.role, wait_seconds=wait_seconds)
                self.lease.note(**self._facts)
            return self.lease

    def note(self, **facts: object) -> None:
        """Change the record of this lease, and of those that this process takes after it.

        Never raises.
        """
        self._facts.update(facts)
        if self.lease is not None:
            self.lease.note(**facts)

    def release(self) -> None:
        """End the lease, if there is one."""
        with _guard:
            lease, self.lease = self.lease, None
            if lease is not None:
                lease.release()

    def end(self) -> None:
        """Leave the directory for good, and remove a private one that nobody else is in."""
        with _guard:
            self.release()
            directory, self.directory = self.directory, None
        if directory is None or not self.is_private:
            return
        with contextlib.suppress(OSError):
            deadline = time.monotonic() + _DYING_SECONDS
            # Workers that were killed at the end of a stop are still on their way out; another
            # arbiter is there to stay.
            while not directory.remove_if_unused() and time.monotonic() < deadline:
                held = [record for record in directory.records().values() if record is not None]
                if any(record.get("role") == "arbiter" for record in held):
                    return
                pause(_POLL_SECONDS)

    def is_in_charge(self) -> bool:
        """Return whether a private directory is this process's to remove when it ends.

        It is the arbiter's, and after the arbiter was killed the last worker's.
        """
        orphaned = self.role == "worker" and os.getppid() != self._arbiter_pid
        return self.role == "arbiter" or (orphaned and self.is_private)

    def describe(self) -> str:
        """Return one line for people: where metrics are kept and what this process holds."""
        if self.directory is None:
            return "metrics stay in the memory of each process"
        kind = "a private directory" if self.is_private else "directory"
        held = f", {self.role} in {self.lease.slot}" if self.lease else ""
        return f"metrics are shared in {kind} {self.directory.path}{held}"

    def forked(self) -> None:
        """Start over in a forked child: drop the parent's lease, which the parent goes on holding.

        Runs between fork and the child's first line of Python; must not log, import or wait.
        """
        lease, self.lease = self.lease, None
        if lease is not None:
            lease.drop()
        self.role = "process"
        self._facts = {}


process = Process()
"""The place of this process."""


def explain(error: OSError, path: str) -> str:
    """Say in words what keeps a process from sharing its metrics, and what to do.

    Args:
        error: What the kernel said.
        path: The multiprocess directory.
    """
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        mend = "the volume is full: give it more room (sizeLimit of an emptyDir)"
    elif error.errno in (errno.EMFILE, errno.ENFILE):
        mend = "no file descriptors are left: raise the limit (ulimit -n)"
    elif isinstance(error, NotAFileError):
        mend = "remove what stands there"
    elif error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        mend = f"make it writable for uid {os.geteuid()}, or unset PROMETHEUS_MULTIPROC_DIR"
    elif error.errno in (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL):
        mend = "the file system has no flock: use a local one, such as an emptyDir"
    elif error.errno in (errno.ENOTDIR, errno.EEXIST):
        mend = "it is no directory: remove it, or set PROMETHEUS_MULTIPROC_DIR to another path"
    elif error.errno == errno.ENOENT:
        mend = "it is gone: a SIGHUP to the arbiter or the next worker makes it anew"
    else:
        mend = "see docs/how-it-works.md"
    return f"{path}: {error}; {mend}"


def is_loading_configuration() -> bool:
    """Return whether this is called, at whatever remove, by Gunicorn loading its configuration."""
    frame: types.FrameType | None = sys._getframe()
    while frame is not None:
        if (
            frame.f_code.co_name == "do_load_config"
            and frame.f_globals.get("__name__") == "gunicorn.app.base"
        ):
            return True
        frame = frame.f_back
    return False


def forked() -> None:
    """Start over in a forked child.

    Runs by itself after :func:`os.fork`; a child that was forked without Python's knowledge calls
    it when it notices. Must not log, import or wait.
    """
    global _guard  # noqa: PLW0603 - a fresh lock is the only safe one after a fork
    _guard = threading.RLock()
    process.forked()


def _before_fork() -> None:
    _guard.acquire()


def _after_fork() -> None:
    _guard.release()


os.register_at_fork(before=_before_fork, after_in_parent=_after_fork, after_in_child=forked)


def is_ready_worker(record: dict[str, Any]) -> bool:
    """Return whether what stands beside a lease is about a worker that has booted."""
    return record.get("role") == "worker" and record.get("state") == "booted"


def _is_slot(name: str) -> bool:
    return name.startswith("slot") and name[4:].isdigit()


def _private_parents(user: int) -> Iterator[str]:
    """Yield directories for a private one, in memory first."""
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    # Workers that run as somebody else cannot pass through the directory of this user.
    if runtime and user == os.geteuid():
        yield runtime
    yield "/dev/shm"
    with contextlib.suppress(FileNotFoundError):
        yield tempfile.gettempdir()


def _make_private(user: int, group: int) -> tuple[SlotDirectory, Lease]:
    error: OSError = FileNotFoundError(errno.ENOENT, "no directory for temporary files")
    for parent in _private_parents(user):
        if not (os.path.isabs(parent) and os.access(parent, os.W_OK | os.X_OK)):
            continue
        try:
            # Under another name until it is leased: a server that starts at the same time and
            # removes what killed runs have left must not take it for a leftover.
            unfinished = tempfile.mkdtemp(prefix=f".{_PRIVATE_PREFIX}{user}-", dir=parent)
        except OSError as reason:
            error = reason
            continue
        try:
            if os.geteuid() == 0:
                os.chown(unfinished, user, group)
            directory = SlotDirectory(unfinished)
            lease, _ = directory.begin(keep=False, private=True)
            path = os.path.join(parent, os.path.basename(unfinished)[1:])
            os.rename(unfinished, path)
        except OSError as reason:
            shutil.rmtree(unfinished, ignore_errors=True)
            error = reason
            continue
        lease.moved_to(path)
        return lease.directory, lease
    raise error


def _remove_leftovers(user: int) -> None:
    """Remove the private directories that killed runs of this user have left."""
    for parent in _private_parents(user):
        with contextlib.suppress(OSError), os.scandir(parent) as entries:
            for entry in entries:
                unfinished = entry.name.startswith("." + _PRIVATE_PREFIX)
                if not unfinished and not entry.name.startswith(_PRIVATE_PREFIX):
                    continue
                with contextlib.suppress(OSError):
                    status = entry.stat(follow_symlinks=False)
                    if not stat.S_ISDIR(status.st_mode) or status.st_uid != user:
                        continue
                    directory = SlotDirectory(entry.path)
                    if unfinished:
                        if time.time() - status.st_mtime < _STALE_SECONDS:
                            continue
                    elif not directory.is_private():
                        continue  # somebody else's, of a like name
                    directory.remove_if_unused(wait_seconds=0)


def _let_in(path: str, user: int, group: int) -> None:
    """Give a directory and our files in it to the workers' user, where root is the arbiter's.

    Only a directory that holds nothing but our files, and only what is no link: who may write
    beside it must not get root to give away something else.
    """
    if os.geteuid() != 0 or user == 0:
        return
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return
    try:
        status = os.fstat(descriptor)
        if status.st_uid == user:
            bits = status.st_mode >> 6
        elif status.st_gid == group:
            bits = status.st_mode >> 3
        else:
            bits = status.st_mode
        names = os.listdir(descriptor)
        ours = [name for name in names if _is_ours(name)]
        if bits & 0o3 != 0o3 and len(ours) == len(names):
            os.fchown(descriptor, user, group)
    finally:
        os.close(descriptor)
    for name in ours:
        with contextlib.suppress(OSError):
            file = open_file(os.path.join(path, name), os.O_RDWR)
            try:
                os.fchown(file, user, group)
            finally:
                os.close(file)


def _is_ours(name: str) -> bool:
    """Return whether a file name is one that we, or prometheus_client, give."""
    if name == LOCK_NAME or MetricFileName.parse(name.removesuffix(".damaged")):
        return True
    holder = name.rpartition("_")[2].partition(".")[0]
    return _is_slot(holder) and name.endswith((".lease", ".new"))


def _read_json(descriptor: int) -> dict[str, Any]:
    try:
        content = json.loads(os.pread(descriptor, 4096, 0))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def pid_namespace() -> str:
    """Return the name of this process's pid namespace; empty if it cannot be known."""
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""


def start_ticks(pid: int | None = None) -> int:
    """Return when a process started, in clock ticks since boot (proc(5)); 0 if unknown.

    Args:
        pid: The process, ended or not as long as nobody has reaped it; this one by default.
    """
    try:
        with open(f"/proc/{pid or 'self'}/stat", "rb") as file:
            return int(file.read().rpartition(b")")[2].split()[19])
    except (OSError, ValueError, IndexError):
        return 0
