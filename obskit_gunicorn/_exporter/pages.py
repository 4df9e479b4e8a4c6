"""What the exporter serves: the exposition, two probes, and a page of links."""

from __future__ import annotations

import html
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from obskit_gunicorn._exporter.procfs import Processes
from obskit_gunicorn._exporter.protocol import HEALTHY_PATH, READY_PATH, Options
from obskit_gunicorn._exporter.user_collectors import UserCollectors
from obskit_gunicorn._exporter.workers_socket import WorkersSocket
from obskit_gunicorn._fleet.reporter import Reporter
from obskit_gunicorn._log import log
from obskit_gunicorn._scrape.apps import METHODS, complete, make_wsgi_app
from obskit_gunicorn._scrape.collector import DirectoryCollector, directory_collector
from obskit_gunicorn._scrape.registry import SharedRegistry
from obskit_gunicorn._store.identity import pid_namespace
from obskit_gunicorn._store.leases import is_ready_worker
from obskit_gunicorn._version import __version__

if TYPE_CHECKING:
    from obskit_gunicorn._fleet.push_turns import Pusher

_READY_SECONDS = 0.1
"""How long a probe waits for the directory lock."""

Page = tuple[str, str]
"""The status and the text of a page; HTML if it begins with a tag."""

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
        self._paths = (*expositions, HEALTHY_PATH, READY_PATH)
        self._pages = {"/": self._links, HEALTHY_PATH: self._healthy, READY_PATH: self._ready}

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
        own.register(_Pushed(push, reporter))

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
            status, text = self._pages.get(path, self._nothing)()
        except Exception:
            log.exception("a request for %s has failed", path)
            status, text = "500 Internal Server Error", "Internal error; see the exporter's log.\n"
        kind = "html" if text.startswith("<") else "plain"
        headers = [("Content-Type", f"text/{kind}; charset=utf-8"), ("Cache-Control", "no-store")]
        status, headers, body = complete(method, status, headers, text.encode())
        start_response(status, headers)
        return [body]

    def is_scrape(self, environ: dict[str, Any]) -> bool:
        """Return whether a request is for an exposition, which costs more than any other page."""
        return environ["PATH_INFO"] in self._expositions and environ["REQUEST_METHOD"] in METHODS

    def _healthy(self) -> Page:
        return "200 OK", "The exporter is healthy.\n"

    def _ready(self) -> Page:
        if self.has_booted or self._has_booted_worker():
            return "200 OK", "A worker is ready.\n"
        return "503 Service Unavailable", "No worker is ready.\n"

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

    def _links(self) -> Page:
        links = "".join(
            f'<li><a href="{html.escape(quote(path))}">{html.escape(path)}</a>'
            for path in self._paths
        )
        return "200 OK", (
            '<!doctype html><html lang="en"><meta charset="utf-8"><title>Metrics</title>'
            f"<h1>Metrics</h1><ul>{links}</ul><p>obskit_gunicorn {html.escape(__version__)}\n"
        )

    def _nothing(self) -> Page:
        paths = ", ".join(("/", *self._paths))
        return "404 Not Found", f"Not found. Available paths: {paths}\n"


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
