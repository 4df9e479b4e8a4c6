"""The exporter's HTTP server: the standard library's, made robust.

It serves each connection on its own thread, and has at most :data:`MOST_CONNECTIONS`; others wait
in the queue of the listening socket. No client can keep it from answering others. A request must
arrive within seconds. If there are too many connections, the one that has waited longest for its
request is closed; if none has waited for long, the one that has been receiving its answer longest;
if none has received for long, the one whose answer has been in the making longest.

At most :data:`MOST_SCRAPES` of them are scrapes, so that there is always room for probes, and what
all of them are sent is at most :data:`MOST_BODY_BYTES`. One scrape more takes the room of the one
that has been receiving longest; if none is receiving, it is told to come back later.

A client's request comes a little after its connection, so a young connection is closed only where
so many say nothing that their turn must come fast.
"""

from __future__ import annotations

import contextlib
import errno
import http.client
import io
import logging
import select
import socket
import sys
import threading
import time
from typing import TYPE_CHECKING, Any, Literal, Protocol
from wsgiref.simple_server import ServerHandler, WSGIRequestHandler, WSGIServer

from obskit_gunicorn._exporter.tls import HANDSHAKE
from obskit_gunicorn._log import log
from obskit_gunicorn._scrape.apps import busy

if TYPE_CHECKING:
    from collections.abc import Iterable

    from prometheus_client.registry import Collector

    from obskit_gunicorn._exporter.tls import TlsFiles

MOST_CONNECTIONS = 64
"""How many are served at once."""

MOST_SCRAPES = 48
"""How many of them may be scrapes."""

MOST_ABANDONED = 16
"""How many threads may be making answers that nobody waits for any more, beside all others."""

MOST_BODY_BYTES = 64 << 20
"""How large different bodies may be together that are being sent; one may be larger."""

REQUEST_SECONDS = 5.0
"""How long a request may take to arrive, including the TLS handshake."""

RESPONSE_SECONDS = 30.0
"""How long an answer may take to be made, and how long to be received."""

MOST_REQUEST_BYTES = 1 << 16
"""How long a request may be, including its headers."""

_POLL_SECONDS = 0.25
_ROOM_SECONDS = 1.0
_SILENT_SECONDS = 0.25
_RECEIVE_SECONDS = 0.5
_WORK_SECONDS = 1.0
_ROOM_POLL_SECONDS = 0.05
_LINGER_SECONDS = 0.5
_NO_DESCRIPTORS = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)

_NOT_TLS = (
    b"HTTP/1.0 400 Bad Request\r\nContent-Type: text/plain; charset=utf-8\r\n\r\n"
    b"This port speaks HTTPS: ask for https:// instead of http://.\n"
)

Stage = Literal["waiting", "queueing", "working", "sending"]


class Application(Protocol):
    """What is served: a WSGI application that knows its costly requests."""

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        """Answer a request."""

    def is_scrape(self, environ: dict[str, Any]) -> bool:
        """Return whether a request is one of the costly ones."""

    def register(self, collector: Collector) -> None:
        """Expose what a collector collects, too."""


class _Connection:
    """A connection that is being served.

    Attributes:
        socket: The connection.
        is_scrape: Whether it has asked for the exposition, and there is room for that.
        is_cut: Whether it was cut off, and is ending.
        body: What it is being sent.
        stage: Whether it waits for its request, or for room for its scrape, or its answer is being
            made or sent.
        since: When that began.
    """

    def __init__(self, client: socket.socket) -> None:
        self.socket = client
        self.is_scrape = self.is_cut = False
        self.body = b""
        self.enter("waiting")

    def enter(self, stage: Stage) -> None:
        """Note the stage that begins now."""
        self.stage = stage
        self.since = time.monotonic()

    def has_unread(self) -> bool:
        """Return whether something has come from the client that its thread has not read yet."""
        poll = select.poll()
        try:
            poll.register(self.socket, select.POLLIN)
        except ValueError:  # it is closed
            return False
        return bool(poll.poll(0))

    def cut(self) -> None:
        """Shut it down; the thread that serves it sees the end of the stream."""
        self.is_cut = True
        with contextlib.suppress(OSError):  # it has ended
            # Not the TLS socket's own method: its thread would then continue in plain text.
            socket.socket.shutdown(self.socket, socket.SHUT_RDWR)


