"""The bytes of a slot's states, ``slot3.states``: what its Infos and Enums say; writer and reader.

An *Info* says a few labels, an *Enum* one of several states. Neither is a number, and
prometheus_client's reader would add them up. So they stand in a file of their own, which no reader
of metric files takes for one. All numbers have the byte order of the machine::

    offset 0   8 bytes  obskstt1
    offset 8   8 bytes  a random number, which tells the file from its replacement
    offset 16  records, one after the other, each
               uint32   CRC-32 of the bytes behind it, up to the end of the record
               uint32   how many bytes of text
               double   when it was said, Unix seconds
               text     a JSON list, see :class:`State` and :class:`Removal`

Records are only ever appended, each in one write; of one series the last one counts. A process that
is killed in the middle leaves a record that is cut off: a reader stops there, and the next holder
of the slot goes on there. Before the file grows large, the records that count are written to a new
one, which takes its place.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import struct
from typing import TYPE_CHECKING, Any, NamedTuple
from zlib import crc32

from obskit_gunicorn._store.beside import BesideReader, make_beside, open_beside
from obskit_gunicorn._store.fileformat import Damage

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from obskit_gunicorn._store.locks import LockedFile

SUFFIX = ".states"
MAGIC = b"obskstt1"
HEADER_BYTES = 16

_HEAD = struct.Struct("=IId")
_CHECKED = struct.Struct("=Id")
_pack_crc = struct.Struct("=I").pack
_LEAST_BYTES = 65_536
"""How large a file is at least before it is written anew."""

_TIMES_LARGER = 4
_LATEST_SECONDS = 1e11

Labels = tuple[tuple[str, str], ...]
"""Names and values, sorted."""

Series = tuple[str, str, Labels, bool | None]
"""Type, name and labels, and whether it is set; ``None`` for a removal."""


class State(NamedTuple):
    """What a series of an Info or Enum says."""

    type: str
    """``info`` or ``stateset``."""

    name: str
    help: str
    labels: Labels
    """The labels of the series, in a metric that has some."""

    content: Labels
    """Of an Info its names and values; of an Enum each of its states with ``1`` or ``0``."""

    is_set: bool
    """Whether somebody has set it; otherwise it was only made, and says what it says then."""

    @property
    def series(self) -> Series:
        """What tells the record from others; one that was only made stands beside one that is set.

        Then that one is not lost, and the other one is there when that is removed.
        """
        return self.type, self.name, self.labels, self.is_set

    def text(self) -> bytes:
        """Return it as it is stored."""
        labels, content = dict(self.labels), dict(self.content)
        fields = self.type, self.name, self.help, labels, content, self.is_set
        return json.dumps(fields).encode()


class Removal(NamedTuple):
    """That series of an Info or Enum were removed: what was said before is not shown."""

    type: str
    name: str
    labels: Labels
    """Those labels that all these series have; none if all of the metric's were removed."""

    @property
    def series(self) -> Series:
        """What tells the removal from all others, and from series."""
        return self.type, self.name, self.labels, None

    def text(self) -> bytes:
        """Return it as it is stored."""
        return json.dumps([self.type, self.name, dict(self.labels)]).encode()

    def removes(self, state: State) -> bool:
        """Return whether a series is one of these."""
        return (state.type, state.name) == (self.type, self.name) and set(self.labels) <= set(
            state.labels
        )


class Said(NamedTuple):
    """A record: what was said, and when."""

    time: float
    what: State | Removal


def _packed(said: Said) -> bytes:
    text = said.what.text()
    checked = _CHECKED.pack(len(text), said.time) + text
    return _pack_crc(crc32(checked)) + checked


def _records(data: bytes) -> Iterator[tuple[int, Said | None]]:
    """Yield where each whole record ends, and what it says; ``None`` if it cannot be read.

    Ends at a record that is cut off, or whose bytes are not those that were written.
    """
    at = 0
    while at + _HEAD.size <= len(data):
        crc, length, time = _HEAD.unpack_from(data, at)
        end = at + _HEAD.size + length
        if end > len(data) or crc32(data[at + 4 : end]) != crc:
            return
        what = _parsed(data[at + _HEAD.size : end])
        is_known = what is not None and 0 <= time < _LATEST_SECONDS
        yield end, Said(time, what) if is_known and what is not None else None
        at = end


def _parsed(text: bytes) -> State | Removal | None:
    """Return what a record says; ``None`` if nobody of ours has written it."""
    try:
        fields: Any = json.loads(text)
        if len(fields) == 3:
            type_, name, labels = fields
            found: State | Removal = Removal(type_, name, _labels(labels))
        else:
            type_, name, help_, labels, content, is_set = fields
            said = tuple((_text(each), _text(value)) for each, value in content.items())
            found = State(type_, name, _text(help_), _labels(labels), said, is_set is True)
        if type_ not in ("info", "stateset"):
            return None
        _text(name)
    except (ValueError, TypeError, AttributeError, RecursionError):
        return None
    return found


def _labels(found: Any) -> Labels:
    return tuple(sorted((_text(name), _text(value)) for name, value in found.items()))


