"""What all processes share, read from the multiprocess directory: aggregation and exposition.

Scraping costs what has changed. The keys of a file are parsed when they are appended, once; after
that a scrape reads each file's values by one call, lines them up by another, adds them with
``math.fsum``, and joins them to line prefixes that prometheus_client's own encoder has rendered
once. One file that is damaged, empty, foreign or gone costs what is unreadable in it, never the
scrape.

The result is prometheus_client's. Sums are exact for integers, and correctly rounded else, so that
a total depends on no order and never drops by rounding. What is rare takes prometheus_client's own
way through the numbers: gauges that do not add up, and metrics of one name and several types.

Safe beside threads and forks: collections run one at a time, and scrapes that overlap share one.
"""

from __future__ import annotations

import json
import math
import os
import re
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache
from itertools import accumulate, chain
from operator import itemgetter
from typing import Any, NamedTuple

from prometheus_client import generate_latest as their_generate_latest
from prometheus_client.core import Metric
from prometheus_client.multiprocess import MultiProcessCollector as TheirCollector
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample
from prometheus_client.utils import floatToGoString

from obskit_gunicorn import slots
from obskit_gunicorn.mmapfile import Damage, Layout, MetricFileName, MetricFileReader

__all__ = [
    "TEXT",
    "DirectoryCollector",
    "Format",
    "MultiProcessCollector",
    "Snapshot",
    "directory_collector",
]

_ADDING = frozenset({"counter", "histogram", "summary", "gauge_sum", "gauge_livesum"})
"""The file prefixes whose values add up; everything else goes prometheus_client's way."""

_WITHOUT_PID = frozenset({"gauge_sum", "gauge_livesum"})
"""Those of them from which prometheus_client takes any label ``pid`` away."""

_LARGEST_PLAIN = 1e6
"""From here on prometheus_client writes a number in another way than Python."""


_Labels = tuple[tuple[str, str], ...]
"""Label names and values, sorted."""


class _Series(NamedTuple):
    """One key of a metric file, parsed."""

    metric: str
    name: str
    labels: _Labels
    help: str


class Format(NamedTuple):
    """A format of the exposition."""

    name: str
    """What tells it from the others."""

    encode: Callable[[Any], bytes]
    """prometheus_client's encoder for it, of anything with a method ``collect()``."""

    def render(self, metrics: Iterable[Metric]) -> bytes:
        """Return families as they stand in the exposition, without the mark of its end."""
        return self.encode(_Collected(metrics)).removesuffix(b"# EOF\n")


TEXT = Format("text 0.0.4", their_generate_latest)


class _Group:
    """The files of one prefix, and the sum of their values key by key."""

    def __init__(self) -> None:
        self.files: list[tuple[str, MetricFileReader]] = []
        self.keys: list[bytes] = []
        self._picks: dict[Layout, Callable[[Sequence[float]], tuple[float, ...]] | None] = {}

    def arrange(self, files: list[tuple[str, MetricFileReader]]) -> bool:
        """Take the files of this scrape, with their holders; return whether the keys changed."""
        layouts = dict.fromkeys(file.layout for _holder, file in files)
        self.files = files
        if layouts.keys() == self._picks.keys():
            return False
        before = self.keys
        keys = dict.fromkeys(chain.from_iterable(layout.keys for layout in layouts))
        # What only a file had that is gone goes with it; what stays keeps its order, and with it
        # the families that have nothing new.
        self.keys = list(dict.fromkeys(chain((key for key in before if key in keys), keys)))
        if self.keys == before:
            self._picks = {
                layout: self._picks[layout] if layout in self._picks else self._pick(layout)
                for layout in layouts
            }
            return False
        self._picks = {layout: self._pick(layout) for layout in layouts}
        return True

    def layouts(self) -> list[Layout]:
        """Return the layouts of the last scrape, the shortest first."""
        return sorted(self._picks, key=lambda layout: layout.end)

    def totals(self) -> Sequence[float]:
        """Return the sum of every key over all files, in the order of :attr:`keys`."""
        # Adding to 0.0, as prometheus_client does, makes 0.0 of -0.0.
        if len(self.files) == 1:
            return [value + 0.0 for value in self._columns()[0]]
        try:
            return [value + 0.0 for value in map(math.fsum, zip(*self._columns(), strict=True))]
        except (ValueError, OverflowError):  # infinities of both signs, or beyond the largest
            return [_sum(row) + 0.0 for row in zip(*self._columns(), strict=True)]

    def _columns(self) -> list[Iterable[float]]:
        """Return each file's values, in the order of :attr:`keys`."""
        columns: list[Iterable[float]] = []
        for _holder, file in self.files:
            pick = self._picks[file.layout]
            columns.append(file.values() if pick is None else pick((*file.values(), 0.0)))
        return columns

    def _pick(self, layout: Layout) -> Callable[[Sequence[float]], tuple[float, ...]] | None:
        """Return what lines up a file's values, with a 0 behind them, with the group's keys."""
        if list(layout.keys) == self.keys:
            return None
        at = {key: number for number, key in enumerate(layout.keys)}
        missing = len(layout.keys)
        return _getter([at.get(key, missing) for key in self.keys])


