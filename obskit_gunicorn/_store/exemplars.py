"""The bytes of a slot's exemplars, ``slot3.exemplars``, their writer and their reader.

An *exemplar* is a few labels that lead from a count to an example, mostly to a trace. The format of
metric files has no place for them, so they stand in a file of their own, which no reader of metric
files takes for one. It is made at the first exemplar. All numbers have the byte order of the
machine::

    offset 0     8 bytes  obskexm1
    offset 8     8 bytes  a random number, which tells the file from its replacement
    offset 16    uint64   twice how many exemplars were written; one less while one is written
    offset 4096  cells of 2048 bytes: the exemplar that one sample has got last, in two halves

    half 0       uint32   CRC-32 of the bytes behind it, up to the end of the labels
    half 4       uint32   how many bytes of labels
    half 8       uint64   the how-manieth exemplar of the file it is
    half 16      16 bytes which sample it belongs to: a digest of the metric type and the key
    half 32      double   its value
    half 40      double   its time, Unix seconds
    half 48      bytes    its labels: how many there are, then how many characters each name has,
                          the names in UTF-8 without anything between them, and the values likewise

A cell's halves are written in turn, and the valid one with the higher number counts. So a process
that is killed at any moment leaves the exemplar before, and a reader never shows half of one. There
are at most :data:`MOST_CELLS` cells: then the exemplar that was written longest ago makes room. An
exemplar has 128 characters at most, as OpenMetrics and prometheus_client have it, so that each
fits. Names and values are told apart by their lengths, for every character is allowed in them.
"""

from __future__ import annotations

import contextlib
import functools
import os
import re
import struct
from hashlib import blake2b
from typing import TYPE_CHECKING, NamedTuple
from zlib import crc32

from obskit_gunicorn._store.beside import BesideReader, open_beside
from obskit_gunicorn._store.fileformat import Damage
from obskit_gunicorn._store.locks import is_claimed
from obskit_gunicorn._store.mapping import Mapping, reserve

if TYPE_CHECKING:
    from collections.abc import Iterator
    from collections.abc import Mapping as Dictionary

    from obskit_gunicorn._store.locks import LockedFile

SUFFIX = ".exemplars"
MAGIC = b"obskexm1"
HEADER_BYTES = 4096
CELL_BYTES = 2048
HALF_BYTES = CELL_BYTES // 2
MOST_CELLS = 512

_FIRST_CELLS = 16
_COUNT_INDEX = 2
_MOST_LOOKS = 8
_LATEST_SECONDS = 1e11
_MOST_NUMBERS = 1 << 60
_LONGEST = 128

_HEADER = struct.Struct("=8s8sQ")
_HALF = struct.Struct("=IIQ16sdd")
_BODY = struct.Struct("=IQ16sdd")
_HALF_HEAD = _HALF.size
_MOST_BYTES = HALF_BYTES - _HALF.size
_pack_crc = struct.Struct("=I").pack
_pack_body = _BODY.pack
_NAME = re.compile(r"[a-zA-Z_][a-zA-Z0-9_]*")


class Exemplar(NamedTuple):
    """An exemplar as it was found in a file."""

    labels: tuple[tuple[str, str], ...]
    """Names and values, sorted; the names need neither quotes nor escapes."""

    value: float
    timestamp: float
    """Unix seconds."""


@functools.lru_cache(maxsize=256)
def _packed_names(names: tuple[str, ...]) -> bytes | None:
    """Return names as they are stored; ``None`` if they would need quotes or escapes.

    The formats have these for the labels of samples only.
    """
    if not all(map(_NAME.fullmatch, names)) or len(names) > _LONGEST:
        return None
    return bytes([len(names), *map(len, names)]) + "".join(names).encode()


def digest_of(prefix: str, key: bytes) -> bytes:
    """Return what tells a sample from all others.

    Args:
        prefix: The metric type, as in the names of metric files.
        key: The key, without length and padding.
    """
    return blake2b(b"%b\0%b" % (prefix.encode(), key), digest_size=16).digest()


class _Place:
    """The cell of a sample."""

    __slots__ = ("at", "digest")

    def __init__(self, at: int, digest: bytes) -> None:
        """Set where the half begins that is written next."""
        self.at, self.digest = at, digest


