"""Reading metric files at scrapes; only what was appended is parsed."""

from __future__ import annotations

import os
import struct
import time
import weakref
from array import array
from bisect import bisect_right
from collections.abc import Callable
from itertools import chain, repeat
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from obskit_gunicorn._store import column
from obskit_gunicorn._store.fileformat import (
    HEADER_BYTES,
    Damage,
    MetricFileName,
    check_header,
    read_entries,
)
from obskit_gunicorn._store.locks import NotAFileError, is_claimed, open_file

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from obskit_gunicorn._store.locks import LockedFile

_LARGEST_STEP_BYTES = 1 << 20
_READ_FLAGS = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
_COARSE_NS = 100_000_000

_T = TypeVar("_T")
_Read = Callable[[bytearray, int], tuple[_T, ...]]


class _Part:
    """A section of a metric file, so short that its values fit in the CPU's cache.

    What reads it is made when it is needed: most files are only asked for their values.
    """

    __slots__ = ("_read_keys", "_read_pairs", "_read_values", "end", "keys", "start")

    def __init__(self, start: int, keys: tuple[bytes, ...]) -> None:
        """Create the part that begins at an offset, with these keys."""
        self.start, self.keys = start, keys
        self.end = start + sum(map(len, keys)) + 16 * len(keys)
        self._read_keys: _Read[bytes] | None = None
        self._read_values: _Read[float] | None = None
        self._read_pairs: _Read[float] | None = None

    def is_in(self, data: bytearray) -> bool:
        """Return whether a file has these keys here."""
        if self._read_keys is None:
            self._read_keys = self._reader("s16x")
        return self._read_keys(data, self.start) == self.keys

    def values(self, data: bytearray) -> bytes:
        """Return the value of each key, as doubles close together."""
        if self._read_values is None:
            self._read_values = self._reader("xd8x")
        return array("d", self._read_values(data, self.start)).tobytes()

    def pairs(self, data: bytearray) -> bytes:
        """Return value, timestamp, value, ..., as doubles."""
        if self._read_pairs is None:
            self._read_pairs = self._reader("xdd")
        return array("d", self._read_pairs(data, self.start)).tobytes()

    def _reader(self, each: str) -> Any:
        return struct.Struct("=" + "".join([f"{len(key)}{each}" for key in self.keys])).unpack_from


_PART_KEYS = 256