def is_text(found: Iterable[Any]) -> bool:
    """Return whether all that is found may be exposed: texts, or pairs of them."""
    try:
        for each in found:
            for part in each if isinstance(each, tuple) else (each,):
                _text(part)
    except (TypeError, ValueError):
        return False
    return True


def _text(found: Any) -> str:
    """Return what must be text, and may be exposed.

    Raises:
        TypeError: It is no text.
        ValueError: It has a lone surrogate.
    """
    if type(found) is not str:
        raise TypeError("this is not text")
    found.encode()
    return found


class StatesFile:
    """The states of a slot, open for writing and locked by this process alone.

    What the slot's holders before have said stays. Not thread-safe; the caller holds a lock. A
    forked child must call :meth:`release` on the file of its parent.

    Attributes:
        path: The file.
        replaced: What was wrong with the file that was there before, or ``None``.
    """

    __slots__ = ("_anew_at", "_end", "_file", "_live", "path", "replaced")

    def __init__(self, path: str, *, by_flock: bool = False) -> None:
        """Open or create the file; one that is none of ours is replaced by an empty one.

        Args:
            path: The file.
            by_flock: Whether another writer may hold only an flock.

        Raises:
            OSError: The file cannot be opened or created, another process writes it, or the volume
                is full.
        """
        self.path = path
        self._live: dict[Series, Said] = {}
        self._end, self._anew_at = HEADER_BYTES, _LEAST_BYTES
        self._file, self.replaced = open_beside(
            path, by_flock=by_flock, wrong=_wrong_with, make=_make
        )
        try:
            data = os.pread(self._file.descriptor, os.fstat(self._file.descriptor).st_size, 0)
            for end, said in _records(data[HEADER_BYTES:]):
                self._end = HEADER_BYTES + end
                if said is not None:
                    self._note(said)
            os.ftruncate(self._file.descriptor, self._end)
        except BaseException:
            self.release()
            raise

    def put(self, said: Iterable[Said]) -> None:
        """Append records, in their order.

        Args:
            said: What they say.

        Raises:
            OSError: The volume is full; some records may be there.
        """
        for each in said:
            if self._live.get(each.what.series) == each:
                continue
            if not self._file.is_open():  # its number may belong to another file by now
                raise OSError(errno.EBADF, os.strerror(errno.EBADF), self.path)
            record = _packed(each)
            try:
                if os.pwrite(self._file.descriptor, record, self._end) < len(record):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), self.path)
            except BaseException:
                with contextlib.suppress(OSError):
                    os.ftruncate(self._file.descriptor, self._end)
                raise
            self._end += len(record)
            self._note(each)
        if self._end > self._anew_at:
            self._write_anew()

    def is_linked(self) -> bool:
        """Return whether the file still has a name, so that readers can find it."""
        return self._file.is_linked()

    def release(self) -> None:
        """Close the file, which ends the lock; may be called twice, never raises."""
        self._file.close()

    def _write_anew(self) -> None:
        """Put a file with the records that count in the place of this one, if there is room."""
        own = self._live.values()
        said = _Said((*own, *self._elsewhere()))
        kept = [
            each
            for each in own
            if isinstance(each.what, State) or said.is_removed_by(each.time, each.what)
        ]
        content = b"".join(map(_packed, kept))

        def make(file: LockedFile) -> None:
            _make(file)
            if os.pwrite(file.descriptor, content, HEADER_BYTES) < len(content):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), self.path)

        try:
            file = make_beside(self.path, make)
        except OSError:
            self._anew_at = 2 * self._end
            return
        self._file.close()
        self._file, self._live = file, {each.what.series: each for each in kept}
        self._end = HEADER_BYTES + len(content)
        self._anew_at = max(_LEAST_BYTES, _TIMES_LARGER * self._end)

    def _note(self, said: Said) -> None:
        """Note what is in the file now; what a removal removes need not be there any more."""
        what = said.what
        if isinstance(what, Removal):
            own: Iterable[Series] = ((*what.series[:3], is_set) for is_set in (True, False))
            there = [series for series in own if series in self._live]
            for series in there or list(self._live):
                each = self._live[series]
                is_older = each.time <= said.time
                if is_older and isinstance(each.what, State) and what.removes(each.what):
                    del self._live[series]
        self._live[what.series] = said

    def _elsewhere(self) -> list[Said]:
        """Return what other slots say, which a removal of ours may hide."""
        directory, own = os.path.split(self.path)
        found: list[Said] = []
        with contextlib.suppress(OSError):
            found += _said_in(directory, but=own)
        return found


def _make(file: LockedFile) -> None:
    os.pwrite(file.descriptor, MAGIC + os.urandom(HEADER_BYTES - len(MAGIC)), 0)


def _wrong_with(file: LockedFile) -> str | None:
    return _wrong(os.pread(file.descriptor, HEADER_BYTES, 0))


def _wrong(header: bytes) -> str | None:
    """Return what is wrong with a file as a whole; ``None`` if nothing is."""
    if len(header) < HEADER_BYTES:
        return f"{len(header)} bytes are too few for the header"
    return None if header.startswith(MAGIC) else "it does not begin as a file of states does"


