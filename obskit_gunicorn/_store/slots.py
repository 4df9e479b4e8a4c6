"""Slots, leases and generations of a multiprocess directory.

A *slot* is a numbered place in the directory whose metric files one process at a time writes:
``slot0``, ``slot1``, ... Its files outlive the process; the next process in the slot continues
from their values, so there is nothing to delete, to merge or to lose when a process ends.

A *lease* is a process's exclusive hold on a slot: an ``flock`` on ``slotN.lease``. It does not
expire by time; it ends when the process releases it or ends, however it ends. Liveness is never
tested by pid, since processes of several pid namespaces may share the directory.

A *generation* is the time between two wipes. Only an arbiter wipes, once, when it starts and
nobody holds a lease.

What stands in the directory::

    slots.lock              the directory lock; its content says protocol and generation
    slotN.lease             the lease of slot N, with a record about its holder for people to read
    <type>_slotN.db         metric files (see obskit_gunicorn._store.format)
    <type>_slotN.new        a metric file that is not whole yet
    *.db.damaged            a file that was found damaged, kept for people to look at

Slot names have no ``_`` and are not numbers, so that readers which take the third part of a
file name for a pid get one whole word that cannot be a pid.

Taking and releasing leases is safe beside other threads and beside forks; a fork waits until no
descriptor is half taken.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import time
from typing import TYPE_CHECKING, Any, Literal

from obskit_gunicorn._store import forks
from obskit_gunicorn._store.format import MetricFileName
from obskit_gunicorn._store.identity import give_to_owner, pid_namespace, start_ticks
from obskit_gunicorn._store.locks import LockedFile, NotAFileError

if TYPE_CHECKING:
    from collections.abc import Iterator

Role = Literal["arbiter", "worker", "process"]

PROTOCOL = 1
"""The version of the rules in this module. A directory in use by a later one is left alone."""

LOCK_NAME = "slots.lock"
LOCK_WAIT_SECONDS = 4.0
"""How long to wait for the directory lock before metrics go on in memory."""

ASK_WAIT_SECONDS = 0.1
"""How long to wait for it only to ask who is there, as each scrape does."""

_MOST_SLOTS = 65536

_REMEMBERED = ("pid", "pid_namespace", "start_ticks", "state", "is_counted")


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
        self.note()

    def note(self, **facts: object) -> None:
        """Change the record; never raises. Plain file work, so it may be called anywhere."""
        self.record.update(facts)
        # For people and for telemetry only: a full volume must not cost the lease.
        with contextlib.suppress(OSError):
            self._file.write(json.dumps(self.record).encode())

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
        self._file.release()

    def drop(self) -> None:
        """Close a forked child's copy of its parent's lease, which the parent goes on holding."""
        self._file.close()


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

    def start_generation(self, *, keep: bool, private: bool = False) -> tuple[Lease, bool]:
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
        with contextlib.suppress(OSError):
            for name in self._lease_names():
                with contextlib.suppress(OSError), self._open(name) as file:
                    record = _read_json(file.descriptor)
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
            with self._open_lock(os.O_RDONLY) as file:
                return _read_json(file.descriptor)
        except OSError:
            return {}

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

    def give_to(self, user: int, group: int) -> None:
        """Give the directory and our files in it to the workers' user; root's to do.

        Only a directory that holds nothing but our files, and never a link: whoever may write
        beside it must not get root to give away something else.

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
            # Somebody writes them whose lease was removed by hand; making a new one here would have
            # it look free.
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
            return not writable  # nobody's lease and nobody's metrics, but it stands in the way
        except PermissionError:
            return False  # not ours to judge

    def _records(self, *, sure: bool) -> dict[str, dict[str, Any] | None]:
        records: dict[str, dict[str, Any] | None] = {}
        for name in self._lease_names():
            try:
                file = self._open(name)
            except OSError:
                continue
            with file:
                free = sure and file.lock(shared=True)
                record = None if free else _read_json(file.descriptor) or {"state": ""}
                records[name.removesuffix(".lease")] = record
        return records

    def _wipe(self) -> None:
        for name in os.listdir(self.path):
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
            # A reader without the right to write may still lock.
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
    """Say in words what keeps a process from sharing its metrics, and what to do.

    Args:
        error: What the kernel said.
        path: The multiprocess directory.
    """
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        hint = "the volume is full: give it more room (sizeLimit of an emptyDir)"
    elif error.errno in (errno.EMFILE, errno.ENFILE):
        hint = "no file descriptors are left: raise the limit (ulimit -n)"
    elif isinstance(error, NotAFileError):
        hint = "remove what stands there"
    elif error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        hint = f"make it writable for uid {os.geteuid()}, or unset PROMETHEUS_MULTIPROC_DIR"
    elif error.errno in (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL):
        hint = "the file system has no flock: use a local one, such as an emptyDir"
    elif error.errno in (errno.ENOTDIR, errno.EEXIST):
        hint = "it is not a directory: remove it, or set PROMETHEUS_MULTIPROC_DIR to another path"
    elif error.errno == errno.ENOENT:
        hint = "it is gone: a SIGHUP to the arbiter or the next worker makes it anew"
    else:
        hint = "see docs/how-it-works.md"
    return f"{path}: {error}; {hint}"


def is_ready_worker(record: dict[str, Any]) -> bool:
    """Return whether what stands beside a lease is about a worker that has booted."""
    return record.get("role") == "worker" and record.get("state") == "booted"


def _is_slot(name: str) -> bool:
    return name.startswith("slot") and name[4:].isdigit()


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