class Layout:
    """The keys of a metric file, and the offsets of their values.

    Processes that run the same application mostly write the same keys in the same order. So many
    files share one layout, and a new file is compared with it instead of being parsed.

    Attributes:
        keys: The keys as they are stored in the file, with length and padding; never changed.
        end: The offset after the last entry; never changed.
        is_doubtful: Whether a key is not a metric's key. It may have been read before it was
            completely written, so the keys are compared again at each scrape.
    """

    __slots__ = ("__weakref__", "_parts", "_shorter", "end", "is_doubtful", "keys")

    def __init__(self, keys: tuple[bytes, ...], shorter: Layout | None = None) -> None:
        """Create the layout of a file with these keys.

        Args:
            keys: The keys as they are stored in the file.
            shorter: A layout of the first of these keys; its parts are reused.
        """
        self.keys = keys
        self.is_doubtful = False
        self._shorter = None if shorter is None else weakref.ref(shorter)
        self._parts: list[_Part] = [] if shorter is None else shorter._parts[:]
        if self._parts and len(self._parts[-1].keys) < _PART_KEYS:
            self._parts.pop()
        at = self._parts[-1].end if self._parts else HEADER_BYTES
        for number in range(len(self._parts) * _PART_KEYS, len(keys), _PART_KEYS):
            part = _Part(at, keys[number : number + _PART_KEYS])
            self._parts.append(part)
            at = part.end
        self.end = at

    def fits(self, data: bytearray) -> bool:
        """Return whether a file begins with these keys; ``data`` holds ``end`` bytes of it."""
        return all(part.is_in(data) for part in self._parts)

    def goes_on(self, before: object) -> bool:
        """Return whether this is a layout from before, and more keys behind its own."""
        if self._shorter is not None and self._shorter() is before:
            return True
        return isinstance(before, Layout) and self.keys[: len(before.keys)] == before.keys

    def extends(self, shorter: Layout, data: bytearray) -> bool:
        """Return whether a file that begins with ``shorter`` continues with the rest of this.

        Args:
            shorter: The layout so far.
            data: The file's content from the end of that on; in front of it may be anything.
        """
        if len(self.keys) <= len(shorter.keys):
            return False  # it has fewer keys and longer ones
        # Compare the next key first: that is mostly enough, and cheaper than comparing all.
        following = self.keys[len(shorter.keys)]
        if data[shorter.end : shorter.end + len(following)] != following:
            return False
        if not self.goes_on(shorter):
            return False
        at = shorter.end
        for part in self._parts:
            if part.start >= shorter.end:
                if not part.is_in(data):
                    return False
            elif part.end > shorter.end:
                for key in part.keys[len(shorter.keys) % _PART_KEYS :]:
                    if data[at : at + len(key)] != key:
                        return False
                    at += len(key) + 16
        return True

    def values(self, data: bytearray) -> bytes:
        """Return the values of all keys, as doubles close together."""
        return b"".join([part.values(data) for part in self._parts])

    def pairs(self, data: bytearray) -> bytes:
        """Return value, timestamp, value, timestamp, ... of all keys, as doubles."""
        return b"".join([part.pairs(data) for part in self._parts])

    def place(self, number: int) -> int:
        """Return the offset of the value of a key, by its number."""
        part = self._parts[number // _PART_KEYS]
        before = part.keys[: number % _PART_KEYS]
        return part.start + sum(map(len, before)) + 16 * len(before) + len(self.keys[number])

    def places(self) -> Iterator[int]:
        """Yield the offset of the value of each key."""
        at = HEADER_BYTES
        for key in self.keys:
            at += len(key)
            yield at
            at += 16

    def number_behind(self, end: int) -> int:
        """Return the number of the first key that is behind an offset at which an entry ends."""
        index = max(0, bisect_right([part.start for part in self._parts], end) - 1)
        number = index * _PART_KEYS
        at = self._parts[index].start if self._parts else end
        while at < end and number < len(self.keys):
            at += len(self.keys[number]) + 16
            number += 1
        return number

    def number_at(self, place: int) -> int | None:
        """Return the number of the key whose value is at an offset; ``None`` if there is none."""
        index = bisect_right([part.start for part in self._parts], place) - 1
        if index < 0:
            return None
        part = self._parts[index]
        at = part.start
        for number, key in enumerate(part.keys, index * _PART_KEYS):
            at += len(key)
            if at >= place:
                return number if at == place else None
            at += 16
        return None

    def extended(
        self, data: bytearray, used: int, *, strict: bool = False
    ) -> tuple[Layout, Damage | None]:
        """Parse the entries after this layout.

        Args:
            data: The file's content, ``used`` bytes of it or more.
            used: Where the entries end.
            strict: Stop at a key that is not a metric's key.

        Returns:
            The layout with all whole entries up to ``used``, and what is wrong after it.
        """
        keys, _end, damage = read_entries(data, self.end, used, strict=strict)
        return (Layout((*self.keys, *keys), self) if keys else self), damage


_EMPTY = Layout(())


def ident_of(header: bytes, inode: int) -> str:
    """Return what tells a file from one that has its name later.

    That is the number in its header, which goes on when a file is copied or salvaged; of files of
    writers that give them none it is the inode.

    Args:
        header: The first :data:`~obskit_gunicorn._store.fileformat.HEADER_BYTES` of the file.
        inode: Its inode.
    """
    number = header[4:HEADER_BYTES]
    return number.hex() if any(number) else f"inode {inode}"


def _number(header: bytes, status: os.stat_result) -> bytes:
    """Return what tells a file from another one with its inode; zeros if nothing does.

    prometheus_client's own writer has no number in the header; there it is the time at which the
    file was changed last, other than by a store into its map. Not if that was just now: a file that
    takes its place may get the same time, for clocks of file systems are coarse.
    """
    number = header[4:]
    if not any(number) and time.time_ns() - status.st_ctime_ns > _COARSE_NS:
        return status.st_ctime_ns.to_bytes(8, "little")
    return number


class MetricFileReader:
    """A metric file that is read at each scrape.

    Nothing in the file can crash or hang the reader, or make it use much memory. It does not map
    the file, so a truncated file causes no SIGBUS, and it never reads more than the file's size. It
    keeps no descriptor open, but may be given one. It recognizes a replaced file by its inode and,
    because inodes may be reused at once, by the number in its header. If there is no number, by the
    time of its last change, or else by its keys.

    Where its writer keeps a column beside it, see :mod:`obskit_gunicorn._store.column`, only that
    is read, as long as it counts. The metric file is the truth: the column of a living writer may
    lack the store that is being made, so what the metric file has shown is not set back.

    If the file cannot be read, keys and values stay as they were, so that no counter goes
    backwards.

    Not thread-safe.

    Attributes:
        path: The file.
        layout: Its keys, as far as they could be read.
        numbers: The value of each key, as doubles; another object if they have changed.
        stamped: Value, timestamp, value, ... of gauges, else empty. A writer that keeps a column
            writes no timestamps.
        damage: What was wrong with the file when it was last read, if anything.
        size: Its size in bytes.
        column_size: That of its column, as it was read last; 0 if none was read.
        ident: What tells the file from others that have its name, see :func:`ident_of`; empty if it
            has not been read.
    """

    __slots__ = (
        "_expected",
        "_identity",
        "_is_stamped",
        "_late",
        "_look",
        "_untouched",
        "column_size",
        "damage",
        "ident",
        "layout",
        "numbers",
        "path",
        "size",
        "stamped",
    )

    def __init__(self, path: str) -> None:
        """Set the path; reads nothing."""
        self.path = path
        self.ident = ""
        self.layout = _EMPTY
        self.numbers = self.stamped = b""
        self.damage: Damage | None = None
        self.size = self.column_size = 0
        name = MetricFileName.parse(os.path.basename(path))
        # Of all gauges, for a metric may be a gauge of several modes: then the last one counts.
        self._is_stamped = name is not None and name.prefix.startswith("gauge")
        self._identity: tuple[int, int, bytes] | None = None
        self._expected = b""
        self._late: list[int] = []
        self._untouched: bytes | None = None
        self._look: tuple[int, ...] = ()

    @property
    def follows_column(self) -> bool:
        """Whether the column is read in place of the file, as long as it counts."""
        return bool(self._expected)

    @classmethod
    def of(cls, entries: Mapping[bytes, tuple[float, float]]) -> MetricFileReader:
        """Return a reader of a file that is nowhere, with these keys, values and timestamps."""
        reader = cls("")
        reader.layout = Layout(tuple(entries))
        reader.numbers = array("d", [value for value, _timestamp in entries.values()]).tobytes()
        reader.stamped = array("d", chain.from_iterable(entries.values())).tobytes()
        return reader

    def pairs(self) -> Iterator[float]:
        """Return value, timestamp, value, ...; timestamps that mean nothing are 0."""
        if self.stamped:
            return iter(memoryview(self.stamped).cast("d"))
        values = memoryview(self.numbers).cast("d")
        return chain.from_iterable(zip(values, repeat(0.0)))

    def refresh(
        self,
        layouts: Iterable[Layout] = (),
        kept: LockedFile | None = None,
        *,
        inode: int = 0,
        has_column: bool = False,
        column: LockedFile | None = None,
        untouched: bytes | None = None,
        buffer: bytearray | None = None,
    ) -> None:
        """Read the file, and set :attr:`damage`.

        Args:
            layouts: Layouts of similar files, which are tried before parsing.
            kept: The file, if it is open already; it may have been removed since.
            inode: Its inode, if it is known.
            has_column: Whether there is a column beside it.
            column: The column, if it is open already.
            untouched: Who may write the file is not there, and has not been as long as this stays
                the same, see :meth:`SlotDirectory.untouched`; then it is not read again.
            buffer: Where to read to; what it holds is overwritten.

        Raises:
            FileNotFoundError: The file does not exist.
        """
        buffer = bytearray() if buffer is None else buffer
        try:
            if untouched is not None and untouched == self._untouched and self._is_same(kept):
                return
            self._untouched = None
            if has_column and self._expected and self._follow_column(inode, kept, column):
                self.damage = None
                return
            descriptor = open_file(self.path, os.O_RDONLY) if kept is None else kept.descriptor
            try:
                self.damage = self.read(descriptor, layouts, has_column=has_column, buffer=buffer)
                if self.damage is None and is_claimed(descriptor) is False:
                    self._untouched = untouched
            finally:
                if kept is None:
                    os.close(descriptor)
        except FileNotFoundError:
            raise
        except NotAFileError as error:
            self.damage = Damage("foreign", str(error))
        except OSError as error:
            self.damage = Damage("unreadable", str(error))

    def read(
        self,
        descriptor: int,
        layouts: Iterable[Layout] = (),
        *,
        has_column: bool = False,
        buffer: bytearray | None = None,
    ) -> Damage | None:
        """Read the file through an open descriptor; return what is wrong with it.

        Raises:
            OSError: It cannot be read.
        """
        status = os.fstat(descriptor)
        self.size, self._look = status.st_size, _look_of(status)
        header = os.pread(descriptor, HEADER_BYTES, 0)
        used, damage = check_header(header, self.size)
        if damage is not None:
            self._expected = b""
            if len(header) == HEADER_BYTES and not self.layout.keys:
                self._salvage(descriptor)
                self.ident = ident_of(header, status.st_ino)
            return damage
        identity = (status.st_dev, status.st_ino, _number(header, status))
        is_known = identity == self._identity and any(identity[2]) and not self.layout.is_doubtful
        expected = self._names_in_column(header, status) if has_column else b""
        if is_known and expected and self._extend_by_column(descriptor, used, expected, layouts):
            return None
        # Before the file: what is in the column is in the file as well.
        beside = _read_column(self.path, expected, used // 24) if expected else None
        data = bytearray() if buffer is None else buffer
        if len(data) < used:
            data.extend(bytes(used - len(data)))
        got = os.preadv(descriptor, [memoryview(data)[:used]], 0)
        if got < used:
            return Damage("truncated", f"the file was truncated to {got} bytes while it was read")
        layout = self.layout
        if used < layout.end or identity != self._identity:
            layout = _EMPTY
        elif not is_known and not layout.fits(data):
            layout = _EMPTY  # it was replaced, or a key was completed only now
        layout, damage = _continued(layout, layouts, data, used)
        self._note(layout, layout.values(data))
        self._identity, self.ident = identity, ident_of(header, status.st_ino)
        self._expected, self._late, self.column_size = b"", [], 0
        if beside is not None and damage is None:
            self._expected, self.column_size = expected, self._size_of_column()
            self._late = _different(beside, self.numbers)
            self.stamped = b""
        else:
            self.stamped = layout.pairs(data) if self._is_stamped else b""
        return damage

    def _is_same(self, kept: LockedFile | None) -> bool:
        """Return whether the file looks as it did when it was read last."""
        status = os.stat(self.path) if kept is None else os.fstat(kept.descriptor)
        return _look_of(status) == self._look

    def _note(self, layout: Layout, numbers: bytes) -> None:
        """Note what was read."""
        self.layout = layout
        if numbers != self.numbers:
            self.numbers = numbers

    @staticmethod
    def _names_in_column(header: bytes, status: os.stat_result) -> bytes:
        """Return how the header of a column of the file begins."""
        return column.pack_header(status.st_ino, header[4:], 0)[: 8 * column.COUNT_INDEX]

    def _size_of_column(self) -> int:
        try:
            return os.stat(column.column_path(self.path)).st_size
        except OSError:
            return 0

    def _follow_column(
        self, inode: int, kept: LockedFile | None, column: LockedFile | None
    ) -> bool:
        """Read the column; return whether it counts, and has the keys that are known."""
        layout, identity = self.layout, self._identity
        if identity is None or layout.is_doubtful:
            return False
        # Who has a claim on a column has its metric file open: no other file has its inode.
        if inode != identity[1]:
            status = os.stat(self.path) if kept is None else os.fstat(kept.descriptor)
            if (status.st_dev, status.st_ino) != identity[:2]:
                return False
        size = len(layout.keys)
        found = _read_column(self.path, self._expected, size, column)
        if found is None or found.size != size:
            return False
        numbers = found.values
        if self._late:
            numbers = self._corrected(numbers, kept)
        if numbers != self.numbers:
            self.numbers = numbers
        return True

    def _extend_by_column(
        self, descriptor: int, used: int, expected: bytes, layouts: Iterable[Layout]
    ) -> bool:
        """Read new keys, and all values from the column; return whether it has them."""
        layout = self.layout
        if not self._expected or used < layout.end:
            return False
        if used > layout.end:
            data = bytearray(used)  # its first part is never touched, and so costs nothing
            size = used - layout.end
            if os.preadv(descriptor, [memoryview(data)[layout.end :]], layout.end) < size:
                return False
            layout, damage = _continued(layout, layouts, data, used)
            if damage is not None:
                return False
        size = len(layout.keys)
        found = _read_column(self.path, expected, size)
        if found is None or found.size < size:
            return False
        numbers = found.values
        if self._late:
            numbers = self._corrected(numbers, None)
        self.column_size = self._size_of_column()
        self._note(layout, numbers)
        return True

    def _corrected(self, numbers: bytes, kept: LockedFile | None) -> bytes:
        """Return the values of a column with those that the metric file had first.

        So long as the two differ, the store that the metric file has was not made in the column.

        Raises:
            OSError: The metric file cannot be read.
        """
        corrected = bytearray(numbers)
        descriptor = open_file(self.path, os.O_RDONLY) if kept is None else kept.descriptor
        try:
            late = []
            for number in self._late:
                value = os.pread(descriptor, 8, self.layout.place(number))
                at = 8 * number
                if len(value) == 8 and value != numbers[at : at + 8]:
                    corrected[at : at + 8] = value
                    late.append(number)
            self._late = late
        finally:
            if kept is None:
                os.close(descriptor)
        return bytes(corrected)

    def _salvage(self, descriptor: int) -> None:
        """Recover entries with valid keys when the header is wrong."""
        data, layout = bytearray(), _EMPTY
        # Step by step, because a sparse file may be much larger than its content.
        while len(data) - layout.end < _LARGEST_STEP_BYTES:
            step = os.pread(descriptor, _LARGEST_STEP_BYTES, len(data))
            data += step
            if len(data) < layout.end or not step:
                break
            layout, _ = layout.extended(data, len(data), strict=True)
        self._note(layout, layout.values(data))
        self.stamped = layout.pairs(data) if self._is_stamped else b""
        self._identity = None


def _look_of(status: os.stat_result) -> tuple[int, ...]:
    return (
        status.st_dev,
        status.st_ino,
        status.st_size,
        status.st_mtime_ns,
        status.st_ctime_ns,
    )


class _Column(NamedTuple):
    size: int
    """How many values it has."""

    values: bytes


def _read_column(
    path: str, expected: bytes, most: int, kept: LockedFile | None = None
) -> _Column | None:
    """Read the column of a metric file.

    Args:
        path: The metric file.
        expected: How its header has to begin.
        most: How many values to read at most.
        kept: The column, if it is open already.

    Returns:
        How many values it has, and so many of them as were asked for; ``None`` if it does not
        count: nobody has a claim on it, or it is not that of the metric file.
    """
    try:
        if kept is not None:
            return _column_at(kept.descriptor, expected, most)
        descriptor = os.open(column.column_path(path), _READ_FLAGS)
        try:
            return _column_at(descriptor, expected, most)
        finally:
            os.close(descriptor)
    except OSError:
        return None


def _column_at(descriptor: int, expected: bytes, most: int) -> _Column | None:
    """Read an open column; see :func:`_read_column`.

    Raises:
        OSError: It cannot be read.
    """
    # First: who has the claim has made all its stores, or makes them now.
    if not is_claimed(descriptor):
        return None
    data = os.pread(descriptor, column.HEADER_BYTES + 8 * most, 0)
    header = column.unpack_header(data)
    if header is None or not data.startswith(expected):
        return None
    values = data[column.HEADER_BYTES :]
    if len(values) < 8 * min(most, header.length):
        return None  # truncated
    return _Column(header.length, values[: 8 * header.length])


def _continued(
    layout: Layout, layouts: Iterable[Layout], data: bytearray, used: int
) -> tuple[Layout, Damage | None]:
    """Return the layout of a file that begins with one, and what is wrong behind it.

    Args:
        layout: Its first keys.
        layouts: Layouts of similar files, which are tried before parsing.
        data: Its content, from the end of those keys on.
        used: Where its entries end.
    """
    for other in layouts:
        if layout.end < other.end <= used and other.extends(layout, data):
            layout = other
    return layout.extended(data, used) if layout.end < used else (layout, None)


def _different(found: _Column, numbers: bytes) -> list[int]:
    """Return the numbers of the keys whose values in a column are not those of the file."""
    known = min(found.size, len(numbers) // 8)
    late = list(range(known, len(numbers) // 8))
    if found.values[: 8 * known] != numbers[: 8 * known]:
        pairs = zip(_words(found.values), _words(numbers), strict=False)
        late += [number for number, (there, here) in enumerate(pairs) if there != here]
    return late


def _words(numbers: bytes) -> Iterator[int]:
    """Return doubles as their bits, so that each is equal to itself."""
    return iter(memoryview(numbers).cast("Q"))