class _Family:
    """A metric of one type whose values add up, with everything about it that stays the same."""

    def __init__(self, prefix: str, members: list[tuple[int, _Series]]) -> None:
        first = members[0][1]
        self.prefix, self.type = prefix, prefix.partition("_")[0]
        self.name, self.help = first.metric, first.help
        self.samples: list[tuple[str, _Labels]] = []
        """Name and labels of each sample, in prometheus_client's order."""
        self._steps: list[tuple[int, bool]] = []
        rows = self._rows(members)
        self._pick = _getter([keys[0] for keys in rows])
        # One sample may have several keys: their help text differs, or the spelling of a bucket.
        self._several = [(at, keys) for at, keys in enumerate(rows) if len(keys) > 1]
        self._prefixes = {TEXT.name: _line_prefixes(self, TEXT)}

    def prefixes(self, format_: Format) -> list[str]:
        """Return what stands before each value, the line break before it included.

        Raises:
            ValueError: prometheus_client does not render the family one line a sample.
        """
        prefixes = self._prefixes.get(format_.name)
        if prefixes is None:
            prefixes = self._prefixes[format_.name] = _line_prefixes(self, format_)
        return prefixes

    def values(self, totals: Sequence[float]) -> Sequence[float]:
        """Return the value of every sample, in the order of :attr:`samples`."""
        picked: Sequence[float] = self._pick(totals)
        if self._several:
            picked = list(picked)
            for at, keys in self._several:
                picked[at] = _sum([totals[key] for key in keys])
        if not self._steps:
            return picked
        values: list[float] = []
        at = 0
        for count, is_buckets in self._steps:
            part = picked[at : at + count]
            at += count
            if is_buckets:
                values.extend(accumulate(part))
                values.append(values[-1])
            else:
                values.extend(part)
        return values

    def metric(self, values: Iterable[float] = ()) -> Metric:
        """Return a fresh family with these values, or with no samples."""
        metric = Metric(self.name, self.help, self.type)
        metric.samples = [
            Sample(name, dict(labels), value)
            for (name, labels), value in zip(self.samples, values, strict=False)
        ]
        return metric

    def _rows(self, members: list[tuple[int, _Series]]) -> list[list[int]]:
        """Lay out the samples as prometheus_client does; return the keys of each picked value."""
        if self.prefix == "histogram":
            return self._histogram_rows(members)
        samples: dict[_Labels, dict[str, list[int]]] = {}
        for key, series in members:
            labels = series.labels
            if self.prefix in _WITHOUT_PID:
                labels = tuple(pair for pair in labels if pair[0] != "pid")
            samples.setdefault(labels, {}).setdefault(series.name, []).append(key)
        rows = []
        for labels, by_name in samples.items():
            for name, keys in by_name.items():
                self.samples.append((name, labels))
                rows.append(keys)
        return rows

    def _histogram_rows(self, members: list[tuple[int, _Series]]) -> list[list[int]]:
        plain: dict[_Labels, dict[str, list[int]]] = {}
        buckets: dict[_Labels, dict[float, list[int]]] = {}
        for key, series in members:
            others = dict(series.labels)
            bound = others.pop("le", None)
            if bound is None:
                plain.setdefault(series.labels, {}).setdefault(series.name, []).append(key)
                continue
            labels = tuple(others.items())
            buckets.setdefault(labels, {}).setdefault(float(bound), []).append(key)
            plain.setdefault(labels, {})
        rows = []
        bounds: dict[float, str] = {}
        for labels, by_name in plain.items():
            by_bound = buckets.get(labels, {})
            if by_bound:
                by_name.pop(f"{self.name}_count", None)
            self._steps.append((len(by_name), False))
            for sample_name, keys in by_name.items():
                self.samples.append((sample_name, labels))
                rows.append(keys)
            if by_bound:
                self._steps.append((len(by_bound), True))
                for value, keys in sorted(by_bound.items()):
                    if value not in bounds:
                        bounds[value] = floatToGoString(value)  # type: ignore[no-untyped-call]
                    with_bound = tuple(sorted((*labels, ("le", bounds[value]))))
                    self.samples.append((f"{self.name}_bucket", with_bound))
                    rows.append(keys)
                self.samples.append((f"{self.name}_count", labels))
        return rows


