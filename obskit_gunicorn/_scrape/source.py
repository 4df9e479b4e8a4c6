"""A source of numbers, and what one collection of it gives."""

from __future__ import annotations

from itertools import chain
from typing import TYPE_CHECKING, Protocol

from prometheus_client.core import Metric

from obskit_gunicorn._scrape.formats import TEXT, Format, written

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from obskit_gunicorn._scrape.families import Family


class Snapshot:
    """One collection; immutable, so that any number of threads may use it."""

    def __init__(
        self,
        families: list[Family],
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
        values = written(list(chain.from_iterable(self._values)))
        text = "".join(chain.from_iterable(zip(prefixes, values, strict=True)))
        return f"{text[1:]}\n".encode() if text else b""


class Source(Protocol):
    """Where the numbers of a scrape come from: a directory, for one."""

    def collect(self) -> Snapshot:
        """Return what there is now; may be called from any thread.

        Raises:
            OSError: It cannot be had.
        """
