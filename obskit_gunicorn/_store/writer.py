"""Writing a metric file: it is mapped, locked by one process, and salvaged if it is damaged."""

from __future__ import annotations

import contextlib
import errno
import os
from array import array
from typing import TypeAlias

from obskit_gunicorn._store import fileformat
from obskit_gunicorn._store.claimed import make_claimed, open_claimed
from obskit_gunicorn._store.column import COUNT_INDEX, column_path, pack_header
from obskit_gunicorn._store.column import HEADER_BYTES as COLUMN_HEADER_BYTES
from obskit_gunicorn._store.fileformat import HEADER_BYTES, Damage, MetricFileName
from obskit_gunicorn._store.locks import LockedFile
from obskit_gunicorn._store.mapping import Mapping, reserve, whole_pages
from obskit_gunicorn._store.reader import MetricFileReader, ident_of

_CELL_BYTES = 8
_COLUMN_START = COLUMN_HEADER_BYTES // _CELL_BYTES


Cells: TypeAlias = "memoryview[float] | dict[int, float]"
"""What a value is stored in: mapped memory, or a dictionary that nobody reads."""


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

    Whoever stores a value stores it twice: in :attr:`cells`, then in :attr:`column`, see
    :mod:`obskit_gunicorn._store.column`. The column is never the reason of an error: if there can
    be none, or no longer, readers read the metric file, and what is stored in it goes nowhere.

    Not thread-safe; the caller holds a lock. But a thread without it may store at any time, if
    nothing else can run between its look at these attributes and the store. A forked child must
    call :meth:`release` on the files of its parent; the parent's own mapping is not affected.

    Attributes:
        path: The file.
        cells: The file as doubles; each entry has the index of its value.
        column: The column as doubles; each entry has the number of its value there.
        salvaged: What was wrong with an existing file that was damaged, or ``None``.
    """

    __slots__ = (
        "_column",
        "_file",
        "_has_timestamps",
        "_indexes",
        "_mapping",
        "_numbers",
        "_used",
        "cells",
        "column",
        "path",
        "salvaged",
    )

    def __init__(self, path: str, *, by_flock: bool = False) -> None:
        """Open or create the file; replace a damaged file with its readable part.

        Args:
            path: The file. A damaged file is kept as ``<path>.damaged``.
            by_flock: Whether another writer may hold only an flock.

        Raises:
            MetricFileInUseError: Another process writes the file.
            OSError: The file cannot be opened or created, or the volume is full.
        """
        self.path = path
        self.salvaged: str | None = None
        self.cells: Cells = {}
        self.column: Cells = {}
        self._mapping: Mapping | None = None
        self._column: Mapping | None = None
        self._numbers: dict[bytes, int] = {}
        self._indexes = array("q")
        self._used = HEADER_BYTES
        name = MetricFileName.parse(os.path.basename(path))
        self._has_timestamps = name is not None and name.has_timestamps
        _forget_second_name(path)
        self._file = self._open(by_flock)
        try:
            damage = self._load()
            if damage is not None:
                self._salvage()
                self._load()
                self.salvaged = damage.text
            if not self._has_timestamps:
                self._make_column()
        except BaseException:
            self.release()
            raise

    @property
    def ident(self) -> str:
        """What tells the file from others that have its name, see :func:`reader.ident_of`."""
        assert self._mapping is not None
        header = self._mapping.map[:HEADER_BYTES]
        return ident_of(header, os.fstat(self._file.descriptor).st_ino)

    def find(self, key: bytes) -> int | None:
        """Return the index of a key's value in :attr:`cells`, or ``None`` if it has no entry."""
        number = self._numbers.get(key)
        return None if number is None else self._indexes[number - _COLUMN_START]

    def number(self, key: bytes) -> int:
        """Return the place of a key's value in :attr:`column`.

        Raises:
            KeyError: The key has no entry.
        """
        self._fill_column()
        return self._numbers[key]

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
        mapping = self._mapping
        assert mapping is not None
        entry = self._pack_entry(key, value, timestamp, self._used)
        end = self._used + len(entry)
        while end > mapping.size:
            mapping = self._grow(mapping)
        number = _COLUMN_START + len(self._indexes)
        if self._column is not None and number >= len(self.column):
            self._grow_column(self._column)
        mapping.map[self._used : end] = entry
        index, used = (end - 16) // _CELL_BYTES, fileformat.pack_int(end)
        # In one store: from now on readers see the entry. Up to the end of append() no signal
        # handler runs, so whatever one raises, all of this has happened, or nothing.
        mapping.map[0:4] = used
        self._used = end
        self._numbers[key] = number
        self._indexes.append(index)
        self._fill_column()
        return index

    def read(self, index: int) -> tuple[float, float]:
        """Return the value and the timestamp at an index."""
        assert self._mapping is not None
        value, timestamp = fileformat.read_pair(self._mapping.map, index * _CELL_BYTES)
        return value, timestamp

    def write_pair(self, index: int, value: float, timestamp: float) -> None:
        """Write value and timestamp, in a file that has timestamps in one store of 16 bytes."""
        assert self._mapping is not None
        at = index * _CELL_BYTES
        self._mapping.map[at : at + 16] = fileformat.pack_pair(value, timestamp)

    def _pack_entry(self, key: bytes, value: float, timestamp: float, at: int) -> bytes:
        if self._has_timestamps:
            key = fileformat.align_key(key, at)
        return fileformat.pack_entry(key, value, timestamp)

    def is_linked(self) -> bool:
        """Return whether the file still has a name, so that readers can find it."""
        return self._file.is_linked()

    def give_up_column(self) -> bool:
        """Do without the column until the file is opened again; return whether there was one.

        What it has used, room on the volume and descriptors, can be used for something else.
        """
        mapping, self._column, self.column = self._column, None, {}
        if mapping is None:
            return False
        # It names no file from now on: its claim goes on in a child that was forked just now.
        mapping.words[0] = 0
        mapping.unmap()
        with contextlib.suppress(OSError):
            if mapping.file.is_in_place():
                os.unlink(mapping.file.path)
        mapping.file.release()
        return True

    def release(self) -> None:
        """Unmap and close the file, which ends the lock; may be called twice, never raises."""
        # First: a thread that stores now stores nowhere.
        self.cells, self.column = {}, {}
        mappings = self._mapping, self._column
        self._mapping = self._column = None
        for mapping in mappings:
            if mapping is not None:
                mapping.release()
        self._file.close()

    def _open(self, by_flock: bool) -> LockedFile:
        try:
            file = open_claimed(self.path, by_flock=by_flock)
        except FileNotFoundError:
            return self._make(b"")
        if file is None:
            raise MetricFileInUseError(self.path)
        return file

    def _make(self, entries: bytes, number: bytes = b"") -> LockedFile:
        """Create a complete and locked file, and give it the name of this one.

        Args:
            entries: Its entries.
            number: That of the damaged file that it replaces, which is kept as ``<path>.damaged``.
        """

        def fill(file: LockedFile) -> None:
            end = HEADER_BYTES + len(entries)
            reserve(file.descriptor, 0, whole_pages(end))
            header = fileformat.pack_int(end) + (number or os.urandom(4))
            os.pwrite(file.descriptor, header + entries, 0)
            if number:
                self._name_damaged()

        file = make_claimed(self.path, self.path.removesuffix(".db") + ".new", fill)
        if not file.is_in_place():
            file.close()
            raise MetricFileInUseError(self.path)
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
        size = whole_pages(found)
        # Existing files too: they may be sparse, and a write to a hole is a SIGBUS if the volume is
        # full.
        reserve(self._file.descriptor, 0, size)
        self._mapping = mapping = Mapping(self._file, size)
        self.cells = mapping.cells
        keys, used, damage = fileformat.read_entries(mapping.map, HEADER_BYTES, used)
        end = HEADER_BYTES
        for key in keys:
            if not fileformat.is_key(key):
                damage = damage or Damage("corrupted", f"the key at offset {end} is not a metric's")
            self._numbers[fileformat.key_text(key)] = _COLUMN_START + len(self._indexes)
            self._indexes.append((end + len(key)) // _CELL_BYTES)
            end += len(key) + 16
        if damage is None:
            self._used = used
            mapping.map[0:4] = fileformat.pack_int(used)
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
        # With its number: what was noted about its entries is about these. Its inode stays in use.
        number = os.pread(self._file.descriptor, HEADER_BYTES, 0)[4:]
        is_known = len(number) == 4 and any(number)
        replacement = self._make(bytes(content), number if is_known else os.urandom(4))
        self.release()
        self._numbers.clear()
        del self._indexes[:]
        self._file = replacement

    def _grow(self, before: Mapping) -> Mapping:
        self._mapping = mapping = before.enlarged()
        self.cells = mapping.cells
        before.unmap()
        return mapping

    def _make_column(self) -> None:
        """Make the column, and give it its name when it is complete; or do without."""
        path = column_path(self.path)
        unfinished = path + ".new"
        try:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(unfinished)
            file = LockedFile(unfinished, os.O_RDWR | os.O_CREAT | os.O_EXCL)
        except OSError:
            return
        try:
            content = self._column_content()
            size = whole_pages(len(content))
            reserve(file.descriptor, 0, size)
            os.pwrite(file.descriptor, content, 0)
            file.claim(by_flock=False)
            mapping = Mapping(file, size)
            os.rename(unfinished, path)
            file.path = path
            self._column, self.column = mapping, mapping.cells
        except BaseException as error:
            with contextlib.suppress(OSError):
                os.unlink(unfinished)
            file.release()
            if not isinstance(error, OSError):
                raise

    def _column_content(self) -> bytes:
        assert self._mapping is not None
        number = bytes(self._mapping.map[HEADER_BYTES - 4 : HEADER_BYTES])
        inode = os.fstat(self._file.descriptor).st_ino
        values = array("d", map(self._mapping.cells.__getitem__, self._indexes))
        return pack_header(inode, number, len(values)) + values.tobytes()

    def _grow_column(self, before: Mapping) -> None:
        try:
            self._column = mapping = before.enlarged()
        except OSError:
            self.give_up_column()
        else:
            self.column = mapping.cells
            before.unmap()

    def _fill_column(self) -> None:
        """Append the values of entries that are not in the column yet; there is room for them."""
        mapping = self._column
        if mapping is None or mapping.words[COUNT_INDEX] == len(self._indexes):
            return
        for number in range(mapping.words[COUNT_INDEX], len(self._indexes)):
            mapping.cells[_COLUMN_START + number] = self.cells[self._indexes[number]]
        # Last, and in one store: from now on readers see the values.
        mapping.words[COUNT_INDEX] = len(self._indexes)


def _forget_second_name(path: str) -> None:
    """Remove the second name of a file, if a process was killed while it salvaged the file."""
    damaged = path + ".damaged"
    with contextlib.suppress(OSError):
        if os.path.samestat(os.lstat(damaged), os.lstat(path)):
            os.unlink(damaged)
