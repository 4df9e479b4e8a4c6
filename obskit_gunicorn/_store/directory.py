"""The multiprocess directory: its slots, who holds them, and wiping it for a new generation.

A *slot* is a number that one process at a time owns: ``slot0``, ``slot1``, ... Only its owner
writes the slot's metric files. They outlive the process, and the next process in the slot continues
from their values. So when a process ends, nothing must be deleted or merged, and nothing is lost.

A *lease* is a process's exclusive hold on a slot; see :mod:`obskit_gunicorn._store.leases`.

A *generation* is the time between two wipes. Only an arbiter wipes, once, when it starts and
nobody holds a lease.

The directory contains::

    slots.lock              the directory lock; records the protocol and the generation
    slotN.lease             the lease of slot N, with a record of its holder, for people
    <type>_slotN.db         metric files (see obskit_gunicorn._store.fileformat)
    <type>_slotN.new        a metric file that is not complete yet
    *.db.damaged            a file that was found damaged, kept for people

Slot names contain no ``_`` and are not numbers. Some readers take the third part of a file name for
a pid: they get the whole slot name, which cannot be a pid.

Leases may be taken and released while other threads run and fork; a fork waits until no descriptor
is half taken.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import time
from typing import TYPE_CHECKING, Any

from obskit_gunicorn._store import forks
from obskit_gunicorn._store.fileformat import MetricFileName
from obskit_gunicorn._store.identity import give_to_owner
from obskit_gunicorn._store.leases import Lease, Role, read_json
from obskit_gunicorn._store.locks import LockedFile, NotAFileError

if TYPE_CHECKING:
    from collections.abc import Iterator

PROTOCOL = 1
"""The version of the rules in this module. A directory in use with another version is not used."""

LOCK_NAME = "slots.lock"
LOCK_WAIT_SECONDS = 4.0
"""How long to wait for the directory lock before metrics stay in memory."""

ASK_WAIT_SECONDS = 0.1
"""How long to wait for it only to read who holds which lease, as each scrape does."""

_MOST_SLOTS = 65536


class SlotDirectory:
    """A multiprocess directory and the slots in it.

    Holds no state but the path, so that it may be used from any process.

    Attributes:
        path: The directory, absolute.
    """

    def __init__(self, path: str) -> None:
        """Set the path; touches nothing.

        Args:
            path: The directory; a relative path is made absolute now.
        """
        self.path = os.path.abspath(path)

    @contextlib.contextmanager
    def locked(
        self, *, shared: bool = False, wait_seconds: float = LOCK_WAIT_SECONDS
    ) -> Iterator[LockedFile]:
        """Hold the directory lock.

        Whoever takes or wipes slots holds it exclusively; whoever only reads holds it shared, so
        that a read never makes a slot look leased to a process that takes one.

        Args:
            shared: Share the lock with others that only read.
            wait_seconds: How long to wait.

        Yields:
            The lock file.

        Raises:
            TimeoutError: Another process held it for longer.
            OSError: The directory is missing or not writable, or has no flock.
        """
        deadline = time.monotonic() + wait_seconds
        with forks.guard():
            while True:
                with self._open_lock(os.O_RDONLY if shared else os.O_RDWR | os.O_CREAT) as file:
                    remaining = max(0.0, deadline - time.monotonic())
                    if not file.lock(shared=shared, wait_seconds=remaining):
                        raise TimeoutError(
                            errno.ETIMEDOUT, "another process holds the directory lock", file.path
                        )
                    if file.is_in_place():  # neither removed nor replaced while we waited
                        yield file
                        return

    def start_generation(
        self, *, keep: bool, private: bool = False, started: float | None = None
    ) -> tuple[Lease, bool]:
        """Start a generation if nobody uses the directory, and take the arbiter's lease.

        Only an arbiter calls this, once, before its workers exist. It wipes and takes the lease
        while it holds the directory lock, so if several arbiters start at once, only one wipes.

        Args:
            keep: Never wipe; continue from the totals of earlier runs.
            private: Record that the last holder removes the directory.
            started: When the generation began that this one continues, because its directory was
                removed.

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
            generation = read_json(lock_file.descriptor)
            if wiped or not generation:
                generation = {"started": started or time.time(), "private": private}
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
            The lease. Files that belong to the slot's last holder only (gauges of mode ``all`` and
            ``live*``) have been removed.

        Raises:
            OSError: The lease cannot be taken.
        """
        with self.locked(wait_seconds=wait_seconds) as lock_file:
            self._check_protocol(lock_file)
            return self._acquire(role)

    def records(
        self, *, wait_seconds: float = ASK_WAIT_SECONDS
    ) -> dict[str, dict[str, Any] | None]:
        """Return the record of every slot that is leased, and ``None`` for every free slot.

        This never makes a slot look leased to others. If the directory lock cannot be taken, every
        slot counts as leased, so that no living process is taken for dead.

        Raises:
            OSError: The directory cannot be read.
        """
        try:
            with self.locked(shared=True, wait_seconds=wait_seconds):
                return self._records(sure=True)
        except OSError:
            return self._records(sure=False)

    def generation(self) -> dict[str, Any]:
        """Return what the lock file says: ``protocol``, ``started`` (Unix seconds), ``private``.

        Never raises; empty if no arbiter has begun a generation.
        """
        try:
            with self._open_lock(os.O_RDONLY) as file:
                return read_json(file.descriptor)
        except OSError:
            return {}

    def remove_live_gauges(self, *, wait_seconds: float = LOCK_WAIT_SECONDS) -> None:
        """Remove the live-gauge files of slots that nobody holds.

        For readers that do not know leases; our own collector checks the leases. Safe in signal
        context with ``wait_seconds=0``: then it gives up if the lock is taken.

        Raises:
            OSError: The directory lock cannot be taken.
        """
        with self.locked(wait_seconds=wait_seconds):
            leased = {slot for slot, record in self._records(sure=True).items() if record}
            for name, parsed in self._metric_files():
                is_over = is_slot(parsed.holder) and parsed.holder not in leased
                if parsed.is_live_gauge and is_over and self._is_free(name):
                    self._unlink(name)

    def remove_if_unused(self, *, wait_seconds: float = LOCK_WAIT_SECONDS) -> bool:
        """Remove the whole directory unless it is in use.

        Returns:
            Whether it was removed.

        Raises:
            OSError: The directory lock cannot be taken.
        """
        with self.locked(wait_seconds=wait_seconds):
            if self._is_in_use():
                return False
            shutil.rmtree(self.path, ignore_errors=True)
            return True

    def give_to(self, user: int, group: int) -> None:
        """Make the workers' user the owner of our files in the directory; does nothing unless root.

        The directory itself changes its owner only if it contains nothing but our files. Links are
        not followed: a user who may write next to it must not make root give away something else.

        Args:
            user: The uid of the workers.
            group: Their gid.
        """
        if os.geteuid() != 0 or user == 0:
            return
        try:
            descriptor = os.open(
                self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
            )
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
            with contextlib.suppress(OSError), self._open(name, os.O_RDWR) as file:
                os.fchown(file.descriptor, user, group)

    # Below: the caller holds the directory lock.

    def _acquire(self, role: Role) -> Lease:
        files: dict[str, dict[str, MetricFileName]] = {}
        for name, parsed in self._metric_files():
            files.setdefault(parsed.holder, {})[name] = parsed
        for number in range(_MOST_SLOTS):
            slot = f"slot{number}"
            own_files = files.get(slot, {})
            # If the lease of a living process was removed by hand, its files are still locked.
            if not all(self._is_free(name, writable=True) for name in own_files):
                continue
            try:
                file = self._open(f"{slot}.lease", os.O_RDWR | os.O_CREAT)
            except NotAFileError:
                continue
            except PermissionError as error:
                if os.path.lexists(error.filename):
                    continue  # another user's slot
                raise
            try:
                if file.lock() and file.is_in_place():
                    give_to_owner(file.descriptor)
                    for name, parsed in own_files.items():
                        if parsed.belongs_to_one_holder:
                            self._unlink(name)
                    return Lease(slot, file, role)
            except BaseException:
                file.close()
                raise
            file.close()
        raise OSError(errno.EUSERS, f"all {_MOST_SLOTS} slots are leased", self.path)

    def _is_in_use(self) -> bool:
        """Return whether anybody holds a lease or writes a metric file.

        The metric files are checked too, because the lease of a living process may have been
        removed by hand.
        """
        return not all(
            self._is_free(name)
            for name in os.listdir(self.path)
            if name.endswith(".lease") or MetricFileName.parse(name)
        )

    def _is_free(self, name: str, *, writable: bool = False) -> bool:
        try:
            with self._open(name, os.O_RDWR if writable else os.O_RDONLY) as file:
                return file.lock()
        except FileNotFoundError:
            return True
        except NotAFileError:
            return not writable  # nobody's lease and nobody's metrics, but the name is taken
        except PermissionError:
            return False  # unknown

    def _records(self, *, sure: bool) -> dict[str, dict[str, Any] | None]:
        records: dict[str, dict[str, Any] | None] = {}
        for name in self._lease_names():
            try:
                file = self._open(name)
            except OSError:
                continue
            with file:
                free = sure and file.lock(shared=True)
                record = None if free else read_json(file.descriptor) or {"state": ""}
                records[name.removesuffix(".lease")] = record
        return records

    def _wipe(self) -> None:
        for name in os.listdir(self.path):
            # Files of writers that do not know slots are removed too, as prometheus_client advises:
            # the counts of an earlier run would be added to the totals of this one.
            if _is_ours(name) and name != LOCK_NAME:
                self._unlink(name)

    def _check_protocol(self, lock_file: LockedFile) -> None:
        protocol = read_json(lock_file.descriptor).get("protocol", PROTOCOL)
        if protocol != PROTOCOL:
            raise OSError(
                errno.EPROTONOSUPPORT,
                f"the directory is in use with slot protocol {protocol}; this release of "
                f"obskit-gunicorn supports {PROTOCOL}",
                self.path,
            )

    def _metric_files(self) -> Iterator[tuple[str, MetricFileName]]:
        for name in os.listdir(self.path):
            parsed = MetricFileName.parse(name)
            if parsed is not None:
                yield name, parsed

    def _lease_names(self) -> list[str]:
        return sorted(name for name in os.listdir(self.path) if name.endswith(".lease"))

    def _open(self, name: str, flags: int = os.O_RDONLY) -> LockedFile:
        return LockedFile(os.path.join(self.path, name), flags)

    def _unlink(self, name: str) -> None:
        with contextlib.suppress(FileNotFoundError, IsADirectoryError):
            os.unlink(os.path.join(self.path, name))

    def _open_lock(self, flags: int) -> LockedFile:
        try:
            file = self._open(LOCK_NAME, flags)
        except OSError as error:
            # A reader may lock without the right to write.
            if error.errno not in (errno.EACCES, errno.EROFS, errno.EPERM):
                raise
            try:
                file = self._open(LOCK_NAME)
            except FileNotFoundError:
                raise error from None
        if flags & os.O_CREAT:
            with contextlib.suppress(OSError):
                give_to_owner(file.descriptor)
        return file


def explain(error: OSError, path: str) -> str:
    """Return why a process cannot share its metrics, and what to do about it.

    Args:
        error: The error of the system call that failed.
        path: The multiprocess directory.
    """
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        hint = "the volume is full: give it more room (sizeLimit of an emptyDir)"
    elif error.errno in (errno.EMFILE, errno.ENFILE):
        hint = "no file descriptors are left: raise the limit (ulimit -n)"
    elif isinstance(error, NotAFileError):
        hint = "remove that file or directory"
    elif error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        hint = f"make it writable for uid {os.geteuid()}, or unset PROMETHEUS_MULTIPROC_DIR"
    elif error.errno in (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL):
        hint = "the file system has no flock: use a local one, such as an emptyDir"
    elif error.errno in (errno.ENOTDIR, errno.EEXIST):
        hint = "it is not a directory: remove it, or set PROMETHEUS_MULTIPROC_DIR to another path"
    elif error.errno == errno.ENOENT:
        hint = "it was removed: the next scrape, a SIGHUP or the next fork creates it again"
    else:
        hint = "see docs/how-it-works.md"
    return f"{path}: {error}; {hint}"


def is_slot(name: str) -> bool:
    return name.startswith("slot") and name[4:].isdigit()


def _is_ours(name: str) -> bool:
    """Return whether we, or prometheus_client, create files with this name."""
    if name == LOCK_NAME or MetricFileName.parse(name.removesuffix(".damaged")):
        return True
    holder = name.rpartition("_")[2].partition(".")[0]
    return is_slot(holder) and name.endswith((".lease", ".new"))