class _Lines:
    """The lines of a request, up to the length that a request may have."""

    def __init__(self, file: Any, connection: _Connection) -> None:
        self._file = file
        self._connection = connection
        self._left = MOST_REQUEST_BYTES

    def readline(self, limit: int) -> bytes:
        """Return the next line.

        Raises:
            http.client.LineTooLong: The request is too long.
        """
        # Only here it waits for the client; all else is our own time, however busy we are.
        self._connection.stage = "waiting"
        line: bytes = self._file.readline(min(limit, self._left + 1))
        self._connection.stage = "working"
        self._left -= len(line)
        if self._left < 0:
            raise http.client.LineTooLong("request")
        return line

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class _Answer(ServerHandler):
    """Runs the application for one request; logs errors in our log."""

    request_handler: _Handler

    def finish_response(self) -> None:
        """Send the answer, which is made now."""
        self.request_handler.server.send(next(iter(self.result), b""))  # type: ignore[attr-defined]
        super().finish_response()

    def send_headers(self) -> None:
        """Send the head in one piece.

        If the process were killed after half of it, a client might take that for an answer whose
        body is empty, since nothing has said yet how long it is.
        """
        stdout, self.stdout = self.stdout, io.BytesIO()
        super().send_headers()
        head, self.stdout = self.stdout.getvalue(), stdout
        self._write(head)

    def log_exception(self, exc_info: Any) -> None:
        """Log what was raised; a client that went away raises too, in many ways."""
        level = logging.DEBUG if isinstance(exc_info[1], OSError) else logging.ERROR
        log.log(level, "a request has failed", exc_info=exc_info)


class _Handler(WSGIRequestHandler):
    """Reads one request and answers it; logs nothing."""

    timeout = REQUEST_SECONDS
    # A request that is not HTTP still gets an answer with a status line.
    default_request_version = "HTTP/1.0"
    server: MetricsServer

    def handle(self) -> None:
        """Read the request and answer it."""
        self.rfile: Any = _Lines(self.rfile, self.server.connection())
        try:
            self.raw_requestline = self.rfile.readline(MOST_REQUEST_BYTES + 1)
        except http.client.LineTooLong:
            self.requestline = self.request_version = self.command = ""
            self.send_error(414)
            return
        if self.raw_requestline and self.parse_request():
            environ = self.get_environ()
            has_room = self.server.work(environ)
            # The body of the request is not read: nothing here needs one.
            answer = _Answer(None, self.wfile, sys.stderr, environ)  # type: ignore[arg-type]
            answer.request_handler = self
            answer.run(self.server.app if has_room else busy)

    def get_environ(self) -> dict[str, Any]:
        """Return the WSGI environment."""
        # RFC 9112, 3.2.2: a server takes the absolute form of a target too.
        scheme, separator, rest = self.path.partition("://")
        if separator and scheme.lower() in ("http", "https"):
            authority = rest.partition("?")[0].partition("/")[0]
            self.path = rest[len(authority) :]
            if not self.path.startswith("/"):
                self.path = f"/{self.path}"
        return super().get_environ()

    def log_message(self, format: str, *args: object) -> None:
        log.debug(format, *args)


