"""Label sets that were removed: what each file had counted for them, so that readers leave it out.

Nobody may write to the file of another process, and what a file has counted must not fall. So who
removes a label set notes, for each file that has it, what its values are at that moment: its
*baseline* there. A reader subtracts it, and hides the label set in that file as long as nothing has
changed since. The list is ``series.removed``, see :mod:`obskit_gunicorn._store.journal`; it goes
with the generation.

A baseline belongs to one file: its name, and what tells it from its replacement, see
:func:`~obskit_gunicorn._store.reader.ident_of`. So it goes on to count when another process takes
the slot and goes on with the file, and no longer when there is another file in its place. Of two
removals the later one counts: both have read the file while they held the lock of the list.

The content of a record is JSON, a zero byte, and for each entry of the label set in the file::

    uint32   the offset of its value
    double   its value
    double   its timestamp
"""

from __future__ import annotations

import json
import os
import struct
import time
from typing import TYPE_CHECKING, NamedTuple

from obskit_gunicorn._store.fileformat import (
    HEADER_BYTES,
    LabelSet,
    MetricFileName,
    check_header,
    metric_start,
    read_pair,
)
from obskit_gunicorn._store.journal import Journal
from obskit_gunicorn._store.locks import open_file
from obskit_gunicorn._store.reader import ident_of

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator

NAME = "series.removed"

HIDDEN = "hidden"
"""Left out until a value changes."""

SHOWN = "shown"
"""Made again by the file's holder: shown, also at 0."""

LIFTED = "lifted"
"""The gauge is shown as it is again."""

_ENTRY = struct.Struct("=Idd")
_LENGTH = struct.Struct("i")
_FOLD_BYTES = 65_536
_FEW = 4


class File(NamedTuple):
    """A metric file."""

    name: str
    ident: str
    """What tells it from others that have its name."""


class Entry(NamedTuple):
    """One value of a label set in a file."""

    place: int
    """The offset of the value."""

    value: float
    timestamp: float


class Baseline(NamedTuple):
    """What a file had counted for a label set when that was removed."""

    state: str
    removed: float
    """When it was removed last, Unix seconds."""

    file: File
    labels: LabelSet
    entries: tuple[Entry, ...]
    end: int = 0
    """Where the entries of the file ended; of the label set may come more behind it."""

    def packed(self) -> bytes:
        """Return the content of its record."""
        head = [
            self.state,
            self.removed,
            *self.file,
            self.labels.metric.decode(),
            self.labels.labels.decode(),
            self.end,
        ]
        return json.dumps(head).encode() + b"\0" + b"".join([_ENTRY.pack(*e) for e in self.entries])

    @classmethod
    def unpacked(cls, content: bytes) -> Baseline | None:
        """Return what a record says; ``None`` if it is not one of this release."""
        head, _, packed = content.partition(b"\0")
        try:
            state, removed, name, ident, metric, labels, end = json.loads(head)
            entries = tuple(Entry(*entry) for entry in _ENTRY.iter_unpack(packed))
            series = LabelSet(metric.encode(), labels.encode())
            return cls(str(state), float(removed), File(name, ident), series, entries, int(end))
        except (ValueError, TypeError, AttributeError, struct.error):
            return None


