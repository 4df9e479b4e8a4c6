"""Serving what all processes share: the text, and WSGI and ASGI applications.

The text format 0.0.4 takes the collector's fast path. Every other format that a scraper negotiates
(OpenMetrics, escaping schemes), and ``name[]`` filtering, is prometheus_client's own encoding of
the same families.
"""

from __future__ import annotations

import contextlib
import gzip
import os
import re
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator
from itertools import chain
from typing import Any
from urllib.parse import parse_qs

import prometheus_client
from prometheus_client import exposition as theirs
from prometheus_client.core import CollectorRegistry, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from obskit_gunicorn import __version__, slots, values
from obskit_gunicorn.collector import (
    TEXT,
    DirectoryCollector,
    Format,
    Snapshot,
    directory_collector,
)
from obskit_gunicorn.mmapfile import DAMAGE_REASONS
from obskit_gunicorn.options import DIRECTORY_VARIABLE

__all__ = [
    "SharedRegistry",
    "generate_latest",
    "is_multiprocess_mode",
    "make_asgi_app",
    "make_multiprocess_app",
    "make_wsgi_app",
    "setup_multiprocess_registry",
]

_GZIP_LEVEL = 1
"""A tenth of the default level's time for a few per cent more bytes."""


class SharedRegistry(CollectorRegistry):
    """A registry of what all processes share, and of how sharing it goes.

    Finds the directory when it is scraped, so it may be made before there is one. More collectors
    may be registered. Made by :func:`setup_multiprocess_registry`.
    """

    def __init__(self, path: str | None = None) -> None:
        """Make the registry.

        Args:
            path: The multiprocess directory; by default the one this process uses at each scrape.
        """
        super().__init__()
        self._path = path
        self._others: list[Collector] = []
        self._reported: set[str] = set()
        super().register(_Families(self._shared_families))

    def register(self, collector: Collector) -> None:
        """Expose another collector beside what is shared; it runs in the process that serves."""
        self._others.append(collector)

    def unregister(self, collector: Collector) -> None:
        """Take a collector back."""
        self._others.remove(collector)

    def restricted_registry(self, names: Iterable[str]) -> Any:
        """Return what shows only the samples of these names, for ``name[]``.

        Looks at every family: prometheus_client before 0.25 leaves out collectors that, as ours, do
        not know their names beforehand.
        """
        wanted = set(names)
        return _Families(lambda: _restricted(self.collect(), wanted))

    def exposed(self, format_: Format) -> bytes:
        """Return the exposition in a format.

        Raises:
            Exception: What the format's encoder raises.
        """
        scrape = _Scrape(self._path or _current_path())
        shared = scrape.snapshot.rendered(format_) if scrape.snapshot is not None else b""
        facts = list(scrape.facts())
        types = {} if scrape.snapshot is None else scrape.snapshot.types()
        types |= {fact.name: fact.type for fact in facts}
        rest = [*facts, *self._other_families(types)]
        return shared + format_.encode(_Families(lambda: rest))

    def _shared_families(self) -> Iterator[Metric]:
        scrape = _Scrape(self._path or _current_path())
        types = {}
        shared = [] if scrape.snapshot is None else scrape.snapshot.metrics()
        for family in chain(shared, scrape.facts()):
            types[family.name] = family.type
            yield family
        yield from self._other_families(types)

    def _other_families(self, types: dict[str, str]) -> Iterator[Metric]:
        """Return the families of other collectors, without those of names that are taken.

        Prometheus refuses a whole exposition in which one name stands twice.

        Args:
            types: The families that there are, each with its type.
        """
        taken = {name for family in types.items() for name in _exposed_names(*family)}
        for collector in self._others:
            for family in collector.collect():
                names = _exposed_names(family.name, family.type)
                if taken.isdisjoint(names):
                    taken |= names
                    yield family
                elif family.name not in self._reported:
                    self._reported.add(family.name)
                    slots.process.log.error(
                        "obskit: %s is exposed once; another collector gives a metric of this "
                        "name too, which is left out",
                        family.name,
                    )


def setup_multiprocess_registry(path: str | None = None) -> SharedRegistry:
    """Return a new registry of what all processes share, and of how sharing it goes.

    Args:
        path: The multiprocess directory; by default the one this process uses at each scrape.
    """
    return SharedRegistry(path)


def is_multiprocess_mode() -> bool:
    """Return whether metrics of this process are meant to be shared with other processes."""
    return values.is_installed() or bool(os.environ.get(DIRECTORY_VARIABLE))


def generate_latest(registry: CollectorRegistry | None = None) -> bytes:
    """Return the exposition of all processes in the text format 0.0.4.

    Args:
        registry: Another registry to expose instead.
    """
    registry = registry or _current_registry()
    if isinstance(registry, SharedRegistry):
        return registry.exposed(TEXT)
    return prometheus_client.generate_latest(registry)