class Snapshot:
    """One collection; immutable, so that any number of threads may use it."""

    def __init__(
        self,
        families: list[_Family],
        totals: dict[str, Sequence[float]],
        others: list[Metric],
    ) -> None:
        self._families = families
        self._values = [family.values(totals[family.prefix]) for family in families]
        self._others = others
        self._rendered: dict[str, bytes] = {}

    def metrics(self) -> Iterator[Metric]:
        """Return fresh metric families."""
        for family, values in zip(self._families, self._values, strict=True):
            yield family.metric(values)
        for other in self._others:
            metric = Metric(other.name, other.documentation, other.type)
            metric.samples = [
                sample._replace(labels=dict(sample.labels)) for sample in other.samples
            ]
            yield metric

    def types(self) -> dict[str, str]:
        """Return the type of each family, by name."""
        types = {family.name: family.type for family in self._families}
        return types | {metric.name: metric.type for metric in self._others}

    def series_count(self) -> int:
        """Return how many samples there are."""
        others = sum(len(metric.samples) for metric in self._others)
        return sum(map(len, self._values)) + others

    def text(self) -> bytes:
        """Return the exposition in the text format 0.0.4."""
        return self.rendered(TEXT)

    def rendered(self, format_: Format) -> bytes:
        """Return the exposition in a format, without the mark of its end.

        Raises:
            Exception: What the format's encoder raises.
        """
        rendered = self._rendered.get(format_.name)
        if rendered is None:
            rendered = self._shared_lines(format_) + format_.render(self._others)
            self._rendered[format_.name] = rendered
        return rendered

    def _shared_lines(self, format_: Format) -> bytes:
        try:
            prefixes = list(
                chain.from_iterable(family.prefixes(format_) for family in self._families)
            )
        except ValueError:
            families = zip(self._families, self._values, strict=True)
            return format_.render([family.metric(values) for family, values in families])
        values = list(chain.from_iterable(self._values))
        written = list(map(repr, values))
        for at, value in enumerate(values):
            if not -math.inf < value < _LARGEST_PLAIN:  # also what is no number
                written[at] = floatToGoString(value)  # type: ignore[no-untyped-call]
        text = "".join(chain.from_iterable(zip(prefixes, written, strict=True)))
        return f"{text[1:]}\n".encode() if text else b""


