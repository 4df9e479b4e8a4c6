"""Where metrics come from, and the result of one collection."""

from __future__ import annotations

import copy
from collections import Counter
from itertools import chain
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from prometheus_client.core import Metric

from obskit_gunicorn._scrape.blocks import Block
from obskit_gunicorn._scrape.formats import TEXT, Format, Labels, Names, written
from obskit_gunicorn._scrape.states import NOTHING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from obskit_gunicorn._scrape.families import Examples, Family
    from obskit_gunicorn._scrape.states import Stated


class Part(NamedTuple):
    """A piece of what was read, before it becomes families: for who adds it up with other hosts'.

    The kinds whose values are summed have one part each, all others one for each file.
    """

    prefix: str
    """The kind, as in the names of metric files."""

    holder: str
    """Who has written the file; empty for a sum."""

    keys: Sequence[bytes]
    """The keys, as they stand in metric files; never changed, only replaced."""

    numbers: Sequence[float]
    """A sum for each key; of a file, value and timestamp of each."""


class Snapshot:
    """The result of one collection; immutable, so any number of threads may use it.

    Attributes:
        parts: What was added up, if the collector was asked to keep it.
        records: The records of all leases, by slot, if the collector has read them for it.
    """

    records: Mapping[str, dict[str, Any] | None] | None = None

    def __init__(
        self,
        families: list[Family],
        totals: dict[str, Sequence[float]],
        others: list[Metric],
        parts: Sequence[Part] = (),
        exemplars: Mapping[str, Examples] = MappingProxyType({}),
    ) -> None:
        self.parts = parts
        self._exemplars = exemplars
        self._families = families
        self._values = [family.values(totals[family.prefix]) for family in families]
        self._others = others
        self._stated = NOTHING

    def beside(self, stated: Stated) -> Snapshot:
        """Return the same with what Infos and Enums say."""
        if not stated.metrics:
            return self
        snapshot = copy.copy(self)
        snapshot._stated = stated
        return snapshot

    @property
    def stated(self) -> list[Metric]:
        """The families of what Infos and Enums say."""
        return self._stated.metrics

    def metrics(self) -> Iterator[Metric]:
        """Return fresh metric families."""
        for family, values in zip(self._families, self._values, strict=True):
            yield family.metric(values, self._exemplars.get(family.name))
        for other in (*self._others, *self.stated):
            metric = Metric(other.name, other.documentation, other.type)
            metric.samples = [
                sample._replace(labels=dict(sample.labels)) for sample in other.samples
            ]
            yield metric

    def types(self) -> dict[str, str]:
        """Return the type of each family, by name."""
        types = {family.name: family.type for family in self._families}
        others = (*self._others, *self.stated)
        return types | {metric.name: metric.type for metric in others}

    def series_count(self) -> int:
        """Return how many samples there are."""
        others = sum(len(metric.samples) for metric in (*self._others, *self.stated))
        return sum(map(len, self._values)) + others

    def samples(self, name: str) -> list[tuple[str, Labels, float]]:
        """Return name, labels and value of each sample of a family; none if there is no such one.

        A counter's family has no ``_total`` in its name.
        """
        found = [
            (sample, labels, value)
            for family, values in zip(self._families, self._values, strict=True)
            if family.name == name
            for (sample, labels), value in zip(family.samples, values, strict=True)
        ]
        return found + [
            (sample.name, tuple(sample.labels.items()), sample.value)
            for other in (*self._others, *self.stated)
            if other.name == name
            for sample in other.samples
        ]

    def sizes(self) -> dict[str, int]:
        """Return how many samples each family has, by name."""
        sizes = Counter[str]()
        for family, values in zip(self._families, self._values, strict=True):
            sizes[family.name] += len(values)
        for other in (*self._others, *self.stated):
            sizes[other.name] += len(other.samples)
        return sizes

    def text(self) -> bytes:
        """Return the exposition in the text format 0.0.4."""
        return self.rendered(TEXT)

    def rendered(self, format_: Format, names: Names | None = None) -> bytes:
        """Return the exposition in a format, without the mark of its end.

        Args:
            format_: The format.
            names: The samples to show; by default all.

        Raises:
            Exception: Whatever the format's encoder raises.
        """
        if names is None:
            return b"".join([block.text for block in self.blocks(format_)])
        shown = [
            _restricted(family, values, self._exemplars.get(family.name), format_, names)
            for family, values in zip(self._families, self._values, strict=True)
        ]
        others = restricted((*self._others, *self.stated), names)
        return b"".join([*shown, format_.render(others)])

    def blocks(self, format_: Format) -> list[Block]:
        """Return the same, of all samples, in blocks that are kept from one scrape to the next.

        Raises:
            Exception: Whatever the format's encoder raises.
        """
        blocks: list[Block] = []
        for family, values in zip(self._families, self._values, strict=True):
            exemplars = self._exemplars.get(family.name)
            try:
                blocks += family.rendered(format_, values, exemplars)
            except ValueError:
                blocks.append(Block(format_.render([family.metric(values, exemplars)])))
        if self._others:
            blocks.append(Block(format_.render(self._others)))
        if self.stated:
            blocks.append(self._stated.block(format_))
        return blocks


def _restricted(
    family: Family,
    values: Sequence[float],
    exemplars: Examples | None,
    format_: Format,
    names: Names,
) -> bytes:
    """Return the text of the samples of a family that have these names."""
    try:
        head, prefixes, _ = family.lines(format_)
    except ValueError:
        return format_.render(restricted([family.metric(values, exemplars)], names))
    shown = [at for at, (name, _labels) in enumerate(family.samples) if name in names]
    if not shown:
        return b""
    texts = written([values[at] for at in shown])
    notes = {} if exemplars is None else dict(exemplars.texts(format_))
    texts = [text + notes.get(at, "") for at, text in zip(shown, texts, strict=True)]
    lines = chain.from_iterable(zip([prefixes[at] for at in shown], texts, strict=True))
    return f"{head[1:]}{''.join(lines)}\n".encode()


def restricted(metrics: Iterable[Metric], names: Names | None) -> Iterator[Metric]:
    """Return families with only the samples of these names; ``None`` for all."""
    if names is None:
        yield from metrics
        return
    for metric in metrics:
        samples = [sample for sample in metric.samples if sample.name in names]
        if samples:
            kept = Metric(metric.name, metric.documentation, metric.type, metric.unit)
            kept.samples = samples
            yield kept


class Source(Protocol):
    """Where the metrics of a scrape come from, such as a directory."""

    def collect(self) -> Snapshot:
        """Collect the metrics; may be called from any thread.

        Raises:
            OSError: The source cannot be read.
        """


class Reading(Protocol):
    """What one scrape has read."""

    @property
    def snapshot(self) -> Snapshot:
        """The metrics."""

    def gauges(self) -> Iterator[Metric]:
        """Yield gauges about the reading."""

    def others(self) -> Iterator[Metric]:
        """Yield more families, which are left out where their name is taken."""
