"""Metrics about metrics, read at each scrape: one function each, marked by :func:`_gauge`.

They describe how sharing works (slots, files, what could not be read) and what arbiters and workers
have recorded in their leases. They are available even if reading the directory fails.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from prometheus_client.core import GaugeMetricFamily, Metric

from obskit_gunicorn._scrape.collector import DirectoryCollector, directory_collector
from obskit_gunicorn._scrape.source import Snapshot
from obskit_gunicorn._store.directory import SlotDirectory
from obskit_gunicorn._store.fileformat import DAMAGE_REASONS
from obskit_gunicorn._store.leases import is_ready_worker
from obskit_gunicorn._store.membership import membership
from obskit_gunicorn._values import values
from obskit_gunicorn._version import __version__

Reading = float | dict[tuple[str, ...], float] | None
"""A number, numbers by label values, or ``None`` to leave the gauge out."""


class Scrape:
    """One scrape of a directory, and all that is known besides its values.

    Attributes:
        started: When the scrape began, by :func:`time.perf_counter`.
        path: The multiprocess directory, ``None`` if there is none.
        snapshot: What was read from it; empty if it cannot be read.
        collector: What has read it; ``None`` if it cannot be read.
        records: The record of each lease, by slot; ``None`` for a slot that is free.
        held: The records of the slots that are leased.
        generation: What the directory says about its generation.
        arbiters: The records that Gunicorn's arbiters have written.
    """

    def __init__(self, path: str | None) -> None:
        """Read the directory; never raises."""
        self.started = time.perf_counter()
        self.path = path
        self.snapshot = Snapshot([], {}, [])
        self.collector: DirectoryCollector | None = None
        self.records: dict[str, dict[str, Any] | None] = {}
        self.generation: dict[str, Any] = {}
        if path:
            with contextlib.suppress(OSError):
                collector = directory_collector(path)
                self.snapshot = collector.collect()
                self.collector, self.path = collector, collector.path
                self.generation = SlotDirectory(collector.path).generation()
                # Without live gauges they were not read.
                read = self.snapshot.records
                self.records = dict(collector.records() if read is None else read)
        self.held = [record for record in self.records.values() if record is not None]
        self.arbiters = [record for record in self.held if type(record.get("workers")) is int]

    def gauges(self) -> Iterator[Metric]:
        """Yield every gauge that has a reading."""
        for gauge in _gauges:
            reading = gauge.read(self)
            if reading is None:
                continue
            family = GaugeMetricFamily(gauge.name, gauge.help, labels=gauge.labels)
            by_labels = reading if isinstance(reading, dict) else {(): reading}
            for labels, value in by_labels.items():
                family.add_metric(labels, value)
            yield family

    def others(self) -> Iterator[Metric]:
        """Yield nothing more."""
        return iter(())

    def ready_workers(self) -> int:
        """Return how many workers have booted."""
        # One that moves to another slot has two leases for a moment.
        names = ("pid_namespace", "pid", "start_ticks")
        ready = filter(is_ready_worker, self.held)
        return len({tuple(str(record.get(name)) for name in names) for record in ready})


_Read = Callable[[Scrape], Reading]


class _Gauge(NamedTuple):
    name: str
    help: str
    labels: tuple[str, ...]
    read: _Read


_gauges: list[_Gauge] = []
"""Every gauge that is read at a scrape, in the order of the exposition."""


def _gauge(name: str, help_: str, *labels: str) -> Callable[[_Read], _Read]:
    """Expose what a function reads as a gauge with these labels."""

    def add(read: _Read) -> _Read:
        _gauges.append(_Gauge(name, help_, labels, read))
        return read

    return add


@_gauge("obskit_gunicorn_directory_usable", "Whether the multiprocess directory can be read.")
def _directory_usable(scrape: Scrape) -> Reading:
    return scrape.collector is not None and not scrape.collector.is_lost


@_gauge("obskit_gunicorn_slots", "Slots that the multiprocess directory has.")
def _slots(scrape: Scrape) -> Reading:
    return len(scrape.records)


@_gauge("obskit_gunicorn_slots_leased", "Slots that a process holds.")
def _slots_leased(scrape: Scrape) -> Reading:
    return len(scrape.held)


@_gauge(
    "obskit_gunicorn_values_not_shared",
    "Values that no scrape sees: in a process's memory, or in a value class of other code.",
)
def _values_not_shared(scrape: Scrape) -> Reading:
    counts = [record.get("values_not_shared") for record in scrape.held]
    here = values.not_shared() if membership.lease is None else 0
    return here + sum(count for count in counts if type(count) is int)


@_gauge("obskit_gunicorn_files", "Metric files in the multiprocess directory.")
def _files(scrape: Scrape) -> Reading:
    return scrape.collector.file_count if scrape.collector else 0


@_gauge("obskit_gunicorn_file_bytes", "Size of the metric files.")
def _file_bytes(scrape: Scrape) -> Reading:
    return scrape.collector.byte_count if scrape.collector else 0


@_gauge("obskit_gunicorn_series", "Series that all processes share.")
def _series(scrape: Scrape) -> Reading:
    return scrape.snapshot.series_count()


@_gauge(
    "obskit_gunicorn_series_over_budget",
    "1 for each metric that has used up its budget, so that further label sets are counted as "
    "__other__.",
    "metric",
)
def _series_over_budget(scrape: Scrape) -> Reading:
    over = scrape.collector.over_budget if scrape.collector else ()
    # What is not text cannot be exposed.
    names = {name.encode(errors="replace").decode() for name in over}
    return {(name,): 1 for name in sorted(names)} or None


@_gauge(
    "obskit_gunicorn_generation_start_time_seconds",
    "When counting began in the multiprocess directory, in Unix time; 0 if unknown.",
)
def _generation_start(scrape: Scrape) -> Reading:
    started = scrape.generation.get("started")
    return started if isinstance(started, (int, float)) else 0


@_gauge(
    "obskit_gunicorn_scrape_duration_seconds",
    "How long it took to collect and render this scrape.",
)
def _scrape_duration(scrape: Scrape) -> Reading:
    return time.perf_counter() - scrape.started


@_gauge(
    "obskit_gunicorn_files_skipped",
    "Metric files that this scrape could not read, in whole or in part.",
    "reason",
)
def _files_skipped(scrape: Scrape) -> Reading:
    skipped = scrape.collector.skipped if scrape.collector else {}
    return {(reason,): skipped.get(reason, 0) for reason in DAMAGE_REASONS}


@_gauge("obskit_gunicorn_directory_size_bytes", "Size of the volume of the multiprocess directory.")
def _directory_size(scrape: Scrape) -> Reading:
    return _volume(scrape, "f_blocks")


@_gauge("obskit_gunicorn_directory_available_bytes", "Room that is left on the volume.")
def _directory_available(scrape: Scrape) -> Reading:
    return _volume(scrape, "f_bavail")


@_gauge("gunicorn_workers_ready", "Workers that have booted and hold a lease.")
def _workers_ready(scrape: Scrape) -> Reading:
    gunicorn_was_here = scrape.arbiters or scrape.generation
    return scrape.ready_workers() if gunicorn_was_here else None


@_gauge("gunicorn_workers", "Workers that Gunicorn is asked for.")
def _workers(scrape: Scrape) -> Reading:
    wanted = [int(record["workers"]) for record in scrape.arbiters]
    return sum(wanted) if wanted else None


@_gauge("gunicorn_capacity", "Requests that the ready workers can answer at the same time.")
def _capacity(scrape: Scrape) -> Reading:
    known = [record.get("capacity") for record in scrape.arbiters]
    if not known or not all(type(capacity) is int for capacity in known):
        return None
    return scrape.ready_workers() * min(map(int, filter(None, known)), default=0)


@_gauge(
    "gunicorn_info",
    "Versions and worker class of the running servers.",
    "version",
    "python",
    "worker_class",
)
def _gunicorn_info(scrape: Scrape) -> Reading:
    names = ("gunicorn", "python", "worker_class")
    found = {tuple(str(record.get(n, "")) for n in names): 1.0 for record in scrape.arbiters}
    return found or None


@_gauge(
    "obskit_gunicorn_info",
    "Which multiprocess directory is read, and by which release.",
    "version",
    "directory",
)
def _info(scrape: Scrape) -> Reading:
    # What is not text cannot be exposed.
    path = (scrape.path or "").encode(errors="replace").decode()
    return {(__version__, path): 1}


def _volume(scrape: Scrape, blocks: str) -> Reading:
    if scrape.collector is None:
        return None
    try:
        volume = os.statvfs(scrape.collector.path)
    except OSError:
        return None
    return float(getattr(volume, blocks) * volume.f_frsize)
