"""The ``.db`` metric file: its format, writing it, and salvaging a damaged one.

The format is prometheus_client's (checked against 0.20 to 0.26), so that any reader of its
multiprocess directory reads our files too::

    offset 0   int32    used: bytes of the file that hold data, this header included
    offset 4   4 bytes  padding; ours holds a number drawn when the file was made, so that a reader
                        tells a file from its successor, also where inodes are reused at once
    offset 8   entries, one after the other, each
               int32    length of the key in bytes
               bytes    the key, UTF-8, then spaces up to a multiple of 8 (at least one)
               double   value
               double   timestamp, Unix seconds; 0 when it has none

Integers and doubles have the byte order of the machine. Entries are only ever appended, and
``used`` grows after the entry it covers is complete, so a reader at any moment, and a process
killed at any moment, see whole entries. A key is the JSON list ``[metric name, sample name,
labels, help]``.

This module knows nothing of prometheus_client; it needs the standard library only.
"""

from __future__ import annotations

import contextlib
import errno
import json
import mmap
import os
import re
import struct
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from typing import NamedTuple

from obskit_gunicorn.locks import LockedFile, NotAFileError, give_to_owner, open_file

__all__ = [
    "DAMAGE_REASONS",
    "HEADER_BYTES",
    "Damage",
    "Entries",
    "Layout",
    "MetricFile",
    "MetricFileInUseError",
    "MetricFileName",
    "MetricFileReader",
    "pack_entry",
    "read_entries",
    "read_file",
    "read_pair",
]

HEADER_BYTES = 8
_FIRST_SIZE_BYTES = 4096
_LARGEST_STEP_BYTES = 1 << 20
_CELL_BYTES = 8
_ASKING_SECONDS = 0.1

_read_int = struct.Struct("i").unpack_from
_pack_int = struct.Struct("i").pack
read_pair = struct.Struct("dd").unpack_from
"""Return the value and the timestamp at an offset of a file's content."""
_pack_pair = struct.Struct("dd").pack

_TEXT = rb'"(?:[ !#-\[\]-~]|\\["\\/bfnrt]|\\u[0-9a-fA-F]{4})*"'
_KEY = re.compile(
    rb"\[%b, %b, \{(?:%b: %b(?:, %b: %b)*)?\}, %b\]"
    % (_TEXT, _TEXT, _TEXT, _TEXT, _TEXT, _TEXT, _TEXT)
)
"""A key as json.dumps writes it, which is how every writer known does."""

_NAME = re.compile(r"(counter|histogram|summary|gauge_[a-z]+)_([^_]+)\.db")


class MetricFileName(NamedTuple):
    """The parts of a metric file's name, as in ``gauge_livesum_slot3.db``."""

    prefix: str
    """The metric type, for a gauge with its multiprocess mode: ``counter``, ``gauge_max``."""

    holder: str
    """Who writes the file: a slot's name, or a pid for writers that know no slots."""

    @classmethod
    def parse(cls, name: str) -> MetricFileName | None:
        """Return the parts of a file name, or ``None`` when it is no metric file's."""
        match = _NAME.fullmatch(name)
        return cls(*match.groups()) if match else None

    @property
    def is_live_gauge(self) -> bool:
        """Whether the file holds gauges that count only while their process lives."""
        return self.prefix.startswith("gauge_live")

    @property
    def belongs_to_one_holder(self) -> bool:
        """Whether the file's values mean nothing once its holder has ended.

        True of the ``live*`` gauges and of mode ``all``, which shows one series per process.
        """
        return self.is_live_gauge or self.prefix == "gauge_all"


class Entries(NamedTuple):
    """What could be read of a metric file."""

    offsets: dict[bytes, int]
    """The offset of each key's value."""

    end: int
    """The offset behind the last entry whose bounds make sense."""

    damage: str | None
    """What is wrong with the file, or ``None`` when nothing is."""


