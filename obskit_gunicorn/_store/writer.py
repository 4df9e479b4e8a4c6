"""Writing a metric file: it is mapped, locked by one process, and salvaged if it is damaged."""

from __future__ import annotations

import contextlib
import errno
import mmap
import os

from obskit_gunicorn._store import fileformat
from obskit_gunicorn._store.fileformat import HEADER_BYTES, Damage, MetricFileName
from obskit_gunicorn._store.identity import give_to_owner
from obskit_gunicorn._store.locks import LockedFile
from obskit_gunicorn._store.reader import MetricFileReader

_FIRST_SIZE_BYTES = 4096
_LARGEST_STEP_BYTES = 1 << 20
_CELL_BYTES = 8
_ASKING_SECONDS = 0.1


class MetricFileInUseError(OSError):
    """Another process holds the lock of a metric file that this process wanted to write."""

    def __init__(self, path: str) -> None:
        """Create the error for the file at ``path``."""
        super().__init__(errno.EBUSY, "another process writes this metric file", path)


class MetricFile:
    """A metric file open for writing, mapped, and locked by this process alone.

    Lock and data are the same inode. So two processes never write to the same file, even if
    somebody removes or replaces files.

    A file gets its name only when it is complete. Space is reserved before it is mapped, so a full
    volume is an ``OSError`` here and never a SIGBUS at a write.

    Not thread-safe; the caller holds a lock. A forked child must call :meth:`release` on the files
    of its parent; the parent's own mapping is not affected.

    Attributes:
        path: The file.
        cells: The file as doubles; each entry has the index of its value.
        salvaged: What was wrong with an existing file that was damaged, or ``None``.
    """

    __slots__ = (
        "_file",
        "_has_timestamps",
        "_indexes",
        "_map",
        "_size",
        "_used",
        "cells",
        "path",
        "salvaged",
    )

    def __init__(self, path: str) -> None:
        """Open or create the file; replace a damaged file with its readable part.

        Args:
            path: The file. A damaged file is kept as ``<path>.damaged``.

        Raises:
            MetricFileInUseError: Another process writes the file.
            OSError: The file cannot be opened or created, or the volume is full.
        """
        self.path = path
        self.salvaged: str | None = None
        self._indexes: dict[bytes, int] = {}
        self._used = HEADER_BYTES
        name = MetricFileName.parse(os.path.basename(path))
        self._has_timestamps = name is not None and name.has_timestamps
        _forget_second_name(path)
        self._file = self._open()
        try:
            damage = self._load()
            if damage is not None:
                self._salvage()
                self._load()
                self.salvaged = damage.text
        except BaseException:
            self.release()
            raise

    def find(self, key: bytes) -> int | None:
        """Return the index of a key's value in :attr:`cells`, or ``None`` if it has no entry."""
        return self._indexes.get(key)

    def add(self, key: bytes, value: float, timestamp: float) -> int:
        """Append an entry.

        Args:
            key: A key that has no entry yet.
            value: Its first value.
            timestamp: Its first timestamp, Unix seconds or 0.

        Returns:
            The index of the value in :attr:`cells`.

        Raises:
            OSError: The volume is full; the file is unchanged.
        """
        entry = self._pack_entry(key, value, timestamp, self._used)
        end = self._used + len(entry)
        while end > self._size:
            self._grow()
        self._map[self._used : end] = entry
        # Last, and in one store: from now on readers see the entry.
        self._map[0:4] = fileformat.pack_int(end)
        self._used = end
        index = self._indexes[key] = (end - 16) // _CELL_BYTES
        return index

    def read(self, index: int) -> tuple[float, float]:
        """Return the value and the timestamp at an index."""
        value, timestamp = fileformat.read_pair(self._map, index * _CELL_BYTES)
        return value, timestamp

    def write_pair(self, index: int, value: float, timestamp: float) -> None:
        """Write value and timestamp, in a file that has timestamps in one store of 16 bytes."""
        at = index * _CELL_BYTES
        self._map[at : at + 16] = fileformat.pack_pair(value, timestamp)

    def _pack_entry(self, key: bytes, value: float, timestamp: float, at: int) -> bytes:
        if self._has_timestamps:
            key = fileformat.align_key(key, at)
        return fileformat.pack_entry(key, value, timestamp)

    def is_linked(self) -> bool:
        """Return whether the file still has a name, so that readers can find it."""
        return self._file.is_linked()

    def release(self) -> None:
        """Unmap and close the file, which ends the lock; may be called twice, never raises."""
        cells = getattr(self, "cells", None)
        if cells is not None:
            cells.release()
            if self._file.is_open():
                self._map.close()
            else:
                # Somebody has closed all descriptors. The map would close its own descriptor by
                # number, which may belong to another file by now.
                _abandoned.append(self._map)
        self._file.close()

    def _open(self) -> LockedFile:
        while True:
            try:
                file = LockedFile(self.path, os.O_RDWR)
            except FileNotFoundError:
                return self._make(b"")
            try:
                # A process that only checks whether the slot is free holds the lock for a moment.
                if not file.lock(wait_seconds=_ASKING_SECONDS):
                    raise MetricFileInUseError(self.path)
                if file.is_in_place():
                    return file
            except BaseException:
                file.close()
                raise
            file.close()

    def _make(self, entries: bytes, *, keep_damaged: bool = False) -> LockedFile:
        """Create a complete and locked file, and give it the name of this one.

        Args:
            entries: Its entries.
            keep_damaged: Keep the existing file as ``<path>.damaged``.
        """
        unfinished = self.path.removesuffix(".db") + ".new"
        with contextlib.suppress(FileNotFoundError):
            os.unlink(unfinished)
        file = LockedFile(unfinished, os.O_RDWR | os.O_CREAT | os.O_EXCL)
        try:
            file.lock()
            give_to_owner(file.descriptor)
            end = HEADER_BYTES + len(entries)
            _reserve(file.descriptor, 0, _whole_pages(end))
            os.pwrite(file.descriptor, fileformat.pack_int(end) + os.urandom(4) + entries, 0)
            if keep_damaged:
                self._name_damaged()
            os.rename(unfinished, self.path)
            file.path = self.path
            if not file.is_in_place():
                raise MetricFileInUseError(self.path)
        except BaseException:
            if file.path == unfinished:
                with contextlib.suppress(OSError):
                    os.unlink(unfinished)
            file.close()
            raise
        return file

    def _name_damaged(self) -> None:
        damaged = self.path + ".damaged"
        with contextlib.suppress(FileNotFoundError):
            os.unlink(damaged)
        # Give it a second name first, so that a scrape finds a file at any moment.
        try:
            os.link(self.path, damaged)
        except OSError:  # a file system without hard links
            os.rename(self.path, damaged)

    def _load(self) -> Damage | None:
        """Map the file and index its entries, unless something is wrong with it."""
        found = os.fstat(self._file.descriptor).st_size
        used, damage = fileformat.check_header(
            os.pread(self._file.descriptor, HEADER_BYTES, 0), found
        )
        if damage is not None:
            return damage
        size = _whole_pages(found)
        # Existing files too: they may be sparse, and a write to a hole is a SIGBUS if the volume is
        # full.
        _reserve(self._file.descriptor, 0, size)
        self._map_file(size)
        keys, used, damage = fileformat.read_entries(self._map, HEADER_BYTES, used)
        end = HEADER_BYTES
        for key in keys:
            if not fileformat.is_key(key):
                damage = damage or Damage("corrupted", f"the key at offset {end} is not a metric's")
            self._indexes[fileformat.key_text(key)] = (end + len(key)) // _CELL_BYTES
            end += len(key) + 16
        if damage is None:
            self._used = used
            self._map[0:4] = fileformat.pack_int(used)
        return damage

    def _salvage(self) -> None:
        """Replace a damaged file with a new one that has its valid entries."""
        reader = MetricFileReader(self.path)
        reader.read(self._file.descriptor)
        pairs = iter(reader.pairs())
        content = bytearray()
        for key, value, timestamp in zip(reader.layout.keys, pairs, pairs, strict=True):
            if fileformat.is_key(key):
                at = HEADER_BYTES + len(content)
                content += self._pack_entry(fileformat.key_text(key), value, timestamp, at)
        replacement = self._make(bytes(content), keep_damaged=True)
        self.release()
        self._indexes.clear()
        self._file = replacement

    def _grow(self) -> None:
        size = self._size + min(self._size, _LARGEST_STEP_BYTES)
        _reserve(self._file.descriptor, self._size, size - self._size)
        cells, mapping = self.cells, self._map
        self._map_file(size)
        cells.release()
        mapping.close()

    def _map_file(self, size: int) -> None:
        try:
            self._map = mmap.mmap(self._file.descriptor, size)
        except ValueError as error:  # somebody truncated it after it was reserved
            raise OSError(errno.EIO, str(error), self.path) from None
        self._size = size
        self.cells = memoryview(self._map).cast("d")


_abandoned: list[mmap.mmap] = []


def _forget_second_name(path: str) -> None:
    """Remove the second name of a file, if a process was killed while it salvaged the file."""
    damaged = path + ".damaged"
    with contextlib.suppress(OSError):
        if os.path.samestat(os.lstat(damaged), os.lstat(path)):
            os.unlink(damaged)


def _whole_pages(size: int) -> int:
    return max(_FIRST_SIZE_BYTES, -(-size // _FIRST_SIZE_BYTES) * _FIRST_SIZE_BYTES)


def _reserve(descriptor: int, offset: int, length: int) -> None:
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
