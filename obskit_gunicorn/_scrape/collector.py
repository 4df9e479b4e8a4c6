"""Reading a multiprocess directory, scrape after scrape.

A scrape costs in proportion to what changed. The keys of a file are parsed only once, when they are
appended. After that a scrape reads the values of each file with one call, matches them to the keys
with another, adds them with ``math.fsum``, and joins them to line prefixes that were rendered
before. If a file is damaged, empty, foreign or missing, the scrape leaves out what cannot be read,
and never fails.

The result is the same as prometheus_client's. Sums are exact for integers, and correctly rounded
otherwise. So a total does not depend on the order of the files, and never drops because of
rounding.

Safe with threads and forks: collections run one at a time, and scrapes that overlap share one.
"""

from __future__ import annotations

import contextlib
import math
import os
import threading
from collections import Counter
from functools import lru_cache
from itertools import chain
from typing import TYPE_CHECKING, Any

from prometheus_client.multiprocess import MultiProcessCollector as TheirCollector
from prometheus_client.registry import Collector

from obskit_gunicorn import _prometheus
from obskit_gunicorn._log import log
from obskit_gunicorn._scrape import families
from obskit_gunicorn._scrape.removed import Records, RemovedFiles
from obskit_gunicorn._scrape.source import Snapshot, Source
from obskit_gunicorn._store import forks
from obskit_gunicorn._store.cardinality import MANY_SERIES, widest_label
from obskit_gunicorn._store.directory import ASK_WAIT_SECONDS, SlotDirectory
from obskit_gunicorn._store.fileformat import Damage, MetricFileName
from obskit_gunicorn._store.membership import DIRECTORY_VARIABLE
from obskit_gunicorn._store.reader import Layout, MetricFileReader

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from prometheus_client.core import Metric

    from obskit_gunicorn._scrape.families import Family, Series, Unmerged


class _Group:
    """The files with one prefix, and the sums of their values by key."""

    def __init__(self) -> None:
        self.files: list[tuple[str, MetricFileReader]] = []
        self.keys: list[bytes] = []
        self._picks: dict[Layout, Callable[[Sequence[float]], tuple[float, ...]] | None] = {}

    def arrange(self, files: list[tuple[str, MetricFileReader]]) -> bool:
        """Set the files of this scrape, with their holders; return whether the keys changed."""
        layouts = dict.fromkeys(file.layout for _holder, file in files)
        self.files = files
        if layouts.keys() == self._picks.keys():
            return False
        before = self.keys
        keys = dict.fromkeys(chain.from_iterable(layout.keys for layout in layouts))
        # Drop the keys that no file has any more. The others keep their order, so that families
        # without new keys can be reused.
        self.keys = list(dict.fromkeys(chain((key for key in before if key in keys), keys)))
        known = self._picks if self.keys == before else {}
        self._picks = {
            layout: known[layout] if layout in known else self._pick(layout) for layout in layouts
        }
        return self.keys != before

    def layouts(self) -> list[Layout]:
        """Return the layouts of the last scrape, the shortest first."""
        return sorted(self._picks, key=lambda layout: layout.end)

    def totals(self) -> Sequence[float]:
        """Return the sum of every key over all files, in the order of :attr:`keys`."""
        # Like prometheus_client, add to 0.0: this turns -0.0 into 0.0.
        if len(self.files) == 1:
            return [value + 0.0 for value in self._columns()[0]]
        try:
            return [value + 0.0 for value in map(math.fsum, zip(*self._columns(), strict=True))]
        except (ValueError, OverflowError):  # infinities of both signs, or too large
            return [families.sum_row(row) for row in zip(*self._columns(), strict=True)]

    def _columns(self) -> list[Iterable[float]]:
        """Return each file's values, in the order of :attr:`keys`."""
        columns: list[Iterable[float]] = []
        for _holder, file in self.files:
            pick = self._picks[file.layout]
            columns.append(file.values() if pick is None else pick((*file.values(), 0.0)))
        return columns

    def _pick(self, layout: Layout) -> Callable[[Sequence[float]], tuple[float, ...]] | None:
        """Return a function that puts values of a file into the order of :attr:`keys`.

        It takes the values with a 0 after them. ``None`` if they have this order already.
        """
        if list(layout.keys) == self.keys:
            return None
        at = {key: number for number, key in enumerate(layout.keys)}
        missing = len(layout.keys)
        if len(at) == missing:
            return families.getter([at.get(key, missing) for key in self.keys])

        def added(values: Sequence[float]) -> tuple[float, ...]:
            # A key occurs twice; no writer does this. Both count, as with prometheus_client.
            totals = dict.fromkeys(self.keys, 0.0)
            for key, value in zip(layout.keys, values, strict=False):
                totals[key] += value
            return tuple(totals.values())

        return added


