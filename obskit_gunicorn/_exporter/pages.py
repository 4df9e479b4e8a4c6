"""What the exporter serves: the exposition, two probes, and a live page with its figures."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from obskit_gunicorn._exporter.procfs import Processes
from obskit_gunicorn._exporter.protocol import (
    HEALTHY_PATH,
    READY_PATH,
    SCRIPT_PATH,
    STATUS_PATH,
    STYLE_PATH,
    Options,
)
from obskit_gunicorn._exporter.user_collectors import UserCollectors
from obskit_gunicorn._exporter.workers_socket import WorkersSocket
from obskit_gunicorn._fleet.reporter import Reporter
from obskit_gunicorn._log import log
from obskit_gunicorn._scrape.apps import METHODS, complete, make_wsgi_app
from obskit_gunicorn._scrape.collector import DirectoryCollector, directory_collector
from obskit_gunicorn._scrape.registry import SharedRegistry
from obskit_gunicorn._store.identity import pid_namespace
from obskit_gunicorn._store.leases import is_ready_worker

if TYPE_CHECKING:
    from obskit_gunicorn._exporter.status import StatusReader
    from obskit_gunicorn._fleet.push_turns import Pusher

_READY_SECONDS = 0.1
"""How long a probe waits for the directory lock."""

_STATIC = os.path.join(os.path.dirname(__file__), "static")

STRICT = [
    ("Cache-Control", "no-store"),
    (
        "Content-Security-Policy",
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    ),
    ("X-Content-Type-Options", "nosniff"),
    ("Referrer-Policy", "no-referrer"),
]
"""Headers of everything that is not an exposition: a page shows what applications have named."""


class Page(NamedTuple):
    """What is answered."""

    status: str
    text: str
    type: str = "text/plain"


StartResponse = Callable[[str, list[tuple[str, str]]], Any]


class Pages:
    """What the exporter serves; a WSGI application. Thread-safe.

    Attributes:
        has_booted: Whether a worker without a lease has reported that it serves.
        is_replaced: Whether another exporter goes on when this one ends.
        register: Exposes another collector.
        tell_lost: Called where it is found that the arbiter has lost its directory.
    """

    def __init__(
        self, directory: str | None, options: Options, *, only_fleet: bool = False
    ) -> None:
        """Make the application.

        Args:
            directory: The multiprocess directory, or ``None`` if there is none.
            options: What to serve.
            only_fleet: Serve what all hosts have counted at the path of the exposition too: this is
                none of them.
        """
        self.has_booted = False
        self.tell_lost: Callable[[], object] = lambda: None
        self._collector = None
        registry = SharedRegistry(directory)
        if directory is not None:
            # The collector of the whole process, which every part that reads the directory asks.
            self._collector = directory_collector(directory)
            self._collector.keep_removed(self._notice_loss)
            registry.register(Processes(directory))
        self.is_replaced = False
        self._reporters: list[Reporter] = []
        self._fleet_figures: Collector | None = None
        self._push_figures: Collector | None = None
        self._socket: WorkersSocket | None = None
        expositions = {options.metrics_path: make_wsgi_app(registry)}
        if options.metrics_redis:
            fleet = self._join_fleet(options.metrics_redis, options, registry)
            # One application, wherever it is asked: scrapes that overlap share a reading.
            shown = expositions[options.metrics_fleet_path] = make_wsgi_app(fleet)
            if only_fleet:
                expositions[options.metrics_path], registry = shown, fleet
            if self._collector is not None:
                collector = self._collector
                self._socket = WorkersSocket(lambda: collector.path, _OnlyFleet(shown))
        if options.metrics_push and self._collector is not None:
            self._push(options.metrics_push, options, registry, self._collector)
        registry.register(UserCollectors(options.metrics_collectors))
        self.register = registry.register
        self._expositions = {
            path.encode().decode("latin-1"): each  # WSGI's encoding
            for path, each in expositions.items()
        }
        self._options = options
        self._paths = (*expositions, HEALTHY_PATH, READY_PATH)
        self._pages: dict[str, Callable[[], Page]] = {
            HEALTHY_PATH: self._healthy,
            READY_PATH: self._ready,
        }
        self._status_reader: StatusReader | None = None
        self._status_lock = threading.Lock()
        if options.metrics_page:
            self._paths = ("/", *self._paths, STATUS_PATH)
            self._pages |= {
                "/": self._live,
                STATUS_PATH: self._status,
                SCRIPT_PATH: lambda: _static("page.js", "text/javascript"),
                STYLE_PATH: lambda: _static("page.css", "text/css"),
            }

    def _join_fleet(self, url: str, options: Options, own: SharedRegistry) -> SharedRegistry:
        """Publish what this host has counted; return the registry of what all hosts have."""
        # Only where it is wanted, for the sake of the exporter's memory.
        from obskit_gunicorn._fleet.member import Member
        from obskit_gunicorn._fleet.store import Store

        collector = self._collector
        if collector is not None:
            collector.keep_parts()
        member = Member(
            Store(url, options.metrics_redis_name),
            host=options.metrics_host,
            interval=options.metrics_redis_interval,
            returns=options.metrics_keep,
            own=own if collector is not None else None,
            directory=(lambda: collector.path) if collector is not None else None,
        )
        if member.reporter is not None:
            self._reporters.append(member.reporter)
        self._fleet_figures = member.figures
        return member.registry

    def _push(
        self, url: str, options: Options, own: SharedRegistry, collector: DirectoryCollector
    ) -> None:
        """Push what this host exposes."""
        from obskit_gunicorn._fleet.push_turns import Pusher

        push = Pusher(url, options.metrics_host, own.collect, lambda: collector.path)
        reporter = Reporter(
            push.send,
            options.metrics_redis_interval,
            what="pushing",
            where=push.where,
            effect="nothing is stored there; scrapes and requests are not affected",
        )
        self._reporters.append(reporter)
        self._push_figures = _Pushed(push, reporter)
        own.register(self._push_figures)

    def start(self) -> None:
        """Begin to tell others what this host has counted, where that is wanted."""
        if self._socket is not None:
            self._socket.start()
        for reporter in self._reporters:
            reporter.start()

    def end(self) -> None:
        """Tell others for the last time; waits a few seconds at most."""
        if self._socket is not None:
            self._socket.end()
        ended = not self.is_replaced and not self._is_used()
        ends = [
            threading.Thread(target=reporter.end, kwargs={"ended": ended}, daemon=True)
            for reporter in self._reporters
        ]
        for thread in ends:
            thread.start()
        for thread in ends:
            thread.join()

    def _is_used(self) -> bool:
        """Return whether anybody holds a lease but the arbiter, which waits for this process."""
        if self._collector is None:
            return False
        try:
            records = self._collector.records().values()
        except OSError:
            return False
        arbiter = os.getppid(), pid_namespace()
        return any(
            record is not None and (record.get("pid"), record.get("pid_namespace")) != arbiter
            for record in records
        )

    def _notice_loss(self) -> None:
        self.tell_lost()

    def move(self, directory: str) -> None:
        """Go on in another directory, because the arbiter has lost the first one."""
        if self._collector is not None:
            self._collector.move(directory)

    def __call__(self, environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
        """Answer one request."""
        path, method = environ["PATH_INFO"], environ["REQUEST_METHOD"]
        try:
            exposition = self._expositions.get(path)
            if exposition is None and path in self._pages and method not in METHODS:
                # It also answers OPTIONS, and refuses other methods, in the same way for each path.
                exposition = next(iter(self._expositions.values()))
            if exposition is not None:
                return exposition(environ, start_response)
            page = self._pages.get(path, self._nothing)()
        except Exception:
            log.exception("a request for %s has failed", path)
            text = "Internal error; see the exporter's log.\n"
            page = Page("500 Internal Server Error", text)
        headers = [("Content-Type", f"{page.type}; charset=utf-8"), *STRICT]
        status, headers, body = complete(method, page.status, headers, page.text.encode())
        start_response(status, headers)
        return [body]

    def is_scrape(self, environ: dict[str, Any]) -> bool:
        """Return whether a request is for an exposition, which costs more than any other page.

        The live page is none: it is small, those who ask together share a reading, and it is for
        the days on which scrapes hang.
        """
        return environ["PATH_INFO"] in self._expositions and environ["REQUEST_METHOD"] in METHODS

    def _healthy(self) -> Page:
        return Page("200 OK", "The exporter is healthy.\n")

    def _ready(self) -> Page:
        if self.has_booted or self._has_booted_worker():
            return Page("200 OK", "A worker is ready.\n")
        return Page("503 Service Unavailable", "No worker is ready.\n")

    def _has_booted_worker(self) -> bool:
        if self._collector is None:
            return True  # unknown; metrics that cannot be shared must not stop the service
        try:
            records = self._collector.records(wait_seconds=_READY_SECONDS).values()
        except OSError:
            return True
        # A holder that found no room to record its role may be a worker.
        return any(
            record is not None and ("role" not in record or is_ready_worker(record))
            for record in records
        )

    def _live(self) -> Page:
        from obskit_gunicorn._exporter.live_page import render

        links = [path for path in self._paths if path != "/"]
        return Page("200 OK", render(self._reader().read(), links), "text/html")

    def _status(self) -> Page:
        text = json.dumps(self._reader().read(), allow_nan=False, separators=(",", ":"))
        return Page("200 OK", f"{text}\n", "application/json")

    def _reader(self) -> StatusReader:
        """Return what reads the figures of the page, made when somebody asks for the first time."""
        # Only where it is wanted, for the sake of the exporter's memory.
        from obskit_gunicorn._exporter.status import StatusReader

        with self._status_lock:
            if self._status_reader is None:
                collector = self._collector
                self._status_reader = StatusReader(
                    lambda: None if collector is None else collector.path, self._beside
                )
            return self._status_reader

    def _beside(self) -> dict[str, Any]:
        """Return what this process knows of the fleet and of pushes; asks neither."""
        from obskit_gunicorn._exporter.status import of_collector

        beside: dict[str, Any] = {}
        if self._options.metrics_redis:
            figures = of_collector(self._fleet_figures.collect() if self._fleet_figures else ())
            beside["fleet"] = {
                "name": self._options.metrics_redis_name,
                "host": self._options.metrics_host if self._fleet_figures else None,
                "interval_seconds": self._options.metrics_redis_interval,
                "store_up": _truth(figures.get("obskit_gunicorn_fleet_store_up")),
                "published_seconds_ago": figures.get("obskit_gunicorn_fleet_published_age_seconds"),
                "conflicts": figures.get("obskit_gunicorn_fleet_conflicts"),
            }
        if self._push_figures is not None:
            figures = of_collector(self._push_figures.collect())
            beside["push"] = {
                "interval_seconds": self._options.metrics_redis_interval,
                "up": _truth(figures.get("obskit_gunicorn_push_up")),
                "series_held_back": figures.get("obskit_gunicorn_push_series_held_back"),
            }
        return beside

    def _nothing(self) -> Page:
        return Page("404 Not Found", f"Not found. Available paths: {', '.join(self._paths)}\n")


def _static(name: str, type_: str) -> Page:
    with open(os.path.join(_STATIC, name), encoding="utf-8") as file:
        return Page("200 OK", file.read(), type_)


def _truth(value: float | None) -> bool | None:
    return None if value is None else bool(value)


class _Pushed(Collector):
    """Says whether what this host exposes is pushed."""

    def __init__(self, push: Pusher, reporter: Reporter) -> None:
        self._push, self._reporter = push, reporter

    def collect(self) -> Iterator[Metric]:
        """Yield the gauges."""
        yield GaugeMetricFamily(
            "obskit_gunicorn_push_series_held_back",
            "Series that are not pushed, because the endpoint refuses them; see the log.",
            value=self._push.held_back,
        )
        if self._reporter.is_up is not None:
            yield GaugeMetricFamily(
                "obskit_gunicorn_push_up",
                "Whether the last push was accepted.",
                value=self._reporter.is_up,
            )


class _OnlyFleet:
    """What workers are served: what all hosts have counted, at any path."""

    def __init__(self, serve: Callable[..., Iterable[bytes]]) -> None:
        self._serve = serve

    def __call__(self, environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
        """Answer one request."""
        return self._serve(environ, start_response)

    def is_scrape(self, environ: dict[str, Any]) -> bool:
        """Return whether a request is one of the costly ones."""
        return environ["REQUEST_METHOD"] in METHODS

    def register(self, collector: Collector) -> None:
        """Expose nothing more."""
