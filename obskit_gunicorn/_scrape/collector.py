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
import json
import os
import threading
from collections import Counter
from functools import cache, lru_cache
from typing import TYPE_CHECKING, Any

from prometheus_client.multiprocess import MultiProcessCollector as TheirCollector
from prometheus_client.registry import Collector

from obskit_gunicorn import _prometheus
from obskit_gunicorn._log import log
from obskit_gunicorn._scrape import families
from obskit_gunicorn._scrape.exemplars import Exemplars
from obskit_gunicorn._scrape.merging import Member, Merger
from obskit_gunicorn._scrape.reduced import ReducedFiles
from obskit_gunicorn._scrape.removed import Records, RemovedFiles
from obskit_gunicorn._scrape.source import Snapshot, Source
from obskit_gunicorn._scrape.states import States
from obskit_gunicorn._store import admissions, baselines, forks
from obskit_gunicorn._store.admissions import Admissions
from obskit_gunicorn._store.cardinality import widest_label
from obskit_gunicorn._store.column import column_path
from obskit_gunicorn._store.directory import ASK_WAIT_SECONDS, SlotDirectory
from obskit_gunicorn._store.fileformat import Damage, MetricFileName, key_text
from obskit_gunicorn._store.membership import DIRECTORY_VARIABLE
from obskit_gunicorn._store.reader import Layout, MetricFileReader

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from prometheus_client.core import Metric

    from obskit_gunicorn._scrape.families import Series, Unmerged
    from obskit_gunicorn._scrape.formats import Labels


