"""Files that this process locks, and safe ways to open and close them.

Everything that may have only one holder (a slot's lease, a metric file, the directory lock) is a
:class:`LockedFile`: an open descriptor with a lock. The kernel ends the lock when the last copy of
the descriptor is closed, for whatever reason the process ends. Every process that can open the file
can check the lock, in any pid namespace.

There are two kinds of lock:

- An ``flock`` needs only read permission, so it is used for a file that nobody else may open.
- A *claim* is a write lock of the open file (``F_OFD_SETLK``). It needs write permission. A process
  that may only read can take a read lock, which prevents a claim; but the kernel tells which kind
  of lock is held, and asking takes nothing. A claim also takes the flock, for older releases, which
  check only that.

Safe with threads and forks. Must not run in signal context, unless a function says otherwise.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
import struct
import sys
import time

_CONTENTION = (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES)
_MISSING = (errno.EINVAL, errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
_FLOCK_STRUCTURE = struct.Struct("@hhqqi4x")
_QUESTION = _FLOCK_STRUCTURE.pack(fcntl.F_RDLCK, os.SEEK_SET, 0, 0, 0)
"""Only a write lock, which is what a claim is, is in the way of a read lock."""

_OWNERS_MODE = 0o600
READERS_MODE = 0o640
_POLL_SECONDS = 0.002
_MOST_LINKS = 40
_SEARCH = getattr(os, "O_PATH", os.O_RDONLY) | os.O_DIRECTORY | os.O_CLOEXEC

_CAN_CLAIM = hasattr(fcntl, "F_OFD_SETLK")


def pause(seconds: float) -> None:
    """Sleep without running another greenlet.

    If a greenlet yields while it holds a native lock, its thread may hang. So under gevent this
    uses the unpatched ``time.sleep``.
    """
    monkey = sys.modules.get("gevent.monkey")
    sleep = monkey.get_original("time", "sleep") if monkey is not None else time.sleep
    sleep(seconds)


def is_claimed(descriptor: int) -> bool | None:
    """Return whether another open file has a claim on this file; takes nothing.

    Returns:
        ``None`` where the system has no claims.

    Raises:
        OSError: It cannot be known.
    """
    if not _CAN_CLAIM:
        return None
    try:
        answer = fcntl.fcntl(descriptor, fcntl.F_OFD_GETLK, _QUESTION)
    except OSError as error:
        if error.errno not in _MISSING:
            raise
        return None
    return _FLOCK_STRUCTURE.unpack(answer)[0] != fcntl.F_UNLCK  # type: ignore[no-any-return]


class NotAFileError(OSError):
    """The name belongs to something other than a regular file: a directory, a pipe or a link."""


def open_file(path: str, flags: int, directory: int | None = None) -> int:
    """Open a regular file, and nothing else.

    A pipe would block, and a link may lead anywhere. With a hard link, another user who may write
    to the directory could make root change a file of root's.

    Args:
        path: The file.
        flags: Flags for :func:`os.open`; ``O_CLOEXEC``, ``O_NOFOLLOW`` and ``O_NONBLOCK`` are
            added. A new file has the mode 0600 until it is claimed.
        directory: A descriptor of the directory that a relative path starts from.

    Returns:
        The descriptor.

    Raises:
        NotAFileError: It is not a regular file, or root would write to a file with several names.
        OSError: The file cannot be opened.
    """
    try:
        flags |= os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
        descriptor = os.open(path, flags, _OWNERS_MODE, dir_fd=directory)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.EISDIR, errno.ENXIO):
            raise NotAFileError(error.errno, "this is not a regular file", path) from None
        raise
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        os.close(descriptor)
        raise NotAFileError(errno.EINVAL, "this is not a regular file", path)
    is_to_be_written = flags & (os.O_RDWR | os.O_WRONLY)
    if is_to_be_written and os.geteuid() == 0 and status.st_nlink > 1:
        os.close(descriptor)
        raise NotAFileError(errno.EPERM, "root does not write to a file with several names", path)
    return descriptor


def open_directory(path: str, *, make: int | None = None) -> int:
    """Open a directory, to reach what is in it by descriptor.

    Root follows only links that no other user can have made: one who owns a directory on the way
    must not lead root elsewhere.

    Args:
        path: The directory, absolute.
        make: Make what is missing of it, with this mode.

    Returns:
        A descriptor that names the directory; it need not be open for reading.

    Raises:
        OSError: It cannot be opened. ELOOP: another user may have made a link on the way.
    """
    if os.geteuid() != 0:
        if make is not None:
            os.makedirs(path, make, exist_ok=True)
        return os.open(path, _SEARCH)
    parts, links = path.split(os.sep)[::-1], 0
    at = os.open(os.sep, _SEARCH)
    try:
        while parts:
            part = parts.pop()
            if not part:
                continue
            if make is not None:
                with contextlib.suppress(FileExistsError):
                    os.mkdir(part, make if not any(parts) else 0o755, dir_fd=at)
            try:
                below = os.open(part, _SEARCH | os.O_NOFOLLOW, dir_fd=at)
            except OSError as error:
                target = _link_target(part, at, path) if links < _MOST_LINKS else ""
                if not target:
                    error.filename = path
                    raise
                links += 1
                parts += target.split(os.sep)[::-1]
                if not target.startswith(os.sep):
                    continue
                below = os.open(os.sep, _SEARCH)
            os.close(at)
            at = below
    except BaseException:
        os.close(at)
        raise
    return at


def _link_target(name: str, directory: int, path: str) -> str:
    """Return where a link leads, if root may follow it; empty if it is none."""
    try:
        target = os.readlink(name, dir_fd=directory)
    except OSError:
        return ""
    status = os.fstat(directory)
    if status.st_uid != 0 or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise OSError(errno.ELOOP, "root follows no link that another user may have made", path)
    return target


class LockedFile:
    """An open file that can be locked, and that knows whether its descriptor is still its own.

    An application may close all descriptors (``os.closerange``) and reuse the number for a file of
    its own. So a write, a release or a close first checks that the descriptor is still this file's.

    As a context manager it is released at the end of the block.

    Attributes:
        path: The path of the file.
        descriptor: The open descriptor, or -1 once closed.
    """

    __slots__ = ("_identity", "descriptor", "path")

    def __init__(self, path: str, flags: int) -> None:
        """Open the file, without locking it.

        Args:
            path: The file to open.
            flags: Flags for :func:`open_file`.

        Raises:
            NotAFileError: It is not a regular file.
            OSError: The file cannot be opened.
        """
        self.descriptor = -1
        self.path = path
        self.descriptor = open_file(path, flags)
        status = os.fstat(self.descriptor)
        self._identity = status.st_dev, status.st_ino

    def __enter__(self) -> LockedFile:
        return self

    def __exit__(self, *_error: object) -> None:
        self.release()

    def __del__(self) -> None:
        # In case an exception from elsewhere, such as a timeout in a signal handler, lost the file.
        self.close()

    @property
    def inode(self) -> int:
        """The inode of the file."""
        return self._identity[1]

    def lock(self, *, shared: bool = False, wait_seconds: float = 0.0) -> bool:
        """Take the flock.

        Args:
            shared: Take a shared lock instead of an exclusive one.
            wait_seconds: How long to wait for other holders; 0 tries once.

        Returns:
            Whether the lock was taken; ``False`` means that another process holds it.

        Raises:
            OSError: The file system has no flock (ENOLCK, EOPNOTSUPP, ...).
        """
        operation = (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB
        deadline = time.monotonic() + wait_seconds
        while True:
            try:
                fcntl.flock(self.descriptor, operation)
            except OSError as error:
                if error.errno not in _CONTENTION:
                    raise
            else:
                return True
            if time.monotonic() >= deadline:
                return False
            pause(_POLL_SECONDS)

    def claim(self, *, by_flock: bool, wait_seconds: float = 0.0) -> bool:
        """Become the file's only holder, and let its group read it.

        Args:
            by_flock: Respect an flock too: there may be holders that have nothing else.
            wait_seconds: How long to wait for one; who only asks has it for an instant.

        Returns:
            Whether the file is claimed now. ``False`` means that somebody else has it, or that
            somebody who may only read is in the way; see :meth:`is_claimed`.

        Raises:
            OSError: The file system has no locks.
        """
        write_lock = self._record_lock(fcntl.F_WRLCK)
        if write_lock is False:
            return False
        needs_flock = by_flock or write_lock is None
        if not self.lock(wait_seconds=wait_seconds if needs_flock else 0) and needs_flock:
            self._unlock()
            return False
        if stat.S_IMODE(os.fstat(self.descriptor).st_mode) != READERS_MODE:
            with contextlib.suppress(OSError):  # another user's, which this one may write
                os.fchmod(self.descriptor, READERS_MODE)
        return True

    def is_claimed(self, *, by_flock: bool) -> bool:
        """Return whether another open file has the claim; takes nothing but an flock, if asked to.

        Args:
            by_flock: Whether an flock counts. It is taken for a test, shared, and stays until the
                file is closed.

        Raises:
            OSError: It cannot be known.
        """
        claimed = is_claimed(self.descriptor)
        if claimed:
            return True
        by_flock = by_flock or claimed is None
        return by_flock and not self.lock(shared=True)

    def can_be_claimed(self) -> bool:
        """Return whether the system has claims here, for a file that nobody has claimed."""
        can = self._record_lock(fcntl.F_WRLCK) is not None
        self._record_lock(fcntl.F_UNLCK)
        return can

    def _record_lock(self, kind: int) -> bool | None:
        """Change the lock of the open file: whether it was changed, ``None`` if there is none."""
        if not _CAN_CLAIM:
            return None
        lock = _FLOCK_STRUCTURE.pack(kind, os.SEEK_SET, 0, 0, 0)
        try:
            fcntl.fcntl(self.descriptor, fcntl.F_OFD_SETLK, lock)
        except OSError as error:
            if error.errno in _CONTENTION:
                return False
            if error.errno in _MISSING:
                return None
            raise
        return True

    def _unlock(self) -> None:
        with contextlib.suppress(OSError):
            fcntl.flock(self.descriptor, fcntl.LOCK_UN)
        with contextlib.suppress(OSError):
            self._record_lock(fcntl.F_UNLCK)

    def release(self) -> None:
        """End the lock for all copies of the descriptor, including inherited ones, and close it.

        May be called twice; never raises.
        """
        if self.is_open():
            self._unlock()
        self.close()

    def write(self, content: bytes) -> None:
        """Replace the file's content, if the descriptor still belongs to this file.

        Raises:
            OSError: The volume is full, or the file is not writable.
        """
        if self.is_open():
            os.pwrite(self.descriptor, content, 0)
            os.ftruncate(self.descriptor, len(content))

    def is_in_place(self) -> bool:
        """Return whether the path still leads to this file: it was neither removed nor replaced."""
        return self._is_at(self.path)

    def is_linked(self) -> bool:
        """Return whether the file still has a name."""
        return self.is_open() and os.fstat(self.descriptor).st_nlink > 0

    def close(self) -> None:
        """Close the descriptor if it still belongs to this file.

        May be called twice; never raises.
        """
        if self.is_open():
            os.close(self.descriptor)
        self.descriptor = -1

    def is_open(self) -> bool:
        """Return whether the descriptor is open and still belongs to this file."""
        return self.descriptor >= 0 and self._is_at(self.descriptor)

    def _is_at(self, where: str | int) -> bool:
        try:
            status = os.stat(where)
        except OSError:
            return False
        return (status.st_dev, status.st_ino) == self._identity
