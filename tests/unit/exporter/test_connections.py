"""Connections at listening sockets, against those that the test has made."""

from __future__ import annotations

import contextlib
import socket
from typing import TYPE_CHECKING, Any

import pytest

from obskit_gunicorn._exporter import connections
from obskit_gunicorn._exporter.connections import Listener, listen_families, listeners
from tests.support.process import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


class Sockets(contextlib.ExitStack):
    """Listening sockets, and both ends of connections to them."""

    def listen(self, host: str, port: int = 0, *, dual: bool = False) -> socket.socket:
        """Listen at an address."""
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listener = self.enter_context(socket.socket(family))
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, not dual)
        listener.bind((host, port))
        listener.listen(50)
        return listener

    def connect(self, listener: socket.socket, host: str, *, accepted: int, waiting: int) -> None:
        """Make connections, of which some are accepted."""
        address = (host, listener.getsockname()[1])
        for _ in range(accepted + waiting):
            self.enter_context(socket.create_connection(address, timeout=10))
        for _ in range(accepted):
            self.enter_context(listener.accept()[0])


@pytest.fixture(name="sockets")
def _sockets() -> Iterator[Sockets]:
    with Sockets() as sockets:
        yield sockets


def record(*listening: socket.socket) -> dict[str, Any]:
    """Return what an arbiter records that listens there."""
    names = [listener.getsockname() for listener in listening]
    return {
        "backlog": 50,
        "listeners": [list(name[:2]) for name in names if isinstance(name, tuple)],
        "unix_listeners": [name for name in names if isinstance(name, str)],
    }


def shown(*listening: socket.socket) -> list[tuple[str, int | None, int]]:
    """Return host, accepted and waiting connections of each."""
    found = listeners([record(*listening)])
    assert all(each.limit == 50 for each in found)
    return [(each.address.rpartition(":")[0], each.accepted, each.waiting) for each in found]


@pytest.mark.parametrize(
    ("host", "client"),
    [("127.0.0.1", "127.0.0.1"), ("0.0.0.0", "127.0.0.2"), ("::1", "::1"), ("::", "::1")],
)
def test_accepted_and_waiting(sockets: Sockets, host: str, client: str) -> None:
    """Each connection is one, whether it was accepted or not; both ends are on this machine."""
    listener = sockets.listen(host)
    name = f"[{host}]" if ":" in host else host
    assert shown(listener) == [(name, 0, 0)]
    sockets.connect(listener, client, accepted=3, waiting=2)
    assert shown(listener) == [(name, 3, 2)]


def test_ended_connections(sockets: Sockets) -> None:
    """One that the client has closed is open until the server notices; then it is not."""
    listener = sockets.listen("127.0.0.1")
    client = socket.create_connection(listener.getsockname())
    accepted = listener.accept()[0]
    client.close()
    assert shown(listener) == [("127.0.0.1", 1, 0)]
    accepted.close()
    wait_until(lambda: shown(listener) == [("127.0.0.1", 0, 0)], "it is closed")


def test_all_addresses_of_both_families(sockets: Sockets) -> None:
    """A socket for IPv6 that has IPv4 too has the connections of both."""
    listener = sockets.listen("::", dual=True)
    sockets.connect(listener, "127.0.0.1", accepted=2, waiting=0)
    sockets.connect(listener, "::1", accepted=1, waiting=1)
    assert shown(listener) == [("[::]", 3, 1)]


def test_one_port_at_several_hosts(sockets: Sockets) -> None:
    """A connection belongs to who listens at its address, or else at all addresses."""
    one = sockets.listen("127.0.0.1")
    port = one.getsockname()[1]
    two, six = sockets.listen("127.0.0.2", port), sockets.listen("::", port)
    sockets.connect(one, "127.0.0.1", accepted=1, waiting=0)
    sockets.connect(two, "127.0.0.2", accepted=2, waiting=1)
    sockets.connect(six, "::1", accepted=3, waiting=0)
    expected = [("127.0.0.1", 1, 0), ("127.0.0.2", 2, 1), ("[::]", 3, 0)]
    assert shown(one, two, six) == expected


def test_sockets_of_others(sockets: Sockets) -> None:
    """Where nobody listens here, as in another network, nothing is shown."""
    listener, other = sockets.listen("127.0.0.1"), sockets.listen("127.0.0.1")
    sockets.connect(other, "127.0.0.1", accepted=1, waiting=1)
    assert shown(listener) == [("127.0.0.1", 0, 0)]
    listener.close()
    elsewhere = {"backlog": 50, "listeners": [["127.0.0.9", other.getsockname()[1]]]}
    assert listeners([elsewhere, {}]) == []


def test_many_connections(sockets: Sockets) -> None:
    """An answer that comes in several pieces is read to its end."""
    listener = sockets.listen("127.0.0.1")
    for _ in range(400):
        sockets.connect(listener, "127.0.0.1", accepted=1, waiting=0)
    assert shown(listener) == [("127.0.0.1", 400, 0)]


@pytest.mark.parametrize("name", ["run.sock", "r\u00fcn.sock", "a b.sock"])
def test_unix_sockets(sockets: Sockets, tmp_path: Path, name: str) -> None:
    """Those at a path are told apart in the same way, whatever others are called."""
    listening = []
    for path in (tmp_path / name, tmp_path / f"other-{name}"):
        listener = sockets.enter_context(socket.socket(socket.AF_UNIX))
        listener.bind(str(path))
        listener.listen(50)
        listening.append(listener)
    for number in range(5):
        client = sockets.enter_context(socket.socket(socket.AF_UNIX))
        client.connect(listening[0].getsockname())
        if number < 3:
            sockets.enter_context(listening[0].accept()[0])
    assert listeners([record(*listening)]) == [
        Listener(f"unix:{tmp_path / name}", waiting=2, limit=50, accepted=3),
        Listener(f"unix:{tmp_path / f'other-{name}'}", waiting=0, limit=50, accepted=0),
    ]


def test_without_answers(sockets: Sockets, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the kernel does not answer, the queues are known, and connections are not made up."""
    monkeypatch.setattr(connections, "_SOCK_DIAG", 31)  # nobody has this number
    four, six = sockets.listen("127.0.0.1"), sockets.listen("::1")
    sockets.connect(four, "127.0.0.1", accepted=1, waiting=2)
    sockets.connect(six, "::1", accepted=1, waiting=1)
    assert shown(four, six) == [("127.0.0.1", None, 2), ("[::1]", None, 1)]
    names = [family.name for family in listen_families(listeners([record(four)]))]
    assert names == ["gunicorn_listen_backlog", "gunicorn_listen_backlog_limit"]
