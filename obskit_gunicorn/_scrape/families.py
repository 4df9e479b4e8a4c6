"""From the keys of metric files to families of metrics.

Most metrics are summed: their :class:`Family` is laid out once and gets its values at each scrape.
All others are merged sample by sample with :func:`merge`: gauges with other modes, metrics with
several types, and samples with several keys. Both give the same result as prometheus_client.
"""

from __future__ import annotations

import json
import math
import re
import sys
from functools import lru_cache
from itertools import accumulate
from operator import itemgetter
from typing import TYPE_CHECKING, NamedTuple, Protocol

from prometheus_client.core import Metric
from prometheus_client.samples import Sample

from obskit_gunicorn import _prometheus
from obskit_gunicorn._scrape.blocks import Block, KeptLines, Notes
from obskit_gunicorn._scrape.formats import (
    TEXT,
    Format,
    Labels,
    Lines,
    are_plain_labels,
    exemplar_text,
    go_float,
    lines_of,
    their_exemplar,
)
from obskit_gunicorn._store.fileformat import key_text
from obskit_gunicorn._store.reader import MetricFileReader

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from obskit_gunicorn._store.exemplars import Exemplar

ADDING = frozenset({"counter", "histogram", "summary", "gauge_sum", "gauge_livesum"})
"""The file prefixes whose values are summed."""

_WITHOUT_PID = frozenset({"gauge_sum", "gauge_livesum"})
"""Those of them for which prometheus_client removes a label ``pid``."""


class Series(NamedTuple):
    """One key of a metric file, parsed."""

    metric: str
    name: str
    labels: Labels
    help: str


class Examples:
    """The exemplars of a family's samples. Never changed.

    Attributes:
        of_rows: Each exemplar, by the number of its sample.
    """

    def __init__(self, of_rows: Mapping[int, Exemplar]) -> None:
        """Keep them."""
        self.of_rows = of_rows
        self._notes: dict[str, Notes] = {}

    def texts(self, format_: Format) -> Iterable[tuple[int, str]]:
        """Return sample and text of each in a format; nothing in one that has no exemplars."""
        if not format_.has_exemplars:
            return ()
        return ((row, exemplar_text(each, format_)) for row, each in self.of_rows.items())

    def notes(self, format_: Format) -> Notes:
        """Return the same for lines that are kept."""
        notes = self._notes.get(format_.name)
        if notes is None:
            notes = self._notes[format_.name] = Notes(self.texts(format_))
        return notes


def may_have_exemplar(type_: str, sample: str) -> bool:
    """Return whether OpenMetrics and prometheus_client allow a sample to have an exemplar."""
    return (type_, sample.rpartition("_")[2]) in (("counter", "total"), ("histogram", "bucket"))