def pack_entry(key: bytes, value: float, timestamp: float) -> bytes:
    """Return an entry as it stands in the file."""
    padded = key + b" " * (8 - (len(key) + 4) % 8)
    return _pack_int(len(key)) + padded + _pack_pair(value, timestamp)


def read_entries(data: bytes | mmap.mmap, size: int | None = None) -> Entries:
    """Find the entries of a metric file, up to the first thing that is wrong.

    Args:
        data: The file's content.
        size: How many of its bytes count; all of them by default.

    Returns:
        The entries. Never raises, whatever the bytes are: a file that is damaged gives its valid
        prefix and says what is wrong behind it.
    """
    size = len(data) if size is None else size
    if size < HEADER_BYTES:
        return Entries({}, HEADER_BYTES, f"{size} bytes are too few for the header")
    (used,) = _read_int(data, 0)
    if used == 0:
        return Entries({}, HEADER_BYTES, None)
    damage = None
    if used > size:
        damage = f"the header says {used} bytes are used, the file has {size}"
    elif used < HEADER_BYTES or used % 8:
        damage = f"the header says {used} bytes are used, which cannot be"
    # A header that cannot be trusted says nothing of where the entries end: look further, and
    # take only what is beyond doubt an entry.
    strict = damage is not None
    limit = size if strict else used
    offsets: dict[bytes, int] = {}
    position = HEADER_BYTES
    while position < limit:
        if position + 4 > limit:
            damage = damage or f"the entry at offset {position} is cut off"
            break
        (length,) = _read_int(data, position)
        value_at = position + 4 + length + (8 - (length + 4) % 8)
        if length <= 0 or value_at + 16 > limit:
            damage = damage or f"the entry at offset {position} has a key of {length} bytes"
            break
        key = data[position + 4 : position + 4 + length]
        if _is_key(key):
            offsets[key] = value_at
        else:
            damage = damage or f"the key at offset {position} is no metric's"
            if strict:
                break
        position = value_at + 16
    return Entries(offsets, position, damage)


def read_file(path: str) -> tuple[bytes, Entries]:
    """Read a whole metric file without mapping it.

    Args:
        path: The file; it may be written to at the same time.

    Returns:
        Its content and its entries.

    Raises:
        OSError: The file cannot be opened or read.
    """
    with os.fdopen(open_file(path, os.O_RDONLY), "rb", buffering=0) as file:
        data = file.read()
    return data, read_entries(data)


def _is_key(key: bytes) -> bool:
    if _KEY.fullmatch(key):
        return True
    # Spelt in another way than we, and prometheus_client, do.
    try:
        name, sample, labels, help_text = json.loads(key)
        return all(type(text) is str for text in (name, sample, help_text, *labels.values()))
    except (ValueError, TypeError, AttributeError, RecursionError):
        return False


DAMAGE_REASONS = ("corrupted", "empty", "foreign", "truncated", "unreadable")


class Damage(NamedTuple):
    """What is wrong with a metric file."""

    reason: str
    """One of :data:`DAMAGE_REASONS`."""

    text: str
    """The same in words."""


class _Part(NamedTuple):
    """A stretch of a metric file, short enough for its values to stay in the CPU's cache."""

    start: int
    keys: tuple[bytes, ...]
    read_keys: Callable[[bytearray, int], tuple[bytes, ...]]
    read_values: Callable[[bytearray, int], tuple[float, ...]]
    read_pairs: Callable[[bytearray, int], tuple[float, ...]]

    @classmethod
    def of(cls, start: int, keys: tuple[bytes, ...]) -> _Part:
        """Return the part with these keys."""
        sizes = [len(key) for key in keys]
        formats = (
            "=" + "".join([f"{size}{each}" for size in sizes]) for each in ("s16x", "xd8x", "xdd")
        )
        return cls(start, keys, *[struct.Struct(format_).unpack_from for format_ in formats])

    def end(self) -> int:
        """Return the offset behind the last entry."""
        return self.start + sum(map(len, self.keys)) + 16 * len(self.keys)


