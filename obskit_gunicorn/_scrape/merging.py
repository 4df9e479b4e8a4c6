"""Adding up what several files hold: of one directory, or of many hosts.

The keys are parsed, and the families laid out, only when keys are added or removed. Otherwise the
values of each file are brought into the order of the keys, added with ``math.fsum``, and put into
their families; and only those parts of them that have changed.
"""

from __future__ import annotations

import contextlib
import gc
import math
from array import array
from collections import Counter
from itertools import chain, repeat
from typing import TYPE_CHECKING, NamedTuple

from prometheus_client.core import Metric

from obskit_gunicorn._scrape import families
from obskit_gunicorn._scrape.exemplars import KINDS
from obskit_gunicorn._scrape.formats import go_float, their_exemplar
from obskit_gunicorn._scrape.source import Part, Snapshot
from obskit_gunicorn._store.cardinality import MANY_SERIES
from obskit_gunicorn._store.fileformat import Damage

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence

    from obskit_gunicorn._scrape.exemplars import Exemplars
    from obskit_gunicorn._scrape.exemplars import Sample as ItsSample
    from obskit_gunicorn._scrape.families import Examples, Family, Keys, Series, Unmerged, Values
    from obskit_gunicorn._scrape.formats import Labels
    from obskit_gunicorn._store.exemplars import Exemplar


class Member(NamedTuple):
    """A file that takes part in a scrape."""

    holder: Labels
    """The labels that tell it from other files, where gauges of mode ``all`` show them."""

    file: Values


_MOST_PICKS = 8
_PART_KEYS = 256
_PART_BYTES = 8 * _PART_KEYS


class _Line:
    """How the keys of a file line up with those of its group.

    Attributes:
        ids: Where each key of the file stands in the group.
        is_straight: Whether the file has the group's first keys, in the group's order.
        has_twins: Whether a key occurs twice; no writer does this.
    """

    __slots__ = ("_covered", "_inverse", "_picks", "has_twins", "ids", "is_straight")

    def __init__(self, before: _Line | None = None) -> None:
        """Create the line of a file without keys, or one that goes on as another one does."""
        self.ids: list[int] = [] if before is None else before.ids[:]
        self.is_straight: bool = before is None or before.is_straight
        self.has_twins: bool = before is not None and before.has_twins
        # For each key of the group the place among the file's values after a 0, which is at 0.
        self._inverse: list[int] = [] if before is None else before._inverse[:]
        # Each picks the values for a stretch of the group's keys; together, for so many of them.
        self._picks: list[Callable[[Sequence[float]], tuple[float, ...]]] = (
            [] if before is None else before._picks[:]
        )
        self._covered: int = 0 if before is None else before._covered

    def extend(self, keys: Sequence[bytes], group: dict[bytes, int]) -> None:
        """Go on with more keys of the file; those that are new are added to the group."""
        ids, inverse = self.ids, self._inverse
        if not keys:
            return
        first = len(ids)
        ids += [group.setdefault(key, len(group)) for key in keys]
        self.is_straight = self.is_straight and ids[first:] == list(range(first, len(ids)))
        if not self.is_straight:
            if len(inverse) < first:  # it was straight until now
                inverse[:] = range(1, first + 1)
            inverse += [0] * (len(group) - len(inverse))
            for place in range(first, len(ids)):
                self.has_twins = self.has_twins or inverse[ids[place]] != 0
                inverse[ids[place]] = place + 1
        if any(each < self._covered for each in ids[first:]):
            self._picks, self._covered = [], 0

    def aligned(self, numbers: bytes, size: int) -> bytes:
        """Return a file's values in the order of a group with so many keys, as doubles."""
        if self.is_straight:
            missing = size - len(self.ids)
            return numbers + bytes(8 * missing) if missing else numbers
        values = memoryview(numbers).cast("d")
        if self.has_twins:
            # Both count, as with prometheus_client.
            totals = [0.0] * size
            for at, value in zip(self.ids, values, strict=False):
                totals[at] += value
            return array("d", totals).tobytes()
        if self._covered < size:
            self._inverse += [0] * (size - len(self._inverse))
            if len(self._picks) >= _MOST_PICKS:
                self._picks, self._covered = [], 0
            self._picks.append(families.getter(self._inverse[self._covered : size]))
            self._covered = size
        found = (0.0, *values)
        return array("d", chain.from_iterable([pick(found) for pick in self._picks])).tobytes()