def make_wsgi_app(registry: CollectorRegistry | None = None) -> Callable[..., Iterable[bytes]]:
    """Return a WSGI application that serves the exposition.

    It serves all processes' metrics in multiprocess mode, and prometheus_client's own registry
    otherwise, so that one line works in development and under Gunicorn.

    Args:
        registry: Another registry to serve instead.
    """

    def application(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        status, headers, body = _respond(
            registry or _current_registry(),
            environ["REQUEST_METHOD"],
            environ.get("HTTP_ACCEPT", ""),
            environ.get("HTTP_ACCEPT_ENCODING", ""),
            environ.get("QUERY_STRING", ""),
        )
        start_response(status, headers)
        return [body]

    return application


def make_asgi_app(registry: CollectorRegistry | None = None) -> Callable[..., Awaitable[None]]:
    """Return an ASGI application that serves the exposition; see :func:`make_wsgi_app`.

    It collects on the event loop: serving the exposition from a process of its own keeps it off the
    workers.
    """

    async def application(
        scope: dict[str, Any],
        receive: Callable[..., Awaitable[Any]],
        send: Callable[..., Awaitable[Any]],
    ) -> None:
        if scope["type"] != "http":
            raise ValueError(f"the metrics application serves http, not {scope['type']}")
        asked = {
            name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]
        }
        status, headers, body = _respond(
            registry or _current_registry(),
            scope["method"],
            asked.get("accept", ""),
            asked.get("accept-encoding", ""),
            scope.get("query_string", b"").decode("latin-1"),
        )
        while (await receive()).get("more_body"):
            pass
        raw = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers]
        start = {"type": "http.response.start", "status": int(status[:3]), "headers": raw}
        await send(start)
        await send({"type": "http.response.body", "body": body})

    return application


def make_multiprocess_app(path: str | None = None) -> Callable[..., Iterable[bytes]]:
    """Return a WSGI application that serves one multiprocess directory, whatever the mode.

    Args:
        path: The directory; by default the one this process uses at each scrape.
    """
    return make_wsgi_app(setup_multiprocess_registry(path))


_SUFFIXES = {
    "counter": ("_total", "_created"),
    "summary": ("_sum", "_count", "_created"),
    "histogram": ("_bucket", "_sum", "_count", "_created"),
    "gaugehistogram": ("_bucket", "_gsum", "_gcount"),
    "info": ("_info",),
}


def _exposed_names(name: str, type_: str) -> set[str]:
    """Return the names under which a family may be seen, as a registry counts them."""
    return {name, *(name + suffix for suffix in _SUFFIXES.get(type_, ()))}


class _Families(Collector):
    """What a function returns, as a collector."""

    def __init__(self, families: Callable[[], Iterable[Metric]]) -> None:
        self._families = families

    def collect(self) -> Iterable[Metric]:
        return self._families()


def _restricted(metrics: Iterable[Metric], names: set[str]) -> Iterator[Metric]:
    for metric in metrics:
        samples = [sample for sample in metric.samples if sample.name in names]
        if samples:
            kept = Metric(metric.name, metric.documentation, metric.type, metric.unit)
            kept.samples = samples
            yield kept


def _respond(
    registry: CollectorRegistry, method: str, accept: str, accept_encoding: str, query: str
) -> tuple[str, list[tuple[str, str]], bytes]:
    """Return status, headers and body of a response, as prometheus_client's applications do."""
    allowed = ("Allow", "GET, HEAD, OPTIONS")
    if method == "OPTIONS":
        return "200 OK", [allowed, ("Content-Length", "0")], b""
    if method not in ("GET", "HEAD"):
        body = f"# {method} is not for metrics; use GET, HEAD or OPTIONS\n".encode()
        kind = ("Content-Type", "text/plain; charset=utf-8")
        return "405 Method Not Allowed", [allowed, kind, ("Content-Length", str(len(body)))], body
    try:
        encoder, content_type = theirs.choose_encoder(accept)
    except (TypeError, ValueError):  # it asks for a version that is none
        encoder, content_type = theirs.choose_encoder("")
    names = parse_qs(query).get("name[]")
    if names:
        body = encoder(registry.restricted_registry(names))
    elif isinstance(registry, SharedRegistry):
        # The content type names format, version and escaping.
        body = registry.exposed(Format(content_type, encoder))
    else:
        body = encoder(registry)
    headers = [("Content-Type", content_type)]
    if _takes_gzip(accept_encoding):
        body = gzip.compress(body, _GZIP_LEVEL)
        headers.append(("Content-Encoding", "gzip"))
    headers.append(("Content-Length", str(len(body))))
    return "200 OK", headers, b"" if method == "HEAD" else body


def _takes_gzip(accept_encoding: str) -> bool:
    for accepted in accept_encoding.lower().split(","):
        name, *parameters = (part.strip() for part in accepted.split(";"))
        if name in ("gzip", "x-gzip"):
            return not any(re.fullmatch(r"q\s*=\s*0(\.0*)?", each) for each in parameters)
    return False