class Family:
    """A metric of one type whose values are summed: everything that does not change."""

    def __init__(self, prefix: str, members: list[tuple[int, Series]]) -> None:
        first = members[0][1]
        self.prefix, self.type = prefix, prefix.partition("_")[0]
        self.name, self.help = first.metric, first.help
        self.samples: list[tuple[str, Labels]] = []
        """Name and labels of each sample, in prometheus_client's order."""
        self._steps: list[tuple[int, bool]] = []
        self.members = members
        self._children: set[Labels] = set()
        self._keys = self._lay_out()
        self._pick = getter(self._keys)
        self._lines = {TEXT.name: lines_of(self, TEXT)}
        self._kept: dict[str, tuple[Block, KeptLines]] = {}
        self._last: tuple[Sequence[float] | None, Sequence[float]] = (None, ())
        self._rows: dict[int, int] = {}

    def extended(self, more: Family) -> Family:
        """Return a family with the samples of another one after those of this one.

        This one stays as it is, because snapshots use it; but it cannot be extended again.

        Raises:
            ValueError: Laid out together, they would be in another order.
        """
        if bool(more._steps) != bool(self._steps) or not self._children.isdisjoint(more._children):
            raise ValueError(f"samples of {self.name} belong to others that were there before")
        text, more_text = self._lines[TEXT.name], more._lines[TEXT.name]
        family = object.__new__(Family)
        family.prefix, family.type, family.name, family.help = (
            self.prefix,
            self.type,
            self.name,
            self.help,
        )
        family.samples = self.samples + more.samples
        family._steps = self._steps + more._steps
        family.members = self.members + more.members
        family._children = self._children
        family._children |= more._children
        family._keys = self._keys + more._keys
        family._pick = getter(family._keys)
        are_plain = text.are_plain and more_text.are_plain
        prefixes = text.prefixes + more_text.prefixes
        family._lines = {
            name: lines._replace(prefixes=prefixes)
            for name, lines in list(self._lines.items())
            if lines is text or (are_plain and lines.prefixes is text.prefixes)
        }
        family._lines[TEXT.name] = text._replace(prefixes=prefixes, are_plain=are_plain)
        before = [kept for _, kept in list(self._kept.values()) if kept.prefixes is text.prefixes]
        lines = KeptLines(prefixes, *before[:1])
        family._kept = {
            name: (head, lines)
            for name, (head, kept) in list(self._kept.items())
            if name in family._lines and kept.prefixes is text.prefixes
        }
        family._last = None, ()
        family._rows = {}
        return family

    def row(self, key: int) -> int | None:
        """Return which sample shows a key, by the key's number; ``None`` if there is none."""
        if not self._rows:
            rows: dict[int, int] = {}
            at = row = 0
            for count, is_buckets in self._steps or [(len(self._keys), False)]:
                for number in self._keys[at : at + count]:
                    rows[number] = row
                    row += 1
                at += count
                row += is_buckets  # the count of all observations, which has no key
            self._rows = rows
        return self._rows.get(key)

    def lines(self, format_: Format) -> Lines:
        """Return the family's lines in a format, without the values.

        Raises:
            ValueError: prometheus_client does not render the family one line a sample.
        """
        lines = self._lines.get(format_.name)
        if lines is None:
            lines = self._lines[format_.name] = lines_of(self, format_, self._lines[TEXT.name])
        return lines

    def rendered(
        self, format_: Format, values: Sequence[float], exemplars: Examples | None = None
    ) -> list[Block]:
        """Return the family's text in a format.

        Args:
            format_: The format.
            values: What :meth:`values` has returned.
            exemplars: The exemplars of its samples, for a format that has them.

        Raises:
            ValueError: prometheus_client does not render the family one line a sample.
        """
        kept = self._kept.get(format_.name)
        if kept is None:
            lines = self.lines(format_)
            known = [each for _, each in list(self._kept.values())]
            same = [each for each in known if each.prefixes is lines.prefixes]
            head = Block(f"{lines.head[1:]}\n".encode())
            kept = self._kept[format_.name] = head, (*same, KeptLines(lines.prefixes))[0]
        head, kept_lines = kept
        notes = None if exemplars is None else exemplars.notes(format_)
        return [head, *kept_lines.rendered(values, notes)]

    def values(self, totals: Sequence[float]) -> Sequence[float]:
        """Return the value of every sample, in the order of :attr:`samples`.

        Args:
            totals: The sum of every key; for the same object the result is the same.
        """
        known, values = self._last
        if known is not totals:
            values = self._values(totals)
            self._last = totals, values
        return values

    def _values(self, totals: Sequence[float]) -> Sequence[float]:
        picked = self._pick(totals)
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

    def metric(self, values: Iterable[float] = (), exemplars: Examples | None = None) -> Metric:
        """Return a fresh family with these values and exemplars, or with no samples."""
        metric = Metric(self.name, self.help, self.type)
        metric.samples = [
            Sample(name, dict(labels), value)
            for (name, labels), value in zip(self.samples, values, strict=False)
        ]
        for row, exemplar in () if exemplars is None else exemplars.of_rows.items():
            metric.samples[row] = metric.samples[row]._replace(exemplar=their_exemplar(exemplar))
        return metric

    def _lay_out(self) -> list[int]:
        """Lay out the samples as prometheus_client does; return the key of each picked value.

        Raises:
            ValueError: A sample has several keys, because their help texts differ, or the spelling
                of a bucket.
        """
        plain: dict[Labels, dict[str, int]] = {}
        buckets: dict[Labels, dict[float, int]] = {}
        for key, series in self.members:
            labels = series.labels
            bound = dict(labels).get("le") if self.prefix == "histogram" else None
            if bound is not None:
                labels = _without("le", labels)
                buckets.setdefault(labels, {})[float(bound)] = key
            elif self.prefix in _WITHOUT_PID:
                labels = _without("pid", labels)
            by_name = plain.setdefault(labels, {})
            if bound is None:
                by_name[series.name] = key
        self._children = {*plain, *buckets}
        laid_out = sum(map(len, plain.values())) + sum(map(len, buckets.values()))
        if laid_out < len(self.members):
            raise ValueError(f"a sample of {self.name} has several keys")
        keys: list[int] = []
        bounds: dict[float, str] = {}
        for labels, by_name in plain.items():
            by_bound = buckets.get(labels, {})
            if by_bound:
                by_name.pop(f"{self.name}_count", None)
            self.samples += [(name, labels) for name in by_name]
            keys += by_name.values()
            if buckets:
                self._steps.append((len(by_name), False))
            for value, key in sorted(by_bound.items()):
                if value not in bounds or not value:  # 0.0 and -0.0 are one key
                    bounds[value] = go_float(value)
                with_bound = tuple(sorted((*labels, ("le", bounds[value]))))
                self.samples.append((f"{self.name}_bucket", with_bound))
                keys.append(key)
            if by_bound:
                self._steps.append((len(by_bound), True))
                self.samples.append((f"{self.name}_count", labels))
        return keys


