"""Connections at the listening sockets of a server, as the kernel tells; see sock_diag(7).

Costs workers nothing, whatever their class. The kernel is asked for the sockets of one port, so
that the thousands of others that a busy machine has, most of them in TIME_WAIT, are not read. Where
it does not answer such questions, as in some sandboxes, the listening sockets at least are read
from /proc, which shows them first. Of Unix sockets /proc has all.

The kernel shows the sockets of this process's network namespace alone.
"""

from __future__ import annotations

import contextlib
import itertools
import socket
import struct
import sys
from collections import Counter
from typing import TYPE_CHECKING, Any, NamedTuple

from prometheus_client.core import GaugeMetricFamily, Metric

from obskit_gunicorn._exporter.addresses import Address
from obskit_gunicorn._exporter.procfs import UNREADABLE, read

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_LISTENING = b" 0A "

_NETLINK = getattr(socket, "AF_NETLINK", None)
_SOCK_DIAG = 4
_BY_FAMILY, _DONE = 20, 3
_DUMP = 0x301
_TCP = 6
_ESTABLISHED, _CLOSE_WAIT, _LISTEN = 1, 8, 10
_STATES = 1 << _ESTABLISHED | 1 << _CLOSE_WAIT | 1 << _LISTEN
_BYTECODE = 1
_NOT_BELOW, _NOT_ABOVE = 2, 3
_HEADER = struct.Struct("=IHHII")
_REQUEST = struct.Struct("=BBBBI48x")
_CONDITION = struct.Struct("=BBHBBH")
_ANSWER = struct.Struct("=17xB6x16s32xI8xI")
"""State, our address, length of the queue, inode; behind a header like that of the request."""

_ANSWER_BYTES = 1 << 17
_LONGEST_SECONDS = 1.0

_CONNECTED, _CONNECTING = b"03", b"02"
"""What /proc/net/unix shows of a connection that was accepted, and of one that was not yet."""

_ACCEPTS = 0x10000


class Listener(NamedTuple):
    """What is known of an address at which a server listens."""

    address: str
    """As it is written in a label."""

    waiting: int
    """Connections that nobody has accepted yet, at all its sockets."""

    limit: float
    """How many may wait there."""

    accepted: int | None
    """Open connections that were accepted; ``None`` if the kernel does not tell."""


class _Port:
    """The TCP sockets of a port.

    Attributes:
        waiting: Of each listening socket its host, and how many connections wait there.
        accepted: By local host, how many connections were accepted; ``None`` if that is not known.
    """

    def __init__(self, *, knows_connections: bool) -> None:
        self.waiting: list[tuple[str, int]] = []
        self.accepted: Counter[str] | None = Counter() if knows_connections else None


def listeners(records: Iterable[dict[str, Any]]) -> list[Listener]:
    """Return the listeners that arbiters have recorded and this network namespace has."""
    tcp: dict[tuple[str, int], int] = {}
    unix: dict[str, int] = {}
    for record in records:
        backlog = record.get("backlog") or 0
        for host, port, *_ in record.get("listeners") or ():
            tcp[host, port] = backlog
        for path in record.get("unix_listeners") or ():
            unix[path] = backlog
    if not tcp and not unix:
        return []
    most = float("inf")
    with contextlib.suppress(*UNREADABLE):
        most = int(read("/proc/sys/net/core/somaxconn"))
    found = [*_tcp(tcp, most)] if tcp else []
    return [*found, *_unix(unix, most)] if unix else found


def listen_families(found: Iterable[Listener]) -> Iterator[Metric]:
    """Yield what is known of listeners."""
    current = GaugeMetricFamily(
        "gunicorn_listen_backlog",
        "Connections that wait to be accepted by a worker.",
        labels=["address"],
    )
    most = GaugeMetricFamily(
        "gunicorn_listen_backlog_limit",
        "How many connections may wait before the kernel refuses more.",
        labels=["address"],
    )
    connections = GaugeMetricFamily(
        "gunicorn_open_connections",
        "Open connections, whether workers have accepted them or they wait for that.",
        labels=["address", "state"],
    )
    for each in found:
        current.add_metric([each.address], each.waiting)
        most.add_metric([each.address], each.limit)
        if each.accepted is not None:
            connections.add_metric([each.address, "accepted"], each.accepted)
            connections.add_metric([each.address, "waiting"], each.waiting)
    yield from (family for family in (current, most, connections) if family.samples)


def _tcp(wanted: dict[tuple[str, int], int], most: float) -> Iterator[Listener]:
    hosts: dict[int, list[str]] = {}
    for host, port in wanted:
        hosts.setdefault(port, []).append(host)
    try:
        ports = {port: _asked(port, each) for port, each in hosts.items()}
    except (OSError, struct.error):
        ports = _read_listening(is_ipv6=any(":" in host for host, _port in wanted))
    for (host, port), backlog in wanted.items():
        found = ports.get(port)
        own = [waiting for at, waiting in found.waiting if at == host] if found else []
        if found and own:
            accepted = None
            if found.accepted is not None:
                accepted = sum(
                    count
                    for local, count in found.accepted.items()
                    if host == _host_of(local, hosts[port])
                )
            text = str(Address(host, port, ""))
            yield Listener(text, sum(own), min(backlog, most) * len(own), accepted)


