"""The exporter: the process that serves ``/metrics``, so that no worker has to.

Under Gunicorn the arbiter starts it (:mod:`obskit_gunicorn.supervision`); ``obskit-gunicorn serve``
is the same program for another container that shares the volume. It reads the multiprocess
directory and never writes to it.
"""

from __future__ import annotations

import gc
import html
import logging
import os
import select
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterable
from typing import Any

from obskit_gunicorn import __version__, slots
from obskit_gunicorn.addresses import Address
from obskit_gunicorn.exposition import SharedRegistry, make_wsgi_app
from obskit_gunicorn.guests import Guests
from obskit_gunicorn.httpserver import MetricsServer, TlsFiles
from obskit_gunicorn.options import BOOTED, HEALTHY_PATH, READY_PATH, STOP, ExporterOptions

__all__ = ["Pages", "log_to", "main", "serve"]

_RETRY_SECONDS = 1.0
_DRAIN_SECONDS = 3.0
_IGNORED = ("SIGHUP", "SIGINT", "SIGQUIT", "SIGTERM", "SIGUSR1", "SIGUSR2", "SIGWINCH")

StartResponse = Callable[[str, list[tuple[str, str]]], Any]

log = logging.getLogger("obskit_gunicorn")


class Pages:
    """What the exporter serves; a WSGI application. Thread-safe.

    Attributes:
        has_booted: A worker without a lease has said that it serves.
    """

    def __init__(self, directory: str | None, options: ExporterOptions) -> None:
        """Make the application.

        Args:
            directory: The multiprocess directory, or ``None`` if there is none to be had.
            options: What to serve.
        """
        self.has_booted = False
        self._directory = directory
        self._metrics_path = options.path
        self._guests = Guests(options.collectors)
        registry = SharedRegistry(directory) if directory is not None else SharedRegistry()
        registry.register(self._guests)
        self._metrics = make_wsgi_app(registry)

    def __call__(self, environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
        """Answer one request."""
        path = environ["PATH_INFO"]
        if path == self._metrics_path:
            return self._expose(environ, start_response)
        pages = {"/": self._links, HEALTHY_PATH: self._healthy, READY_PATH: self._ready}
        page = pages.get(path, self._nothing)
        if environ["REQUEST_METHOD"] not in ("GET", "HEAD"):
            page = self._not_allowed
        status, kind, text = page()
        body = text.encode()
        headers = [
            ("Content-Type", f"text/{kind}; charset=utf-8"),
            ("Content-Length", str(len(body))),
            ("Cache-Control", "no-store"),
        ]
        if page == self._not_allowed:
            headers.append(("Allow", "GET, HEAD"))
        start_response(status, headers)
        return [] if environ["REQUEST_METHOD"] == "HEAD" else [body]

    def _expose(self, environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
        try:
            return self._metrics(environ, start_response)
        except Exception:
            log.exception("a scrape has failed")
            body = b"This scrape has failed; the exporter's log says why.\n"
            headers = [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))]
            start_response("500 Internal Server Error", headers)
            return [body]

    def _healthy(self) -> tuple[str, str, str]:
        return "200 OK", "plain", "The exporter is healthy.\n"

    def _ready(self) -> tuple[str, str, str]:
        if self.has_booted or self._has_booted_worker():
            return "200 OK", "plain", "A worker has booted.\n"
        return "503 Service Unavailable", "plain", "No worker has booted.\n"

    def _has_booted_worker(self) -> bool:
        if self._directory is None:
            return True  # nothing tells; metrics that cannot be shared must not stop the service
        try:
            records = slots.SlotDirectory(self._directory).records().values()
        except OSError:
            return True
        return any(
            record is not None
            and record.get("role") == "worker"
            and record.get("state") == "booted"
            for record in records
        )

    def _links(self) -> tuple[str, str, str]:
        links = "".join(
            f'<li><a href="{html.escape(path)}">{html.escape(path)}</a>'
            for path in (self._metrics_path, HEALTHY_PATH, READY_PATH)
        )
        text = (
            '<!doctype html><html lang="en"><meta charset="utf-8"><title>Metrics</title>'
            f"<h1>Metrics</h1><ul>{links}</ul><p>obskit_gunicorn {html.escape(__version__)}"
        )
        return "200 OK", "html", text + "\n"

    def _nothing(self) -> tuple[str, str, str]:
        paths = ", ".join(("/", self._metrics_path, HEALTHY_PATH, READY_PATH))
        return "404 Not Found", "plain", f"There is nothing here; there are {paths}\n"

    def _not_allowed(self) -> tuple[str, str, str]:
        return "405 Method Not Allowed", "plain", "Only GET and HEAD are for this page.\n"


