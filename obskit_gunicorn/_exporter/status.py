"""What the live page and ``obskit-gunicorn top`` show: one answer of ``/-/status``.

Everything comes from what a scrape reads anyway: the collector's snapshot, the records of leases,
and /proc. Counts are totals, with the time: whoever asks twice makes rates of two answers. Nothing
is read while nobody asks, and a fleet's store never. ``docs/page.md`` describes the format.
"""

from __future__ import annotations

import math
import threading
import time
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from obskit_gunicorn._exporter.connections import listeners
from obskit_gunicorn._exporter.procfs import usage
from obskit_gunicorn._scrape.own_metrics import Scrape
from obskit_gunicorn._store.cardinality import widest_label
from obskit_gunicorn._store.identity import pid_namespace
from obskit_gunicorn._version import __version__

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from prometheus_client.core import Metric

    from obskit_gunicorn._scrape.source import Snapshot

STATUS_VERSION = 1
"""The version of the format; another one when something that is there changes its meaning."""

QUANTILES = {"p50": 0.5, "p95": 0.95, "p99": 0.99}

_LARGEST_SHOWN = 10
_SMALL = 1000
"""A family with fewer series is looked through at once; of a larger one the label is remembered."""

Status = dict[str, Any]
"""The object that is answered, ready for JSON: it has no infinities."""


class StatusReader:
    """Reads the status of one directory. Thread-safe; those who ask meanwhile share an answer."""

    def __init__(
        self,
        path: Callable[[], str | None],
        more: Callable[[], Status] = dict,
    ) -> None:
        """Name the directory; nothing is read.

        Args:
            path: Returns the multiprocess directory, which may move; ``None`` if there is none.
            more: Returns what else this process knows; quick, and asks nobody.
        """
        self._path, self._more = path, more
        self._lock = threading.Lock()
        self._waiting_lock = threading.Lock()
        self._waiting = self._begun = self._number = 0
        self._last: Status = {}
        self._labels: dict[str, tuple[int, str, int]] = {}

    def read(self) -> Status:
        """Return the status; never raises because of the directory."""
        with self._waiting_lock:
            self._waiting += 1
            arrived = self._begun
        try:
            with self._lock:
                if self._number > arrived:
                    return self._last
                with self._waiting_lock:
                    self._begun = number = self._begun + 1
                self._last, self._number = self._read(), number
                return self._last
        finally:
            with self._waiting_lock:
                self._waiting -= 1
                if not self._waiting:
                    self._last = {}  # it may be large

    def _read(self) -> Status:
        scrape = Scrape(self._path())
        gauges = {gauge.name: gauge for gauge in scrape.gauges()}
        snapshot = scrape.snapshot

        def gauge(name: str) -> float | None:
            return next((number(sample.value) for sample in gauges[name].samples), None)

        def known(name: str) -> float | None:
            return gauge(name) if name in gauges else None

        return {
            "version": STATUS_VERSION,
            "release": __version__,
            "time": time.time(),
            "servers": [dict(sample.labels) for sample in _samples(gauges, "gunicorn_info")],
            "requests": {
                "total": _classes(snapshot),
                "duration": _duration(snapshot),
                "in_progress": _sum(snapshot, "gunicorn_requests_in_progress"),
                "connections": _sum(snapshot, "gunicorn_connections"),
                "capacity": known("gunicorn_capacity"),
            },
            "listeners": _listeners(scrape),
            "workers": {
                "wanted": known("gunicorn_workers"),
                "ready": known("gunicorn_workers_ready"),
                "boots": _sum(snapshot, "gunicorn_worker_boots"),
                "exits": _by(snapshot, "gunicorn_worker_exits", "reason"),
                "reloads": _sum(snapshot, "gunicorn_reloads"),
                "list": _workers(scrape),
            },
            "metrics": self._largest(snapshot),
            "directory": {
                "path": (scrape.path or "").encode(errors="replace").decode(),
                "usable": bool(known("obskit_gunicorn_directory_usable")),
                "size_bytes": known("obskit_gunicorn_directory_size_bytes"),
                "available_bytes": known("obskit_gunicorn_directory_available_bytes"),
                "slots": known("obskit_gunicorn_slots"),
                "slots_leased": known("obskit_gunicorn_slots_leased"),
                "files": known("obskit_gunicorn_files"),
                "file_bytes": known("obskit_gunicorn_file_bytes"),
                "files_skipped": {
                    sample.labels["reason"]: number(sample.value)
                    for sample in _samples(gauges, "obskit_gunicorn_files_skipped")
                },
                "series": known("obskit_gunicorn_series"),
                "values_not_shared": known("obskit_gunicorn_values_not_shared"),
                "generation_start": known("obskit_gunicorn_generation_start_time_seconds") or None,
            },
            "fleet": None,
            "push": None,
            **self._more(),
        }

    def _largest(self, snapshot: Snapshot) -> list[Status]:
        sizes = sorted(snapshot.sizes().items(), key=lambda item: (-item[1], item[0]))
        shown = sizes[:_LARGEST_SHOWN]
        labels = {name: self._widest(snapshot, name, size) for name, size in shown}
        self._labels = {name: (size, *labels[name]) for name, size in shown if size >= _SMALL}
        return [
            {"name": name, "series": size, "label": label, "label_values": values}
            for (name, size), (label, values) in zip(shown, labels.values(), strict=True)
        ]

    def _widest(self, snapshot: Snapshot, name: str, size: int) -> tuple[str, int]:
        """Return the label that makes a metric large; looks through a large one when it grows."""
        before, label, values = self._labels.get(name, (0, "", 0))
        if before == size:
            return label, values
        return widest_label(labels for _name, labels, _value in snapshot.samples(name))


