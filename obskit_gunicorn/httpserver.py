"""An HTTP server for a process that has nothing else to do: prometheus_client's, made robust.

It serves each connection on a thread of its own. No client can keep it from answering others: a
request that does not arrive within seconds is cut off, and when there are too many connections, the
one that has been waiting for its request longest makes room for the newest.
"""

from __future__ import annotations

import errno
import logging
import os
import socket
import ssl
import sys
import threading
import time
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler

from prometheus_client.exposition import ThreadingWSGIServer

__all__ = ["MetricsServer", "TlsFiles"]

MOST_CONNECTIONS = 64
REQUEST_SECONDS = 5.0
"""How long a request may take to arrive, the TLS handshake included."""

RESPONSE_SECONDS = 30.0
"""How long it may take to answer, and to be taken by the client."""

_POLL_SECONDS = 0.25
_NO_DESCRIPTORS = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)

log = logging.getLogger("obskit_gunicorn")


class TlsFiles:
    """Certificate, key and authorities, read again when they have changed.

    Thread-safe.
    """

    def __init__(self, certfile: str, keyfile: str | None, ca_certs: str | None) -> None:
        """Name the files; nothing is read.

        Args:
            certfile: The certificate chain.
            keyfile: The private key, if that is not in the same file.
            ca_certs: The authorities of client certificates, or ``None`` to ask for none.
        """
        self._certfile, self._keyfile, self._ca_certs = certfile, keyfile, ca_certs
        self._lock = threading.Lock()
        self._context: ssl.SSLContext | None = None
        self._seen: object = None

    def context(self) -> ssl.SSLContext | None:
        """Return the context to serve with, the one before while new files do not go together.

        ``None`` if no files ever did; what is wrong with them is logged once.
        """
        with self._lock:
            seen = [self._look(path) for path in (self._certfile, self._keyfile, self._ca_certs)]
            if seen != self._seen:
                self._seen = seen
                try:
                    self._context = self._load()
                except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
                    goes_on = "the certificate before stays" if self._context else "nobody can"
                    log.error(
                        "TLS: %s, %s and %s cannot be used: %s; %s in use",
                        self._certfile,
                        self._keyfile,
                        self._ca_certs,
                        error,
                        goes_on,
                    )
            return self._context

    def _load(self) -> ssl.SSLContext:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=self._ca_certs)
        context.load_cert_chain(self._certfile, self._keyfile)
        if self._ca_certs:
            context.verify_mode = ssl.CERT_REQUIRED
        return context

    @staticmethod
    def _look(path: str | None) -> tuple[int, ...] | None:
        if path is None:
            return None
        try:
            status = os.stat(path)
        except OSError:
            return ()
        return (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)


class _Connection:
    """A connection that is being served."""

    def __init__(self, client: socket.socket) -> None:
        self.socket = client
        self.since = time.monotonic()
        self.is_answering = False

    def cut(self) -> None:
        """End it; the thread that serves it finds the end of the stream."""
        try:
            self.socket.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass  # it has ended


class _Handler(WSGIRequestHandler):
    """Reads one request and answers it; logs nothing."""

    timeout = REQUEST_SECONDS
    server: MetricsServer

    def get_environ(self) -> dict[str, Any]:
        # The request is complete: from here on it is we who are slow, or the network.
        self.server.begin_answer()
        return super().get_environ()

    def log_message(self, format: str, *args: object) -> None:
        log.debug(format, *args)


class MetricsServer(ThreadingWSGIServer):
    """Serves a WSGI application at a socket that listens already."""

    def __init__(self, listener: socket.socket, application: Any, tls: TlsFiles | None) -> None:
        """Make the server; ``serve_forever()`` accepts connections.

        Args:
            listener: The listening socket; may be another process's at the same time.
            application: The WSGI application.
            tls: The certificate to serve with; ``None`` for plain HTTP.
        """
        self.address_family = listener.family
        name = listener.getsockname()
        super().__init__(name, _Handler, bind_and_activate=False)
        self.socket.close()
        # Another process may take the connection that woke this one.
        listener.setblocking(False)
        self.socket = listener
        is_tcp = isinstance(name, tuple)
        self.server_name, self.server_port = (name[0], name[1]) if is_tcp else ("localhost", 0)
        self.setup_environ()
        self.set_app(application)
        self._tls = tls
        self._open: set[_Connection] = set()
        self._lock = threading.Lock()
        self._served = threading.local()

    def serve(self) -> None:
        """Accept connections until :meth:`shutdown`."""
        self.serve_forever(poll_interval=_POLL_SECONDS)

    def drain(self, seconds: float) -> None:
        """Wait until what has been accepted is answered; to be called after ``shutdown()``."""
        deadline = time.monotonic() + seconds
        while self._connections() and time.monotonic() < deadline:
            time.sleep(0.01)

    def begin_answer(self) -> None:
        """Note that a request has arrived in full; runs on the thread that serves it."""
        connection: _Connection = self._served.connection
        connection.socket.settimeout(RESPONSE_SECONDS)
        connection.since = time.monotonic()
        connection.is_answering = True

    def get_request(self) -> tuple[socket.socket, Any]:
        """Accept a connection."""
        try:
            client, address = self.socket.accept()
        except OSError as error:
            if error.errno in _NO_DESCRIPTORS:
                self._make_room()
                time.sleep(_POLL_SECONDS)  # it would be ready again at once, and again
            raise
        return client, address or ("", 0)  # a Unix socket's client has no address

    def process_request(self, request: Any, client_address: Any) -> None:
        """Serve a connection on a thread of its own."""
        if len(self._open) >= MOST_CONNECTIONS and not self._make_room():
            self.shutdown_request(request)
            return
        connection = _Connection(request)
        with self._lock:
            self._open.add(connection)
        thread = threading.Thread(
            target=self._serve, args=(connection, client_address), daemon=True
        )
        try:
            thread.start()
        except RuntimeError:  # no more threads
            self._end(connection)

    def service_actions(self) -> None:
        """Cut off what has taken too long; runs several times a second."""
        now = time.monotonic()
        for connection in self._connections():
            limit = RESPONSE_SECONDS if connection.is_answering else REQUEST_SECONDS
            if now - connection.since > limit:
                connection.cut()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Log what a connection raised: clients go away, send garbage and fail handshakes."""
        log.debug("connection from %s: %s", client_address, sys.exc_info()[1])

    def _serve(self, connection: _Connection, address: Any) -> None:
        self._served.connection = connection
        try:
            if self._tls is None or self._shake_hands(connection, self._tls):
                self.finish_request(connection.socket, address)
        except Exception:
            self.handle_error(connection.socket, address)
        finally:
            self._end(connection)

    def _shake_hands(self, connection: _Connection, tls: TlsFiles) -> bool:
        context = tls.context()
        if context is None:
            return False
        client = context.wrap_socket(
            connection.socket, server_side=True, do_handshake_on_connect=False
        )
        connection.socket = client
        client.settimeout(REQUEST_SECONDS)
        client.do_handshake()
        return True

    def _end(self, connection: _Connection) -> None:
        with self._lock:
            self._open.discard(connection)
        self.shutdown_request(connection.socket)

    def _connections(self) -> list[_Connection]:
        with self._lock:
            return list(self._open)

    def _make_room(self) -> bool:
        """Cut off the connection that has waited longest for its request; return whether any."""
        waiting = [each for each in self._connections() if not each.is_answering]
        if not waiting:
            return False
        oldest = min(waiting, key=lambda connection: connection.since)
        oldest.since = time.monotonic()  # it is on its way out; the next one cuts another
        oldest.cut()
        return True
