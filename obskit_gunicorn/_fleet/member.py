"""This host as a member of a fleet: what it publishes, and what it shows of all of them.

Lives in the exporter, or in ``obskit-gunicorn serve`` with a store and no directory, which shows
the fleet and publishes nothing.
"""

from __future__ import annotations

import os
import shutil
import threading
import time
from hashlib import blake2b
from itertools import chain
from typing import TYPE_CHECKING, Any, NamedTuple

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from obskit_gunicorn._fleet.publisher import Publisher, Reading
from obskit_gunicorn._fleet.reporter import Reporter
from obskit_gunicorn._fleet.source import FleetReading, FleetSource
from obskit_gunicorn._log import log
from obskit_gunicorn._scrape.bodies import UnavailableError
from obskit_gunicorn._scrape.collector import DirectoryCollector
from obskit_gunicorn._scrape.own_metrics import Scrape
from obskit_gunicorn._scrape.registry import SharedRegistry
from obskit_gunicorn._store import note, remains
from obskit_gunicorn._store.directory import SlotDirectory

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from prometheus_client.core import Metric

    from obskit_gunicorn._fleet.store import Store

_CONFLICTS = "obskit_gunicorn_fleet_conflicts"
_PREFIX = "obskit_gunicorn_fleet_"
_LOOK_SECONDS = 3600.0
"""How long this process does not look at the fleet, if nobody asks for it; then it folds hosts."""

_MOST_READINGS = 5


class Member:
    """This host's part of a fleet. Thread-safe.

    Attributes:
        registry: What all hosts have counted.
        reporter: What publishes every interval; ``None`` if this process has nothing to publish.
        figures: What this host's own page says about its publications; ``None`` as above.
    """

    def __init__(
        self,
        store: Store,
        *,
        host: str,
        interval: float,
        returns: bool = False,
        own: SharedRegistry | None = None,
        directory: Callable[[], str] | None = None,
    ) -> None:
        """Name the fleet; nothing is opened.

        Args:
            store: Where the fleet comes together.
            host: This host's name.
            interval: How often it publishes, in seconds.
            returns: Whether its directory goes on after its end.
            own: What this host exposes; ``None`` if it only shows the fleet.
            directory: Returns the multiprocess directory of this host, which may move.
        """
        self._store, self._host, self._interval = store, host, interval
        self._source = FleetSource(store)
        self._publisher: Publisher | None = None
        self._left: dict[str, Publisher] = {}
        self._remains_lock = threading.Lock()
        self._reported: set[str] = set()
        self._looked = time.monotonic()
        self._has_read, self._read_lock = True, threading.Lock()
        self.reporter: Reporter | None = None
        self.figures: Collector | None = None
        if own is not None and directory is not None:
            self._directory = directory
            self._publisher = Publisher(
                store,
                _Host(own, directory, host).read,
                host=host,
                interval=interval,
                returns=returns,
            )
            self.reporter = Reporter(
                self._send,
                interval,
                what="publishing",
                where=store.where,
                effect="the page of the fleet answers 503; this host's own page and its requests "
                "are not affected",
            )
            self.figures = _Figures(self._publisher, self.reporter)
            own.register(self.figures)
        self.registry = _FleetRegistry(self._read)

    def _read(self) -> FleetReading:
        """Publish, and read what all have published: who scrapes any host sees no count fall.

        Raises:
            UnavailableError: The store cannot be used.
        """
        if self._publisher is not None:
            self._publisher.publish()
            self._publish_remains()
        self._looked = time.monotonic()
        try:
            reading = self._source.read()
        except UnavailableError as error:
            self._note(str(error))
            raise
        self._note("")
        return reading

    def _note(self, error: str) -> None:
        """Log when the store can be read no more, or again; one that publishes says more itself."""
        with self._read_lock:
            had, self._has_read = self._has_read, not error
        if error and had:
            log.warning(
                "reading failed: %s. Until it works the page of the fleet answers 503", error
            )
        elif not error and not had:
            log.warning("reading from %s works again", self._store.where)

    def _send(self, ended: bool, is_last: bool) -> None:
        assert self._publisher is not None
        self._publisher.publish(ended=ended)
        self._publish_remains()
        if not is_last and time.monotonic() - self._looked > _LOOK_SECONDS:
            self._looked = time.monotonic()
            self._source.read()

    def _publish_remains(self) -> None:
        """Publish what a killed server has left unpublished, and remove it.

        Raises:
            UnavailableError: The store cannot be used.
        """
        with self._remains_lock:
            found = remains.find(self._directory())
            self._left = {path: self._left[path] for path in found if path in self._left}
            for path in found:
                try:
                    with remains.claimed(path) as is_ours:
                        if is_ours:
                            self._publish_last(path)
                except OSError as error:
                    if path not in self._reported:
                        self._reported.add(path)
                        log.warning("%s cannot be published and removed: %s", path, error)

    def _publish_last(self, path: str) -> None:
        """Publish what a killed server has left in a directory, and remove that."""
        publisher = self._left.get(path)
        if publisher is None:
            publisher = self._left[path] = Publisher(
                self._store,
                lambda: _read_remains(path),
                host=self._host,
                interval=self._interval,
                returns=False,
            )
        if publisher.published is None:
            publisher.publish(ended=True)
            log.info("what a killed server had counted last in %s is published", path)
        shutil.rmtree(path)


