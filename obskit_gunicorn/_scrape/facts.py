"""Metrics about metrics, read at each scrape: one row each in :data:`FACTS`.

They say how sharing goes (slots, files, what could not be read) and what arbiters and workers have
written down beside their leases. They are there even if reading the directory fails.
"""

from __future__ import annotations

import contextlib
import os
import time
from typing import TYPE_CHECKING, Any, NamedTuple

from prometheus_client.core import GaugeMetricFamily, Metric

from obskit_gunicorn._scrape.collector import DirectoryCollector, directory_collector
from obskit_gunicorn._store.format import DAMAGE_REASONS
from obskit_gunicorn._store.membership import membership
from obskit_gunicorn._store.slots import SlotDirectory, is_ready_worker
from obskit_gunicorn._values import values
from obskit_gunicorn._version import __version__

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from obskit_gunicorn._scrape.source import Snapshot

Reading = float | dict[tuple[str, ...], float] | None
"""What a fact is: a number, numbers by label values, or ``None`` where there is nothing to say."""


class Scrape:
    """One scrape of a directory, and all that is known beside its values.

    Attributes:
        path: The multiprocess directory, ``None`` if there is none.
        snapshot: What was read of it; ``None`` if it cannot be read.
        collector: What has read it; ``None`` if it cannot be read.
        records: What stands beside each lease, by slot; ``None`` for a slot that is free.
        held: The records of the slots that are leased.
        generation: What the directory says of its generation.
        arbiters: The records of those of them that an arbiter of Gunicorn's has written.
    """

    def __init__(self, path: str | None) -> None:
        """Read the directory; never raises."""
        self._started = time.perf_counter()
        self.path = path
        self.snapshot: Snapshot | None = None
        self.collector: DirectoryCollector | None = None
        self.records: dict[str, dict[str, Any] | None] = {}
        self.generation: dict[str, Any] = {}
        if path:
            with contextlib.suppress(OSError):
                collector = directory_collector(path)
                self.snapshot = collector.collect()
                self.collector = collector
                directory = SlotDirectory(path)
                self.generation = directory.generation()
                self.records = directory.records()
        self.held = [record for record in self.records.values() if record is not None]
        self.arbiters = [record for record in self.held if type(record.get("workers")) is int]

    def facts(self) -> Iterator[Metric]:
        """Yield a gauge for each of :data:`FACTS` that there is something to say of."""
        for fact in FACTS:
            reading = fact.read(self)
            if reading is None:
                continue
            family = GaugeMetricFamily(fact.name, fact.help, labels=fact.labels)
            by_labels = reading if isinstance(reading, dict) else {(): reading}
            for labels, value in by_labels.items():
                family.add_metric(labels, value)
            yield family

    def duration_seconds(self) -> float:
        """Return how long the scrape has taken until now."""
        return time.perf_counter() - self._started

    def ready_workers(self) -> int:
        """Return how many workers have booted."""
        return sum(map(is_ready_worker, self.held))


class Fact(NamedTuple):
    """A gauge that is read."""

    name: str
    help: str
    read: Callable[[Scrape], Reading]
    labels: tuple[str, ...] = ()


def _values_not_shared(scrape: Scrape) -> Reading:
    counts = [record.get("values_not_shared") for record in scrape.held]
    here = values.not_shared() if membership.lease is None else 0
    return here + sum(count for count in counts if type(count) is int)


def _generation_start(scrape: Scrape) -> Reading:
    started = scrape.generation.get("started")
    return started if isinstance(started, (int, float)) else 0


def _files_skipped(scrape: Scrape) -> Reading:
    skipped = scrape.collector.skipped if scrape.collector else {}
    return {(reason,): skipped.get(reason, 0) for reason in DAMAGE_REASONS}


def _volume(scrape: Scrape, blocks: str) -> Reading:
    if scrape.collector is None:
        return None
    try:
        volume = os.statvfs(scrape.collector.path)
    except OSError:
        return None
    return float(getattr(volume, blocks) * volume.f_frsize)