def quantile(share: float, buckets: Iterable[tuple[float, float]]) -> float | None:
    """Return a quantile of a histogram as Prometheus computes it; ``None`` without observations.

    Args:
        share: Which one, from 0 to 1.
        buckets: Bounds and cumulative counts, in order; the last bound is infinity.
    """
    found = [(0.0, 0.0), *buckets]
    rank = share * found[-1][1]
    if not rank > 0:
        return None
    for (low, before), (high, count) in pairwise(found):
        if count >= rank:
            if math.isinf(high):
                return low
            return low + (high - low) * (rank - before) / (count - before)
    return found[-2][0]


def number(value: float) -> float | None:
    """Return a number as JSON can hold it."""
    if not math.isfinite(value):
        return None
    return int(value) if value == int(value) else value


def of_collector(families: Iterable[Metric]) -> dict[str, float | None]:
    """Return the first value of each family, by name."""
    return {family.name: number(family.samples[0].value) for family in families if family.samples}


def _samples(families: dict[str, Metric], name: str) -> list[Any]:
    return families[name].samples if name in families else []


def _sum(snapshot: Snapshot, name: str) -> float | None:
    values = [value for _sample, _labels, value in snapshot.samples(name)]
    return number(sum(values)) if values else None


def _by(snapshot: Snapshot, name: str, label: str) -> dict[str, float | None]:
    found: dict[str, float] = {}
    for _sample, labels, value in snapshot.samples(name):
        key = dict(labels).get(label, "")
        found[key] = found.get(key, 0.0) + value
    return {key: number(found[key]) for key in sorted(found)}


def _classes(snapshot: Snapshot) -> dict[str, float | None]:
    """Return how many requests were answered, by class of status."""
    classes: dict[str, float] = {}
    for code, value in _by(snapshot, "gunicorn_requests", "code").items():
        name = f"{code[:1]}xx"
        classes[name] = classes.get(name, 0.0) + (value or 0.0)
    return {name: number(classes[name]) for name in sorted(classes)}


def _duration(snapshot: Snapshot) -> Status | None:
    """Return the request histogram over all methods; ``None`` before the first request."""
    bounds: dict[float, float] = {}
    total = 0.0
    for sample, labels, value in snapshot.samples("gunicorn_request_duration_seconds"):
        if sample.endswith("_bucket"):
            bound = float(dict(labels)["le"])
            bounds[bound] = bounds.get(bound, 0.0) + value
        elif sample.endswith("_sum"):
            total += value
    if not bounds:
        return None
    buckets = sorted(bounds.items())
    return {
        "count": number(buckets[-1][1]),
        "sum": number(total),
        "buckets": [
            {"le": number(bound) if math.isfinite(bound) else "+Inf", "count": number(count)}
            for bound, count in buckets
        ],
        **{name: quantile(share, buckets) for name, share in QUANTILES.items()},
    }


def _listeners(scrape: Scrape) -> list[Status]:
    return [
        {
            "address": each.address,
            "waiting": each.waiting,
            "limit": number(each.limit),
            "accepted": each.accepted,
        }
        for each in listeners(scrape.held)
    ]


def _workers(scrape: Scrape) -> list[Status]:
    requests = scrape.collector.counted_by("gunicorn_requests") if scrape.collector else {}
    rows = []
    namespace = pid_namespace()
    for slot, record in scrape.records.items():
        if record is None or record.get("role") != "worker":
            continue
        used = usage(record, namespace)
        counted = requests.get(slot)
        pid = record.get("pid")
        rows.append(
            {
                "slot": slot,
                "pid": pid if type(pid) is int else None,
                "state": str(record.get("state", "")),
                "reason": str(record.get("reason", "")),
                "age_seconds": None if used is None else round(used.age_seconds, 2),
                "requests": None if counted is None else number(counted),
                "cpu_seconds": None if used is None else used.cpu_seconds,
                "memory_bytes": None if used is None else used.memory_bytes,
            }
        )
    return sorted(rows, key=lambda row: (len(row["slot"]), row["slot"]))