class DirectoryCollector:
    """Reads one multiprocess directory, again and again, and remembers what stays the same.

    Attributes:
        path: The directory.
        skipped: How many files the last collection left out, in whole or in part, by reason.
        file_count: How many metric files it found.
        byte_count: Their size together.
    """

    def __init__(self, path: str) -> None:
        """Name the directory; nothing is read."""
        self.path = path
        self.skipped: Counter[str] = Counter()
        self.file_count = self.byte_count = 0
        self._readers: dict[str, MetricFileReader] = {}
        self._groups: dict[str, _Group] = {}
        self._series: dict[bytes, _Series | None] = {}
        self._strange: set[bytes] = set()
        self._families: list[_Family] = []
        self._members: dict[str, tuple[str, list[tuple[int, _Series]]]] = {}
        self._other_names: set[str] = set()
        self._others_at: dict[tuple[str, Layout], list[tuple[int, _Series]]] = {}
        self._reported: set[tuple[str, str]] = set()
        self._lock = threading.Lock()
        self._begun = self._number = 0
        self._snapshot: Snapshot | None = None

    def collect(self) -> Snapshot:
        """Read the directory.

        Collections run one at a time. Who has waited for one takes the next one's result together
        with all others that have waited.

        Raises:
            OSError: The directory cannot be listed.
        """
        arrived = self._begun
        with self._lock:
            if self._snapshot is not None and self._number > arrived:
                return self._snapshot
            self._begun += 1
            number = self._begun
            self._snapshot = self._read(os.listdir(self.path))
            self._number = number
            return self._snapshot

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
        return Snapshot(self._families, totals, self._other_metrics())

    def _refresh(self, found: dict[str, MetricFileName]) -> None:
        """Read every file; remember only those that are there."""
        readers: dict[str, MetricFileReader] = {}
        layouts = {prefix: group.layouts() for prefix, group in self._groups.items()}
        for name, file in found.items():
            reader = self._readers.get(name)
            if reader is None:
                reader = MetricFileReader(os.path.join(self.path, name))
            known = layouts.setdefault(file.prefix, [])
            try:
                reader.refresh(known)
            except FileNotFoundError:
                continue
            readers[name] = reader
            if reader.layout not in known and reader.layout.keys:
                known.append(reader.layout)
            if reader.damage is not None:
                self._skip(name, reader.damage)
        self._readers = readers
        self.file_count = len(readers)
        self.byte_count = sum(reader.size for reader in readers.values())

    def _free_slots(self, files: Iterable[MetricFileName]) -> set[str]:
        """Return the slots that nobody holds, if there are live gauges at all."""
        if not any(file.is_live_gauge for file in files):
            return set()
        try:
            records = slots.SlotDirectory(self.path).records()
        except OSError:
            return set()
        return {slot for slot, record in records.items() if record is None}

    def _skip(self, name: str, damage: Damage) -> None:
        self.skipped[damage.reason] += 1
        if (name, damage.reason) not in self._reported:
            self._reported.add((name, damage.reason))
            slots.process.log.warning(
                "obskit: %s is left out of scrapes as far as it cannot be read: %s",
                os.path.join(self.path, name),
                damage.text,
            )

    def _plan(self) -> None:
        """Lay out families and line prefixes anew, because there are new keys or fewer."""
        before, self._series = self._series, {}
        metrics: dict[str, dict[str, list[tuple[int, _Series]]]] = {}
        for prefix, group in self._groups.items():
            for number, key in enumerate(group.keys):
                series = before[key] if key in before else _parse(key, prefix)
                self._series[key] = series
                if series is not None:
                    by_prefix = metrics.setdefault(series.metric, {})
                    by_prefix.setdefault(prefix, []).append((number, series))
        families = {family.name: family for family in self._families}
        members = {name: next(iter(by_prefix.items())) for name, by_prefix in metrics.items()}
        self._families = []
        self._other_names, self._others_at = set(), {}
        for name, by_prefix in metrics.items():
            family = None
            if len(by_prefix) == 1 and members[name][0] in _ADDING:
                if name in families and members[name] == self._members[name]:
                    family = families[name]
                else:
                    family = _family(*members[name])
            if family is None:
                self._other_names.add(name)
            else:
                self._families.append(family)
        self._members = members
        self._strange = {key for key, series in self._series.items() if series is None}

    def _doubt(self) -> None:
        """Report files with keys that are no metric's, and have them looked at again."""
        for name, reader in self._readers.items():
            reader.layout.is_doubtful = not self._strange.isdisjoint(reader.layout.keys)
            if reader.layout.is_doubtful and reader.damage is None:
                self._skip(name, Damage("corrupted", "there are keys that are no metric's"))

    def _other_metrics(self) -> list[Metric]:
        """Return what does not simply add up, merged by prometheus_client."""
        if not self._other_names:
            return []
        metrics: dict[str, Metric] = {}
        for prefix, group in self._groups.items():
            for holder, reader in group.files:
                series = self._others_of(prefix, reader.layout)
                _add_samples(metrics, MetricFileName(prefix, holder), reader, series)
        merged: list[Metric] = []
        for name, metric in metrics.items():
            try:
                merged.extend(map(_without_twins, _their_merge({name: metric})))
            except Exception as error:
                self._skip(name, Damage("foreign", f"its samples cannot be merged: {error}"))
        return merged

    def _others_of(self, prefix: str, layout: Layout) -> list[tuple[int, _Series]]:
        found = self._others_at.get((prefix, layout))
        if found is None:
            found = []
            for at, key in enumerate(layout.keys):
                series = self._series.get(key)
                if series is not None and series.metric in self._other_names:
                    found.append((at, series))
            self._others_at[prefix, layout] = found
        return found