class DirectoryCollector(Source):
    """Reads one multiprocess directory at each scrape, and remembers what does not change.

    Attributes:
        path: The directory.
        skipped: How many files the last collection could not read, in whole or in part, by reason.
        file_count: How many metric files it found.
        byte_count: Their total size.
    """

    def __init__(self, path: str) -> None:
        """Set the path; reads nothing."""
        self.path = path
        self.skipped: Counter[str] = Counter()
        self.file_count = self.byte_count = 0
        self._readers: dict[str, MetricFileReader] = {}
        self._groups: dict[str, _Group] = {}
        self._series: dict[bytes, Series | None] = {}
        self._strange: set[bytes] = set()
        self._families: list[Family] = []
        self._other_names: set[str] = set()
        self._others_at: dict[tuple[str, Layout], list[tuple[int, Series]]] = {}
        self._reported: set[tuple[str, str]] = set()
        self._lock = threading.Lock()
        self._begun = self._number = 0
        self._snapshot: Snapshot | None = None
        self._removed: RemovedFiles | None = None
        self._records_lock = threading.Lock()

    def keep_removed(self) -> None:
        """Keep files open from now on, and go on reading those that are removed under writers.

        For a process that does nothing but read; it costs a descriptor for each file.
        """
        with self._lock:
            self._removed = self._removed or RemovedFiles()

    @property
    def is_lost(self) -> bool:
        """Whether a living arbiter has lost the directory, as :meth:`records` has last seen."""
        return self._removed is not None and self._removed.is_lost

    def records(self, *, wait_seconds: float = ASK_WAIT_SECONDS) -> Records:
        """Return the records of all leases; see :meth:`SlotDirectory.records`.

        Does not wait for a collection.

        Raises:
            OSError: The directory cannot be read.
        """
        if self._removed is None:
            return SlotDirectory(self.path).records(wait_seconds=wait_seconds)
        with self._records_lock:
            return self._removed.records(self.path, wait_seconds)

    def move(self, path: str) -> None:
        """Read another directory from now on, in which the arbiter goes on.

        It stays this process's collector of the first one, for all who ask for it.
        """
        with self._lock:
            self.path = path

    def collect(self) -> Snapshot:
        """Read the directory.

        Collections run one at a time. All callers that wait while one runs share the result of the
        next one.

        Raises:
            OSError: The directory cannot be listed.
        """
        arrived = self._begun
        with self._lock:
            if self._snapshot is not None and self._number > arrived:
                return self._snapshot
            self._begun += 1
            number = self._begun
            self._snapshot = self._read(self._list())
            self._number = number
            return self._snapshot

    def _list(self) -> list[str]:
        try:
            return os.listdir(self.path)
        except FileNotFoundError:
            if self._removed is None or not (self._readers or self._removed):
                raise
            return []

    def _read(self, names: Iterable[str]) -> Snapshot:
        parsed = ((name, MetricFileName.parse(name)) for name in sorted(names))
        found = {name: file for name, file in parsed if file is not None}
        self.skipped = Counter()
        self._refresh(found)
        free = self._free_slots(found.values())
        members: dict[str, list[tuple[str, MetricFileReader]]] = {}
        for name, reader in self._readers.items():
            file = found[name]
            if not (file.is_live_gauge and file.holder in free):
                members.setdefault(file.prefix, []).append((file.holder, reader))
        if self._removed is not None:
            for prefix, holder, reader in self._removed.members():
                members.setdefault(prefix, []).append((holder, reader))
        changed = set(members) != set(self._groups)
        self._groups = {prefix: self._groups.get(prefix) or _Group() for prefix in members}
        for prefix, files in members.items():
            changed = self._groups[prefix].arrange(files) or changed
        if changed:
            self._plan()
        if self._strange:
            self._doubt()
        adding = {family.prefix for family in self._families}
        totals = {prefix: self._groups[prefix].totals() for prefix in adding}
        if self._removed is not None:
            for prefix, before in totals.items():
                keys = self._groups[prefix].keys
                totals[prefix] = self._removed.not_lower(prefix, keys, before)
        return Snapshot(self._families, totals, self._other_metrics())

    def _refresh(self, found: dict[str, MetricFileName]) -> None:
        """Read every file, and forget the files that no longer exist."""
        readers: dict[str, MetricFileReader] = {}
        removed = self._removed
        if removed is not None:
            removed.look(self.path, found, self._readers)
        layouts = {prefix: group.layouts() for prefix, group in self._groups.items()}
        for name, file in found.items():
            reader = self._readers.get(name)
            if reader is None:
                reader = MetricFileReader(os.path.join(self.path, name))
            known = layouts.setdefault(file.prefix, [])
            try:
                reader.refresh(known, removed.kept(name) if removed is not None else None)
            except FileNotFoundError:
                continue
            readers[name] = reader
            if reader.layout not in known and reader.layout.keys:
                known.append(reader.layout)
            if reader.damage is not None:
                self._skip(name, reader.damage)
        if removed is not None:
            removed.refresh()
        self._readers = readers
        self.file_count = len(readers)
        self.byte_count = sum(reader.size for reader in readers.values())

    def _free_slots(self, files: Iterable[MetricFileName]) -> set[str]:
        """Return the slots that nobody holds, if there are live gauges at all."""
        if not any(file.is_live_gauge for file in files):
            return set()
        try:
            records = SlotDirectory(self.path).records()
        except OSError:
            return set()
        return {slot for slot, record in records.items() if record is None}

    def _skip(self, name: str, damage: Damage) -> None:
        self.skipped[damage.reason] += 1
        if (name, damage.reason) not in self._reported:
            self._reported.add((name, damage.reason))
            log.warning(
                "obskit: the unreadable part of %s is left out of scrapes: %s",
                os.path.join(self.path, name),
                damage.text,
            )

    def _plan(self) -> None:
        """Lay out the families again, because keys were added or removed."""
        series_before, self._series = self._series, {}
        metrics: dict[str, dict[str, list[tuple[int, Series]]]] = {}
        for prefix, group in self._groups.items():
            for number, key in enumerate(group.keys):
                series = (
                    series_before[key] if key in series_before else families.parse_key(key, prefix)
                )
                self._series[key] = series
                if series is not None:
                    by_prefix = metrics.setdefault(series.metric, {})
                    by_prefix.setdefault(prefix, []).append((number, series))
        families_before = {family.name: family for family in self._families}
        self._families, self._other_names, self._others_at = [], set(), {}
        for name, by_prefix in metrics.items():
            (prefix, members), *others = by_prefix.items()
            if len(members) >= MANY_SERIES:
                self._warn_of_size(name, members)
            before = families_before.get(name)
            family = None if others else families.make_family(prefix, members, before)
            if family is None:
                self._other_names.add(name)
            else:
                self._families.append(family)
        self._strange = {key for key, series in self._series.items() if series is None}

    def _warn_of_size(self, name: str, members: list[tuple[int, Series]]) -> None:
        """Log, once for each metric, which label makes it large."""
        if (name, "size") not in self._reported:
            self._reported.add((name, "size"))
            label, count = widest_label(series.labels for _number, series in members)
            log.warning(
                "obskit: %s has %d series, because its label %r has %d values; each series costs "
                "memory and time at every scrape, so give the label fewer values",
                name,
                len(members),
                label,
                count,
            )

    def _doubt(self) -> None:
        """Report files with invalid keys, and make readers compare their keys again."""
        for name, reader in self._readers.items():
            reader.layout.is_doubtful = not self._strange.isdisjoint(reader.layout.keys)
            if reader.layout.is_doubtful and reader.damage is None:
                self._skip(name, Damage("corrupted", "it has keys that are not those of metrics"))

    def _other_metrics(self) -> list[Metric]:
        """Return the metrics that are not simply summed, merged sample by sample."""
        if not self._other_names:
            return []
        metrics: dict[str, Unmerged] = {}
        for prefix, group in self._groups.items():
            for holder, reader in group.files:
                series = self._others_of(prefix, reader.layout)
                families.add_unmerged(metrics, MetricFileName(prefix, holder), reader, series)
        merged: list[Metric] = []
        for name, metric in metrics.items():
            try:
                merged.append(families.merge(metric))
            except Exception as error:
                self._skip(name, Damage("foreign", f"its samples cannot be merged: {error}"))
        return merged

    def _others_of(self, prefix: str, layout: Layout) -> list[tuple[int, Series]]:
        if (prefix, layout) not in self._others_at:
            keys = ((at, self._series.get(key)) for at, key in enumerate(layout.keys))
            self._others_at[prefix, layout] = [
                (at, series) for at, series in keys if series and series.metric in self._other_names
            ]
        return self._others_at[prefix, layout]


