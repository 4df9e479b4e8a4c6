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
from urllib.parse import quote

from obskit_gunicorn import __version__, slots
from obskit_gunicorn.addresses import Address
from obskit_gunicorn.exposition import SharedRegistry, make_wsgi_app
from obskit_gunicorn.guests import Guests
from obskit_gunicorn.httpserver import MetricsServer, TlsFiles
from obskit_gunicorn.options import BOOTED, HEALTHY_PATH, READY_PATH, STOP, ExporterOptions
from obskit_gunicorn.processes import Processes

__all__ = ["Pages", "log_to", "main", "serve"]

_RETRY_SECONDS = 1.0
_DRAIN_SECONDS = 3.0
_IGNORED = ("SIGHUP", "SIGINT", "SIGQUIT", "SIGTERM", "SIGUSR1", "SIGUSR2", "SIGWINCH")

Answer = tuple[str, list[tuple[str, str]], bytes]
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
        if directory is not None:
            registry.register(Processes(directory))
        registry.register(self._guests)
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
            records = slots.SlotDirectory(self._directory).records().values()
        except OSError:
            return True
        # A holder that found no room to say who it is may be a worker.
        return any(
            record is not None and ("role" not in record or slots.is_ready_worker(record))
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
    listener.close()  # whoever comes now is refused, or served by whoever else listens there
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
    pages.has_booted = order["has_booted"]
    listener = _listener(order["listener"], options, control, pages)
    if listener is not None:
        os.register_at_fork(after_in_child=lambda: _leave(listener, control))
        serve(pages, options, listener, lambda: _wait(control, pages))


def _take_control() -> socket.socket:
    """Take the control socket away from the standard input, which others may use."""
    control = socket.socket(fileno=os.dup(0))
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    return control


def _listener(
    number: int | None, options: ExporterOptions, control: socket.socket, pages: Pages
) -> socket.socket | None:
    """Return the listening socket, as soon as there is one; ``None`` if it is time to end."""
    if number is not None:
        os.set_inheritable(number, False)
        return socket.socket(fileno=number)
    while True:
        try:
            listener = Address.parse(options.bind, os.sep).listen()
        except OSError:
            ready, _, _ = select.select([control], [], [], _RETRY_SECONDS)
            if ready and not _goes_on(control, pages):
                return None
            continue
        log.warning("the address is free now: metrics at %s%s", options.bind, options.path)
        # The arbiter hands it on, to a process after this one and to an arbiter after itself.
        socket.send_fds(control, [b"l"], [listener.fileno()])
        return listener


def _wait(control: socket.socket, pages: Pages) -> None:
    """Listen to arbiter and workers until they have gone, or say that it is time to end."""
    while _goes_on(control, pages):
        pass


def _goes_on(control: socket.socket, pages: Pages) -> bool:
    """Wait for a word from arbiter or workers; return whether it is no reason to end."""
    try:
        said = control.recv(1)
        if said == BOOTED and not pages.has_booted:
            pages.has_booted = True
            control.send(BOOTED)  # for the process after this one
    except OSError:
        return False
    return said not in (b"", STOP)


def _leave(listener: socket.socket, control: socket.socket) -> None:
    """Hold on to nothing, in a process that a collector of the user's has forked."""
    listener.close()
    control.close()


def log_to(path: str | None) -> None:
    """Log where Gunicorn does, in its format; to the standard error if that cannot be.

    Args:
        path: The file; ``None`` for the standard error.
    """
    handler: logging.Handler = logging.StreamHandler()
    if path is not None:
        from logging.handlers import WatchedFileHandler  # half a megabyte that few need

        class LogFile(WatchedFileHandler):
            """Looks for the file before each line, so that it follows a rotation."""

            def emit(self, record: logging.LogRecord) -> None:
                try:
                    super().emit(record)
                except OSError:  # it was replaced by one that this user may not write
                    self.handleError(record)

        try:
            handler = LogFile(path)
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
