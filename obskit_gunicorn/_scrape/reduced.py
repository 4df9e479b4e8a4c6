"""Files without what was removed: what the collector adds up in the place of their values.

A file in which nothing was removed is added up as it is. Of the others the label sets that are
hidden are left out, and from the rest their baselines are subtracted, see
:mod:`obskit_gunicorn._store.baselines`. As long as neither a file nor its baselines change, the
result is the same object, which is added up no more than once.

The list is read before the files: what a file shows is never older than what it is compared with.
Only the column of a living writer may lack the store that it is making. So a number that only grows
and is lower than its baseline counts as one that has not changed.
"""

from __future__ import annotations

import contextlib
import math
import os
import struct
from itertools import chain, repeat
from typing import TYPE_CHECKING, NamedTuple

from obskit_gunicorn._store.baselines import SHOWN, Baselines, File
from obskit_gunicorn._store.fileformat import LabelSet, MetricFileName, key_text

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Iterable, Iterator, Sequence

    from obskit_gunicorn._scrape.families import Keys, Values
    from obskit_gunicorn._store.baselines import Baseline
    from obskit_gunicorn._store.reader import Layout, MetricFileReader

_HISTOGRAM = "histogram_"
_FEW = 16
_store_double = struct.Struct("d").pack_into
_SUM = b'_sum", {'
"""In the key of a sum, which may fall: observations may be negative."""


class ReducedLayout:
    """The keys of a file without those that are hidden."""

    __slots__ = ("_hidden", "_whole", "keys")

    def __init__(self, whole: Layout, hidden: Sequence[int]) -> None:
        """Leave out the keys with these numbers, which ascend."""
        self._whole, self._hidden = whole, hidden
        keys: list[bytes] = []
        for first, end in _between(hidden, len(whole.keys)):
            keys += whole.keys[first:end]
        self.keys: Sequence[bytes] = tuple(keys)

    def goes_on(self, before: object) -> bool:
        """Return whether these are the keys from before, and more behind them."""
        keys = getattr(before, "keys", None)
        return isinstance(keys, tuple) and self.keys[: len(keys)] == keys


class _Place(NamedTuple):
    number: int
    """Of the key in its file."""

    value: float
    timestamp: float
    is_sum: bool


class _Removed:
    """One label set that was removed, in one file.

    Attributes:
        baseline: What was noted.
        places: The entries of it that were found in the file.
        has_changed: Whether a gauge has changed since; then it stays shown.
    """

    __slots__ = ("baseline", "has_changed", "places")

    def __init__(
        self,
        baseline: Baseline,
        prefix: str,
        layout: Layout,
        number_at: Callable[[int], int | None],
    ) -> None:
        """Find its entries in a file.

        Args:
            baseline: What was noted.
            prefix: The prefix of the file.
            layout: Its keys.
            number_at: Returns the number of the key whose value is at an offset, if there is one.
        """
        self.baseline = baseline
        self.has_changed = False
        self.places: list[_Place] = []
        for place, value, timestamp in baseline.entries:
            number = number_at(place)
            if number is not None:
                key = key_text(layout.keys[number])
                if LabelSet.of(key, prefix) == baseline.labels:
                    self.places.append(_Place(number, value, timestamp, _SUM in key))


