"""Files that this process locks with flock, and safe ways to open and close them.

Everything that may have only one holder (a slot's lease, a metric file, the directory lock) is a
:class:`LockedFile`: an open descriptor with an ``flock``. The kernel ends the lock when the last
copy of the descriptor is closed, for whatever reason the process ends. Every process that can open
the file can check the lock, in any pid namespace.

Safe with threads and forks. Must not run in signal context, unless a function says otherwise.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
import sys
import time

_CONTENTION = (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES)
_POLL_SECONDS = 0.002
_MOST_LINKS = 40
_SEARCH = getattr(os, "O_PATH", os.O_RDONLY) | os.O_DIRECTORY | os.O_CLOEXEC


def pause(seconds: float) -> None:
    """Sleep without running another greenlet.

    If a greenlet yields while it holds a native lock, its thread may hang. So under gevent this
    uses the unpatched ``time.sleep``.
    """
    monkey = sys.modules.get("gevent.monkey")
    sleep = monkey.get_original("time", "sleep") if monkey is not None else time.sleep
    sleep(seconds)


class NotAFileError(OSError):
    """The name belongs to something other than a regular file: a directory, a pipe or a link."""


def open_file(path: str, flags: int) -> int:
    """Open a regular file, and nothing else.

    A pipe would block, and a link may lead anywhere. With a hard link, another user who may write
    to the directory could make root change a file of root's.

    Args:
        path: The file.
        flags: Flags for :func:`os.open`; ``O_CLOEXEC``, ``O_NOFOLLOW`` and ``O_NONBLOCK`` are
            added. A new file gets the mode 0664, subject to the umask.

    Returns:
        The descriptor.

    Raises:
        NotAFileError: It is not a regular file, or root would write to a file with several names.
        OSError: The file cannot be opened.
    """
    try:
        descriptor = os.open(path, flags | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, 0o664)
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


def open_directory(path: str, *, make: bool = False) -> int:
    """Open a directory, to reach what is in it by descriptor.

    Root follows only links that no other user can have made: one who owns a directory on the way
    must not lead root elsewhere.

    Args:
        path: The directory, absolute.
        make: Make what is missing of it.

    Returns:
        A descriptor that names the directory; it need not be open for reading.

    Raises:
        PermissionError: Another user may have made a link on the way.
        OSError: It cannot be opened.
    """
    if os.geteuid() != 0:
        if make:
            os.makedirs(path, exist_ok=True)
        return os.open(path, _SEARCH)
    parts, links = path.split(os.sep)[::-1], 0
    at = os.open(os.sep, _SEARCH)
    try:
        while parts:
            part = parts.pop()
            if not part:
                continue
            if make:
                with contextlib.suppress(FileExistsError):
                    os.mkdir(part, 0o755, dir_fd=at)
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
        raise PermissionError(
            errno.EPERM, "root follows no link that another user may have made", path
        )
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

    def release(self) -> None:
        """End the lock for all copies of the descriptor, including inherited ones, and close it.

        May be called twice; never raises.
        """
        if self.is_open():
            with contextlib.suppress(OSError):
                fcntl.flock(self.descriptor, fcntl.LOCK_UN)
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