class MultiProcessCollector(Collector):
    """Collects the metrics that all processes share; a drop-in for prometheus_client's class.

    The result is the same, except that live gauges count only while their slot is leased. What was
    parsed is remembered for the process and the directory, so creating a new collector for each
    scrape, as the usual recipe does, costs nothing.
    """

    def __init__(self, registry: Any, path: str | None = None) -> None:
        """Create a collector, and register it.

        Args:
            registry: A registry to register with, or ``None``.
            path: The multiprocess directory; ``PROMETHEUS_MULTIPROC_DIR`` by default.

        Raises:
            ValueError: There is no such directory.
        """
        theirs = TheirCollector(None, path)  # type: ignore[no-untyped-call]
        path = _prometheus.collector_path(theirs) or path
        self._path = path or os.environ[DIRECTORY_VARIABLE]
        if registry:
            registry.register(self)

    def collect(self) -> Iterable[Metric]:
        """Return the families of everything in the directory; may be called from any thread."""
        return directory_collector(self._path).collect().metrics()

    @staticmethod
    def merge(files: Iterable[str], accumulate: bool = True) -> Iterable[Metric]:
        """Merge metric files.

        Args:
            files: Their paths.
            accumulate: Make each histogram bucket include the smaller ones, as in the exposition.

        Returns:
            The metric families.
        """
        metrics: dict[str, Unmerged] = {}
        for path in files:
            file = MetricFileName.parse(os.path.basename(path))
            if file is None:
                continue
            reader = MetricFileReader(path)
            with contextlib.suppress(FileNotFoundError):
                reader.refresh()
            keys = reader.layout.keys
            parsed = ((at, families.parse_key(key, file.prefix)) for at, key in enumerate(keys))
            series = [(at, found) for at, found in parsed if found]
            families.add_unmerged(metrics, file, reader, series)
        return [families.merge(metric, buckets_add_up=accumulate) for metric in metrics.values()]


@lru_cache(maxsize=16)
def directory_collector(path: str) -> DirectoryCollector:
    """Return this process's collector of a directory."""
    return DirectoryCollector(path)


# Another thread may be collecting at the fork, so the child starts with new collectors.
forks.in_child("collectors", directory_collector.cache_clear)
