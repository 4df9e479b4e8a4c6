"""Figures of Gunicorn's processes and sockets, read from /proc at each scrape.

Runs in the exporter and costs workers nothing. The leases say which processes there are. A lease's
record is used only if its pid means the same process here: same pid namespace, same start time. In
another container, such as a sidecar without a shared pid namespace, nothing can be read, and the
log says so once.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import socket
import sys
import time
from typing import TYPE_CHECKING, Any, NamedTuple

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from obskit_gunicorn._exporter.addresses import Address
from obskit_gunicorn._log import log
from obskit_gunicorn._scrape.collector import directory_collector
from obskit_gunicorn._store.identity import pid_namespace

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

_PREFIX = "gunicorn_process_"
_LISTENING = b" 0A "
_UNREADABLE = (OSError, LookupError, ValueError)


class _Process:
    """A process as /proc shows it; see proc(5)."""

    def __init__(self, pid: int) -> None:
        """Read its status.

        Raises:
            OSError: There is no such process.
        """
        self.folder = f"/proc/{pid}"
        self._fields = _read(f"{self.folder}/stat").rpartition(b")")[2].split()

    def field(self, number: int) -> int:
        """Return a field of its status, numbered as in proc(5)."""
        return int(self._fields[number - 3])

    def seconds(self, *numbers: int) -> float:
        """Return the sum of fields that are in clock ticks, in seconds."""
        return sum(map(self.field, numbers)) / os.sysconf("SC_CLK_TCK")


def _words(path: str, start: bytes) -> list[bytes]:
    """Return the words of the first line of a file that begins with a text; none if no line does.

    Raises:
        OSError: The file cannot be read.
    """
    return next((line.split() for line in _read(path).splitlines() if line.startswith(start)), [])


def _max_fds(process: _Process) -> float:
    limit = _words(f"{process.folder}/limits", b"Max open files")[3]
    return float("inf") if limit == b"unlimited" else int(limit)


class _Figure(NamedTuple):
    """A figure of each process."""

    name: str
    help: str
    read: Callable[[_Process], float]
    """Raises one of :data:`_UNREADABLE` if there is nothing to show."""

    kind: type[GaugeMetricFamily | CounterMetricFamily] = GaugeMetricFamily


_FIGURES = (
    _Figure(
        "cpu_seconds",
        "CPU time that the process has used, in user and kernel mode.",
        lambda process: process.seconds(14, 15),
        CounterMetricFamily,
    ),
    _Figure(
        "resident_memory_bytes",
        "Memory of the process, shared pages counted in full.",
        lambda process: process.field(24) * os.sysconf("SC_PAGE_SIZE"),
    ),
    _Figure(
        "proportional_memory_bytes",
        "Memory of the process, shared pages divided up.",
        lambda process: int(_words(f"{process.folder}/smaps_rollup", b"Pss:")[1]) * 1024,
    ),
    _Figure(
        "open_fds",
        "Open file descriptors.",
        lambda process: len(os.listdir(f"{process.folder}/fd")),
    ),
    _Figure("max_fds", "How many file descriptors the process may open.", _max_fds),
    _Figure("threads", "Threads of the process.", lambda process: process.field(20)),
    _Figure(
        "start_time_seconds",
        "When the process was started, in Unix time.",
        lambda process: int(_words("/proc/stat", b"btime")[1]) + process.seconds(22),
    ),
)
"""Every figure of a process, in the order of the exposition.