class Baselines:
    """The baselines of a directory, as far as they were read. Not thread-safe.

    Attributes:
        directory: The directory.
        version: Another number when they have changed.
    """

    def __init__(self, directory: str) -> None:
        """Set the directory; reads nothing."""
        self.version = 0
        self.directory = directory
        self._journal = Journal(directory, NAME)
        self._found: dict[File, dict[LabelSet, Baseline]] = {}
        self._fold_at = _FOLD_BYTES

    def refresh(self, *, by_its_look: bool = False) -> None:
        """Read what is new.

        Args:
            by_its_look: See :meth:`~obskit_gunicorn._store.journal.Journal.read`.

        Raises:
            OSError: The list is there and cannot be read.
        """
        is_anew, records = self._journal.read(by_its_look=by_its_look)
        if is_anew:
            self._found = {}
        if is_anew or records:
            self.version += 1
        self._take_in(filter(None, map(Baseline.unpacked, records)))

    def __bool__(self) -> bool:
        """Return whether there are any."""
        return bool(self._found)

    def of(self, file: File) -> dict[LabelSet, Baseline]:
        """Return the baselines in a file."""
        return self._found.get(file, {})

    def removed_at(self, prefix: str, key: bytes) -> float | None:
        """Return when the label set of a key was removed last; ``None`` if it was not.

        For what is kept beside the files and has a time: what is not newer is gone.

        Args:
            prefix: The prefix of the files.
            key: The key without length and padding.
        """
        label_set = LabelSet.of(key, prefix)
        if label_set is None:
            return None
        return max(
            (
                known[label_set].removed
                for file, known in self._found.items()
                if label_set in known and file.name.startswith(f"{prefix}_")
            ),
            default=None,
        )

    def remove(self, kind: str, metric: str, wanted: Collection[LabelSet] | None) -> bool:
        """Note what all files have counted for label sets; from now on that is left out.

        If it is hidden already there is nothing to note.

        Args:
            kind: The type of the metric; of gauges of all modes.
            metric: The metric.
            wanted: The label sets; ``None`` for all that the metric has.

        Returns:
            Whether any file had them, and shows them.

        Raises:
            OSError: The list cannot be written, or its lock cannot be had; nothing is left out.
        """
        with self._journal.locked():
            self.refresh()
            now = time.time()
            found = [
                Baseline(HIDDEN, now, file, series, tuple(entries), len(data))
                for file, prefix, data in contents(self.directory, kind)
                for series, entries in _entries(data, prefix, metric, wanted).items()
                if not self._is_hidden(file, series, entries)
            ]
            self._add(found)
            return bool(found)

    def add(self, baseline: Baseline) -> None:
        """Put a baseline in the place of the one that a label set has in a file.

        Args:
            baseline: The baseline. It is not added if there is none any more.

        Raises:
            OSError: It cannot be written.
        """
        with self._journal.locked():
            self.refresh()
            if baseline.labels in self.of(baseline.file):
                self._add([baseline])

    def label_sets(self, kind: str, metric: str) -> set[LabelSet]:
        """Return the label sets that a metric has in any file, removed ones among them."""
        found: set[LabelSet] = set()
        for _file, prefix, data in contents(self.directory, kind):
            found.update(_entries(data, prefix, metric, None))
        return found

    def _is_hidden(self, file: File, series: LabelSet, entries: list[Entry]) -> bool:
        known = self.of(file).get(series)
        return known is not None and known.state == HIDDEN and known.entries == tuple(entries)

    def _add(self, baselines: list[Baseline]) -> None:
        if not baselines:
            return
        self._journal.append([baseline.packed() for baseline in baselines])
        self._take_in(baselines)
        self.version += 1
        if self._journal.size > self._fold_at:
            self._fold()

    def _take_in(self, baselines: Iterable[Baseline]) -> None:
        for baseline in baselines:
            in_file = self._found.setdefault(baseline.file, {})
            if baseline.state == LIFTED:
                in_file.pop(baseline.labels, None)
            else:
                in_file[baseline.labels] = baseline

    def _fold(self) -> None:
        """Leave out of the list what others have replaced, and files that are not there any more.

        Raises:
            OSError: It cannot be written.
        """
        there = {File(name, ident) for name, ident in _idents(self.directory)}
        self._found = {file: found for file, found in self._found.items() if file in there}
        records = [each.packed() for found in self._found.values() for each in found.values()]
        if 2 * sum(map(len, records)) < self._journal.size:
            self._journal.replace(records)
        self._fold_at = max(_FOLD_BYTES, 2 * self._journal.size)


def contents(directory: str, kind: str) -> Iterator[tuple[File, str, bytes]]:
    """Yield the metric files of a type in a directory: each with its prefix and what it holds.

    Raises:
        OSError: The directory cannot be read.
    """
    for name in sorted(os.listdir(directory)):
        parsed = MetricFileName.parse(name)
        if parsed is None or parsed.prefix.partition("_")[0] != kind:
            continue
        try:
            descriptor = open_file(os.path.join(directory, name), os.O_RDONLY)
        except OSError:
            continue  # removed, or something that no reader reads either
        try:
            status = os.fstat(descriptor)
            header = os.pread(descriptor, HEADER_BYTES, 0)
            used, damage = check_header(header, status.st_size)
            if damage is None:
                data = os.pread(descriptor, used, 0)
                yield File(name, ident_of(header, status.st_ino)), parsed.prefix, data
        finally:
            os.close(descriptor)