_PART_KEYS = 256


class Layout:
    """The keys of a metric file and where their values stand.

    Files of processes that run the same application mostly have the same keys in the same order, so
    one layout serves many files, and a new file is compared with it instead of being parsed.

    Attributes:
        keys: The keys as they stand in the file, with length and padding; never changed.
        end: The offset behind the last entry; never changed.
        is_doubtful: There is a key that is no metric's. It may have been read before it was
            written, so the keys are looked at again at each scrape.
    """

    __slots__ = ("__weakref__", "_parts", "end", "is_doubtful", "keys")

    def __init__(self, keys: tuple[bytes, ...], shorter: Layout | None = None) -> None:
        """Make the layout of a file with these keys.

        Args:
            keys: The keys as they stand in the file.
            shorter: A layout that these keys begin with; what it has worked out is taken over.
        """
        self.keys = keys
        self.is_doubtful = False
        self._parts: list[_Part] = [] if shorter is None else shorter._parts[:]
        if self._parts and len(self._parts[-1].keys) < _PART_KEYS:
            self._parts.pop()
        at = self._parts[-1].end() if self._parts else HEADER_BYTES
        for number in range(len(self._parts) * _PART_KEYS, len(keys), _PART_KEYS):
            part = _Part.of(at, keys[number : number + _PART_KEYS])
            self._parts.append(part)
            at = part.end()
        self.end = at

    def fits(self, data: bytearray) -> bool:
        """Return whether a file begins with just these keys; ``data`` holds ``end`` bytes of it."""
        return all(part.read_keys(data, part.start) == part.keys for part in self._parts)

    def goes_on(self, shorter: Layout, data: bytearray) -> bool:
        """Return whether a file that begins with ``shorter`` goes on with the rest of this one."""
        if len(self.keys) <= len(shorter.keys):
            return False  # it has fewer keys and longer ones
        following = self.keys[len(shorter.keys)]
        # The next key first: it mostly tells, and costs less than to look at all of them.
        found = data[shorter.end : shorter.end + len(following)]
        return found == following and self.fits(data)

    def values(self, data: bytearray) -> Iterator[float]:
        """Return the values of all keys, read part by part as they are asked for."""
        return chain.from_iterable(part.read_values(data, part.start) for part in self._parts)

    def pairs(self, data: bytearray) -> Iterator[float]:
        """Return value, timestamp, value, timestamp, ... of all keys."""
        return chain.from_iterable(part.read_pairs(data, part.start) for part in self._parts)

    def extended(
        self, data: bytearray, used: int, *, strict: bool = False
    ) -> tuple[Layout, Damage | None]:
        """Parse what follows this layout.

        Args:
            data: The file's content, ``used`` bytes of it or more.
            used: Where the entries end.
            strict: Stop at a key that is no metric's.

        Returns:
            The layout with all whole entries up to ``used``, and what is wrong behind it.
        """
        found = dict.fromkeys(self.keys)
        position, problem = self.end, ""
        while position < used:
            if position + 4 > used:
                problem = "is cut off"
                break
            (length,) = _read_int(data, position)
            value_at = position + 4 + length + (8 - (length + 4) % 8)
            if length <= 0 or value_at + 16 > used:
                problem = f"has a key of {length} bytes"
                break
            key = bytes(data[position:value_at])
            if key in found:
                problem = "has the key of an earlier one"
                break
            if strict and not _is_key(key[4 : 4 + length]):
                problem = "has a key that is no metric's"
                break
            found[key] = None
            position = value_at + 16
        layout = Layout(tuple(found), self) if len(found) > len(self.keys) else self
        if problem:
            return layout, Damage("corrupted", f"the entry at offset {position} {problem}")
        return layout, None


_EMPTY = Layout(())