class ReducedFile:
    """The values of a file without what was removed.

    Attributes:
        layout: The keys that are left.
        numbers: The value of each.
        stamped: Value, timestamp, value, ... if the file has timestamps.
        shown: The label sets that were removed, and that it shows again.
    """

    __slots__ = (
        "_ident",
        "_is_due",
        "_later",
        "_parsed",
        "_prefix",
        "_removed",
        "_seen",
        "_version",
        "_were_shown",
        "layout",
        "numbers",
        "reader",
        "shown",
        "stamped",
    )

    def __init__(self, prefix: str, reader: MetricFileReader) -> None:
        """Reduce what a reader has read; see :meth:`weigh` and :meth:`refresh`."""
        self.reader = reader
        self.layout: Keys = reader.layout
        self.numbers = self.stamped = b""
        self._prefix = prefix
        self._removed: list[_Removed] = []
        self._version, self._ident = -1, ""
        self._seen: tuple[object, ...] = ()
        self._is_due = True
        self._parsed: int | None = None
        self._later: dict[LabelSet, int] = {}
        self.shown: frozenset[LabelSet] = frozenset()
        self._were_shown: frozenset[LabelSet] = frozenset()

    def pairs(self) -> Iterable[float]:
        """Return value, timestamp, value, ...; timestamps that mean nothing are 0."""
        if self.stamped:
            return iter(memoryview(self.stamped).cast("d"))
        return chain.from_iterable(zip(memoryview(self.numbers).cast("d"), repeat(0.0)))

    def weigh(self, version: int, baselines: Iterable[Baseline]) -> None:
        """Find out what the reader shows now of what was removed.

        Args:
            version: That of the baselines.
            baselines: Those in the file.
        """
        reader = self.reader
        seen = reader.layout, reader.numbers, reader.stamped
        is_same = all(a is b for a, b in zip(seen, self._seen, strict=False)) and bool(self._seen)
        # Another file may have taken its place, with the same keys and values.
        if reader.ident != self._ident:
            self._version, self._ident = -1, reader.ident
            self._parsed, self._later = None, {}
        if is_same and version == self._version:
            return
        self._seen, self._is_due = seen, True
        if version != self._version or any(
            len(each.places) < len(each.baseline.entries) for each in self._removed
        ):
            self._version = version
            self._find(baselines)
        values = memoryview(reader.numbers).cast("d")
        is_gauge = self._prefix.startswith("gauge")
        if not is_gauge:
            self._parse_later()
        is_shown = self._is_gauge_shown if is_gauge else self._is_sum_shown
        self.shown = frozenset(
            [each.baseline.labels for each in self._removed if is_shown(each, values)]
        )

    def refresh(
        self,
        elsewhere: Container[LabelSet],
        layouts: dict[tuple[Layout, tuple[int, ...]], ReducedLayout],
    ) -> None:
        """Reduce what was weighed.

        Args:
            elsewhere: What other files show, so that this one shows it as well.
            layouts: Layouts that files share, by what they are made of.
        """
        shown = frozenset(
            [
                each.baseline.labels
                for each in self._removed
                if each.baseline.labels in self.shown or each.baseline.labels in elsewhere
            ]
        )
        if not self._is_due and shown == self._were_shown:
            return
        self._is_due, self._were_shown = False, shown
        values = memoryview(self.reader.numbers).cast("d")
        hidden: list[int] = []
        changed: list[tuple[int, float]] = []
        for removed in self._removed:
            if removed.baseline.labels not in shown:
                hidden += [place.number for place in removed.places]
            elif not self._prefix.startswith("gauge"):
                # A process makes its stores one after the other: if it has counted since, those
                # that were late are not any more. If it has not, all are as they were.
                is_used = removed.baseline.labels in self.shown
                for place in removed.places:
                    above = values[place.number] - place.value if is_used else 0.0
                    changed.append((place.number, above))
        self._apply(tuple(sorted(hidden)), changed, layouts)

    def removed(self) -> set[LabelSet]:
        """Return the label sets that were removed, shown again or not."""
        return {each.baseline.labels for each in self._removed}

    def _find(self, baselines: Iterable[Baseline]) -> None:
        known = {each.baseline: each for each in self._removed}
        self._removed = []
        layout, baselines = self.reader.layout, list(baselines)
        number_at: Callable[[int], int | None] = layout.number_at
        if len(baselines) > len(known) + _FEW:  # one by one they would take long
            number_at = {place: number for number, place in enumerate(layout.places())}.get
        for baseline in baselines:
            found = known.get(baseline)
            if found is None or len(found.places) < len(baseline.entries):
                has_changed = found is not None and found.has_changed
                found = _Removed(baseline, self._prefix, layout, number_at)
                found.has_changed = has_changed
            self._removed.append(found)

    def _parse_later(self) -> None:
        """Find the label sets of what has come into the file since something was removed of it.

        A forked child makes the buckets of a histogram one by one, when it uses them.
        """
        layout = self.reader.layout
        if self._parsed is None:
            ends = [each.baseline.end for each in self._removed]
            first = layout.number_behind(min(ends, default=layout.end))
        else:
            first = self._parsed
        for number in range(first, len(layout.keys)):
            series = LabelSet.of(key_text(layout.keys[number]), self._prefix)
            if series is not None:
                self._later[series] = layout.place(number)
        self._parsed = max(first, len(layout.keys))

    def _is_sum_shown(self, removed: _Removed, values: Sequence[float]) -> bool:
        """Return whether a label set is shown: it was made again, or has counted since."""
        baseline = removed.baseline
        if baseline.state == SHOWN or self._later.get(baseline.labels, -1) >= baseline.end:
            return True
        return any(
            values[place.number] > place.value for place in removed.places if not place.is_sum
        )

    def _is_gauge_shown(self, removed: _Removed, values: Sequence[float]) -> bool:
        """Return whether a gauge is shown: as it is, once it has changed."""
        stamped = memoryview(self.reader.stamped).cast("d") if self.reader.stamped else None
        for number, value, timestamp, _is_sum in removed.places:
            now = 0.0 if stamped is None else stamped[2 * number + 1]
            was = 0.0 if stamped is None else timestamp
            if _differ(values[number], value) or _differ(now, was):
                removed.has_changed = True
        return removed.has_changed

    def _apply(
        self,
        hidden: tuple[int, ...],
        changed: Iterable[tuple[int, float]],
        layouts: dict[tuple[Layout, tuple[int, ...]], ReducedLayout],
    ) -> None:
        reader = self.reader
        whole = reader.layout
        numbers = bytearray(reader.numbers)
        for number, value in changed:
            _store_double(numbers, 8 * number, value)
        if hidden:
            if (whole, hidden) not in layouts:
                layouts[whole, hidden] = ReducedLayout(whole, hidden)
            self.layout = layouts[whole, hidden]
        else:
            self.layout = whole
        left = list(_between(hidden, len(whole.keys)))
        self.numbers = b"".join([numbers[8 * first : 8 * end] for first, end in left])
        self.stamped = b"".join([reader.stamped[16 * first : 16 * end] for first, end in left])


