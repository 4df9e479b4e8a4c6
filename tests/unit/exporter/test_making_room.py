"""Who is closed when there are too many connections; the numbers are small, the server is real."""

from __future__ import annotations

import contextlib
import socket
import threading
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import pytest

from obskit_gunicorn._exporter import server
from obskit_gunicorn._exporter.server import MetricsServer
from tests.support.process import HOST, free_port, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

PROBE = b"GET /-/healthy HTTP/1.0\r\n\r\n"
LARGE = b"x" * (8 << 20)  # more than both sockets hold


class Application:
    """Its scrapes are large, all else is small, and one page is slow.

    Attributes:
        may_end: Set where the slow page is made.
    """

    def __init__(self) -> None:
        """Make the slow page when it is told."""
        self.may_end = threading.Event()

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        """Answer."""
        if environ["PATH_INFO"] == "/slow":
            assert self.may_end.wait(30)
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

    def __init__(self, server: MetricsServer, application: Application, stack: ExitStack) -> None:
        """Keep what clients need."""
        self.server, self.application = server, application
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
        listener = stack.enter_context(socket.create_server((HOST, free_port())))
        application = Application()
        serving = MetricsServer(listener, application, None)
        thread = threading.Thread(target=serving.serve)
        thread.start()
        stack.callback(thread.join)
        stack.callback(serving.shutdown)
        stack.callback(application.may_end.set)
        yield Room(serving, application, stack)


def answer(client: socket.socket) -> bytes:
    """Return what a client is answered, up to its end; one that is closed may be reset."""
    received = bytearray()
    with contextlib.suppress(ConnectionResetError):
        while chunk := client.recv(65536):
            received += chunk
    return bytes(received)


def test_young_ones_that_say_nothing_yet(room: Room) -> None:
    """A connection whose request has not come yet is not closed while others receive for long."""
    slow = []
    for number in (1, 2):  # one after the other, so that the first one is the oldest
        slow.append(room.connect(b"GET /metrics HTTP/1.0\r\n\r\n"))
        wait_until(lambda n=number: room.stages() == ["sending"] * n, "it receives")  # type: ignore[misc]
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


SLOW = b"GET /slow HTTP/1.0\r\n\r\n"


def test_answers_that_are_in_the_making(room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where all places are taken by slow answers, the oldest is given up; few are at once."""
    monkeypatch.setattr(server, "_WORK_SECONDS", 0.0)
    monkeypatch.setattr(server, "MOST_ABANDONED", 2)
    slow = []
    for number in range(1, 5):
        slow.append(room.connect(SLOW))
        wait_until(lambda n=number: room.stages() == ["working"] * n, "it works")  # type: ignore[misc]
    assert answer(_connect_late(room)).endswith(b"fine")
    assert answer(slow[0]) == b""
    slow.append(room.connect(SLOW))
    wait_until(lambda: room.stages() == ["working"] * 4, "it works")
    assert answer(_connect_late(room)).endswith(b"fine")
    assert answer(slow[1]) == b""
    slow.append(room.connect(SLOW))
    wait_until(lambda: room.stages() == ["working"] * 4, "it works")
    assert answer(_connect_late(room)) == b""  # no third one is given up
    room.application.may_end.set()
    for client in slow[2:]:
        assert answer(client).endswith(b"fine")
    wait_until(lambda: not room.server._abandoned, "their threads have ended")
    assert answer(_connect_late(room)).endswith(b"fine")


def test_answers_that_were_just_begun(room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    """An answer that has not been in the making for long is not given up."""
    monkeypatch.setattr(server, "_WORK_SECONDS", 60.0)
    slow = [room.connect(SLOW) for _ in range(4)]
    wait_until(lambda: room.stages() == ["working"] * 4, "all work")
    assert answer(_connect_late(room)) == b""
    room.application.may_end.set()
    for client in slow:
        assert answer(client).endswith(b"fine")


def _connect_late(room: Room) -> socket.socket:
    """Ask for a probe's answer, where there is no room yet."""
    client = socket.create_connection((HOST, room.server.server_port), timeout=30)
    room._stack.callback(client.close)
    client.sendall(PROBE)
    return client
