"""The registry of the metrics that all processes share, and the functions that use it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from itertools import chain
from typing import TYPE_CHECKING, Any, NamedTuple

import prometheus_client
from prometheus_client.core import CollectorRegistry, Metric

from obskit_gunicorn import _prometheus
from obskit_gunicorn._log import log
from obskit_gunicorn._scrape.blocks import Block
from obskit_gunicorn._scrape.families import exposed_names, names_of
from obskit_gunicorn._scrape.formats import TEXT, Families, Format, Names
from obskit_gunicorn._scrape.own_metrics import Scrape
from obskit_gunicorn._scrape.source import Reading, restricted
from obskit_gunicorn._store.membership import DIRECTORY_VARIABLE, membership
from obskit_gunicorn._values import values

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from prometheus_client.registry import Collector


class Found(NamedTuple):
    """What a reader has made of a scrape."""

    families: Iterable[Metric]
    """To be exposed like what other collectors have: who is left out is logged."""

    standard: Iterable[Metric] = ()
    """To be exposed last, where nobody else has a metric of the name; nothing is logged."""


Reader = Callable[[Scrape], Found]


class SharedRegistry(CollectorRegistry):
    """A registry of the metrics that all processes share, and of metrics about sharing.

    It looks for the directory at each scrape, so the registry may exist before the directory does.
    More collectors may be registered. Created by :func:`setup_multiprocess_registry`.
    """

    def __init__(self, path: str | None = None) -> None:
        """Create the registry.

        Args:
            path: The multiprocess directory; by default the one that this process uses at the time
                of the scrape.
        """
        super().__init__()
        self._path = path
        self._others: list[Collector] = []
        self._readers: list[Reader] = []
        self._reported: set[str] = set()
        super().register(Families(self._families))

    def register(self, collector: Collector) -> None:
        """Expose another collector too; it runs in the process that serves the scrape."""
        self._others.append(collector)

    def register_reader(self, reader: Reader) -> None:
        """Expose what a function makes of each scrape of a directory too."""
        self._readers.append(reader)

    def unregister(self, collector: Collector) -> None:
        """Remove a collector."""
        self._others.remove(collector)

    def restricted_registry(self, names: Iterable[str]) -> Any:
        """Return a registry with only the samples of these names, for ``name[]``.

        Looks at every family: before 0.25, prometheus_client leaves out collectors that, like ours,
        do not know their names in advance.
        """
        wanted = frozenset(names)
        return Families(lambda: restricted(self.collect(), wanted))

    def scrape(self) -> Reading:
        """Read what all processes share.

        Raises:
            UnavailableError: It cannot be read now. Never of a directory, only of a fleet.
        """
        return Scrape(self._path or _current_path())

    def _families(self) -> Iterator[Metric]:
        scrape = self.scrape()
        yield from scrape.snapshot.metrics()
        yield from self.beside(scrape)

    def beside(self, scrape: Reading) -> Iterator[Metric]:
        """Yield gauges about a scrape, then other families unless their name is taken.

        Prometheus rejects a whole exposition in which a name occurs twice.
        """
        read = [reader(scrape) for reader in self._readers] if isinstance(scrape, Scrape) else []
        types = scrape.snapshot.types()
        stated = {family.name: family.type for family in scrape.snapshot.stated}
        for gauge in scrape.gauges():
            types[gauge.name] = gauge.type
            yield gauge
        taken = set(names_of(types))
        others = chain(
            scrape.others(),
            *(found.families for found in read),
            (family for collector in self._others for family in collector.collect()),
        )
        # An Info or Enum may be a collector too; workers that import its module say the same.
        unsaid = (each for each in others if stated.get(each.name) != each.type)
        yield from exposed_once(unsaid, taken, self._reported)
        for family in chain.from_iterable(found.standard for found in read):
            if taken.isdisjoint(exposed_names(family.name, family.type)):
                yield family


class Exposition:
    """What a registry exposes, to be rendered in any number of forms, by one thread at a time.

    Of a shared registry that is one scrape; any other one collects for each form.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        """Read what all processes share.

        Raises:
            UnavailableError: It cannot be read now. Never of a directory, only of a fleet.
        """
        self._registry = registry
        self._scrape = registry.scrape() if isinstance(registry, SharedRegistry) else None
        self._rest: list[Metric] | None = None

    def rendered(self, format_: Format, names: Names | None = None) -> bytes:
        """Return the exposition in a format.

        Args:
            format_: The format.
            names: The samples to show, as by ``name[]``; by default all.

        Raises:
            Exception: Whatever a collector or the format's encoder raises.
        """
        blocks, rest = self.blocks(format_, names)
        return b"".join([*(block.text for block in blocks), rest])

    def blocks(self, format_: Format, names: Names | None = None) -> tuple[Sequence[Block], bytes]:
        """Return the same: blocks that may be kept, and what follows them."""
        if self._scrape is None or not isinstance(self._registry, SharedRegistry):
            registry = self._registry
            return (), format_.encode(registry.restricted_registry(names) if names else registry)
        snapshot = self._scrape.snapshot
        if names is None:
            blocks = snapshot.blocks(format_)
        else:
            blocks = [Block(snapshot.rendered(format_, names))]
        # Only now: a gauge says how long it has taken.
        if self._rest is None:
            self._rest = list(self._registry.beside(self._scrape))
        rest = restricted(self._rest, names)
        return blocks, format_.encode(Families(lambda: rest))


def setup_multiprocess_registry(path: str | None = None) -> SharedRegistry:
    """Return a new registry of the metrics that all processes share, and of metrics about sharing.

    Args:
        path: The multiprocess directory; by default the one that this process uses at the time of
            the scrape.
    """
    return SharedRegistry(path)


def is_multiprocess_mode() -> bool:
    """Return whether this process shares its metrics with others, or is configured to."""
    if values.is_installed():
        return True
    return bool(os.environ.get(DIRECTORY_VARIABLE)) and not _prometheus.problem()


def generate_latest(registry: CollectorRegistry | None = None) -> bytes:
    """Return the exposition of all processes in the text format 0.0.4.

    Args:
        registry: The registry to expose instead.
    """
    registry = registry or current_registry()
    if isinstance(registry, SharedRegistry):
        return Exposition(registry).rendered(TEXT)
    return prometheus_client.generate_latest(registry)


def exposed_once(
    metrics: Iterable[Metric], taken: set[str], reported: set[str]
) -> Iterator[Metric]:
    """Yield families unless their name is taken.

    Args:
        metrics: The families.
        taken: The names that are taken; those of the families are added.
        reported: The families that were left out and logged before; more are added.
    """
    for family in metrics:
        names = exposed_names(family.name, family.type)
        if taken.isdisjoint(names):
            taken |= names
            yield family
        elif family.name not in reported:
            reported.add(family.name)
            log.error(
                "obskit: %s is exposed once; another collector has a metric with the same name, "
                "which is left out",
                family.name,
            )


def current_registry() -> CollectorRegistry:
    """Return the registry to serve by default: the shared one, or prometheus_client's own."""
    if is_multiprocess_mode():
        return setup_multiprocess_registry()
    return prometheus_client.REGISTRY


def _current_path() -> str | None:
    directory = membership.directory
    if directory is not None:
        return directory.path
    return os.environ.get(DIRECTORY_VARIABLE)
