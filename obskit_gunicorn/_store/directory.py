"""The multiprocess directory: its slots, who holds them, and wiping it for a new generation.

A *slot* is a number that one process at a time owns: ``slot0``, ``slot1``, ... Only its owner
writes the slot's metric files. They outlive the process, and the next process in the slot continues
from their values. So when a process ends, nothing must be deleted or merged, and nothing is lost.

A *lease* is a process's exclusive hold on a slot; see :mod:`obskit_gunicorn._store.leases`.

A *generation* is the time between two wipes. Only an arbiter wipes, once, when it starts and
nobody holds a lease.

The directory contains::

    slots.lock              the directory lock, its owner's alone; records protocol and generation
    slots.generation        the same record, for readers
    exporter.sock           the exporter's socket for workers, if many hosts come together
    fleet.json              what of this generation was published, in the same case
    push.lock               whose turn it is to push this generation's metrics, if they are
    series.removed          what was removed (see obskit_gunicorn._store.baselines)
    series.admitted         what has a place in the budget (see obskit_gunicorn._store.admissions)
    series.lock             the lock of who appends to these lists, its owner's alone
    unpublished-*           what a killed server has counted and nobody has published yet
    slotN.lease             the lease of slot N, with a record of its holder, for people
    <type>_slotN.db         metric files (see obskit_gunicorn._store.fileformat)
    <type>_slotN.col        the values of one once more (see obskit_gunicorn._store.column)
    slotN.exemplars         examples of what was counted (see obskit_gunicorn._store.exemplars)
    slotN.states            what Infos and Enums say (see obskit_gunicorn._store.states)
    <type>_slotN.new        a metric file that is not complete yet, and so *.col.new and others
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
import stat
import time
from typing import TYPE_CHECKING, Any, NamedTuple

from obskit_gunicorn._problem import Problem
from obskit_gunicorn._store import admissions, baselines, forks, journal, note, remains
from obskit_gunicorn._store.column import column_path, metric_file_path
from obskit_gunicorn._store.exemplars import SUFFIX as EXEMPLARS
from obskit_gunicorn._store.fileformat import MetricFileName, is_slot
from obskit_gunicorn._store.identity import acting_user
from obskit_gunicorn._store.leases import RECORD_BYTES, Lease, Role, read_json
from obskit_gunicorn._store.locks import (
    LockedFile,
    NotAFileError,
    is_claimed,
    open_directory,
    open_file,
)
from obskit_gunicorn._store.states import SUFFIX as STATES

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

PROTOCOL = 2
"""The version of the rules in this module. A directory in use with a later version is not used."""

_BY_FLOCK = 1
"""The protocol whose claims are flocks: that of older releases, and of systems without others."""

LOCK_NAME = "slots.lock"
GENERATION_NAME = "slots.generation"
SOCKET_NAME = "exporter.sock"
"""Where the exporter answers workers that show the metrics of many hosts."""

PUSH_NAME = "push.lock"
"""Whose turn it is to push, and what was pushed."""

LOCK_WAIT_SECONDS = 2.0
"""How long to wait for the directory lock before metrics stay in memory."""

ASK_WAIT_SECONDS = 0.1
"""How long to wait for it only to read who holds which lease, where claims are flocks."""

_OLD_LOCK_WAIT_SECONDS = 0.25
"""How long to wait for a lock file that others can open, before it is replaced."""

_MOST_SLOTS = 65536


class Started(NamedTuple):
    """What has begun with an arbiter."""

    lease: Lease
    """The arbiter's."""

    is_wiped: bool
    """Whether the directory was wiped."""

    problem: OSError | None
    """Why what a killed server had not published could not be kept, if so."""


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
        self,
        *,
        shared: bool = False,
        only_asks: bool = False,
        wait_seconds: float = LOCK_WAIT_SECONDS,
    ) -> Iterator[LockedFile]:
        """Hold the directory lock.

        Whoever takes a slot holds it shared, whoever removes or replaces files alone.

        Args:
            shared: Share the lock.
            only_asks: Need neither the right to write nor the lock file to exist.
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
                with self._open(LOCK_NAME) if only_asks else self._open_lock() as file:
                    remaining = max(0.0, deadline - time.monotonic())
                    if not file.lock(shared=shared, wait_seconds=remaining):
                        raise TimeoutError(
                            errno.ETIMEDOUT, "another process holds the directory lock", file.path
                        )
                    if file.is_in_place():  # neither removed nor replaced while we waited
                        yield file
                        return

    def start_generation(
        self,
        *,
        keep: bool,
        private: bool = False,
        continued: Mapping[str, Any] | None = None,
        keep_unpublished: bool = False,
    ) -> Started:
        """Start a generation if nobody uses the directory, and take the arbiter's lease.

        Only an arbiter calls this, once, before its workers exist. It wipes and takes the lease
        while it holds the directory lock, so if several arbiters start at once, only one wipes.

        Args:
            keep: Never wipe; continue from the totals of earlier runs.
            private: Record that the last holder removes the directory.
            continued: What tells the generation that this one continues, because its directory or
                its record was removed: ``started`` and ``id``.
            keep_unpublished: Keep what a killed server has counted and its exporter has not
                published, see :mod:`obskit_gunicorn._store.remains`.

        Raises:
            OSError: The directory cannot be used.
        """
        self._close_lock()
        with self.locked() as lock_file:
            generation = read_json(lock_file.descriptor)
            in_use = self._is_in_use(by_flock=_is_by_flock(generation))
            wiped, problem = not keep and not in_use, None
            if wiped:
                problem = self._wipe(keep_unpublished=keep_unpublished)
            if in_use:
                self._check_protocol(generation)
            begins = wiped or "started" not in generation
            if begins:
                began = continued or {"started": time.time(), "id": os.urandom(8).hex()}
                generation = {**generation, **began, "private": private}
            if not in_use or "protocol" not in generation:
                generation["protocol"] = _best_protocol(lock_file)
                begins = True
            if begins:  # also in use, where the record was removed and a worker came first
                self._record(lock_file, generation)
            lease = self._acquire("arbiter", by_flock=_is_by_flock(generation), alone=True)
            assert lease is not None
            if keep_unpublished:
                self._begin_note(str(generation.get("id", "")))
            return Started(lease, wiped, problem)

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
        lease, alone = None, False
        while lease is None:
            with self.locked(shared=not alone, wait_seconds=wait_seconds) as lock_file:
                generation = read_json(lock_file.descriptor)
                self._check_protocol(generation)
                by_flock = _is_by_flock(generation)
                lease = self._acquire(role, by_flock=by_flock, alone=alone)
            alone = True
        return lease

    def records(
        self, *, wait_seconds: float = ASK_WAIT_SECONDS
    ) -> dict[str, dict[str, Any] | None]:
        """Return the record of every slot that is leased, and ``None`` for every free slot.

        This takes nothing, so it never makes a slot look leased to others and waits for nobody.
        Only where claims are flocks it needs the directory lock. Where it cannot be known, every
        slot counts as leased, so that no living process is taken for dead.

        Raises:
            OSError: The directory cannot be read.
        """
        try:
            if not _is_by_flock(self.generation()):
                return self._records(by_flock=False)
            with self.locked(shared=True, only_asks=True, wait_seconds=wait_seconds):
                return self._records(by_flock=True)
        except OSError:
            return self._records(by_flock=None)

    def untouched(self, slot: str) -> bytes | None:
        """Return what stays the same as long as nobody takes a slot that is free.

        Who takes a slot writes its record first. So what was written to the slot's files before
        this was asked is all there is, as long as the answer is the same. On a full volume a record
        may stay as it was, where files are copied when they are written (not on a tmpfs, where a
        byte that is there can be written always); there each store changes the times of its file.

        Returns:
            ``None`` if somebody holds the slot, or it is unknown.
        """
        try:
            with self._open(f"{slot}.lease") as file:
                status = os.fstat(file.descriptor)
                record = os.pread(file.descriptor, RECORD_BYTES, 0)
                # Only then: who takes it now writes another record.
                if not record or is_claimed(file.descriptor) is not False:
                    return None
        except OSError:
            return None
        return b"%d %d %b" % (status.st_ino, status.st_mtime_ns, record)

    def generation(self) -> dict[str, Any]:
        """Return what is recorded: ``protocol``, ``started`` (Unix seconds), ``id``, ``private``.

        Never raises; without ``started`` if no arbiter has begun a generation.
        """
        for name in (LOCK_NAME, GENERATION_NAME):
            try:
                with self._open(name) as file:
                    return read_json(file.descriptor)
            except PermissionError:  # the lock is its owner's
                continue
            except OSError:
                break
        return {}

    def remove_live_gauges(self, *, wait_seconds: float = LOCK_WAIT_SECONDS) -> None:
        """Remove the live-gauge files of slots that nobody holds.

        For readers that do not know leases; our own collector checks the leases. Safe in signal
        context with ``wait_seconds=0``: then it gives up if the lock is taken.

        Raises:
            OSError: The directory lock cannot be taken.
        """
        with self.locked(wait_seconds=wait_seconds) as lock_file:
            by_flock = _is_by_flock(read_json(lock_file.descriptor))
            leased = {slot for slot, record in self._records(by_flock=by_flock).items() if record}
            for name, parsed in self._metric_files():
                is_over = is_slot(parsed.holder) and parsed.holder not in leased
                if parsed.is_live_gauge and is_over and self._is_free(name, by_flock=by_flock):
                    self._unlink_metric_file(name)

    def remove_if_unused(
        self, *, wait_seconds: float = LOCK_WAIT_SECONDS, unpublished_to: str | None = None
    ) -> bool:
        """Remove the whole directory unless it is in use.

        Args:
            wait_seconds: How long to wait for the directory lock.
            unpublished_to: The directory to which what is unpublished is moved before.

        Returns:
            Whether it was removed.

        Raises:
            OSError: The directory lock cannot be taken.
        """
        with self.locked(wait_seconds=wait_seconds) as lock_file:
            if self._is_in_use(by_flock=_is_by_flock(read_json(lock_file.descriptor))):
                return False
            if unpublished_to is not None:
                remains.keep(self.path, unpublished_to)
            shutil.rmtree(self.path, ignore_errors=True)
            return True

    def provide(self, user: int, group: int, *, mode: int) -> None:
        """Make the directory if it is missing, and give it to the workers' user if this is root.

        An existing directory is given only if that user may not write to it, and if it contains
        nothing but our files. Our files in it are given as well.

        Args:
            user: The uid of the workers.
            group: Their gid.
            mode: Permissions of a directory that is made.

        Raises:
            OSError: There is no such directory, and none can be made.
        """
        named = open_directory(self.path, make=mode)
        try:
            if os.geteuid() != 0 or user == 0:
                return
            # Everything by descriptor: who may write next to it must not make root give away
            # something else.
            descriptor = os.open(".", os.O_RDONLY | os.O_CLOEXEC, dir_fd=named)
        finally:
            os.close(named)
        try:
            status = os.fstat(descriptor)
            names = os.listdir(descriptor)
            ours = [name for name in names if is_ours(name)]
            if _is_to_be_given(status, names, user, group):
                os.fchown(descriptor, user, group)
            # Where new files get the group of the directory, it has been chosen for readers.
            keeps_group = status.st_mode & stat.S_ISGID
            for name in ours:
                with contextlib.suppress(OSError):
                    file = open_file(name, os.O_RDWR, descriptor)
                    try:
                        os.fchown(file, user, -1 if keeps_group else group)
                    finally:
                        os.close(file)
        finally:
            os.close(descriptor)

    def will_be_given(self, user: int, group: int) -> bool:
        """Return whether :meth:`provide` gives the directory, which is there, to a user.

        Raises:
            OSError: It cannot be read.
        """
        if os.geteuid() != 0 or user == 0:
            return False
        return _is_to_be_given(os.stat(self.path), os.listdir(self.path), user, group)

    # Below: the caller holds the directory lock.

    def _acquire(self, role: Role, *, by_flock: bool, alone: bool) -> Lease | None:
        """Take the lowest free slot.

        Args:
            role: What the process is.
            by_flock: Whether claims are flocks.
            alone: Whether the caller shares the directory lock with nobody.

        Returns:
            The lease. ``None`` if somebody who may only read keeps us from claiming a free slot:
            its file must be replaced, by who holds the directory lock alone.
        """
        names = os.listdir(self.path)
        leases = {name for name in names if name.endswith(".lease")}
        files: dict[str, list[str]] = {}
        for name in names:
            if name.endswith(".db"):
                files.setdefault(name.rpartition("_")[2].removesuffix(".db"), []).append(name)
        for number in range(_MOST_SLOTS):
            slot = f"slot{number}"
            name = f"{slot}.lease"
            if name in leases and not self._is_free(name, by_flock=by_flock):
                continue
            own_files = [found for found in files.get(slot, ()) if MetricFileName.parse(found)]
            # If the lease of a living process was removed by hand, its files are still claimed.
            if not all(self._is_free(one, by_flock=by_flock, writable=True) for one in own_files):
                continue
            try:
                file = self._claim(name, by_flock=by_flock, alone=alone)
            except NotAFileError:
                continue
            except PermissionError as error:
                if os.path.lexists(error.filename):
                    continue  # another user's slot
                raise
            if file is not None:
                try:
                    for one in own_files:
                        parsed = MetricFileName.parse(one)
                        if parsed is not None and parsed.belongs_to_one_holder:
                            self._unlink_metric_file(one)
                    return Lease(slot, file, role, by_flock=by_flock)
                except BaseException:
                    file.close()
                    raise
            if not alone and self._is_free(name, by_flock=by_flock):
                return None
        raise OSError(errno.EUSERS, f"all {_MOST_SLOTS} slots are leased", self.path)

    def _claim(self, name: str, *, by_flock: bool, alone: bool) -> LockedFile | None:
        """Claim a lease file; ``None`` if it is somebody else's, or if somebody is in the way."""
        while True:
            file = self._open(name, os.O_RDWR | os.O_CREAT)
            try:
                if file.claim(by_flock=by_flock) and file.is_in_place():
                    return file
                is_in_the_way = alone and not file.is_claimed(by_flock=by_flock)
            except BaseException:
                file.close()
                raise
            file.close()
            if not is_in_the_way:
                return None
            self._unlink(name)  # a new one can be opened by nobody else until it is claimed

    def _is_in_use(self, *, by_flock: bool) -> bool:
        """Return whether anybody holds a lease or writes a metric file.

        The metric files are checked too, because the lease of a living process may have been
        removed by hand.
        """
        return not all(
            self._is_free(name, by_flock=by_flock)
            for name in os.listdir(self.path)
            if name.endswith(".lease") or MetricFileName.parse(name)
        )

    def _is_free(self, name: str, *, by_flock: bool, writable: bool = False) -> bool:
        try:
            with self._open(name, os.O_RDWR if writable else os.O_RDONLY) as file:
                return not file.is_claimed(by_flock=by_flock)
        except FileNotFoundError:
            return True
        except NotAFileError:
            return not writable  # nobody's lease and nobody's metrics, but the name is taken
        except PermissionError:
            return False  # unknown

    def _records(self, *, by_flock: bool | None) -> dict[str, dict[str, Any] | None]:
        """Return the records; with ``None`` for ``by_flock`` of all slots, leased or not."""
        records: dict[str, dict[str, Any] | None] = {}
        for name in self._lease_names():
            try:
                descriptor = open_file(os.path.join(self.path, name), os.O_RDONLY)
            except OSError:
                continue
            try:
                is_held = by_flock is None or is_claimed(descriptor)
                if not is_held and (by_flock or is_held is None):  # then the flock is what tells
                    with self._open(name) as file:
                        is_held = file.is_claimed(by_flock=True)
                record = read_json(descriptor) or {"state": ""} if is_held else None
            finally:
                os.close(descriptor)
            records[name.removesuffix(".lease")] = record
        return records

    def _wipe(self, *, keep_unpublished: bool) -> OSError | None:
        """Wipe the directory; return why what was not published could not be kept, if so."""
        problem = None
        if keep_unpublished:
            try:
                remains.keep(self.path, self.path)
            except OSError as error:
                problem = error
        else:
            remains.drop(self.path)
        for name in os.listdir(self.path):
            # Files of writers that do not know slots are removed too, as prometheus_client advises:
            # the counts of an earlier run would be added to the totals of this one.
            if is_ours(name) and name != LOCK_NAME:
                self._unlink(name)
        return problem

    def _begin_note(self, generation: str) -> None:
        """Note that nothing of a generation was published, unless something is noted already.

        Before anything is counted: however soon the server is killed, the next one knows.
        """
        found = note.read(self.path)
        if generation and (found is None or found.generation != generation):
            with contextlib.suppress(OSError):  # the exporter tries again, and says why
                note.write(self.path, note.Note(generation))

    def _check_protocol(self, generation: dict[str, Any]) -> None:
        protocol = generation.get("protocol", PROTOCOL)
        if protocol not in (_BY_FLOCK, PROTOCOL):
            raise OSError(
                errno.EPROTONOSUPPORT,
                f"the directory is in use with slot protocol {protocol}; this release of "
                f"obskit-gunicorn supports {PROTOCOL}",
                self.path,
            )

    def _close_lock(self) -> None:
        """Replace a lock file that others may open, as older releases have left it.

        Somebody who may read it may hold it for ever. A running server of an older release keeps
        it, since its workers may be waiting for it.
        """
        with (
            forks.guard(),
            contextlib.suppress(OSError),
            self._open(LOCK_NAME, os.O_RDWR) as file,
        ):
            if stat.S_IMODE(os.fstat(file.descriptor).st_mode) & 0o077:
                file.lock(wait_seconds=_OLD_LOCK_WAIT_SECONDS)
                generation = read_json(file.descriptor)
                if not self._is_in_use(by_flock=_is_by_flock(generation)) and file.is_in_place():
                    self._replace(LOCK_NAME, generation)

    def _replace(self, name: str, record: dict[str, Any], *, for_readers: bool = False) -> None:
        """Put a new file with a record in the place of what has a name."""
        unfinished = os.path.join(self.path, f"{name}.{os.urandom(4).hex()}.new")
        with self._open(unfinished, os.O_RDWR | os.O_CREAT | os.O_EXCL) as file:
            try:
                file.write(json.dumps(record).encode())
                if for_readers:
                    file.claim(by_flock=False)
                os.rename(unfinished, os.path.join(self.path, name))
            except BaseException:
                self._unlink(unfinished)
                raise

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

    def _unlink_metric_file(self, name: str) -> None:
        """Remove a metric file and its column; the column first, so that it is never alone."""
        self._unlink(column_path(name))
        self._unlink(name)

    def _open_lock(self) -> LockedFile:
        while True:
            try:
                return self._open(LOCK_NAME, os.O_RDWR)
            except FileNotFoundError:
                pass
            with (
                contextlib.suppress(FileExistsError),
                self._open(LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_EXCL) as file,
            ):
                # Who opens it before the protocol is recorded is more careful than he need be.
                if file.lock():
                    record = {"protocol": _best_protocol(file)}
                    self._record(file, record)

    def _record(self, lock_file: LockedFile, generation: dict[str, Any]) -> None:
        """Record the generation, in the lock file and for readers; never raises."""
        with contextlib.suppress(OSError):
            lock_file.write(json.dumps(generation).encode())
        with contextlib.suppress(OSError):
            self._replace(GENERATION_NAME, generation, for_readers=True)