def make_family(
    prefix: str, members: list[tuple[int, Series]], before: Family | None
) -> Family | None:
    """Return the family of these keys, or ``None`` if it must be merged sample by sample.

    Args:
        prefix: The prefix of the files with these keys.
        members: The keys, each with its number.
        before: The previous family with this name; it is reused if nothing has changed.
    """
    if before is not None and (before.prefix, before.members) == (prefix, members):
        return before
    try:
        return Family(prefix, members) if prefix in ADDING else None
    except ValueError:
        return None


class Keys(Protocol):
    """The keys of a file; files that have the same may share the object, which is then compared."""

    @property
    def keys(self) -> Sequence[bytes]:
        """The keys; never changed."""

    def goes_on(self, before: object) -> bool:
        """Return whether these are the keys from before, and more behind them."""


class Values(Protocol):
    """The values of one file."""

    @property
    def layout(self) -> Keys:
        """The keys."""

    @property
    def numbers(self) -> bytes:
        """The value of each key, as doubles; the same object as long as they are the same."""

    @property
    def stamped(self) -> bytes:
        """Value, timestamp, value, ... if the timestamps mean something; the same object, too."""

    def pairs(self) -> Iterable[float]:
        """Return value, timestamp, value, ..."""


def extended(family: Family, members: list[tuple[int, Series]]) -> Family | None:
    """Return a family with more keys, or ``None`` if all must be laid out again.

    Args:
        family: The family so far.
        members: The keys that are new, each with its number.
    """
    try:
        return family.extended(Family(family.prefix, members))
    except ValueError:
        return make_family(family.prefix, family.members + members, None)


class Unmerged(NamedTuple):
    """A metric whose samples must be merged one by one."""

    name: str
    kind: str
    """The type, according to the first file."""

    help: str
    modes: list[str]
    """For a gauge, the multiprocess modes of its files; the last one counts."""

    samples: list[tuple[str, Labels, Labels, float, float]]
    """Name, labels, labels of the holder if it is a gauge, value and timestamp of each."""


def add_unmerged(
    metrics: dict[str, Unmerged],
    prefix: str,
    holder: Labels,
    file: Values,
    series: Iterable[tuple[int, Series]],
) -> None:
    """Add the samples of a file to the metrics to be merged.

    Args:
        metrics: The metrics so far, by name.
        prefix: The prefix of the file.
        holder: The labels of its holder, for gauges that show them.
        file: The values of the file.
        series: The keys to add, each with its number.
    """
    kind, _, mode = prefix.partition("_")
    numbers = list(file.pairs())
    for at, (name, sample, labels, help_text) in series:
        metric = metrics.setdefault(name, Unmerged(name, kind, help_text, [], []))
        if kind == "gauge":
            metric.modes.append(mode)
        # Like prometheus_client, use timestamps of gauges only.
        timestamp = numbers[2 * at + 1] if kind == "gauge" else 0.0
        shown = holder if kind == "gauge" else ()
        metric.samples.append((sample, labels, shown, numbers[2 * at], timestamp))


