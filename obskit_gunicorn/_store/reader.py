"""Reading metric files at scrapes; only what was appended is parsed."""

from __future__ import annotations

import os
import struct
import time
import weakref
from collections.abc import Callable
from itertools import chain
from typing import TYPE_CHECKING, Any, TypeVar

from obskit_gunicorn._store.fileformat import (
    HEADER_BYTES,
    Damage,
    check_header,
    pack_pair,
    read_entries,
)
from obskit_gunicorn._store.locks import NotAFileError, open_file

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from obskit_gunicorn._store.locks import LockedFile

_LARGEST_STEP_BYTES = 1 << 20
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

    def values(self, data: bytearray) -> tuple[float, ...]:
        """Return the value of each key."""
        if self._read_values is None:
            self._read_values = self._reader("xd8x")
        return self._read_values(data, self.start)

    def pairs(self, data: bytearray) -> tuple[float, ...]:
        """Return value, timestamp, value, ..."""
        if self._read_pairs is None:
            self._read_pairs = self._reader("xdd")
        return self._read_pairs(data, self.start)

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
        """Return whether a file that begins with ``shorter`` continues with the rest of this."""
        if len(self.keys) <= len(shorter.keys):
            return False  # it has fewer keys and longer ones
        following = self.keys[len(shorter.keys)]
        # Compare the next key first: that is mostly enough, and cheaper than comparing all.
        found = data[shorter.end : shorter.end + len(following)]
        if found != following:
            return False
        has_few_more = len(self.keys) - len(shorter.keys) <= 2 * _PART_KEYS
        if not has_few_more or self._shorter is None or self._shorter() is not shorter:
            return self.fits(data)
        at = shorter.end
        for key in self.keys[len(shorter.keys) :]:
            if data[at : at + len(key)] != key:
                return False
            at += len(key) + 16
        return True

    def values(self, data: bytearray) -> Iterator[float]:
        """Return the values of all keys; each part is read when it is needed."""
        return chain.from_iterable(part.values(data) for part in self._parts)

    def pairs(self, data: bytearray) -> Iterator[float]:
        """Return value, timestamp, value, timestamp, ... of all keys."""
        return chain.from_iterable(part.pairs(data) for part in self._parts)

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

    If the file cannot be read, keys and values stay as they were, so that no counter goes
    backwards.

    Not thread-safe.

    Attributes:
        path: The file.
        layout: Its keys, as far as they could be read.
        damage: What was wrong with the file when it was last read, if anything.
        size: Its size in bytes.
    """

    __slots__ = ("_data", "_identity", "damage", "layout", "path", "size")

    def __init__(self, path: str) -> None:
        """Set the path; reads nothing."""
        self.path = path
        self.layout = _EMPTY
        self.damage: Damage | None = None
        self.size = 0
        self._data = bytearray()
        self._identity: tuple[int, int, bytes] | None = None

    @classmethod
    def of(cls, entries: Mapping[bytes, tuple[float, float]]) -> MetricFileReader:
        """Return a reader of a file that is nowhere, with these keys, values and timestamps."""
        reader = cls("")
        reader.layout = Layout(tuple(entries))
        parts = (key + pack_pair(*pair) for key, pair in entries.items())
        reader._data = bytearray(HEADER_BYTES) + b"".join(parts)
        return reader

    def values(self) -> Iterator[float]:
        """Return the value of each key; must be consumed before the next :meth:`refresh`."""
        return self.layout.values(self._data)

    def pairs(self) -> Iterator[float]:
        """Return value, timestamp, value, ...; must be consumed before the next :meth:`refresh`."""
        return self.layout.pairs(self._data)

    def refresh(self, layouts: Iterable[Layout] = (), kept: LockedFile | None = None) -> None:
        """Read the file, and set :attr:`damage`.

        Args:
            layouts: Layouts of similar files, which are tried before parsing.
            kept: The file, if it is open already; it may have been removed since.

        Raises:
            FileNotFoundError: The file does not exist.
        """
        try:
            if kept is not None:
                self.damage = self.read(kept.descriptor, layouts)
                return
            descriptor = open_file(self.path, os.O_RDONLY)
            try:
                self.damage = self.read(descriptor, layouts)
            finally:
                os.close(descriptor)
        except FileNotFoundError:
            raise
        except NotAFileError as error:
            self.damage = Damage("foreign", str(error))
        except OSError as error:
            self.damage = Damage("unreadable", str(error))

    def read(self, descriptor: int, layouts: Iterable[Layout] = ()) -> Damage | None:
        """Read the file through an open descriptor; return what is wrong with it.

        Raises:
            OSError: It cannot be read.
        """
        status = os.fstat(descriptor)
        self.size = status.st_size
        header = os.pread(descriptor, HEADER_BYTES, 0)
        used, damage = check_header(header, self.size)
        if damage is not None:
            if len(header) == HEADER_BYTES and not self.layout.keys:
                self._salvage(descriptor)
            return damage
        identity = (status.st_dev, status.st_ino, _number(header, status))
        is_known = identity == self._identity and any(identity[2]) and not self.layout.is_doubtful
        # A file that may have been replaced is read into a new buffer, in case it is truncated.
        data = self._data if is_known else bytearray(used)
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
        for other in layouts:
            if layout.end < other.end <= used and other.extends(layout, data):
                layout = other
        if layout.end < used:
            layout, damage = layout.extended(data, used)
        self.layout, self._data, self._identity = layout, data, identity
        return damage

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
        self.layout, self._data, self._identity = layout, data, None
