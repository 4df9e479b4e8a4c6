"""What the exporter serves: the exposition, two probes, and a page of links."""

from __future__ import annotations

import html
from collections.abc import Callable, Iterable
from typing import Any
from urllib.parse import quote

from obskit_gunicorn._exporter.procfs import Processes
from obskit_gunicorn._exporter.protocol import HEALTHY_PATH, READY_PATH, Options
from obskit_gunicorn._exporter.user_collectors import UserCollectors
from obskit_gunicorn._log import log
from obskit_gunicorn._scrape.apps import METHODS, complete, make_wsgi_app
from obskit_gunicorn._scrape.collector import directory_collector
from obskit_gunicorn._scrape.registry import SharedRegistry
from obskit_gunicorn._store.leases import is_ready_worker
from obskit_gunicorn._version import __version__

_READY_SECONDS = 0.1
"""How long a probe waits for the directory lock."""

Page = tuple[str, str]
"""The status and the text of a page; HTML if it begins with a tag."""

StartResponse = Callable[[str, list[tuple[str, str]]], Any]


class Pages:
    """What the exporter serves; a WSGI application. Thread-safe.

    Attributes:
        has_booted: Whether a worker without a lease has reported that it serves.
        register: Exposes another collector.
        tell_lost: Called where a request has found that the arbiter has lost its directory.
    """

    def __init__(self, directory: str | None, options: Options) -> None:
        """Make the application.

        Args:
            directory: The multiprocess directory, or ``None`` if there is none.
            options: What to serve.
        """
        self.has_booted = False
        self.tell_lost: Callable[[], object] = lambda: None
        self._collector = None
        registry = SharedRegistry(directory)
        if directory is not None:
            # The collector of the whole process, which every part that reads the directory asks.
            self._collector = directory_collector(directory)
            self._collector.keep_removed()
            registry.register(Processes(directory))
        registry.register(UserCollectors(options.metrics_collectors))
        self.register = registry.register
        self._metrics = make_wsgi_app(registry)
        self._shown_path = options.metrics_path
        self._metrics_path = self._shown_path.encode().decode("latin-1")  # WSGI's encoding
        self._pages = {"/": self._links, HEALTHY_PATH: self._healthy, READY_PATH: self._ready}

    def move(self, directory: str) -> None:
        """Go on in another directory, because the arbiter has lost the first one."""
        if self._collector is not None:
            self._collector.move(directory)

    def __call__(self, environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
        """Answer one request."""
        answer = self._answer(environ, start_response)
        if self._collector is not None and self._collector.is_lost:
            self.tell_lost()
        return answer

    def _answer(self, environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
        path, method = environ["PATH_INFO"], environ["REQUEST_METHOD"]
        try:
            if path == self._metrics_path or (path in self._pages and method not in METHODS):
                # It also answers OPTIONS, and refuses other methods, in the same way for each path.
                return self._metrics(environ, start_response)
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
        """Return whether a request is for the exposition, which costs more than any other page."""
        return environ["PATH_INFO"] == self._metrics_path and environ["REQUEST_METHOD"] in METHODS

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
            for path in (self._shown_path, HEALTHY_PATH, READY_PATH)
        )
        return "200 OK", (
            '<!doctype html><html lang="en"><meta charset="utf-8"><title>Metrics</title>'
            f"<h1>Metrics</h1><ul>{links}</ul><p>obskit_gunicorn {html.escape(__version__)}\n"
        )

    def _nothing(self) -> Page:
        paths = ", ".join(("/", self._shown_path, HEALTHY_PATH, READY_PATH))
        return "404 Not Found", f"Not found. Available paths: {paths}\n"
