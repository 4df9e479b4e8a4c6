"""What the exporter serves: the exposition, two probes, and a page of links."""

from __future__ import annotations

import html
from collections.abc import Callable, Iterable
from typing import Any
from urllib.parse import quote

from obskit_gunicorn._exporter.collectors import UserCollectors
from obskit_gunicorn._exporter.procfs import Processes
from obskit_gunicorn._exporter.protocol import HEALTHY_PATH, READY_PATH, Options
from obskit_gunicorn._log import log
from obskit_gunicorn._scrape.apps import make_wsgi_app
from obskit_gunicorn._scrape.registry import SharedRegistry
from obskit_gunicorn._store.slots import SlotDirectory, is_ready_worker
from obskit_gunicorn._version import __version__

Answer = tuple[str, list[tuple[str, str]], bytes]
StartResponse = Callable[[str, list[tuple[str, str]]], Any]


class Pages:
    """What the exporter serves; a WSGI application. Thread-safe.

    Attributes:
        has_booted: A worker without a lease has said that it serves.
    """

    def __init__(self, directory: str | None, options: Options) -> None:
        """Make the application.

        Args:
            directory: The multiprocess directory, or ``None`` if there is none to be had.
            options: What to serve.
        """
        self.has_booted = False
        self._directory = directory
        self._metrics_path = options.metrics_path
        registry = SharedRegistry(directory) if directory is not None else SharedRegistry()
        if directory is not None:
            registry.register(Processes(directory))
        registry.register(UserCollectors(options.metrics_collectors))
        self._metrics = make_wsgi_app(registry)

    def __call__(self, environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
        """Answer one request."""
        try:
            status, headers, body = self._answer(environ)
        except Exception:
            log.exception("a request for %s has failed", environ["PATH_INFO"])
            status, headers, body = _page(
                "500 Internal Server Error", "This has failed; the exporter's log says why.\n"
            )
        start_response(status, headers)
        return [] if environ["REQUEST_METHOD"] == "HEAD" else [body]

    def _answer(self, environ: dict[str, Any]) -> Answer:
        path, method = environ["PATH_INFO"], environ["REQUEST_METHOD"]
        if path == self._metrics_path.encode().decode("latin-1"):  # as WSGI has it
            return self._expose(environ)
        pages = {"/": self._links, HEALTHY_PATH: self._healthy, READY_PATH: self._ready}
        if path not in pages:
            return self._nothing()
        if method in ("GET", "HEAD"):
            return pages[path]()
        if method == "OPTIONS":
            status, headers, body = _page("200 OK", "")
        else:
            status, headers, body = _page(
                "405 Method Not Allowed", "Only GET, HEAD and OPTIONS are for this page.\n"
            )
        return status, [*headers, ("Allow", "GET, HEAD, OPTIONS")], body

    def _expose(self, environ: dict[str, Any]) -> Answer:
        started: list[Any] = []
        body = b"".join(self._metrics(environ, lambda *answer: started.extend(answer)))
        status, headers = started
        return status, headers, body

    def _healthy(self) -> Answer:
        return _page("200 OK", "The exporter is healthy.\n")

    def _ready(self) -> Answer:
        if self.has_booted or self._has_booted_worker():
            return _page("200 OK", "A worker has booted.\n")
        return _page("503 Service Unavailable", "No worker has booted.\n")

    def _has_booted_worker(self) -> bool:
        if self._directory is None:
            return True  # nothing tells; metrics that cannot be shared must not stop the service
        try:
            records = SlotDirectory(self._directory).records().values()
        except OSError:
            return True
        # A holder that found no room to say who it is may be a worker.
        return any(
            record is not None and ("role" not in record or is_ready_worker(record))
            for record in records
        )

    def _links(self) -> Answer:
        links = "".join(
            f'<li><a href="{html.escape(quote(path))}">{html.escape(path)}</a>'
            for path in (self._metrics_path, HEALTHY_PATH, READY_PATH)
        )
        text = (
            '<!doctype html><html lang="en"><meta charset="utf-8"><title>Metrics</title>'
            f"<h1>Metrics</h1><ul>{links}</ul><p>obskit_gunicorn {html.escape(__version__)}"
        )
        return _page("200 OK", text + "\n", "html")

    def _nothing(self) -> Answer:
        paths = ", ".join(("/", self._metrics_path, HEALTHY_PATH, READY_PATH))
        return _page("404 Not Found", f"There is nothing here; there are {paths}\n")


def _page(status: str, text: str, kind: str = "plain") -> Answer:
    """Return status, headers and body of a page."""
    body = text.encode()
    headers = [
        ("Content-Type", f"text/{kind}; charset=utf-8"),
        ("Content-Length", str(len(body))),
        ("Cache-Control", "no-store"),
    ]
    return status, headers, body