class MetricFileReader:
    """A metric file as scrapes read it: again and again, parsing only what was appended.

    Nothing in the file can crash, hang or balloon the reader: it reads without mapping, so that a
    file that is cut short is no SIGBUS, and never more than the file's size. It keeps no
    descriptor. A file that was replaced is noticed by its inode and, where inodes are reused at
    once, by the number in its header; one without a number by its keys.

    What cannot be read leaves keys and values as they were, so that no counter goes backwards.

    Not thread-safe.

    Attributes:
        path: The file.
        layout: Its keys, as far as they could be read.
        damage: What was wrong with the file when it was last read.
        size: Its size in bytes.
    """

    __slots__ = ("_data", "_identity", "damage", "layout", "path", "size")

    def __init__(self, path: str) -> None:
        """Name the file; nothing is read."""
        self.path = path
        self.layout = _EMPTY
        self.damage: Damage | None = None
        self.size = 0
        self._data = bytearray()
        self._identity: tuple[int, int, bytes] | None = None

    def values(self) -> Iterator[float]:
        """Return the value of each key; to be used up before the next :meth:`refresh`."""
        return self.layout.values(self._data)

    def pairs(self) -> Iterator[float]:
        """Return each value with its timestamp behind it, likewise."""
        return self.layout.pairs(self._data)

    def refresh(self, layouts: Iterable[Layout] = ()) -> None:
        """Read the file; what is wrong with it is in :attr:`damage` then.

        Args:
            layouts: Layouts of like files, to be tried before parsing.

        Raises:
            FileNotFoundError: The file is gone.
        """
        try:
            descriptor = open_file(self.path, os.O_RDONLY)
        except FileNotFoundError:
            raise
        except NotAFileError as error:
            self.damage = Damage("foreign", str(error))
            return
        except OSError as error:
            self.damage = Damage("unreadable", str(error))
            return
        try:
            self.damage = self._read(descriptor, layouts)
        except OSError as error:
            self.damage = Damage("unreadable", str(error))
        finally:
            os.close(descriptor)

    def _read(self, descriptor: int, layouts: Iterable[Layout]) -> Damage | None:
        status = os.fstat(descriptor)
        self.size = status.st_size
        header = os.pread(descriptor, HEADER_BYTES, 0)
        if len(header) < HEADER_BYTES:
            reason = "truncated" if header else "empty"
            return Damage(reason, f"{len(header)} bytes are too few for the header")
        used = _read_int(header, 0)[0] or HEADER_BYTES
        if used < HEADER_BYTES or used % 8 or used > self.size:
            if not self.layout.keys:
                self._salvage(descriptor)
            text = f"the header says {used} bytes are used, the file has {self.size}"
            return Damage("truncated" if used > self.size else "corrupted", text)
        identity = (status.st_dev, status.st_ino, header[4:])
        is_known = identity == self._identity and any(header[4:]) and not self.layout.is_doubtful
        # What may be another file is read apart, to leave nothing behind if it is cut short.
        data = self._data if is_known else bytearray(used)
        if len(data) < used:
            data.extend(bytes(used - len(data)))
        got = os.preadv(descriptor, [memoryview(data)[:used]], 0)
        if got < used:
            return Damage("truncated", f"the file was cut to {got} bytes while it was read")
        layout = self.layout
        if used < layout.end or identity != self._identity:
            layout = _EMPTY
        elif not is_known and not layout.fits(data):
            layout = _EMPTY  # it was replaced, or a key was written only now
        for other in layouts:
            if layout.end < other.end <= used and other.goes_on(layout, data):
                layout = other
        damage = None
        if layout.end < used:
            layout, damage = layout.extended(data, used)
        self.layout, self._data, self._identity = layout, data, identity
        return damage

    def _salvage(self, descriptor: int) -> None:
        """Take what is beyond doubt an entry, where the header says nothing of use."""
        data, layout = bytearray(), _EMPTY
        # Step by step: a file may seem to be much larger than what there is in it.
        while len(data) - layout.end < _LARGEST_STEP_BYTES:
            step = os.pread(descriptor, _LARGEST_STEP_BYTES, len(data))
            data += step
            if len(data) < layout.end or not step:
                break
            layout, _ = layout.extended(data, len(data), strict=True)
        self.layout, self._data, self._identity = layout, data, None


