"""Files that are mapped whole, and the room that is reserved before that."""

from __future__ import annotations

import errno
import mmap
import os
from typing import TYPE_CHECKING

from obskit_gunicorn._store import forks

if TYPE_CHECKING:
    from obskit_gunicorn._store.locks import LockedFile

_FIRST_SIZE_BYTES = 4096
_LARGEST_STEP_BYTES = 1 << 20


class Mapping:
    """A locked file that is mapped whole; another one takes its place when the file grows.

    Attributes:
        file: The file.
        map: Its bytes.
        cells: The same as doubles.
        words: The same as integers of eight bytes.
        size: How many bytes.
    """

    __slots__ = ("cells", "file", "map", "size", "words")

    def __init__(self, file: LockedFile, size: int) -> None:
        """Map a file whose room is reserved.

        Raises:
            OSError: It cannot be mapped.
        """
        try:
            self.map = mmap.mmap(file.descriptor, size)
        except ValueError as error:  # somebody truncated it after it was reserved
            raise OSError(errno.EIO, str(error), file.path) from None
        self.file, self.size = file, size
        self.cells: memoryview[float] = memoryview(self.map).cast("d")
        self.words: memoryview[int] = memoryview(self.map).cast("q")

    def enlarged(self, size: int = 0) -> Mapping:
        """Make the file larger and return its mapping; this one stays valid until it is unmapped.

        Args:
            size: How large in bytes; by default twice as large, or larger by a megabyte.

        Raises:
            OSError: The volume is full, or somebody has closed the descriptor.
        """
        with forks.guard():
            if not self.file.is_open():  # its number may belong to another file by now
                raise OSError(errno.EBADF, os.strerror(errno.EBADF), self.file.path)
            size = size or self.size + min(self.size, _LARGEST_STEP_BYTES)
            reserve(self.file.descriptor, self.size, size - self.size)
            return Mapping(self.file, size)

    def unmap(self) -> None:
        """Unmap it; the file stays open."""
        self.cells.release()
        self.words.release()
        if self.file.is_open():
            self.map.close()
        else:
            # Somebody has closed all descriptors. The map would close its own descriptor by
            # number, which may belong to another file by now.
            _abandoned.append(self.map)

    def release(self) -> None:
        """Unmap and close the file, which ends its lock unless a forked child has a copy."""
        self.unmap()
        self.file.close()


_abandoned: list[mmap.mmap] = []


def whole_pages(size: int) -> int:
    """Return the size of a file that has room for so many bytes."""
    return max(_FIRST_SIZE_BYTES, -(-size // _FIRST_SIZE_BYTES) * _FIRST_SIZE_BYTES)


def reserve(descriptor: int, offset: int, length: int) -> None:
    """Reserve space on the volume for a section of a file.

    Raises:
        OSError: The volume is full.
    """
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(descriptor, offset, length)
        return
    # macOS: reserve space by writing zeros after the end; the existing content stays.
    size = os.fstat(descriptor).st_size
    if offset + length > size:
        os.pwrite(descriptor, bytes(offset + length - size), size)