class ExemplarFile:
    """The exemplars of a slot, open for writing and locked by this process alone.

    Made complete before it gets its name, and its room is reserved before it is mapped, as with
    metric files: a full volume is an ``OSError`` and never a SIGBUS. What the slot's holders before
    have left stays until it is displaced.

    Not thread-safe; the caller holds a lock. A forked child must call :meth:`release` on the file
    of its parent.

    Attributes:
        path: The file.
        replaced: What was wrong with the file that was there before, or ``None``.
    """

    __slots__ = ("_file", "_free", "_left", "_mapping", "_number", "_places", "path", "replaced")

    def __init__(self, path: str, *, by_flock: bool = False) -> None:
        """Open or create the file; a damaged one is replaced by an empty one.

        Args:
            path: The file.
            by_flock: Whether another writer may hold only an flock.

        Raises:
            OSError: The file cannot be opened or created, another process writes it, or the volume
                is full.
        """
        self.path = path
        self._places: dict[tuple[str, bytes], _Place] = {}
        self._left: dict[bytes, int] = {}
        self._free: list[int] = []
        self._number = 0
        self._mapping: Mapping | None = None
        self._file, self.replaced = open_beside(
            path, by_flock=by_flock, wrong=_wrong_with, make=_make
        )
        try:
            size = os.fstat(self._file.descriptor).st_size
            reserve(self._file.descriptor, 0, size)  # it may be sparse
            self._mapping = Mapping(self._file, size)
            self._load(self._mapping)
        except BaseException:
            self.release()
            raise

    def put(
        self, key: tuple[str, bytes], labels: Dictionary[str, str], value: float, timestamp: float
    ) -> bool:
        """Keep an exemplar as the newest one of a sample.

        Args:
            key: Metric type and key of the sample.
            labels: Its labels.
            value: Its value.
            timestamp: When it was observed, Unix seconds.

        Returns:
            Whether an exposition can have it. If not, the one before stays: the labels are too long
            or not text (a lone surrogate, say), or a name would need quotes, or there is a NUL, at
            which Prometheus gives up the whole scrape.
        """
        try:
            texts = labels.values()
            content = _packed_names(tuple(labels)) + bytes(map(len, texts))  # type: ignore[operator]
            content += (text := "".join(texts)).encode()
        except (TypeError, ValueError, AttributeError):  # a UnicodeEncodeError is a ValueError
            return False
        size = len(content)
        if size > _MOST_BYTES or "\0" in text:
            return False
        place = self._places.pop(key, None)
        if place is None:
            place = self._find_place(key)
        mapping = self._mapping
        assert mapping is not None
        self._places[key] = place  # behind all others: it was written last
        number = self._number = self._number + 1
        body = _pack_body(size, number, place.digest, value, timestamp) + content
        at, words = place.at, mapping.words
        words[_COUNT_INDEX] = 2 * number - 1
        mapping.map[at : at + _HALF_HEAD + size] = _pack_crc(crc32(body)) + body
        words[_COUNT_INDEX] = 2 * number
        place.at = at ^ HALF_BYTES  # only now: what was cut short is written again
        return True

    def is_linked(self) -> bool:
        """Return whether the file still has a name, so that readers can find it."""
        return self._file.is_linked()

    def give_up(self) -> None:
        """Remove the file, so that its room can be used for something else."""
        with contextlib.suppress(OSError):
            if self._file.is_in_place():
                os.unlink(self.path)
        self.release()

    def release(self) -> None:
        """Unmap and close the file, which ends the lock; may be called twice, never raises."""
        mapping, self._mapping = self._mapping, None
        if mapping is not None:
            mapping.unmap()
        self._file.close()

    def _find_place(self, key: tuple[str, bytes]) -> _Place:
        digest = digest_of(*key)
        at = self._left.pop(digest, None)
        if at is None:
            if not self._free:
                self._grow()
            if self._free:
                at = self._free.pop()
            elif self._left:
                at = self._left.pop(next(iter(self._left)))
            else:
                at = self._places.pop(next(iter(self._places))).at
        return _Place(at, digest)

    def _grow(self) -> None:
        """Make room for more cells, if there may be more and the volume has it."""
        before = self._mapping
        assert before is not None
        cells = (before.size - HEADER_BYTES) // CELL_BYTES
        more = min(2 * cells, MOST_CELLS)
        if more <= cells:
            return
        try:
            self._mapping = mapping = before.enlarged(HEADER_BYTES + more * CELL_BYTES)
        except OSError:
            return  # then the oldest one makes room
        before.unmap()
        self._free += _offsets(before.size, mapping.size)

    def _load(self, mapping: Mapping) -> None:
        """Find out what each cell holds, and which half of it is written next."""
        found: list[tuple[int, bytes, int]] = []
        for at in _offsets(HEADER_BYTES, mapping.size):
            cell = bytes(mapping.map[at : at + CELL_BYTES])
            half = _newest(cell)
            if half is None:
                self._free.append(at)
            else:
                start, number, digest = half
                found.append((number, digest, at + (start ^ HALF_BYTES)))
        self._free.reverse()  # the first ones are taken first
        for number, digest, at in sorted(found):
            before = self._left.pop(digest, None)
            if before is not None:
                self._free.append(before)
            self._left[digest], self._number = at, number
        mapping.words[_COUNT_INDEX] = 2 * self._number