Memory and descriptors of a process that has changed its user are closed to others.
"""


class Processes(Collector):
    """Figures of this process, the exporter, and of arbiter and workers of one directory."""

    def __init__(self, directory: str) -> None:
        """Name the directory; nothing is read."""
        self._directory = directory
        self._namespace = pid_namespace()
        self._has_reported = False

    def collect(self) -> Iterable[Metric]:
        """Return the families; what cannot be read is absent."""
        try:
            records = directory_collector(self._directory).records()
        except OSError:
            return []
        held = {slot: record for slot, record in records.items() if record}
        return [*self._process_families(held), *listen_families(held.values())]

    def _process_families(self, held: dict[str, dict[str, Any]]) -> Iterator[Metric]:
        families = [
            figure.kind(_PREFIX + figure.name, figure.help, labels=["role", "worker"])
            for figure in _FIGURES
        ]
        self._add(families, "exporter", "", os.getpid())
        elsewhere = 0
        for slot, record in held.items():
            role, pid = record.get("role"), record.get("pid")
            if role not in ("arbiter", "worker") or type(pid) is not int:
                continue
            if record.get("pid_namespace") != self._namespace:
                elsewhere += 1
                continue
            self._add(families, role, slot, pid, record.get("start_ticks"))
        if elsewhere and not self._has_reported:
            self._has_reported = True
            log.warning(
                "obskit: the processes of %s are in another pid namespace: there are no %s* here; "
                "shareProcessNamespace would make them visible",
                self._directory,
                _PREFIX,
            )
        return (family for family in families if family.samples)

    @staticmethod
    def _add(
        families: list[Any], role: str, slot: str, pid: int, start_ticks: int | None = None
    ) -> None:
        """Add what can be read of a process; nothing if the pid is another process's now."""
        with contextlib.suppress(*_UNREADABLE):
            process = _Process(pid)
            if start_ticks not in (None, process.field(22)):
                return
            for family, figure in zip(families, _FIGURES, strict=True):
                with contextlib.suppress(*_UNREADABLE):
                    family.add_metric([role, slot], figure.read(process))


class Usage(NamedTuple):
    """What a process uses, and since when."""

    age_seconds: float
    cpu_seconds: float
    memory_bytes: float
    """Shared pages counted in full."""


def usage(record: dict[str, Any]) -> Usage | None:
    """Return what the holder of a lease uses; ``None`` where /proc does not show it.

    Args:
        record: The record of its lease.
    """
    pid = record.get("pid")
    if type(pid) is not int or record.get("pid_namespace") != pid_namespace():
        return None
    with contextlib.suppress(*_UNREADABLE):
        process = _Process(pid)
        if record.get("start_ticks") in (None, process.field(22)):
            age = time.clock_gettime(time.CLOCK_BOOTTIME) - process.seconds(22)
            memory = process.field(24) * os.sysconf("SC_PAGE_SIZE")
            return Usage(max(0.0, age), process.seconds(14, 15), memory)
    return None


def listen_families(records: Iterable[dict[str, Any]]) -> Iterator[Metric]:
    """Yield how many connections wait at the listeners that arbiters have recorded, if known."""
    backlogs: dict[tuple[str, int], int] = {}
    for record in records:
        for host, port, *_ in record.get("listeners") or ():
            backlogs[host, port] = record.get("backlog") or 0
    if not backlogs:
        return
    waiting: dict[tuple[str, int], list[int]] = {}  # of each socket, for sockets may share a port
    is_ipv6 = any(":" in host for host, _port in backlogs)
    for address, connections in _waiting_connections(is_ipv6=is_ipv6):
        waiting.setdefault(address, []).append(connections)
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
    limit = float("inf")
    with contextlib.suppress(*_UNREADABLE):
        limit = int(_read("/proc/sys/net/core/somaxconn"))
    for (host, port), backlog in backlogs.items():
        found = waiting.get((host, port))
        if found:
            text = str(Address(host, port, ""))
            current.add_metric([text], sum(found))
            most.add_metric([text], min(backlog, limit) * len(found))
    if current.samples:
        yield current
        yield most


def _waiting_connections(*, is_ipv6: bool) -> Iterator[tuple[tuple[str, int], int]]:
    """Yield the address of each listening TCP socket, and how many connections wait there.

    For a listening socket, the kernel shows the length of its accept queue as ``rx_queue``. It
    shows listening sockets first; a busy server has thousands of others, which are not read.

    Args:
        is_ipv6: Read those of IPv6 too. Where there are none, the kernel takes milliseconds to say
            so, because it looks through its whole table.
    """
    for path in ("/proc/net/tcp", *(("/proc/net/tcp6",) if is_ipv6 else ())):
        with contextlib.suppress(OSError), open(path, "rb") as file:
            next(file, None)  # the names of the columns
            for line in itertools.takewhile(lambda line: _LISTENING in line, file):
                fields = line.decode().split()
                host, _, port = fields[1].partition(":")
                yield (_address(host), int(port, 16)), int(fields[4].partition(":")[2], 16)


def _address(text: str) -> str:
    """Return an IP address that the kernel has written as words in its own byte order."""
    words = (int(text[at : at + 8], 16) for at in range(0, len(text), 8))
    packed = b"".join(word.to_bytes(4, sys.byteorder) for word in words)
    return socket.inet_ntop(socket.AF_INET if len(packed) == 4 else socket.AF_INET6, packed)


def _read(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()