def serve(
    pages: Pages, options: ExporterOptions, listener: socket.socket, wait: Callable[[], object]
) -> None:
    """Serve until ``wait`` returns, then finish what has been accepted.

    Args:
        pages: The application.
        options: The certificate to serve it with.
        listener: A listening socket.
        wait: Returns when it is time to end.
    """
    tls = None
    if options.certfile:
        tls = TlsFiles(options.certfile, options.keyfile, options.ca_certs)
        tls.context()  # what is wrong with the files is said at once
    server = MetricsServer(listener, pages, tls)
    thread = threading.Thread(target=server.serve, daemon=True)
    thread.start()
    # What is there now stays; the collector of garbage need not look at it again.
    gc.freeze()
    wait()
    server.shutdown()
    server.drain(_DRAIN_SECONDS)


def main(order: dict[str, Any]) -> None:
    """Run the exporter of a Gunicorn server; the program of the process.

    Ends when the last process that holds the other end of its standard input has ended, or when the
    arbiter says so. Signals do not end it, but for SIGKILL: those that end a whole group of
    processes, as Ctrl-C and systemd do, are for Gunicorn, whose drain is to be seen.

    Args:
        order: What :mod:`obskit_gunicorn.supervision` says.
    """
    for name in _IGNORED:
        signal.signal(getattr(signal, name), signal.SIG_IGN)
    log_to(order["errorlog"])
    options = ExporterOptions(
        **{**order["options"], "collectors": tuple(order["options"]["collectors"])}
    )
    control = _take_control()
    # Only now: what stands beside the application must not hide what this module needs.
    sys.path[:] = list(dict.fromkeys([*order["sys_path"], *sys.path]))
    pages = Pages(order["directory"], options)
    listener = _listener(order["listener"], options, control)
    if listener is not None:
        serve(pages, options, listener, lambda: _wait(control, pages))


def _take_control() -> socket.socket:
    """Take the control socket away from the standard input, which others may use."""
    control = socket.socket(fileno=os.dup(0))
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    return control


def _listener(
    number: int | None, options: ExporterOptions, control: socket.socket
) -> socket.socket | None:
    """Return the listening socket, as soon as there is one; ``None`` if it is time to end."""
    if number is not None:
        return socket.socket(fileno=number)
    while True:
        try:
            listener = Address.parse(options.bind, os.sep).listen()
        except OSError:
            ready, _, _ = select.select([control], [], [], _RETRY_SECONDS)
            # A worker that has booted is no reason to end; it stays to be read.
            if ready and control.recv(1, socket.MSG_PEEK) != BOOTED:
                return None
            if ready:
                threading.Event().wait(_RETRY_SECONDS)
            continue
        log.warning("the address is free now: metrics at %s%s", options.bind, options.path)
        # The arbiter hands it on, to a process after this one and to an arbiter after itself.
        socket.send_fds(control, [b"l"], [listener.fileno()])
        return listener


def _wait(control: socket.socket, pages: Pages) -> None:
    """Listen to arbiter and workers until they have gone, or say that it is time to end."""
    while True:
        try:
            said = control.recv(1)
        except OSError:
            return
        if said == BOOTED:
            pages.has_booted = True
        elif said in (b"", STOP):
            return


def log_to(path: str | None) -> None:
    """Log where Gunicorn does, in its format; to the standard error if that cannot be.

    Args:
        path: The file; ``None`` for the standard error.
    """
    handler: logging.Handler = logging.StreamHandler()
    if path is not None:
        from logging.handlers import WatchedFileHandler  # half a megabyte that few need

        try:
            # Looks for the file before each line, so that it follows a rotation.
            handler = WatchedFileHandler(path)
        except OSError as error:
            print(f"obskit exporter: cannot log to {path}: {error}", file=sys.stderr)
    handler.setFormatter(
        logging.Formatter(
            "[%(asctime)s] [%(process)d] [%(levelname)s] obskit exporter: %(message)s",
            "%Y-%m-%d %H:%M:%S %z",
        )
    )
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    log.propagate = False
    slots.process.log = log
