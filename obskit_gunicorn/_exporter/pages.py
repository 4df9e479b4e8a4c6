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
from obskit_gunicorn._scrape.apps import make_wsgi_app
from obskit_gunicorn._scrape.registry import SharedRegistry
from obskit_gunicorn._store.directory import SlotDirectory
from obskit_gunicorn._store.leases import is_ready_worker
from obskit_gunicorn._version import __version__

Page = tuple[str, str]
"""The status and the text of a page; HTML if it begins with a tag."""

StartResponse = Callable[[str, list[tuple[str, str]]], Any]


class Pages:
    """What the exporter serves; a WSGI application. Thread-safe.

    Attributes:
        has_booted: Whether a worker without a lease has reported that it serves.
    """

    def __init__(self, directory: str | None, options: Options) -> None:
        """Make the application.

        Args:
            directory: The multiprocess directory, or ``None`` if there is none.
            options: What to serve.
        """
        self.has_booted = False
        self._directory = directory
        registry = SharedRegistry(directory)
        if directory is not None:
            registry.register(Processes(directory))
        registry.register(UserCollectors(options.metrics_collectors))
        self._metrics = make_wsgi_app(registry)
        self._metrics_path = options.metrics_path
        self._pages = {"/": self._links, HEALTHY_PATH: self._healthy, READY_PATH: self._ready}

    def __call__(self, environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
        """Answer one request."""
        path, method = environ["PATH_INFO"], environ["REQUEST_METHOD"]
        is_metrics = path == self._metrics_path.encode().decode("latin-1")  # WSGI's encoding
        is_plain = method in ("GET", "HEAD")
        try:
            if is_metrics or (path in self._pages and not is_plain):
                # It also answers OPTIONS, and refuses other methods, in the same way for each path.
                return self._metrics(environ, start_response)
            status, text = self._pages.get(path, self._nothing)()
        except Exception:
            log.exception("a request for %s has failed", path)
            status, text = "500 Internal Server Error", "Internal error; see the exporter's log.\n"
        body = text.encode()
        kind = "html" if text.startswith("<") else "plain"
        headers = [
            ("Content-Type", f"text/{kind}; charset=utf-8"),
            ("Content-Length", str(len(body))),
            ("Cache-Control", "no-store"),
        ]
        start_response(status, headers)
        return [] if method == "HEAD" else [body]

    def _healthy(self) -> Page:
        return "200 OK", "The exporter is healthy.\n"

    def _ready(self) -> Page:
        if self.has_booted or self._has_booted_worker():
            return "200 OK", "A worker is ready.\n"
        return "503 Service Unavailable", "No worker is ready.\n"

    def _has_booted_worker(self) -> bool:
        if self._directory is None:
            return True  # unknown; metrics that cannot be shared must not stop the service
        try:
            records = SlotDirectory(self._directory).records().values()
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
            for path in (self._metrics_path, HEALTHY_PATH, READY_PATH)
        )
        return "200 OK", (
            '<!doctype html><html lang="en"><meta charset="utf-8"><title>Metrics</title>'
            f"<h1>Metrics</h1><ul>{links}</ul><p>obskit_gunicorn {html.escape(__version__)}\n"
        )

    def _nothing(self) -> Page:
        paths = ", ".join(("/", self._metrics_path, HEALTHY_PATH, READY_PATH))
        return "404 Not Found", f"Not found. Available paths: {paths}\n"