def _offsets(start: int, end: int) -> Iterator[int]:
    """Yield where the cells of a section of a file begin."""
    last = min(end, HEADER_BYTES + MOST_CELLS * CELL_BYTES) - CELL_BYTES
    yield from range(start, last + 1, CELL_BYTES)


def _make(file: LockedFile) -> None:
    reserve(file.descriptor, 0, HEADER_BYTES + _FIRST_CELLS * CELL_BYTES)
    os.pwrite(file.descriptor, _HEADER.pack(MAGIC, os.urandom(8), 0), 0)


def _wrong_with(file: LockedFile) -> str | None:
    header = os.pread(file.descriptor, _HEADER.size, 0)
    return _wrong(header, os.fstat(file.descriptor).st_size)


def _wrong(header: bytes, size: int) -> str | None:
    """Return what is wrong with a file as a whole; ``None`` if nothing is."""
    if len(header) < _HEADER.size or size < HEADER_BYTES + CELL_BYTES:
        return f"{size} bytes are too few"
    if not header.startswith(MAGIC):
        return "it does not begin as a file of exemplars does"
    if (size - HEADER_BYTES) % CELL_BYTES:
        return f"{size} bytes are no whole number of cells"
    return None


def _newest(cell: bytes) -> tuple[int, int, bytes] | None:
    """Return where the half of a cell begins that counts, its number and whose it is."""
    best = None
    for start in (0, HALF_BYTES):
        crc, size, number, digest, _value, _time = _HALF.unpack_from(cell, start)
        if 0 < number < _MOST_NUMBERS and (best is None or number > best[1]):
            end = start + _HALF_HEAD + size
            if end <= start + HALF_BYTES and crc32(cell[start + 4 : end]) == crc:
                best = start, number, digest
    return best


def _unpacked(cell: bytes, start: int) -> Exemplar | None:
    """Return the exemplar in a half that is whole; ``None`` if it may not be exposed."""
    _crc, size, _number, _digest, value, timestamp = _HALF.unpack_from(cell, start)
    content = cell[start + _HALF_HEAD : start + _HALF_HEAD + size]
    try:
        pairs, rest = content[0], content[1:]
        names, rest = _taken(rest, pairs)
        texts, rest = _taken(rest, pairs)
    except (ValueError, IndexError):  # nobody of ours has written it
        return None
    labels = dict(zip(names, texts, strict=True))
    length = sum(map(len, (*names, *texts)))
    is_fit = len(labels) == pairs and not rest and length <= _LONGEST
    is_fit = is_fit and not any("\0" in text for text in texts)  # Prometheus gives up the scrape
    if not (is_fit and _packed_names(tuple(names)) and 0 <= timestamp < _LATEST_SECONDS):
        return None
    return Exemplar(tuple(sorted(labels.items())), value, timestamp)


def _taken(content: bytes, count: int) -> tuple[list[str], bytes]:
    """Return so many texts at the beginning of a content, and what follows them.

    Raises:
        ValueError: They are not there.
    """
    lengths, rest = content[:count], content[count:]
    # A character has four bytes at most, and what follows them is not text.
    total = sum(lengths)
    end = size = 0
    while end < total:
        if size >= len(rest):
            raise ValueError("the text is cut off")
        size += _bytes_of(rest[size])
        end += 1
    text = rest[:size].decode()
    found, at = [], 0
    for length in lengths:
        found.append(text[at : at + length])
        at += length
    if len(lengths) < count or len(text) != total:
        raise ValueError("the text is cut off")
    return found, rest[size:]


def _bytes_of(first: int) -> int:
    """Return how many bytes a character has that begins with this byte."""
    return 1 if first < 0xC0 else 2 if first < 0xE0 else 3 if first < 0xF0 else 4


@functools.lru_cache(maxsize=64)
def _numbers_of(cells: int) -> struct.Struct:
    return struct.Struct("=" + f"8xQ{HALF_BYTES - 16}x" * (2 * cells))