def merge(metric: Unmerged, *, buckets_add_up: bool = True) -> Metric:
    """Merge the samples of a metric as prometheus_client does.

    Args:
        metric: The metric.
        buckets_add_up: Make each histogram bucket include the smaller ones, as in the exposition.
    """
    mode = metric.modes[-1].removeprefix("live") if metric.kind == "gauge" else ""
    combine = _COMBINE.get(mode, sum_row)
    merged: dict[Labels, dict[tuple[str, Labels], list[float]]] = {}
    newest: dict[tuple[str, Labels], float] = {}
    buckets: dict[Labels, dict[float, list[float]]] = {}
    for name, labels, holder, value, timestamp in metric.samples:
        labels = _without("pid", labels) if mode and mode != "all" else _beside(labels, holder)  # noqa: PLW2901
        bound = dict(labels).get("le") if metric.kind == "histogram" else None
        if bound is not None:
            found = buckets.setdefault(_without("le", labels), {})
            found.setdefault(float(bound), []).append(value)
        elif mode != "mostrecent" or timestamp > newest.get((name, labels), 0.0):
            newest[name, labels] = timestamp
            merged.setdefault(labels, {}).setdefault((name, labels), []).append(value)
    for labels, by_bound in buckets.items():
        same = merged.setdefault(labels, {})
        total = 0.0
        for limit, values in sorted(by_bound.items()):
            value = sum_row(values)
            total += value
            with_bound = (*labels, ("le", go_float(limit)))
            same[f"{metric.name}_bucket", with_bound] = [total if buckets_add_up else value]
        if buckets_add_up:
            same[f"{metric.name}_count", labels] = [total]
    # A label may occur twice, such as a gauge's own label pid; one of them is exposed.
    samples = {
        (name, tuple(sorted(dict(labels).items()))): Sample(name, dict(labels), combine(values))
        for same in merged.values()
        for (name, labels), values in same.items()
    }
    family = Metric(metric.name, metric.help, metric.kind)
    family.samples = list(samples.values())
    return family


def fold(prefix: str, files: Iterable[Values]) -> MetricFileReader:
    """Return one file with what several files of a prefix give together."""
    found: dict[bytes, list[tuple[float, float]]] = {}
    for file in files:
        pairs = iter(file.pairs())
        for key, value, timestamp in zip(file.layout.keys, pairs, pairs, strict=True):
            found.setdefault(key, []).append((value, timestamp))
    if prefix.endswith("mostrecent"):
        return MetricFileReader.of(
            {key: max(pairs, key=itemgetter(1)) for key, pairs in found.items()}
        )
    combine = _COMBINE.get(prefix.removeprefix("gauge_"), sum_row)
    columns = {key: [value for value, _timestamp in pairs] for key, pairs in found.items()}
    return MetricFileReader.of({key: (combine(column), 0.0) for key, column in columns.items()})


def _last(values: list[float]) -> float:
    return values[-1]


_COMBINE: dict[str, Callable[[list[float]], float]] = {
    "min": min,
    "max": max,
    "all": _last,
    "mostrecent": _last,
}
"""How the values of several files are combined, by mode; the other modes are summed."""


def _beside(labels: Labels, holder: Labels) -> Labels:
    """Return labels with those of a holder.

    A label of its own ``host`` is renamed, as Prometheus does it with those that are in its way.
    ``pid`` is not, for prometheus_client does not.
    """
    if any(name == "host" for name, _value in holder):
        labels = tuple(
            ("exported_host" if name == "host" else name, value) for name, value in labels
        )
    return (*labels, *holder)


def _without(name: str, labels: Labels) -> Labels:
    return tuple(pair for pair in labels if pair[0] != name)


_decode = json.JSONDecoder().raw_decode


_BOUND = re.compile(rb'(?<!\\)"le": "([-+.0-9a-zA-Z]+)"')
"""The bound in the key of a bucket. In a string of JSON its quotes would be escaped."""