def _is_by_flock(generation: dict[str, Any]) -> bool:
    """Return whether a claim may be an flock and nothing else; so where nothing is recorded."""
    return bool(generation.get("protocol", _BY_FLOCK) == _BY_FLOCK)


def _best_protocol(file: LockedFile) -> int:
    return PROTOCOL if file.can_be_claimed() else _BY_FLOCK


def explain(error: OSError, path: str) -> Problem:
    """Return why a process cannot share its metrics, and what to do about it.

    Args:
        error: The error of the system call that failed.
        path: The multiprocess directory.
    """
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        hint = "the volume is full: give it more room (sizeLimit of an emptyDir)"
    elif error.errno == errno.EFBIG:
        hint = "the limit of this process for files is too low: raise it (ulimit -f, LimitFSIZE=)"
    elif error.errno in (errno.EMFILE, errno.ENFILE):
        hint = "no file descriptors are left: raise the limit (ulimit -n)"
    elif isinstance(error, NotAFileError):
        hint = "remove that file or directory"
    elif error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        hint = f"make it writable for uid {acting_user()}, or unset PROMETHEUS_MULTIPROC_DIR"
    elif error.errno in (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL):
        hint = "the file system has no flock: use a local one, such as an emptyDir"
    elif error.errno in (errno.ENOTDIR, errno.EEXIST):
        hint = "it is not a directory: remove it, or set PROMETHEUS_MULTIPROC_DIR to another path"
    elif error.errno == errno.ENOENT:
        hint = "it was removed: the next scrape, a SIGHUP or the next fork creates it again"
    else:
        hint = "see docs/how-it-works.md"
    return Problem(f"{path}: {error}", hint)


def _is_to_be_given(status: os.stat_result, names: list[str], user: int, group: int) -> bool:
    """Return whether a user may not write to a directory, and it has nothing but our files."""
    if status.st_uid == user:
        bits = status.st_mode >> 6
    elif status.st_gid == group:
        bits = status.st_mode >> 3
    else:
        bits = status.st_mode
    return bits & 0o3 != 0o3 and all(map(is_ours, names))


def is_ours(name: str) -> bool:
    """Return whether we, or prometheus_client, create files with this name."""
    if name.startswith((LOCK_NAME, GENERATION_NAME, note.NAME, SOCKET_NAME, PUSH_NAME)):
        return True
    if name.startswith((journal.LOCK_NAME, baselines.NAME, admissions.NAME)):
        return True
    if MetricFileName.parse(metric_file_path(name) or name.removesuffix(".damaged")):
        return True
    holder = name.rpartition("_")[2].partition(".")[0]
    return is_slot(holder) and name.endswith((".lease", ".new", EXEMPLARS, STATES))