class DirectoryCollector(Source):
    """Reads one multiprocess directory at each scrape, and remembers what does not change.

    Attributes:
        path: The directory.
        skipped: How many files the last collection could not read, in whole or in part, by reason.
        file_count: How many metric files it found.
        byte_count: Their total size, with that of the columns that count.
        over_budget: The metrics that have used up their budget of label sets.
    """

    def __init__(self, path: str) -> None:
        """Set the path; reads nothing."""
        self.path = path
        self.skipped: Counter[str] = Counter()
        self.file_count = self.byte_count = 0
        self._readers: dict[str, MetricFileReader] = {}
        self.over_budget: frozenset[str] = frozenset()
        self._admissions: Admissions | None = None
        self._reduced = ReducedFiles()
        self._has_removals = False
        self._merger = Merger(self._skip, self._warn_of_size)
        self._exemplars = Exemplars()
        self._states = States()
        self._reported: set[tuple[str, str]] = set()
        self._lock = threading.Lock()
        self._begun = self._number = 0
        self._snapshot: Snapshot | None = None
        self._removed: RemovedFiles | None = None
        self._tell_lost: Callable[[], object] = lambda: None
        self._keeps_parts = False
        self._records_lock = threading.Lock()

    def keep_removed(self, tell_lost: Callable[[], object] = lambda: None) -> None:
        """Keep files open from now on, and go on reading those that are removed under writers.

        For a process that does nothing but read; it costs a descriptor for each file.

        Args:
            tell_lost: Called whenever a living arbiter is found to have lost the directory, from
                any thread.
        """
        with self._lock:
            if self._removed is None:
                self._removed = RemovedFiles()
            self._tell_lost = tell_lost

    def keep_parts(self) -> None:
        """Have each snapshot keep its :attr:`~Snapshot.parts` from now on."""
        self._keeps_parts = True

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
            try:
                return self._removed.records(self.path, wait_seconds)
            finally:
                if self._removed.is_lost:
                    self._tell_lost()

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

    def counted_by(self, metric: str) -> dict[str, float]:
        """Return what each holder has counted of a counter, as the last collection has read it.

        A slot's holder goes on with what those before it have counted.

        Args:
            metric: The counter, without ``_total``; all its label sets are added up.
        """
        start = f"[{json.dumps(metric)}, ".encode()
        places: dict[Layout, list[int]] = {}
        counted: dict[str, float] = {}
        with self._lock:
            for name, reader in self._readers.items():
                file = MetricFileName.parse(name)
                if file is None or file.prefix != "counter":
                    continue
                found = places.get(reader.layout)
                if found is None:
                    keys = enumerate(reader.layout.keys)
                    found = [at for at, key in keys if key_text(key).startswith(start)]
                    places[reader.layout] = found
                if found:
                    values = memoryview(reader.numbers).cast("d")
                    counted[file.holder] = sum(values[at] for at in found)
        return counted

    def _list(self) -> dict[str, int]:
        """Return the files of the directory, each with its inode."""
        try:
            with os.scandir(self.path) as entries:
                return {entry.name: entry.inode() for entry in entries}
        except FileNotFoundError:
            if self._removed is None or not (self._readers or self._removed):
                raise
            return {}

    def _read(self, names: Mapping[str, int]) -> Snapshot:
        parsed = ((name, MetricFileName.parse(name)) for name in sorted(names))
        found = {name: file for name, file in parsed if file is not None}
        self.skipped = Counter()
        self._look_for_removals(names)
        self._look_for_budget(names)
        self._refresh(found, names)
        if self._has_removals:
            removed = () if self._removed is None else self._removed.readers()
            self._reduced.weigh([*self._readers.values(), *removed])
        records = self._records_of(found.values())
        free = {slot for slot, record in (records or {}).items() if record is None}
        members: dict[str, list[Member]] = {}
        for name, reader in self._readers.items():
            file = found[name]
            if not (file.is_live_gauge and file.holder in free):
                values = self._reduced.shown(reader) if self._has_removals else reader
                members.setdefault(file.prefix, []).append(Member(_holder(file.holder), values))
        if self._removed is not None:
            for prefix, holder, reader in self._removed.members():
                values = self._reduced.shown(reader) if self._has_removals else reader
                members.setdefault(prefix, []).append(Member(_holder(holder), values))
        adjust = None if self._removed is None else self._removed.not_lower
        self._exemplars.refresh(self.path, names, self._skip, self._reduced.baselines)
        snapshot = self._merger.merge(
            members, adjust, with_parts=self._keeps_parts, exemplars=self._exemplars
        )
        snapshot.records = records
        if self._merger.strange:
            self._doubt()
        self._states.refresh(self.path, names, self._skip)
        return snapshot.beside(self._states.stated(snapshot.types, self._skip))

    def _look_for_removals(self, names: Mapping[str, int]) -> None:
        """Read which label sets were removed; before the files."""
        if not self._has_removals and baselines.NAME not in names:
            return
        self._has_removals = True
        has_changed = self._reduced.look(self.path)
        if self._removed is not None:
            self._reduced.forget([*self._readers.values(), *self._removed.readers()])
            if has_changed:
                self._removed.allow_falling()
        else:
            self._reduced.forget(self._readers.values())

    def _look_for_budget(self, names: Mapping[str, int]) -> None:
        """Read which metrics have used up their budget."""
        if admissions.NAME not in names:
            self.over_budget = frozenset()
            return
        if self._admissions is None or self._admissions.directory != self.path:
            self._admissions = Admissions(self.path)
        with contextlib.suppress(OSError):
            self._admissions.refresh()
        self.over_budget = frozenset(self._admissions.over)

    def _refresh(self, found: dict[str, MetricFileName], names: Mapping[str, int]) -> None:
        """Read every file, and forget the files that no longer exist."""
        readers: dict[str, MetricFileReader] = {}
        removed = self._removed
        beside = {name: column_path(name) for name in found}
        if removed is not None:
            inodes = {name: names[name] for name in found}
            columns = {each: names[each] for each in beside.values() if each in names}
            removed.look(self.path, inodes, columns, self._readers)
        layouts = self._layouts(found)
        untouched = cache(SlotDirectory(self.path).untouched)
        buffer = bytearray()  # for all of them, one after the other; where columns count, for none
        for name, file in found.items():
            reader = self._readers.get(name)
            if reader is None:
                reader = MetricFileReader(os.path.join(self.path, name))
            known = layouts.setdefault(file.prefix, [])
            try:
                reader.refresh(
                    known,
                    removed.kept(name) if removed is not None else None,
                    inode=names[name],
                    has_column=beside[name] in names,
                    column=removed.kept_column(beside[name]) if removed is not None else None,
                    untouched=None if reader.follows_column else untouched(file.holder),
                    buffer=buffer,
                )
            except FileNotFoundError:
                continue
            readers[name] = reader
            if reader.layout not in known and reader.layout.keys:
                known.append(reader.layout)
            if reader.damage is not None:
                self._skip(name, reader.damage)
        if removed is not None:
            removed.refresh(self._reduced.shown)
        self._readers = readers
        self.file_count = len(readers)
        self.byte_count = sum(reader.size + reader.column_size for reader in readers.values())

    def _layouts(self, found: Mapping[str, MetricFileName]) -> dict[str, list[Layout]]:
        """Return the layouts of the last scrape by prefix, the shortest first."""
        layouts: dict[str, dict[Layout, None]] = {}
        for name, reader in self._readers.items():
            if name in found and reader.layout.keys:
                layouts.setdefault(found[name].prefix, {})[reader.layout] = None
        return {
            prefix: sorted(each, key=lambda layout: layout.end) for prefix, each in layouts.items()
        }

    def _records_of(self, files: Iterable[MetricFileName]) -> Records | None:
        """Return the records of leases, if there are live gauges at all and they can be read."""
        if not any(file.is_live_gauge for file in files):
            return None
        try:
            return self.records()
        except OSError:
            return None

    def _skip(self, name: str, damage: Damage) -> None:
        self.skipped[damage.reason] += 1
        if (name, damage.reason) not in self._reported:
            self._reported.add((name, damage.reason))
            log.warning(
                "obskit: the unreadable part of %s is left out of scrapes: %s",
                os.path.join(self.path, name),
                damage.text,
            )

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
            reader.layout.is_doubtful = not self._merger.strange.isdisjoint(reader.layout.keys)
            if reader.layout.is_doubtful and reader.damage is None:
                self._skip(name, Damage("corrupted", "it has keys that are not those of metrics"))


def _holder(name: str) -> Labels:
    """Return the label that prometheus_client gives the gauges of a holder."""
    return (("pid", name),)


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
            The metric families. One whose samples cannot be merged, because a file is damaged, is
            left out, and a line in the log names it.
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
            families.add_unmerged(metrics, file.prefix, _holder(file.holder), reader, series)
        merged = []
        for name, metric in metrics.items():
            try:
                merged.append(families.merge(metric, buckets_add_up=accumulate))
            except Exception as error:  # one bad file costs its metric, as in a scrape
                log.warning("obskit: %s is left out: its samples cannot be merged: %s", name, error)
        return merged


@lru_cache(maxsize=16)
def directory_collector(path: str) -> DirectoryCollector:
    """Return this process's collector of a directory."""
    return DirectoryCollector(path)


# Another thread may be collecting at the fork, so the child starts with new collectors.
forks.in_child("collectors", directory_collector.cache_clear)