class _Scrape:
    """One scrape of a directory."""

    def __init__(self, path: str | None) -> None:
        """Read the directory; whatever is wrong with it, there are facts to tell."""
        self._started = time.perf_counter()
        self._path = path
        self._collector: DirectoryCollector | None = None
        self.snapshot: Snapshot | None = None
        if path:
            with contextlib.suppress(OSError):
                collector = directory_collector(path)
                self.snapshot = collector.collect()
                self._collector = collector

    def facts(self) -> Iterator[Metric]:
        """Return gauges about the sharing itself: slots, files, and what could not be read."""
        collector, records, generation = self._collector, {}, {}
        if collector is not None:
            directory = slots.SlotDirectory(collector.path)
            generation = directory.generation()
            with contextlib.suppress(OSError):
                records = directory.records()
        held = [record for record in records.values() if record is not None]
        counts = [record.get("values_not_shared") for record in held]
        unshared = sum(count for count in counts if type(count) is int)
        if slots.process.lease is None:
            unshared += values.not_shared()
        started = generation.get("started")
        for name, text, value in (
            (
                "directory_usable",
                "Whether the multiprocess directory can be read.",
                bool(collector),
            ),
            ("slots", "Slots that the multiprocess directory has.", len(records)),
            ("slots_leased", "Slots that a process holds.", len(held)),
            (
                "values_not_shared",
                "Values that live in a process's memory, where no scrape sees them.",
                unshared,
            ),
            (
                "files",
                "Metric files in the multiprocess directory.",
                collector.file_count if collector else 0,
            ),
            ("file_bytes", "Size of the metric files.", collector.byte_count if collector else 0),
            (
                "series",
                "Series that all processes share.",
                self.snapshot.series_count() if self.snapshot else 0,
            ),
            (
                "generation_start_time_seconds",
                "When counting began in the multiprocess directory, in Unix time; 0 if unknown.",
                started if isinstance(started, (int, float)) else 0,
            ),
            (
                "scrape_duration_seconds",
                "How long it took to collect and render this scrape.",
                time.perf_counter() - self._started,
            ),
        ):
            yield GaugeMetricFamily(f"obskit_gunicorn_{name}", text, value)
        skipped = GaugeMetricFamily(
            "obskit_gunicorn_files_skipped",
            "Metric files that this scrape could not read, in whole or in part.",
            labels=["reason"],
        )
        for reason in DAMAGE_REASONS:
            skipped.add_metric([reason], collector.skipped[reason] if collector else 0)
        yield skipped
        yield from _volume(collector)
        yield from _gunicorn(held, generation)
        info = GaugeMetricFamily(
            "obskit_gunicorn_info",
            "Which multiprocess directory is read, and by which release.",
            labels=["version", "directory"],
        )
        # What is no text cannot be exposed.
        path = (self._path or "").encode(errors="replace").decode()
        info.add_metric([__version__, path], 1)
        yield info


def _volume(collector: DirectoryCollector | None) -> Iterator[Metric]:
    """Return how much room there is where metrics are kept."""
    if collector is None:
        return
    try:
        volume = os.statvfs(collector.path)
    except OSError:
        return
    for name, text, blocks in (
        ("size", "Size of the volume of the multiprocess directory.", volume.f_blocks),
        ("available", "Room that is left on the volume.", volume.f_bavail),
    ):
        value = blocks * volume.f_frsize
        yield GaugeMetricFamily(f"obskit_gunicorn_directory_{name}_bytes", text, value)


def _gunicorn(held: list[dict[str, Any]], generation: dict[str, Any]) -> Iterator[Metric]:
    """Return what arbiters and workers have written down beside their leases."""
    arbiters = [record for record in held if type(record.get("workers")) is int]
    ready = sum(map(slots.is_ready_worker, held))
    if arbiters or generation:  # Gunicorn is here, or was
        yield GaugeMetricFamily(
            "gunicorn_workers_ready", "Workers that have booted and hold a lease.", ready
        )
    if not arbiters:
        return
    wanted = sum(record["workers"] for record in arbiters)
    yield GaugeMetricFamily("gunicorn_workers", "Workers that Gunicorn is asked for.", wanted)
    capacities = [record.get("capacity") for record in arbiters]
    known = [capacity for capacity in capacities if type(capacity) is int]
    if len(known) == len(capacities):
        yield GaugeMetricFamily(
            "gunicorn_capacity",
            "Requests that the ready workers can answer at the same time.",
            ready * min(known),
        )
    info = GaugeMetricFamily(
        "gunicorn_info",
        "Versions and worker class of the running servers.",
        labels=["version", "python", "worker_class"],
    )
    for labels in dict.fromkeys(
        tuple(str(record.get(name, "")) for name in ("gunicorn", "python", "worker_class"))
        for record in arbiters
    ):
        info.add_metric(labels, 1)
    yield info


def _current_registry() -> CollectorRegistry:
    if is_multiprocess_mode():
        return setup_multiprocess_registry()
    return prometheus_client.REGISTRY


def _current_path() -> str | None:
    directory = slots.process.directory
    if directory is not None:
        return directory.path
    return os.environ.get(DIRECTORY_VARIABLE)