class MultiProcessCollector(Collector):
    """Collects what all processes share; a drop-in for prometheus_client's.

    Its result is prometheus_client's, except that live gauges count only while their slot is
    leased. What it has parsed is remembered for the process and the directory, so that making a
    new one for each scrape, as the usual recipe does, costs nothing.
    """

    def __init__(self, registry: Any, path: str | None = None) -> None:
        """Make a collector, and register it.

        Args:
            registry: A registry to register with, or ``None``.
            path: The multiprocess directory; ``PROMETHEUS_MULTIPROC_DIR`` by default.

        Raises:
            ValueError: There is no such directory.
        """
        self._path = TheirCollector(None, path)._path  # type: ignore[no-untyped-call]
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
            accumulate: Add up histogram buckets, as the exposition wants it.

        Returns:
            The metric families.
        """
        metrics: dict[str, Metric] = {}
        for path in files:
            file = MetricFileName.parse(os.path.basename(path))
            if file is None:
                continue
            reader = MetricFileReader(path)
            try:
                reader.refresh()
            except FileNotFoundError:
                continue
            parsed = ((at, _parse(key, file.prefix)) for at, key in enumerate(reader.layout.keys))
            _add_samples(metrics, file, reader, [(at, found) for at, found in parsed if found])
        return _their_merge(metrics, accumulate=accumulate)


_collectors: dict[str, DirectoryCollector] = {}
_MOST_COLLECTORS = 16


def directory_collector(path: str) -> DirectoryCollector:
    """Return this process's collector of a directory."""
    collector = _collectors.get(path)
    if collector is None:
        while len(_collectors) >= _MOST_COLLECTORS:
            _collectors.pop(next(iter(_collectors)), None)
        collector = _collectors.setdefault(path, DirectoryCollector(path))
    return collector


# A fork may come while another thread collects: the child starts over.
os.register_at_fork(after_in_child=_collectors.clear)


_decode = json.JSONDecoder().raw_decode


def _parse(key: bytes, prefix: str) -> _Series | None:
    """Parse a key as it stands in a file; ``None`` if it is no metric's."""
    length = int.from_bytes(key[:4], sys.byteorder)
    try:
        text = key[4 : 4 + length].decode().strip(" \t\n\r")
        (metric, name, labels, help_text), end = _decode(text)
        if end < len(text):
            return None
        # Raises for what is no text, and for a lone surrogate, which cannot be exposed.
        "".join((metric, name, help_text, *labels, *labels.values())).encode()
        if prefix == "histogram" and "le" in labels and math.isnan(float(labels["le"])):
            return None
        # What no metric can be made with, and what would break the exposition for all others:
        # prometheus_client takes a name that ends in a line break for a plain one.
        if not name or "" in labels or any(label.startswith("__") for label in labels):
            return None
        if any(each.endswith("\n") for each in (metric, name, *labels)):
            return None
        pairs = tuple(sorted(labels.items()))
    except (ValueError, TypeError, AttributeError, RecursionError):
        return None
    return _Series(metric, name, pairs, help_text) if _is_metric_name(metric) else None


@lru_cache(maxsize=1024)
def _is_metric_name(name: str) -> bool:
    try:
        Metric(name, "", "untyped")
    except ValueError:
        return False
    return True


def _family(prefix: str, members: list[tuple[int, _Series]]) -> _Family | None:
    try:
        return _Family(prefix, members)
    except ValueError:
        return None


def _add_samples(
    metrics: dict[str, Metric],
    file: MetricFileName,
    reader: MetricFileReader,
    series: Iterable[tuple[int, _Series]],
) -> None:
    """Add what a file holds to families, in the form that prometheus_client merges."""
    kind, _, mode = file.prefix.partition("_")
    numbers = list(reader.pairs())
    for at, (name, sample, labels, help_text) in series:
        metric = metrics.get(name)
        if metric is None:
            metric = metrics[name] = Metric(name, help_text, kind)
        value, timestamp = numbers[2 * at : 2 * at + 2]
        if kind == "gauge":
            metric._multiprocess_mode = mode  # type: ignore[attr-defined]
            with_holder = (*labels, ("pid", file.holder))
            metric.add_sample(sample, with_holder, value, timestamp)  # type: ignore[arg-type]
        else:
            metric.add_sample(sample, labels, value)  # type: ignore[arg-type]