class Parser:
    """Parses the keys of files as they are stored, for one plan.

    The buckets of a child of a histogram differ by their bound only, so that only one of them is
    parsed as JSON.
    """

    def __init__(self) -> None:
        """Know no child yet."""
        self._children: dict[bytes, Series | None] = {}

    def parse(self, key: bytes, prefix: str) -> Series | None:
        """Parse a key; return ``None`` if it is not a metric's key."""
        if prefix != "histogram":
            return parse_key(key, prefix)
        bounds = _BOUND.findall(key)
        if len(bounds) != 1:
            return parse_key(key, prefix)
        # With a bound that every bucket could have, and its length in front of it.
        child = _BOUND.sub(b'"le": "0"', key_text(key))
        if child not in self._children:
            size = len(child).to_bytes(4, sys.byteorder)
            self._children[child] = parse_key(size + child, prefix)
        series = self._children[child]
        if series is None:
            return parse_key(key, prefix)
        bound = bounds[0].decode()
        try:
            if math.isnan(float(bound)):
                return None
        except ValueError:
            return None
        labels = tuple([(name, bound if name == "le" else value) for name, value in series.labels])
        return series._replace(labels=labels)


def parse_key(key: bytes, prefix: str) -> Series | None:
    """Parse a key as it is stored in a file; return ``None`` if it is not a metric's key."""
    try:
        text = key_text(key).decode().strip(" \t\n\r")
        (metric, name, labels, help_text), end = _decode(text)
        if end < len(text):
            return None
        if prefix == "histogram" and "le" in labels and math.isnan(float(labels["le"])):
            return None
        # Raises if a part is not text, or has a lone surrogate, which cannot be exposed.
        "".join(labels.values()).encode()
        if not (_may_be_exposed(metric, name, help_text) and _may_be_labels(tuple(labels))):
            return None
        pairs = tuple(sorted(labels.items()))
    except (ValueError, TypeError, AttributeError, RecursionError):
        return None
    return Series(metric, name, pairs, help_text)


# No metric can have these names, and they would break the whole exposition: prometheus_client
# accepts a name that ends in a line break.


@lru_cache(maxsize=4096)
def _may_be_exposed(metric: str, name: str, help_text: str) -> bool:
    """Return whether samples may be called so; raises if a part is not text."""
    "".join((metric, name, help_text)).encode()
    if not name or metric.endswith("\n") or name.endswith("\n"):
        return False
    return _prometheus.is_metric_name(metric)


@lru_cache(maxsize=4096)
def _may_be_labels(names: tuple[str, ...]) -> bool:
    """Return whether labels may be called so; raises if a name is not text."""
    "".join(names).encode()
    return not any(not name or name.startswith("__") or name.endswith("\n") for name in names)


def may_be_exposed(name: str, help_text: str, labels: Iterable[tuple[str, ...]]) -> bool:
    """Return whether a metric that no metric file holds may be exposed.

    Args:
        name: Its name.
        help_text: Its help.
        labels: The names of the labels of each of its samples.
    """
    try:
        if not _may_be_exposed(name, name, help_text):
            return False
        if not all(map(_may_be_labels, labels)):
            return False
    except (TypeError, ValueError):
        return False
    return _prometheus.escapes_names() or all(map(are_plain_labels, labels))


_SUFFIXES = {
    "counter": ("_total", "_created"),
    "summary": ("_sum", "_count", "_created"),
    "histogram": ("_bucket", "_sum", "_count", "_created"),
    "gaugehistogram": ("_bucket", "_gsum", "_gcount"),
    "info": ("_info",),
}


def exposed_names(name: str, type_: str) -> set[str]:
    """Return the names that a family occupies in a registry."""
    return {name, *(name + suffix for suffix in _SUFFIXES.get(type_, ()))}


def names_of(types: Mapping[str, str]) -> frozenset[str]:
    """Return the names that families occupy together, given their types by their names."""
    return frozenset(each for family in types.items() for each in exposed_names(*family))


def getter(numbers: list[int]) -> Callable[[Sequence[float]], tuple[float, ...]]:
    """Return a function that picks items; unlike itemgetter it returns a tuple for one item too."""
    if len(numbers) == 1:
        only = numbers[0]
        return lambda values: (values[only],)
    return itemgetter(*numbers)


def sum_row(row: Iterable[float]) -> float:
    """Return an exact sum, or a plain sum if there are infinities or it is too large.

    Like prometheus_client, it turns -0.0 into 0.0.
    """
    try:
        return math.fsum(row) + 0.0
    except (ValueError, OverflowError):
        return sum(row)