class ReducedFiles:
    """The files of a directory in which something was removed. Not thread-safe.

    Attributes:
        baselines: What was removed, once :meth:`look` was called.
    """

    def __init__(self) -> None:
        """Know of nothing that was removed."""
        self.baselines: Baselines | None = None
        self._files: dict[MetricFileReader, ReducedFile] = {}
        self._layouts: dict[tuple[Layout, tuple[int, ...]], ReducedLayout] = {}
        self._sets: dict[Layout, frozenset[LabelSet]] = {}
        self._elsewhere: set[LabelSet] = set()

    def look(self, directory: str) -> bool:
        """Read what was removed; before the files are read. Return whether that has changed.

        If it cannot be read, it stays as it was.
        """
        if self.baselines is None or self.baselines.directory != directory:
            self.baselines = Baselines(directory)
        before = self.baselines.version
        with contextlib.suppress(OSError):
            self.baselines.refresh()
        return before != self.baselines.version

    def weigh(self, readers: Iterable[MetricFileReader]) -> None:
        """Find out what is shown again of what was removed, before the files are reduced.

        A histogram that one file shows is shown by all, at 0: a forked child may have none of the
        buckets but those that it has used.

        Args:
            readers: All that have read files.
        """
        baselines = self.baselines
        self._elsewhere = set()
        if not baselines:
            return
        histograms: list[MetricFileReader] = []
        hidden: set[LabelSet] = set()
        for reader in readers:
            reduced = self._weighed(reader)
            if os.path.basename(reader.path).startswith(_HISTOGRAM):
                histograms.append(reader)
                if reduced is not None:
                    hidden.update(reduced.removed() - reduced.shown)
        if not hidden:
            self._sets = {}
            return
        sets: dict[Layout, frozenset[LabelSet]] = {}
        for reader in histograms:
            layout = reader.layout
            if layout not in sets:
                sets[layout] = self._sets.get(layout) or _label_sets(layout)
            reduced = self._files.get(reader)
            shown = sets[layout] & hidden
            if reduced is not None:
                shown -= reduced.removed() - reduced.shown
            self._elsewhere |= shown
        self._sets = sets

    def shown(self, reader: MetricFileReader) -> Values:
        """Return the values of a file without what was removed; often the file itself."""
        reduced = self._weighed(reader)
        if reduced is None:
            return reader
        reduced.refresh(self._elsewhere, self._layouts)
        return reduced

    def _weighed(self, reader: MetricFileReader) -> ReducedFile | None:
        """Return what a file is reduced to; ``None`` if nothing was removed of it."""
        baselines = self.baselines
        if not baselines:
            return None
        name = os.path.basename(reader.path)
        there = baselines.of(File(name, reader.ident))
        reduced = self._files.get(reader)
        if reduced is None:
            parsed = MetricFileName.parse(name)
            if not there or parsed is None:
                return None
            reduced = self._files[reader] = ReducedFile(parsed.prefix, reader)
        reduced.weigh(baselines.version, there.values())
        return reduced

    def forget(self, readers: Iterable[MetricFileReader]) -> None:
        """Forget all files but these."""
        if self._files:
            kept = set(readers)
            self._files = {each: file for each, file in self._files.items() if each in kept}
            layouts = {file.layout for file in self._files.values()}
            self._layouts = {
                made_of: each for made_of, each in self._layouts.items() if each in layouts
            }


def _label_sets(layout: Layout) -> frozenset[LabelSet]:
    """Return the label sets of the histograms that a file has."""
    sums = [key_text(key) for key in layout.keys if _SUM in key]
    return frozenset(filter(None, [LabelSet.of(key, "histogram") for key in sums]))


def _between(hidden: Sequence[int], size: int) -> Iterator[tuple[int, int]]:
    """Yield where each run of numbers begins that are not hidden, and where it ends."""
    first = 0
    for number in hidden:
        if number > first:
            yield first, number
        first = number + 1
    if first < size:
        yield first, size


def _differ(one: float, other: float) -> bool:
    """Return whether two numbers differ; a number that is none is the same as itself."""
    return one != other and not (math.isnan(one) and math.isnan(other))