def _getter(numbers: list[int]) -> Callable[[Sequence[float]], tuple[float, ...]]:
    """Return what picks several items at once; itemgetter returns no tuple for one."""
    if len(numbers) == 1:
        only = numbers[0]
        return lambda values: (values[only],)
    return itemgetter(*numbers)


def _sum(row: Iterable[float]) -> float:
    try:
        return math.fsum(row)
    except (ValueError, OverflowError):
        return sum(row)


class _Collected(Collector):
    """Families, in the form that prometheus_client's encoders take."""

    def __init__(self, metrics: Iterable[Metric]) -> None:
        self._metrics = metrics

    def collect(self) -> Iterable[Metric]:
        return self._metrics


def _their_merge(metrics: dict[str, Metric], *, accumulate: bool = True) -> Iterable[Metric]:
    merged: Iterable[Metric] = TheirCollector._accumulate_metrics(  # type: ignore[no-untyped-call]
        metrics, accumulate
    )
    return merged


_PLAIN_NAME = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]*")
_PLAIN_LABEL = re.compile(r"(?!__)[a-zA-Z_][a-zA-Z0-9_]*")
_PUT_APART = ("_created", "_gsum", "_gcount")


def _without_twins(metric: Metric) -> Metric:
    """Return a family without samples that differ only in a label that is written twice."""
    samples = {
        (sample.name, tuple(sorted(sample.labels.items()))): sample for sample in metric.samples
    }
    if len(samples) < len(metric.samples):
        metric.samples = list(samples.values())
    return metric


def _line_prefixes(family: _Family, format_: Format) -> list[str]:
    """Return what stands before each value, the line break before it included.

    Raises:
        ValueError: prometheus_client does not render the family one line a sample.
    """
    head = "\n" + format_.render([family.metric()]).decode()[:-1]
    try:
        prefixes = _plain_line_prefixes(family)
        if format_ is not TEXT:
            # Some formats rewrite plain names, too. What has most labels tells.
            at, (name, labels) = max(
                enumerate(family.samples), key=lambda numbered: len(numbered[1][1])
            )
            one = family.metric()
            one.samples = [Sample(name, dict(labels), 0.0)]
            if _their_line_prefixes(one, head, format_) != [prefixes[at]]:
                raise ValueError(f"{format_.name} writes the names of {family.name} differently")
    except ValueError:
        zeros = family.metric([0.0] * len(family.samples))
        prefixes = _their_line_prefixes(zeros, head, format_)
    prefixes[0] = head + prefixes[0]
    return prefixes


def _plain_line_prefixes(family: _Family) -> list[str]:
    """Return the same for names that each format and release writes as they are.

    Raises:
        ValueError: There are others.
    """
    labels = _RenderedLabels()
    names = {name for name, _labels in family.samples}
    apart = {family.name + suffix for suffix in _PUT_APART}
    if names & apart or not all(map(_PLAIN_NAME.fullmatch, (family.name, *names))):
        raise ValueError(f"{family.name} needs more than the name and one line a sample")
    prefixes = []
    for name, pairs in family.samples:
        braced = "{" + ",".join([labels[pair] for pair in pairs]) + "}" if pairs else ""
        prefixes.append(f"\n{name}{braced} ")
    return prefixes


class _RenderedLabels(dict[tuple[str, str], str]):
    """Labels as they stand in a line, each rendered once."""

    def __missing__(self, pair: tuple[str, str]) -> str:
        name, value = pair
        if not _PLAIN_LABEL.fullmatch(name):
            raise ValueError(f"the label name {name!r} needs quotes or escapes")
        value = value.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")
        rendered = self[pair] = f'{name}="{value}"'
        return rendered


def _their_line_prefixes(metric: Metric, head: str, format_: Format) -> list[str]:
    """Return the same, rendered by prometheus_client with a 0 in the place of every value.

    Raises:
        ValueError: The text is not one line a sample.
    """
    text = "\n" + format_.render([metric]).decode()
    lines = text.removeprefix(head).split("\n")[1:-1]
    if len(lines) != len(metric.samples) or not all(line.endswith(" 0.0") for line in lines):
        raise ValueError(f"{metric.name} is not rendered one line a sample")
    return ["\n" + line[:-3] for line in lines]
