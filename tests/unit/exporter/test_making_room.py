"""Who is closed when there are too many connections; the numbers are small, the server is real."""

from __future__ import annotations

import socket
import threading
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import pytest

from obskit_gunicorn._exporter import server
from obskit_gunicorn._exporter.server import MetricsServer
from tests.support.process import HOST, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

PROBE = b"GET /-/healthy HTTP/1.0\r\n\r\n"
LARGE = b"x" * (8 << 20)  # more than both sockets hold


class Application:
    """Its scrapes are large, all else is small."""

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        """Answer."""
        body = LARGE if self.is_scrape(environ) else b"fine"
        start_response("200 OK", [("Content-Length", str(len(body)))])
        return [body]

    def is_scrape(self, environ: dict[str, Any]) -> bool:
        """Return whether it is the large one."""
        return bool(environ["PATH_INFO"] == "/metrics")

    def register(self, collector: object) -> None:
        """Take nothing."""


class Room:
    """The server, and clients of it."""

    def __init__(self, server: MetricsServer, stack: ExitStack) -> None:
        """Keep what clients need."""
        self.server = server
        self._stack = stack

    def connect(self, request: bytes = b"") -> socket.socket:
        """Connect, send a request, and return once the server has accepted the connection."""
        before = self.stages()
        client = socket.create_connection((HOST, self.server.server_port), timeout=30)
        self._stack.callback(client.close)
        client.sendall(request)
        wait_until(lambda: self.stages() != before, "it is accepted")
        return client

    def stages(self) -> list[str]:
        """Return what the connections do, in order of the alphabet."""
        return sorted(each.stage for each in self.server._connections() if not each.is_cut)


@pytest.fixture(name="room")
def _room(monkeypatch: pytest.MonkeyPatch) -> Iterator[Room]:
    """Room for four connections, two of them scrapes; tests know who is young and old."""
    monkeypatch.setattr(server, "MOST_CONNECTIONS", 4)
    monkeypatch.setattr(server, "MOST_SCRAPES", 2)
    monkeypatch.setattr(server, "_SILENT_SECONDS", 60.0)
    monkeypatch.setattr(server, "_RECEIVE_SECONDS", 0.0)
    with ExitStack() as stack:
        listener = stack.enter_context(socket.create_server((HOST, 0)))
        serving = MetricsServer(listener, Application(), None)
        thread = threading.Thread(target=serving.serve)
        thread.start()
        stack.callback(thread.join)
        stack.callback(serving.shutdown)
        yield Room(serving, stack)


def answer(client: socket.socket) -> bytes:
    """Return what a client is answered, whole."""
    return b"".join(iter(lambda: client.recv(65536), b""))


def test_young_ones_that_say_nothing_yet(room: Room) -> None:
    """A connection whose request has not come yet is not closed while others receive for long."""
    slow = [room.connect(b"GET /metrics HTTP/1.0\r\n\r\n") for _ in range(2)]
    wait_until(lambda: room.stages() == ["sending"] * 2, "both receive")
    young = [room.connect() for _ in range(2)]
    assert answer(_connect_late(room)).endswith(b"fine")
    for client in young:
        client.sendall(PROBE)
        assert answer(client).endswith(b"fine")
    assert len(answer(slow[0])) < len(LARGE) <= len(answer(slow[1]))


def test_many_that_say_nothing(room: Room) -> None:
    """Where many say nothing, the oldest of them makes room at once."""
    silent = [room.connect() for _ in range(4)]
    assert answer(_connect_late(room)).endswith(b"fine")
    assert answer(silent[0]) == b""
    for client in silent[1:]:
        client.sendall(PROBE)
        assert answer(client).endswith(b"fine")


def test_scrapes_that_wait_for_room(room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    """A scrape that waits for room is not closed for others: it is answered soon in any case."""
    monkeypatch.setattr(server, "_RECEIVE_SECONDS", 60.0)
    for _ in range(2):
        room.connect(b"GET /metrics HTTP/1.0\r\n\r\n")
    wait_until(lambda: room.stages() == ["sending"] * 2, "both receive")
    queueing = [room.connect(b"GET /metrics HTTP/1.0\r\n\r\n") for _ in range(2)]
    _connect_late(room)
    for client in queueing:
        assert b"503" in answer(client).partition(b"\r\n")[0]


def _connect_late(room: Room) -> socket.socket:
    """Ask for a probe's answer, where there is no room yet."""
    client = socket.create_connection((HOST, room.server.server_port), timeout=30)
    room._stack.callback(client.close)
    client.sendall(PROBE)
    return client