class MetricFileInUseError(OSError):
    """Another process holds the lock of a metric file that this process meant to write."""

    def __init__(self, path: str) -> None:
        """Make the error for the file at ``path``."""
        super().__init__(errno.EBUSY, "another process writes this metric file", path)


class MetricFile:
    """A metric file open for writing, mapped, and locked by this process alone.

    The lock and the data are one inode: whoever has the file open for writing is its only writer,
    also when files were removed or replaced behind our back.

    A file appears under its name only when it is whole. Space is reserved before it is mapped, so
    that a full volume is an ``OSError`` here and never a SIGBUS at a write.

    Not thread-safe; the caller holds a lock. A forked child must call :meth:`release` on the files
    of its parent, which leaves the parent's own mapping alone.

    Attributes:
        path: The file.
        cells: The file as doubles; the value of an entry is the one at its index.
        salvaged: What was wrong with the file that was found, or ``None``.
    """

    __slots__ = ("_file", "_indexes", "_map", "_size", "_used", "cells", "path", "salvaged")

    def __init__(self, path: str) -> None:
        """Open the file, or make it; replace a damaged one by what can be read of it.

        Args:
            path: The file. A damaged one is kept beside it as ``<path>.damaged``.

        Raises:
            MetricFileInUseError: Another process writes the file.
            OSError: The file cannot be opened or made, or there is no room for it.
        """
        self.path = path
        self.salvaged: str | None = None
        self._indexes: dict[bytes, int] = {}
        _forget_second_name(path)
        self._file = self._open()
        try:
            found = os.fstat(self._file.descriptor).st_size
            size = _whole_pages(found)
            # Also for a file that was found: it may be sparse, and a store into a hole of a full
            # volume is a SIGBUS.
            _reserve(self._file.descriptor, 0, size)
            self._map_file(size)
            entries = read_entries(self._map, found)
            if entries.damage is not None:
                self._salvage(entries)
                entries = read_entries(self._map)
            self._indexes = {key: at // _CELL_BYTES for key, at in entries.offsets.items()}
            self._used = entries.end
            self._map[0:4] = _pack_int(self._used)
        except BaseException:
            self.release()
            raise

    def find(self, key: bytes) -> int | None:
        """Return the index of a key's value in :attr:`cells`, or ``None`` when it has no entry."""
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
            OSError: There is no room; the file is as it was.
        """
        entry = pack_entry(key, value, timestamp)
        end = self._used + len(entry)
        while end > self._size:
            self._grow()
        self._map[self._used : end] = entry
        # Last, and in one store: from here on readers see the entry.
        self._map[0:4] = _pack_int(end)
        self._used = end
        index = self._indexes[key] = (end - 16) // _CELL_BYTES
        return index

    def read(self, index: int) -> tuple[float, float]:
        """Return the value and the timestamp at an index."""
        value, timestamp = read_pair(self._map, index * _CELL_BYTES)
        return value, timestamp

    def write_pair(self, index: int, value: float, timestamp: float) -> None:
        """Write value and timestamp in one store of 16 bytes."""
        at = index * _CELL_BYTES
        self._map[at : at + 16] = _pack_pair(value, timestamp)

    def is_linked(self) -> bool:
        """Return whether the file still has a name, so that readers can find it."""
        return self._file.is_linked()

    def release(self) -> None:
        """Unmap and close the file, and so end the lock; may be called twice, never raises."""
        cells = getattr(self, "cells", None)
        if cells is not None:
            cells.release()
            if self._file.is_open():
                self._map.close()
            else:
                # Somebody has closed our descriptors wholesale. The map has one of its own, which
                # it would close by number, whatever that is by now.
                _abandoned.append(self._map)
        self._file.close()

    def _open(self) -> LockedFile:
        while True:
            try:
                file = LockedFile(self.path, os.O_RDWR)
            except FileNotFoundError:
                file = self._prepare(b"")
                self._put_in_place(file)
                return file
            try:
                # Somebody who only asks whether the slot is free holds it for an instant.
                if not file.lock(wait_seconds=_ASKING_SECONDS):
                    raise MetricFileInUseError(self.path)
                if file.is_in_place():
                    return file
            except BaseException:
                file.close()
                raise
            file.close()

    def _prepare(self, entries: bytes) -> LockedFile:
        """Make a whole and locked file under another name."""
        unfinished = self.path.removesuffix(".db") + ".new"
        with contextlib.suppress(FileNotFoundError):
            os.unlink(unfinished)
        file = LockedFile(unfinished, os.O_RDWR | os.O_CREAT | os.O_EXCL)
        try:
            file.lock()
            give_to_owner(file.descriptor)
            end = HEADER_BYTES + len(entries)
            _reserve(file.descriptor, 0, _whole_pages(end))
            os.pwrite(file.descriptor, _pack_int(end) + os.urandom(4) + entries, 0)
        except BaseException:
            self._discard(file)
            raise
        return file

    def _put_in_place(self, file: LockedFile) -> None:
        """Give a prepared file the name."""
        try:
            os.rename(file.path, self.path)
            file.path = self.path
            if not file.is_in_place():
                raise MetricFileInUseError(self.path)
        except BaseException:
            self._discard(file)
            raise

    def _discard(self, file: LockedFile) -> None:
        if file.path != self.path:
            with contextlib.suppress(OSError):
                os.unlink(file.path)
        file.close()

    def _salvage(self, entries: Entries) -> None:
        """Put a new file with the valid entries in the place of a damaged one."""
        damaged = self.path + ".damaged"
        content = b"".join(
            pack_entry(key, *read_pair(self._map, at)) for key, at in entries.offsets.items()
        )
        replacement = self._prepare(content)
        try:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(damaged)
            # A second name first, so that there is no moment at which a scrape finds no file.
            try:
                os.link(self.path, damaged)
            except OSError:  # a file system without hard links
                os.rename(self.path, damaged)
        except BaseException:
            self._discard(replacement)
            raise
        self._put_in_place(replacement)
        self.cells.release()
        self._map.close()
        self._file.close()
        self._file = replacement
        self._map_file(os.fstat(replacement.descriptor).st_size)
        self.salvaged = entries.damage

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
        except ValueError as error:  # somebody has cut it since it was reserved
            raise OSError(errno.EIO, str(error), self.path) from None
        self._size = size
        self.cells = memoryview(self._map).cast("d")


_abandoned: list[mmap.mmap] = []


def _forget_second_name(path: str) -> None:
    """Remove the second name that a process killed while it salvaged has left."""
    damaged = path + ".damaged"
    with contextlib.suppress(OSError):
        if os.path.samestat(os.lstat(damaged), os.lstat(path)):
            os.unlink(damaged)


def _whole_pages(size: int) -> int:
    return max(_FIRST_SIZE_BYTES, -(-size // _FIRST_SIZE_BYTES) * _FIRST_SIZE_BYTES)


def _reserve(descriptor: int, offset: int, length: int) -> None:
    """Make sure that a stretch of a file has room on the volume; ENOSPC if it has not."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(descriptor, offset, length)
        return
    # macOS: writing zeros behind the end is what reserves room; what is there is left alone.
    size = os.fstat(descriptor).st_size
    if offset + length > size:
        os.pwrite(descriptor, bytes(offset + length - size), size)