class _FleetRegistry(SharedRegistry):
    """A registry of what all hosts of a fleet have counted."""

    def __init__(self, read: Callable[[], FleetReading]) -> None:
        super().__init__()
        self._read = read

    def scrape(self) -> FleetReading:
        """Read the store.

        Raises:
            UnavailableError: The store cannot be used.
        """
        return self._read()


class _Figures(Collector):
    """What this host's own page says about its publications; never touches the store."""

    def __init__(self, publisher: Publisher, reporter: Reporter) -> None:
        self._publisher, self._reporter = publisher, reporter

    def collect(self) -> Iterator[Metric]:
        """Yield the families."""
        if self._reporter.is_up is not None:
            yield GaugeMetricFamily(
                f"{_PREFIX}store_up",
                "Whether the store could be used.",
                value=self._reporter.is_up,
            )
        if self._publisher.published is not None:
            yield GaugeMetricFamily(
                f"{_PREFIX}published_age_seconds",
                "How long ago this host has published.",
                value=time.monotonic() - self._publisher.published,
            )
        yield CounterMetricFamily(
            _CONFLICTS,
            "How often the store did not know what this host believed: others have published the "
            "same directory, or the store has lost something.",
            value=self._publisher.conflicts,
        )


class _Host:
    """Reads what a host has counted, and what is to be said about it. Thread-safe."""

    def __init__(self, own: SharedRegistry, directory: Callable[[], str], host: str) -> None:
        self._own, self._directory, self._host = own, directory, host
        self._has_id = False

    def read(self) -> Reading:
        """Read both.

        Raises:
            UnavailableError: The directory cannot be read, was cleared, or begins anew all the
                time.
        """
        for _ in range(_MOST_READINGS):
            before = self._generation()
            scrape = self._own.scrape()  # also finds out whether the arbiter has lost it
            if not isinstance(scrape, Scrape) or scrape.collector is None or before is None:
                raise UnavailableError(f"{self._directory()} cannot be read")
            if before != self._generation():
                continue
            if self._has_id and not before.is_id:
                # Under another name its counts would count a second time.
                raise UnavailableError(
                    f"{self._directory()} was cleared; the arbiter makes it again"
                )
            self._has_id = before.is_id
            figures = (
                family
                for family in chain(scrape.snapshot.stated, self._own.beside(scrape))
                if not family.name.startswith(_PREFIX) or family.name == _CONFLICTS
            )
            return Reading(scrape.collector.path, before.name, scrape.snapshot.parts, figures)
        raise UnavailableError(f"{self._directory()} begins a generation again and again")

    def _generation(self) -> Generation | None:
        try:
            return generation_of(self._directory(), self._host)
        except OSError:
            return None


def _read_remains(path: str) -> Reading:
    """Read what a killed server has left.

    Raises:
        OSError: It cannot be read.
    """
    collector = DirectoryCollector(path)
    collector.keep_parts()
    found = note.read(path)
    if found is None:
        raise OSError(f"{path} has no readable note of its generation")
    return Reading(path, found.generation, collector.collect().parts, ())


class Generation(NamedTuple):
    """What tells the counts of a directory's generation from all others."""

    name: str
    is_id: bool
    """Whether it is the one that its arbiter has given it; otherwise it is told by the time or the
    place."""


def generation_of(directory: str, host: str) -> Generation:
    """Return which generation a directory has.

    Raises:
        OSError: There is no such directory.
    """
    generation: dict[str, Any] = SlotDirectory(directory).generation()
    if "id" in generation:
        return Generation(str(generation["id"]), is_id=True)
    # Of an older release, or no arbiter has been here, or it was cleared.
    status = os.stat(directory)
    known = generation.get("started") or f"{directory} {status.st_dev} {status.st_ino}"
    name = blake2b(f"{host} {known}".encode(), digest_size=8).hexdigest()
    return Generation(name, is_id=False)