def _host_of(local: str, hosts: list[str]) -> str:
    """Return at which of its server's hosts a connection to a local address was accepted."""
    if local in hosts:
        return local
    return "::" if ":" in local else "0.0.0.0"


def _asked(port: int, hosts: list[str]) -> _Port:
    """Ask the kernel for the listening and the connected sockets of a port.

    Raises:
        OSError: It does not answer, or there is no such kernel.
    """
    if _NETLINK is None:
        raise OSError("this system has no netlink")
    families = [socket.AF_INET] if any(":" not in host for host in hosts) else []
    # A socket that listens at all addresses of IPv6 has those of IPv4 too, as addresses of IPv6.
    families += [socket.AF_INET6] if any(":" in host for host in hosts) else []
    found = _Port(knows_connections=True)
    with socket.socket(_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _SOCK_DIAG) as kernel:
        kernel.settimeout(_LONGEST_SECONDS)
        for family in families:
            kernel.send(_question(family, port))
            _hear(kernel, family, found)
    return found


def _question(family: int, port: int) -> bytes:
    """Return a request for all sockets of a family whose own port is this one."""
    # A program of two steps; each says how far to go on if it holds, and if not: beyond the end.
    steps = _CONDITION.pack(_NOT_BELOW, 8, 20, 0, 0, port)
    steps += _CONDITION.pack(_NOT_ABOVE, 8, 12, 0, 0, port)
    attribute = struct.pack("=HH", 4 + len(steps), _BYTECODE) + steps
    request = _REQUEST.pack(family, _TCP, 0, 0, _STATES) + attribute
    return _HEADER.pack(_HEADER.size + len(request), _BY_FAMILY, _DUMP, 0, 0) + request


def _hear(kernel: socket.socket, family: int, port: _Port) -> None:
    """Read the kernel's answer."""
    accepted = Counter[bytes]()
    is_done = False
    while not is_done:
        answer = kernel.recv(_ANSWER_BYTES)
        at = 0
        while at < len(answer):
            length, kind = _HEADER.unpack_from(answer, at)[:2]
            if kind == _DONE:
                is_done = True
                break
            if kind != _BY_FAMILY or length < _ANSWER.size:
                raise OSError("the kernel does not tell of its sockets")
            state, host, waiting, inode = _ANSWER.unpack_from(answer, at)
            if state == _LISTEN:
                port.waiting.append((_text(family, host), waiting))
            elif inode:  # what nobody has accepted yet has none
                accepted[host] += 1
            at += (length + 3) & ~3
    assert port.accepted is not None
    for host, count in accepted.items():
        port.accepted[_text(family, host)] += count


def _text(family: int, host: bytes) -> str:
    return socket.inet_ntop(family, host[:4] if family == socket.AF_INET else host)


def _read_listening(*, is_ipv6: bool) -> dict[int, _Port]:
    """Return the listening TCP sockets by their port, as /proc shows them.

    For a listening socket, the kernel shows the length of its accept queue as ``rx_queue``. It
    shows listening sockets first; a busy server has thousands of others, which are not read.

    Args:
        is_ipv6: Read those of IPv6 too. Where there are none, the kernel takes milliseconds to say
            so, because it looks through its whole table.
    """
    ports: dict[int, _Port] = {}
    for path in ("/proc/net/tcp", *(("/proc/net/tcp6",) if is_ipv6 else ())):
        with contextlib.suppress(OSError), open(path, "rb") as file:
            next(file, None)  # the names of the columns
            for line in itertools.takewhile(lambda line: _LISTENING in line, file):
                fields = line.decode().split()
                host, _, port = fields[1].partition(":")
                found = ports.setdefault(int(port, 16), _Port(knows_connections=False))
                found.waiting.append((_address(host), int(fields[4].partition(":")[2], 16)))
    return ports


def _address(text: str) -> str:
    """Return an IP address that the kernel has written as words in its own byte order."""
    words = (int(text[at : at + 8], 16) for at in range(0, len(text), 8))
    packed = b"".join(word.to_bytes(4, sys.byteorder) for word in words)
    return socket.inet_ntop(socket.AF_INET if len(packed) == 4 else socket.AF_INET6, packed)


def _unix(wanted: dict[str, int], most: float) -> Iterator[Listener]:
    """Yield the Unix sockets that listen at paths; who accepts has sockets with the same name."""
    rows: dict[str, list[list[bytes]]] = {path: [] for path in wanted}
    ends = tuple(path.encode(errors="surrogateescape") for path in wanted)
    with contextlib.suppress(OSError), open("/proc/net/unix", "rb") as file:
        for line in file:
            if line.endswith(b"\n") and line[:-1].endswith(ends):
                row = line[:-1].split(None, 7)
                found = rows.get(row[-1].decode(errors="surrogateescape"))
                if found is not None:
                    found.append(row)
    for path, backlog in wanted.items():
        listening = sum(bool(int(row[3], 16) & _ACCEPTS) for row in rows[path])
        if listening:
            yield Listener(
                str(Address("", 0, path)).encode(errors="replace").decode(),
                sum(row[5] == _CONNECTING for row in rows[path]),
                min(backlog, most) * listening,
                sum(row[5] == _CONNECTED for row in rows[path]),
            )