def _idents(directory: str) -> Iterator[File]:
    for name in os.listdir(directory):
        if MetricFileName.parse(name) is not None:
            try:
                descriptor = open_file(os.path.join(directory, name), os.O_RDONLY)
            except OSError:
                continue
            try:
                header = os.pread(descriptor, HEADER_BYTES, 0)
                yield File(name, ident_of(header, os.fstat(descriptor).st_ino))
            finally:
                os.close(descriptor)


def _entries(
    data: bytes, prefix: str, metric: str, wanted: Collection[LabelSet] | None
) -> dict[LabelSet, list[Entry]]:
    """Return the entries of label sets of a metric in the content of a file.

    Found by the bytes of their keys: to parse all keys of a large file would take much longer.
    """
    found: dict[LabelSet, list[Entry]] = {}
    start = metric_start(metric)
    if wanted is not None and len(wanted) <= _FEW:
        begins = {at for series in wanted for at in _with_labels(data, start, series, prefix)}
        keys: Iterable[tuple[int, int]] = (span for at in begins if (span := _span(data, at)))
    else:
        keys = _starting(data, start)
    for series, value_at in _parsed(data, prefix, sorted(keys)):
        if wanted is None or series in wanted:
            value, timestamp = read_pair(data, value_at)
            found.setdefault(series, []).append(Entry(value_at, value, timestamp))
    return found


def label_sets_in(data: bytes, prefix: str, metric: str) -> Iterator[LabelSet]:
    """Yield the label set of each entry of a metric in the content of a file, the oldest first."""
    for series, _value_at in _parsed(data, prefix, _starting(data, metric_start(metric))):
        yield series


def _parsed(
    data: bytes, prefix: str, entries: Iterable[tuple[int, int]]
) -> Iterator[tuple[LabelSet, int]]:
    """Yield the label set of each entry that has one, and where its value is."""
    for at, value_at in entries:
        length = _LENGTH.unpack_from(data, at)[0]
        series = LabelSet.of(data[at + 4 : at + 4 + length].rstrip(b" "), prefix)
        if series is not None:
            yield series, value_at


def _starting(data: bytes, start: bytes) -> Iterator[tuple[int, int]]:
    """Yield where each entry begins whose key has this start, and where its value is."""
    at = data.find(start)
    while at >= 0:
        span = _span(data, at - 4)
        if span is not None:
            yield span
        at = data.find(start, at + 1 if span is None else span[1] + 16)


def _with_labels(data: bytes, start: bytes, series: LabelSet, prefix: str) -> Iterator[int]:
    """Yield where each entry of a metric begins that has these labels, and perhaps others."""
    fragment = series.labels
    if prefix == "histogram":  # in the key of a bucket its bound stands somewhere among them
        pairs = json.loads(fragment).items()
        runs: list[list[tuple[str, str]]] = [[], []]
        for name, value in pairs:
            runs[name > "le"].append((name, value))
        fragment = max((json.dumps(dict(run)).encode()[1:-1] for run in runs), key=len)
    at = data.find(fragment)
    while at >= 0:
        begin = data.rfind(b'["', 0, at)
        while begin >= 0 and (span := _span(data, begin - 4, at)) is None:
            begin = data.rfind(b'["', 0, begin)
        if begin >= 0 and span is not None:
            if data.startswith(start, begin):
                yield begin - 4
            at = max(at, span[1])
        at = data.find(fragment, at + 1)


def _span(data: bytes, at: int, inside: int | None = None) -> tuple[int, int] | None:
    """Return where an entry begins and where its value is; ``None`` if no entry begins there.

    Args:
        data: The content of a file.
        at: Where it might begin.
        inside: What must lie in its key.
    """
    if at < HEADER_BYTES or at % 8:
        return None
    length = _LENGTH.unpack_from(data, at)[0]
    value_at = at + 4 + length + (8 - (length + 4) % 8)
    if length <= 0 or value_at + 16 > len(data):
        return None
    if inside is not None and not at <= inside < value_at:
        return None
    return at, value_at