class Group:
    """The files with one prefix, and the sums of their values by key.

    Attributes:
        files: The files of this scrape.
        keys: The keys of all of them; never changed, only replaced.
        fresh: The place of the first key that came at this scrape.
        has_lost: Whether a key has gone since the last scrape, so that all places are others.
    """

    def __init__(self) -> None:
        self.files: list[Member] = []
        self.keys: list[bytes] = []
        self.fresh = 0
        self.has_lost = False
        self._index: dict[bytes, int] = {}
        self._lines: dict[Keys, _Line] = {}
        self._layouts: dict[Values, Keys] = {}
        self._aligned: dict[Values, tuple[Keys | None, bytes, bytes]] = {}
        self._totals: list[float] = []

    def arrange(self, files: list[Member]) -> None:
        """Set the files of this scrape."""
        self.files, self.fresh, self.has_lost = files, len(self.keys), False
        layouts = {file: file.layout for _holder, file in files}
        if layouts == self._layouts:
            return
        # A line that nobody else needs is extended as it is; others are copied.
        users = Counter(self._layouts.values()) + Counter(layouts.values())
        lines: dict[Keys, _Line] = {}
        followed: set[Keys] = set()
        for file, layout in layouts.items():
            before = self._layouts.get(file)
            known, is_free = None, False
            if before is not None and before is not layout and layout.goes_on(before):
                followed.add(before)
                known, is_free = self._lines[before], users[before] == 1
            line = self._lines.get(layout) or lines.get(layout)
            if line is None:
                line = known if known is not None and is_free else _Line(known)
            line.extend(layout.keys[len(line.ids) :], self._index)
            lines[layout] = line
        gone = self._lines.keys() - lines.keys() - followed
        self._layouts, self._lines = layouts, lines
        if gone:
            self._drop()
        if len(self._index) > len(self.keys):
            self.keys = list(self._index)

    def _drop(self) -> None:
        """Drop the keys that no file has any more; the others keep their order."""
        kept = set(chain.from_iterable(line.ids for line in self._lines.values()))
        if len(kept) == len(self._index):
            return
        self.has_lost = True
        left = [key for at, key in enumerate(self._index) if at in kept]
        self._index = dict(zip(left, range(len(left)), strict=True))
        self.keys, self.fresh = left, 0
        for layout in self._lines:
            line = self._lines[layout] = _Line()
            line.extend(layout.keys, self._index)

    def number(self, key: bytes) -> int | None:
        """Return the place of a key in :attr:`keys`; ``None`` if it is not there."""
        return self._index.get(key)

    def totals(self) -> Sequence[float]:
        """Return the sum of every key over all files, in the order of :attr:`keys`.

        The same object as the last time if nothing has changed.
        """
        size = len(self.keys)
        changed = self._align(size)
        if not changed and len(self._totals) == size:
            return self._totals
        totals = [*self._totals[:size], *repeat(0.0, size - len(self._totals))]
        columns = [memoryview(aligned).cast("d") for *_, aligned in self._aligned.values()]
        for first, last in _runs(sorted(changed)):
            at, end = first * _PART_KEYS, min(last * _PART_KEYS, size)
            totals[at:end] = _sums([column[at:end] for column in columns])
        self._totals = totals
        return totals

    def _align(self, size: int) -> Collection[int]:
        """Bring the values of all files into the order of the keys; return which parts changed."""
        parts = range(-(-size // _PART_KEYS))
        before, self._aligned = self._aligned, {}
        changed: set[int] = set()
        is_anew = self.has_lost or before.keys() != {file for _holder, file in self.files}
        for _holder, file in self.files:
            layout, numbers, known = before.get(file, (None, b"", b""))
            is_same = layout is file.layout and numbers is file.numbers and len(known) == 8 * size
            if is_same and not self.has_lost:
                self._aligned[file] = file.layout, numbers, known
                continue
            aligned = self._lines[file.layout].aligned(file.numbers, size)
            self._aligned[file] = file.layout, file.numbers, aligned
            if not is_anew and len(changed) < len(parts):
                for part in parts:
                    at, end = part * _PART_BYTES, (part + 1) * _PART_BYTES
                    if part not in changed and aligned[at:end] != known[at:end]:
                        changed.add(part)
        return parts if is_anew else changed


def _runs(parts: Iterable[int]) -> Iterator[tuple[int, int]]:
    """Yield where each run of numbers that follow each other begins, and where it ends."""
    first = last = -1
    for part in parts:
        if part != last:
            if first >= 0:
                yield first, last
            first = part
        last = part + 1
    if first >= 0:
        yield first, last


def _sums(columns: Sequence[Sequence[float]]) -> list[float]:
    """Return the sum of each row."""
    if len(columns) == 1:
        return [value + 0.0 for value in columns[0]]  # like prometheus_client, no -0.0
    try:
        return list(map(math.fsum, zip(*columns, strict=True)))  # it never returns -0.0
    except (ValueError, OverflowError):  # infinities of both signs, or too large
        return [families.sum_row(row) for row in zip(*columns, strict=True)]


@contextlib.contextmanager
def _uncollected() -> Iterator[None]:
    """Do without the collector of cycles while very many objects are made that all stay."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


class Merger:
    """Adds up files, scrape after scrape, and remembers what does not change. Not thread-safe."""

    def __init__(
        self,
        skip: Callable[[str, Damage], object],
        notice_large: Callable[[str, list[tuple[int, Series]]], object] = lambda *_: None,
    ) -> None:
        """Remember nothing yet.

        Args:
            skip: Called with the name of a metric whose samples cannot be merged, and why.
            notice_large: Called with the name and the series of each metric that has very many,
                whenever the families are laid out.
        """
        self._skip = skip
        self._notice_large = notice_large
        self._groups: dict[str, Group] = {}
        self._series: dict[bytes, Series | None] = {}
        self._families: list[Family] = []
        self._other_names: set[str] = set()
        self._other_prefixes: set[str] = set()
        self._others_at: dict[tuple[str, Keys], list[tuple[int, Series]]] = {}
        self._others_seen: list[object] = []
        self._others: list[Metric] = []
        self._unmerged: dict[str, Damage] = {}
        self._examples: dict[str, Examples] = {}
        self._examples_of: tuple[object, object] = (None, None)
        self.strange: set[bytes] = set()
        """The keys that are not those of metrics."""

    def merge(
        self,
        members: dict[str, list[Member]],
        adjust: Callable[[str, Sequence[bytes], Sequence[float]], Sequence[float]] | None = None,
        *,
        with_parts: bool = False,
        exemplars: Exemplars | None = None,
    ) -> Snapshot:
        """Add up files.

        Args:
            members: The files, by prefix.
            adjust: Is given a prefix, its keys and their sums; returns the sums to use.
            with_parts: Put into the result what :attr:`Snapshot.parts` needs.
            exemplars: What was found of the exemplars of the same directory.
        """
        is_other = list(members) != list(self._groups)
        self._groups = {prefix: self._groups.get(prefix) or Group() for prefix in members}
        for prefix, files in members.items():
            self._groups[prefix].arrange(files)
        groups = self._groups.values()
        if is_other or any(group.has_lost for group in groups):
            self._others_seen = []
            self._plan()
        elif any(group.fresh < len(group.keys) for group in groups):
            self._others_seen = []
            self._extend_plan()
        adding = {family.prefix for family in self._families}
        if with_parts:
            adding |= families.ADDING & set(members)
        totals = {prefix: self._groups[prefix].totals() for prefix in adding}
        if adjust is not None:
            for prefix, before in totals.items():
                totals[prefix] = adjust(prefix, self._groups[prefix].keys, before)
        parts = list(self._parts(totals)) if with_parts else []
        others = self._other_metrics()
        if not exemplars:
            return Snapshot(self._families, totals, others, parts)
        exemplars.match({prefix: self._groups[prefix].keys for prefix in self._groups})
        self._find_examples(exemplars.found)
        others = _with_exemplars(others, exemplars.found, self._series)
        return Snapshot(self._families, totals, others, parts, self._examples)

    def _find_examples(self, found: Mapping[ItsSample, Exemplar]) -> None:
        """Find the families and the samples in them that have exemplars."""
        if self._examples_of[0] is found and self._examples_of[1] is self._families:
            return
        families_by_name = {family.name: family for family in self._families}
        rows: dict[str, dict[int, Exemplar]] = {}
        for (prefix, key), exemplar in found.items():
            series, group = self._series.get(key), self._groups.get(prefix)
            number = None if group is None else group.number(key)
            if series is None or number is None:
                continue
            family = families_by_name.get(series.metric)
            row = None if family is None else family.row(number)
            if family is None or row is None or family.prefix != prefix:
                continue
            if families.may_have_exemplar(family.type, family.samples[row][0]):
                rows.setdefault(family.name, {})[row] = exemplar
        before, self._examples = self._examples, {}
        for name, of_rows in rows.items():
            known = before.get(name)
            is_same = known is not None and known.of_rows == of_rows
            self._examples[name] = known if known and is_same else families.Examples(of_rows)
        self._examples_of = found, self._families

    def _parts(self, totals: dict[str, Sequence[float]]) -> Iterator[Part]:
        for prefix, group in self._groups.items():
            if prefix in totals:
                yield Part(prefix, "", group.keys, totals[prefix])
            else:
                for holder, file in group.files:
                    yield Part(prefix, holder[-1][1], file.layout.keys, tuple(file.pairs()))

    def _plan(self) -> None:
        """Lay out all families again."""
        series_before, self._series = self._series, {}
        families_before = {family.name: family for family in self._families}
        metrics: dict[str, dict[str, list[tuple[int, Series]]]] = {}
        parser = families.Parser()
        with _uncollected():
            for prefix, group in self._groups.items():
                for number, key in enumerate(group.keys):
                    if key in series_before:
                        series = series_before[key]
                    else:
                        series = parser.parse(key, prefix)
                    self._series[key] = series
                    if series is not None:
                        by_prefix = metrics.setdefault(series.metric, {})
                        by_prefix.setdefault(prefix, []).append((number, series))
            self._families, self._others_at = [], {}
            self._other_names, self._other_prefixes = set(), set()
            for name, by_prefix in metrics.items():
                (prefix, members), *others = by_prefix.items()
                before = families_before.get(name)
                family = None if others else families.make_family(prefix, members, before)
                if len(members) >= MANY_SERIES:
                    self._notice_large(name, members)
                if family is None:
                    self._other_names.add(name)
                    self._other_prefixes.update(by_prefix)
                else:
                    self._families.append(family)
        self.strange = {key for key, series in self._series.items() if series is None}

    def _extend_plan(self) -> None:
        """Lay out what is new; families that have nothing new stay as they are."""
        known = {family.name: at for at, family in enumerate(self._families)}
        laid_out = list(self._families)
        parser = families.Parser()
        ranks = {prefix: rank for rank, prefix in enumerate(self._groups)}
        for prefix, group in self._groups.items():
            fresh: dict[str, list[tuple[int, Series]]] = {}
            for number in range(group.fresh, len(group.keys)):
                key = group.keys[number]
                series = self._series[key] = parser.parse(key, prefix)
                if series is None:
                    self.strange.add(key)
                else:
                    fresh.setdefault(series.metric, []).append((number, series))
            for name, members in fresh.items():
                if name in self._other_names:
                    self._other_prefixes.add(prefix)
                    continue
                at = known.get(name)
                if at is None:
                    family = families.make_family(prefix, members, None)
                    # Where it would be if all were laid out again: behind those of its prefix.
                    at = len(laid_out)
                    while at and ranks[laid_out[at - 1].prefix] > ranks[prefix]:
                        at -= 1
                    if family is None or at < len(laid_out):
                        self._plan()
                        return
                    known[name] = at
                    laid_out.append(family)
                elif laid_out[at].prefix != prefix:
                    self._plan()
                    return
                else:
                    family = families.extended(laid_out[at], members)
                    if family is None:
                        self._plan()
                        return
                    laid_out[at] = family
                if len(family.members) >= MANY_SERIES:
                    self._notice_large(name, family.members)
        self._families = laid_out
        used = {
            (prefix, file.layout)
            for prefix, group in self._groups.items()
            for _holder, file in group.files
        }
        self._others_at = {
            where: found for where, found in self._others_at.items() if where in used
        }

    def _other_metrics(self) -> list[Metric]:
        """Return the metrics that are not simply summed, merged sample by sample."""
        if not self._other_names:
            return []
        prefixes = list(filter(self._other_prefixes.__contains__, self._groups))
        seen: list[object] = [
            (holder, file, file.layout, file.numbers, file.stamped)
            for prefix in prefixes
            for holder, file in self._groups[prefix].files
        ]
        if seen != self._others_seen:
            self._others_seen = seen
            self._others, self._unmerged = [], {}
            metrics: dict[str, Unmerged] = {}
            for prefix in prefixes:
                for holder, file in self._groups[prefix].files:
                    series = self._others_of(prefix, file.layout)
                    families.add_unmerged(metrics, prefix, holder, file, series)
            for name, metric in metrics.items():
                try:
                    self._others.append(families.merge(metric))
                except Exception as error:
                    self._unmerged[name] = Damage(
                        "foreign", f"its samples cannot be merged: {error}"
                    )
        for name, damage in self._unmerged.items():
            self._skip(name, damage)
        return self._others

    def _others_of(self, prefix: str, layout: Keys) -> list[tuple[int, Series]]:
        if (prefix, layout) not in self._others_at:
            keys = ((at, self._series.get(key)) for at, key in enumerate(layout.keys))
            self._others_at[prefix, layout] = [
                (at, series) for at, series in keys if series and series.metric in self._other_names
            ]
        return self._others_at[prefix, layout]


def _with_exemplars(
    metrics: list[Metric],
    found: Mapping[ItsSample, Exemplar],
    series: Mapping[bytes, Series | None],
) -> list[Metric]:
    """Return metrics that were merged sample by sample with their exemplars.

    Where a sample has several keys, such as a bucket that is spelt in two ways, the newest counts.
    """
    names = {metric.name for metric in metrics if metric.type in KINDS}
    if not names or not found:
        return metrics
    newest: dict[tuple[str, Labels], Exemplar] = {}
    for (_prefix, key), exemplar in found.items():
        its = series.get(key)
        if its is None or its.metric not in names:
            continue
        labels = tuple(
            sorted(
                (name, go_float(float(value)) if name == "le" else value)
                for name, value in its.labels
            )
        )
        before = newest.get((its.name, labels))
        if before is None or exemplar.timestamp > before.timestamp:
            newest[its.name, labels] = exemplar
    shown = []
    for metric in metrics:
        copy = Metric(metric.name, metric.documentation, metric.type)
        for sample in metric.samples:
            its_exemplar = newest.get((sample.name, tuple(sorted(sample.labels.items()))))
            if its_exemplar and families.may_have_exemplar(metric.type, sample.name):
                sample = sample._replace(exemplar=their_exemplar(its_exemplar))  # noqa: PLW2901
            copy.samples.append(sample)
        shown.append(copy)
    return shown