class StatesReader(BesideReader):
    """The states of a slot, read at each scrape; only what was appended since is parsed.

    Attributes:
        said: The last record of each series; another object if there is another one.
    """

    __slots__ = ("_at", "_identity", "_problem", "said")

    def __init__(self, path: str) -> None:
        """Set the path; reads nothing."""
        super().__init__(path)
        self.said: dict[Series, Said] = {}
        self._identity: tuple[int, int, bytes] | None = None
        self._at = HEADER_BYTES
        self._problem: Damage | None = None

    def content(self) -> object:
        """Return :attr:`said`."""
        return self.said

    def _read(self, descriptor: int) -> Damage | None:
        status = os.fstat(descriptor)
        header = os.pread(descriptor, HEADER_BYTES, 0)
        wrong = _wrong(header)
        if wrong is not None:
            self._identity, self.said = None, {}
            return Damage("truncated" if len(header) < HEADER_BYTES else "foreign", wrong)
        identity = status.st_dev, status.st_ino, header
        if identity != self._identity or status.st_size < self._at:
            self._identity, self._at, self.said, self._problem = identity, HEADER_BYTES, {}, None
        if status.st_size == self._at:
            return self._problem
        data = os.pread(descriptor, status.st_size - self._at, self._at)
        said, end = dict(self.said), 0
        for end, each in _records(data):  # noqa: B007
            if each is None:
                self._problem = Damage("corrupted", "it has a record that nobody can have written")
            else:
                said[each.what.series] = each
        if end:
            self.said = said
            self._at += end
        rest = data[end:]
        if len(rest) >= _HEAD.size and len(rest) >= _HEAD.size + _HEAD.unpack_from(rest)[1]:
            # Whole, and not what was written: nothing behind it can be found.
            return Damage("corrupted", f"the record at offset {self._at} is damaged")
        return self._problem


def shown(said: Iterable[Said]) -> list[State]:
    """Return what is to be shown of all that was said, in several files: what was set last.

    What was removed since is left out, and what was only made counts less than what was set.
    """
    removals, states = _Removals(), list[tuple[float, State]]()
    for each in said:
        if isinstance(each.what, Removal):
            removals.add(each.time, each.what)
        else:
            states.append((each.time, each.what))
    newest: dict[tuple[str, str, Labels], tuple[bool, float, State]] = {}
    for time, state in states:
        if not removals.are_of(time, state):
            series, found = state.series[:3], (state.is_set, time, state)
            before = newest.get(series)
            if before is None or found[:2] >= before[:2]:
                newest[series] = found
    return [state for _is_set, _time, state in newest.values()]


def shown_in(directory: str) -> list[State]:
    """Return what is to be shown of all that was said in a directory.

    Raises:
        OSError: It cannot be read.
    """
    return shown(_said_in(directory))


def _said_in(directory: str, but: str = "") -> Iterator[Said]:
    """Yield what the files in a directory say, but one of them.

    Raises:
        OSError: It cannot be read.
    """
    for name in os.listdir(directory):
        if name.endswith(SUFFIX) and name != but:
            reader = StatesReader(os.path.join(directory, name))
            with contextlib.suppress(FileNotFoundError):
                reader.refresh()
            yield from reader.said.values()


class _Removals:
    """What was removed, to be looked up: there may be many that remove one series each."""

    def __init__(self) -> None:
        self._last: dict[tuple[str, str], dict[int, dict[Labels, float]]] = {}

    def add(self, time: float, removal: Removal) -> None:
        by_count = self._last.setdefault((removal.type, removal.name), {})
        last = by_count.setdefault(len(removal.labels), {})
        last[removal.labels] = max(time, last.get(removal.labels, 0.0))

    def are_of(self, time: float, state: State) -> bool:
        """Return whether a state was removed after this time."""
        for count, last in self._last.get((state.type, state.name), {}).items():
            if count == len(state.labels):
                if last.get(state.labels, -1.0) >= time:
                    return True
            elif count < len(state.labels):
                labels = set(state.labels)
                if any(last[each] >= time and labels.issuperset(each) for each in last):
                    return True
        return False


class _Said:
    """What is said, to be looked up: whether there is anything for a removal to remove."""

    def __init__(self, said: Iterable[Said]) -> None:
        self._first: dict[tuple[str, str], dict[int, dict[Labels, float]]] = {}
        for time, what in said:
            if isinstance(what, State):
                by_count = self._first.setdefault((what.type, what.name), {})
                first = by_count.setdefault(len(what.labels), {})
                first[what.labels] = min(time, first.get(what.labels, time))

    def is_removed_by(self, time: float, removal: Removal) -> bool:
        """Return whether something was said up to this time that a removal removes."""
        for count, first in self._first.get((removal.type, removal.name), {}).items():
            if count == len(removal.labels):
                if first.get(removal.labels, _LATEST_SECONDS) <= time:
                    return True
            elif count > len(removal.labels):
                wanted = set(removal.labels)
                if any(first[each] <= time and wanted.issubset(each) for each in first):
                    return True
        return False