def _workers_ready(scrape: Scrape) -> Reading:
    gunicorn_was_here = scrape.arbiters or scrape.generation
    return scrape.ready_workers() if gunicorn_was_here else None


def _workers(scrape: Scrape) -> Reading:
    wanted = [int(record["workers"]) for record in scrape.arbiters]
    return sum(wanted) if wanted else None


def _capacity(scrape: Scrape) -> Reading:
    known = [record.get("capacity") for record in scrape.arbiters]
    if not known or not all(type(capacity) is int for capacity in known):
        return None
    return scrape.ready_workers() * min(map(int, filter(None, known)), default=0)


def _gunicorn_info(scrape: Scrape) -> Reading:
    names = ("gunicorn", "python", "worker_class")
    found = {tuple(str(record.get(n, "")) for n in names): 1.0 for record in scrape.arbiters}
    return found or None


def _info(scrape: Scrape) -> Reading:
    # What is not text cannot be exposed.
    path = (scrape.path or "").encode(errors="replace").decode()
    return {(__version__, path): 1}


FACTS = (
    Fact(
        "obskit_gunicorn_directory_usable",
        "Whether the multiprocess directory can be read.",
        lambda scrape: bool(scrape.collector),
    ),
    Fact(
        "obskit_gunicorn_slots",
        "Slots that the multiprocess directory has.",
        lambda scrape: len(scrape.records),
    ),
    Fact(
        "obskit_gunicorn_slots_leased",
        "Slots that a process holds.",
        lambda scrape: len(scrape.held),
    ),
    Fact(
        "obskit_gunicorn_values_not_shared",
        "Values that live in a process's memory, where no scrape sees them.",
        _values_not_shared,
    ),
    Fact(
        "obskit_gunicorn_files",
        "Metric files in the multiprocess directory.",
        lambda scrape: scrape.collector.file_count if scrape.collector else 0,
    ),
    Fact(
        "obskit_gunicorn_file_bytes",
        "Size of the metric files.",
        lambda scrape: scrape.collector.byte_count if scrape.collector else 0,
    ),
    Fact(
        "obskit_gunicorn_series",
        "Series that all processes share.",
        lambda scrape: scrape.snapshot.series_count() if scrape.snapshot else 0,
    ),
    Fact(
        "obskit_gunicorn_generation_start_time_seconds",
        "When counting began in the multiprocess directory, in Unix time; 0 if unknown.",
        _generation_start,
    ),
    Fact(
        "obskit_gunicorn_scrape_duration_seconds",
        "How long it took to collect and render this scrape.",
        Scrape.duration_seconds,
    ),
    Fact(
        "obskit_gunicorn_files_skipped",
        "Metric files that this scrape could not read, in whole or in part.",
        _files_skipped,
        ("reason",),
    ),
    Fact(
        "obskit_gunicorn_directory_size_bytes",
        "Size of the volume of the multiprocess directory.",
        lambda scrape: _volume(scrape, "f_blocks"),
    ),
    Fact(
        "obskit_gunicorn_directory_available_bytes",
        "Room that is left on the volume.",
        lambda scrape: _volume(scrape, "f_bavail"),
    ),
    Fact("gunicorn_workers_ready", "Workers that have booted and hold a lease.", _workers_ready),
    Fact("gunicorn_workers", "Workers that Gunicorn is asked for.", _workers),
    Fact(
        "gunicorn_capacity",
        "Requests that the ready workers can answer at the same time.",
        _capacity,
    ),
    Fact(
        "gunicorn_info",
        "Versions and worker class of the running servers.",
        _gunicorn_info,
        ("version", "python", "worker_class"),
    ),
    Fact(
        "obskit_gunicorn_info",
        "Which multiprocess directory is read, and by which release.",
        _info,
        ("version", "directory"),
    ),
)
"""Every gauge that is read at a scrape, in the order of the exposition."""
