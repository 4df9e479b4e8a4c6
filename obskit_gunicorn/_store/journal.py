"""A list that many processes append to, and that anybody may read at any time.

A record stands in the file with its length and a checksum::

    offset 0   8 bytes  obskjnl1
    offset 8   8 bytes  a random number, so that a reader can tell a list from its replacement
    offset 16  records, one after the other, each
               uint32   length of the content in bytes
               uint32   its CRC-32
               bytes    the content

Who appends holds the lock ``series.lock``, which is its owner's alone: who may only read cannot
keep anybody waiting. A writer that is killed leaves half a record behind; readers stop in front of
it, and the next writer writes over it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import struct
import time
import zlib
from typing import TYPE_CHECKING

from obskit_gunicorn._store import forks
from obskit_gunicorn._store.locks import READERS_MODE, LockedFile, open_file

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

LOCK_NAME = "series.lock"
_MAGIC = b"obskjnl1"
_HEADER_BYTES = 16
_FRAME = struct.Struct("=II")
_LARGEST_RECORD = 1 << 24
_LOCK_WAIT_SECONDS = 2.0


class Journal:
    """A list in a file of a directory, and how far this process has read it.

    Not thread-safe. A forked child may go on with its copy.

    Attributes:
        path: The file.
        size: How many bytes of it have been read.
    """

    __slots__ = ("_directory", "_identity", "_look", "path", "size")

    def __init__(self, directory: str, name: str) -> None:
        """Set the path; touches nothing.

        Args:
            directory: The multiprocess directory.
            name: The name of the list in it.
        """
        self._directory = directory
        self.path = os.path.join(directory, name)
        self.size = 0
        self._identity: tuple[int, bytes] | None = None
        self._look: tuple[int, ...] | None = None

    @contextlib.contextmanager
    def locked(self, wait_seconds: float = _LOCK_WAIT_SECONDS) -> Iterator[None]:
        """Hold the lock of all lists of the directory; only then append.

        Args:
            wait_seconds: How long to wait for it.

        Raises:
            TimeoutError: Another process held it for longer.
            OSError: The directory is missing or not writable, or has no flock.
        """
        path = os.path.join(self._directory, LOCK_NAME)
        deadline = time.monotonic() + wait_seconds
        with forks.guard():
            while True:
                with LockedFile(path, os.O_RDWR | os.O_CREAT) as file:
                    remaining = max(0.0, deadline - time.monotonic())
                    if not file.lock(wait_seconds=remaining):
                        raise TimeoutError(
                            errno.ETIMEDOUT, "another process holds the lock of the lists", path
                        )
                    if file.is_in_place():
                        yield
                        return

    def read(self, *, by_its_look: bool = False) -> tuple[bool, list[bytes]]:
        """Return whether the list has begun anew, and the records since this was last asked.

        It begins anew if it was folded, or removed; then all its records are returned.

        Args:
            by_its_look: Do not open it if it looks as it did. That is a matter of luck if another
                list has taken its place at the same moment, as clocks of file systems go.

        Raises:
            OSError: It is there and cannot be read.
        """
        try:
            if by_its_look and _look_of(os.stat(self.path)) == self._look:
                return False, []
            descriptor = open_file(self.path, os.O_RDONLY)
        except FileNotFoundError:
            had_any, self._identity, self._look, self.size = bool(self.size), None, None, 0
            return had_any, []
        try:
            status = os.fstat(descriptor)
            header = os.pread(descriptor, _HEADER_BYTES, 0)
            if len(header) < _HEADER_BYTES or not header.startswith(_MAGIC):
                raise OSError(errno.EINVAL, "this is not a list of series", self.path)
            identity = status.st_ino, header
            is_anew = identity != self._identity
            at = _HEADER_BYTES if is_anew else self.size
            data = os.pread(descriptor, max(0, status.st_size - at), at)
        finally:
            os.close(descriptor)
        records, end = _records(data)
        had_any = bool(self.size)
        self._identity, self.size = identity, at + end
        # Half a record is looked at again: somebody may be writing it.
        self._look = _look_of(status) if self.size == status.st_size else None
        return is_anew and had_any, records

    def append(self, records: Iterable[bytes]) -> None:
        """Append records; the caller holds the lock, and has read what is there.

        Raises:
            OSError: The volume is full, or the list cannot be written; it is unchanged.
        """
        data = b"".join(map(_framed, records))
        if self._identity is None:
            self._make(data)
            return
        descriptor = open_file(self.path, os.O_RDWR)
        try:
            _write(descriptor, data, self.size)
            self.size += len(data)
            os.ftruncate(descriptor, self.size)  # what a killed writer has left behind it
            self._look = _look_of(os.fstat(descriptor))
        finally:
            os.close(descriptor)

    def replace(self, records: Iterable[bytes]) -> None:
        """Put other records in the place of all; the caller holds the lock.

        Raises:
            OSError: They cannot be written; the list is unchanged.
        """
        self._make(b"".join(map(_framed, records)))

    def _make(self, data: bytes) -> None:
        unfinished = self.path + ".new"
        with contextlib.suppress(FileNotFoundError):
            os.unlink(unfinished)
        descriptor = open_file(unfinished, os.O_RDWR | os.O_CREAT | os.O_EXCL)
        try:
            os.fchmod(descriptor, READERS_MODE)
            header = _MAGIC + os.urandom(_HEADER_BYTES - len(_MAGIC))
            _write(descriptor, header + data, 0)
            os.rename(unfinished, self.path)
            status = os.fstat(descriptor)
            self._look = _look_of(status)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(unfinished)
            raise
        finally:
            os.close(descriptor)
        self._identity, self.size = (status.st_ino, header), status.st_size


def _look_of(status: os.stat_result) -> tuple[int, ...]:
    return status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _framed(content: bytes) -> bytes:
    return _FRAME.pack(len(content), zlib.crc32(content)) + content


def _records(data: bytes) -> tuple[list[bytes], int]:
    """Return the whole records at the beginning of some bytes, and where they end."""
    found, at = [], 0
    while at + _FRAME.size <= len(data):
        length, checksum = _FRAME.unpack_from(data, at)
        content = data[at + _FRAME.size : at + _FRAME.size + length]
        if not 0 < length <= _LARGEST_RECORD or len(content) < length:
            break
        if zlib.crc32(content) != checksum:
            break
        found.append(content)
        at += _FRAME.size + length
    return found, at


def _write(descriptor: int, data: bytes, at: int) -> None:
    """Write all of some bytes, or nothing that counts.

    Raises:
        OSError: The volume is full.
    """
    if os.pwrite(descriptor, data, at) < len(data):
        with contextlib.suppress(OSError):
            os.ftruncate(descriptor, at)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