class ExemplarReader(BesideReader):
    """The exemplars of a slot, read at each scrape; only what was written since is looked at.

    Attributes:
        found: The exemplar of each sample, by digest; another object if it has changed.
    """

    __slots__ = ("_cells", "_identity", "_lost", "_numbers", "_seen", "found")

    def __init__(self, path: str) -> None:
        """Set the path; reads nothing."""
        super().__init__(path)
        self.found: Dictionary[bytes, Exemplar] = {}
        self._identity: tuple[int, int, bytes] | None = None
        self._seen = -1
        self._lost: Damage | None = None
        self._numbers: list[int] = []
        self._cells: list[tuple[int, bytes, Exemplar | None] | None] = []

    def content(self) -> object:
        """Return :attr:`found`."""
        return self.found

    def _read(self, descriptor: int) -> Damage | None:
        status = os.fstat(descriptor)
        header = os.pread(descriptor, _HEADER.size, 0)
        wrong = _wrong(header, status.st_size)
        if wrong is not None:
            self._forget()
            reason = "truncated" if header.startswith(MAGIC) else "foreign"
            return Damage(reason if header else "empty", wrong)
        _magic, random, count = _HEADER.unpack(header)
        identity = status.st_dev, status.st_ino, random
        if identity != self._identity:
            self._forget()
            self._identity = identity
        if count == self._seen:
            return self._lost
        # First: who has the claim writes now, perhaps; of all others what is there is all there is.
        is_written = is_claimed(descriptor) is not False
        size = min(status.st_size, HEADER_BYTES + MOST_CELLS * CELL_BYTES) - HEADER_BYTES
        data = os.pread(descriptor, size, HEADER_BYTES)
        cells = len(data) // CELL_BYTES
        numbers = _numbers_of(cells).unpack_from(data)
        known, self._numbers = self._numbers, list(numbers)
        self._cells += [None] * (cells - len(self._cells))
        is_whole, lost = True, 0
        for cell in range(cells):
            pair = numbers[2 * cell : 2 * cell + 2]
            if pair == (0, 0) or pair == tuple(known[2 * cell : 2 * cell + 2]):
                continue
            half = self._half(descriptor, data, cell, is_written=is_written)
            if half is None:
                lost += all(pair)
            else:
                self._cells[cell] = half
            if half is None or half[0] != max(pair):
                is_whole = False  # the newest one is being written, or was when somebody was killed
                self._numbers[2 * cell : 2 * cell + 2] = 0, 0
        if self._cells:
            self.found = _by_digest(self._cells)
        is_all = not is_written or (is_whole and not count % 2)
        self._seen = count if is_all else -1
        is_damaged = lost and not is_written
        text = f"{lost} of its cells are damaged"
        self._lost = Damage("corrupted", text) if is_damaged else None
        return self._lost

    def _half(
        self, descriptor: int, data: bytes, cell: int, *, is_written: bool
    ) -> tuple[int, bytes, Exemplar | None] | None:
        """Return number, sample and exemplar of a cell; ``None`` if none can be had now."""
        content = data[cell * CELL_BYTES : (cell + 1) * CELL_BYTES]
        for _look in range(_MOST_LOOKS):
            newest = _newest(content)
            if newest is not None:
                start, number, digest = newest
                return number, digest, _unpacked(content, start)
            if not is_written:
                break
            # Two were written while it was read, so that both halves are torn.
            content = os.pread(descriptor, CELL_BYTES, HEADER_BYTES + cell * CELL_BYTES)
            if len(content) < CELL_BYTES:
                break
        return None

    def _forget(self) -> None:
        self.found, self._cells, self._numbers = {}, [], []
        self._identity, self._seen, self._lost = None, -1, None


def _by_digest(
    cells: list[tuple[int, bytes, Exemplar | None] | None],
) -> dict[bytes, Exemplar]:
    """Return the exemplar of each sample; if it has two cells, that with the higher number."""
    found: dict[bytes, Exemplar] = {}
    for cell in sorted(filter(None, cells), key=lambda each: each[0]):
        _number, digest, exemplar = cell
        if exemplar is not None:
            found[digest] = exemplar
    return found


def newest_of(found: Iterator[Dictionary[bytes, Exemplar]]) -> dict[bytes, Exemplar]:
    """Return the newest exemplar of each sample in any of several files."""
    newest: dict[bytes, Exemplar] = {}
    for each in found:
        for digest, exemplar in each.items():
            before = newest.get(digest)
            if before is None or exemplar.timestamp > before.timestamp:
                newest[digest] = exemplar
    return newest