class MetricsServer(WSGIServer):
    """Serves a WSGI application on a socket that listens already."""

    def __init__(
        self, listener: socket.socket, application: Application, tls: TlsFiles | None
    ) -> None:
        """Make the server; ``serve_forever()`` accepts connections.

        Args:
            listener: The listening socket; other processes may use it at the same time.
            application: The WSGI application.
            tls: The certificate to serve with, which the application exposes; ``None`` for plain
                HTTP.
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
        self.app = application
        self._tls = tls
        if tls is not None:
            application.register(tls)
        self._open: set[_Connection] = set()
        self._abandoned: set[_Connection] = set()
        self._has_room = threading.Condition()
        self._served = threading.local()

    def serve(self) -> None:
        """Accept connections until :meth:`shutdown`."""
        self.serve_forever(poll_interval=_POLL_SECONDS)

    def drain(self, seconds: float) -> None:
        """Wait until every accepted request is answered; call it after ``shutdown()``."""
        started = time.monotonic()
        while self._connections() and time.monotonic() - started < seconds:
            if time.monotonic() - started > _LINGER_SECONDS:
                for connection in self._connections():
                    if connection.stage == "waiting":
                        connection.cut()
            time.sleep(0.01)

    def connection(self) -> _Connection:
        """Return the connection that this thread serves."""
        connection: _Connection = self._served.connection
        return connection

    def work(self, environ: dict[str, Any]) -> bool:
        """Note that a request is complete, and its answer is made next.

        From here on only we or the network can be slow. Runs on the thread that serves the
        connection, as :meth:`send` does.

        Returns:
            Whether there is room for the answer.
        """
        connection = self.connection()
        connection.enter("working")
        connection.socket.settimeout(RESPONSE_SECONDS)
        is_scrape = self.app.is_scrape(environ)
        deadline = time.monotonic() + _ROOM_SECONDS
        with self._has_room:
            while is_scrape and sum(each.is_scrape for each in self._open) >= MOST_SCRAPES:
                connection.stage = "queueing"
                if connection.is_cut or time.monotonic() > deadline:
                    return False
                self._cut(self._in("sending"), older_than=_RECEIVE_SECONDS)
                self._has_room.wait(_ROOM_POLL_SECONDS)
            connection.is_scrape = is_scrape
            connection.enter("working")
        return True

    def send(self, body: bytes) -> None:
        """Note that an answer is made and is sent next; keep all of them from being too large."""
        connection = self.connection()
        connection.body = body
        connection.enter("sending")
        if not body:
            return
        with self._has_room:
            others = [each for each in self._open if each.body and each is not connection]
            others.sort(key=lambda each: each.since)
            while others and _size(connection, *others) > MOST_BODY_BYTES:
                others.pop(0).cut()

    def get_request(self) -> tuple[socket.socket, Any]:
        """Accept a connection."""
        try:
            client, address = self.socket.accept()
        except OSError as error:
            if error.errno in _NO_DESCRIPTORS:
                with self._has_room:
                    self._make_room()
                    # Without a pause this would be tried again at once, in a busy loop.
                    self._has_room.wait(_POLL_SECONDS)
            raise
        return client, address or ("", 0)  # a Unix socket's client has no address

    def process_request(self, request: Any, client_address: Any) -> None:
        """Serve a connection on its own thread."""
        connection = _Connection(request)
        if not self._admit(connection):
            self.shutdown_request(request)
            return
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
            limit = RESPONSE_SECONDS
            if connection.stage == "waiting" and not connection.has_unread():
                limit = REQUEST_SECONDS
            if now - connection.since > limit:
                connection.cut()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Log what a connection raised: clients go away, send garbage and fail handshakes."""
        log.debug("connection from %s: %s", client_address, sys.exc_info()[1])

    def _serve(self, connection: _Connection, address: Any) -> None:
        self._served.connection = connection
        try:
            if self._tls is not None:
                context = self._tls.context()
                if context is None or not self._is_tls(connection.socket):
                    return
                client = connection.socket = context.wrap_socket(
                    connection.socket, server_side=True, do_handshake_on_connect=False
                )
                client.settimeout(REQUEST_SECONDS)
                if connection.is_cut:  # while it had another socket
                    return
                client.do_handshake()
            self.finish_request(connection.socket, address)
        except Exception:
            self.handle_error(connection.socket, address)
        finally:
            self._end(connection)

    def _is_tls(self, client: socket.socket) -> bool:
        """Return whether a client speaks TLS; tell him that he should if he speaks anything else.

        Raises:
            OSError: He says nothing.
        """
        client.settimeout(REQUEST_SECONDS)
        first = client.recv(1, socket.MSG_PEEK)
        if first and first != HANDSHAKE:
            # What is unread when it is closed would reset the connection, and so take the answer.
            client.recv(MOST_REQUEST_BYTES)
            client.sendall(_NOT_TLS)
        return first == HANDSHAKE

    def _admit(self, connection: _Connection) -> bool:
        """Make room for a connection, and wait for it; return whether there is room."""
        deadline = time.monotonic() + _ROOM_SECONDS
        with self._has_room:
            while len(self._open) >= MOST_CONNECTIONS:
                if time.monotonic() > deadline:
                    return False
                self._make_room()
                self._has_room.wait(_ROOM_POLL_SECONDS)
            self._open.add(connection)
        return True

    def _end(self, connection: _Connection) -> None:
        try:
            # First: the connection that follows it needs the descriptor.
            self.shutdown_request(connection.socket)
        finally:
            with self._has_room:
                self._open.discard(connection)
                self._abandoned.discard(connection)
                self._has_room.notify_all()

    def _connections(self) -> list[_Connection]:
        with self._has_room:
            return list(self._open)

    def _make_room(self) -> None:
        """Cut off the connection that has waited longest, or else received or worked longest.

        One whose request has come, and only waits for its thread, is not cut off: that is our time.
        The caller holds the lock.
        """
        silent = [each for each in self._in("waiting") if not each.has_unread()]
        are_many = len(silent) > MOST_CONNECTIONS - MOST_SCRAPES
        if self._cut(silent, older_than=0.0 if are_many else _SILENT_SECONDS):
            return
        if not self._cut(self._in("sending"), older_than=_RECEIVE_SECONDS):
            self._abandon()

    def _abandon(self) -> None:
        """Give away the place of the connection whose answer has been in the making longest.

        Its thread goes on to the end of that, which nothing can hasten, and sends nothing. So that
        there is a bound on threads, few can do so at once. The caller holds the lock.
        """
        working = self._in("working")
        oldest = min(working, key=lambda connection: connection.since, default=None)
        if oldest is None or len(self._abandoned) >= MOST_ABANDONED:
            return
        if time.monotonic() - oldest.since >= _WORK_SECONDS:
            self._open.discard(oldest)
            self._abandoned.add(oldest)
            oldest.cut()
            self._has_room.notify_all()

    def _in(self, stage: Stage) -> list[_Connection]:
        """Return the connections in a stage; the caller holds the lock."""
        return [each for each in self._open if each.stage == stage]

    def _cut(self, connections: list[_Connection], *, older_than: float) -> bool:
        """Cut off the one that has been longest in its stage, unless one is ending already.

        Returns:
            Whether there is one.
        """
        if any(each.is_cut for each in connections):
            return True
        latest = time.monotonic() - older_than
        oldest = min(connections, key=lambda connection: connection.since, default=None)
        if oldest is None or oldest.since > latest:
            return False
        oldest.cut()
        self._has_room.notify_all()  # it may wait there itself
        return True


def _size(*connections: _Connection) -> int:
    """Return how large the bodies of connections are together; those that share one count once."""
    return sum(len(body) for body in {id(each.body): each.body for each in connections}.values())
