"""Figures of Gunicorn's processes and sockets, read from /proc when they are scraped.

Runs in the exporter, and costs workers nothing. Which processes there are is read from the leases;
a record is believed only where its pid means the same process here: in the same pid namespace, with
the same start time. In another container, a sidecar without a shared pid namespace, there is
nothing to read, and the log says so once.
"""

from __future__ import annotations

import os
import socket
import sys
from collections import Counter
from typing import TYPE_CHECKING, Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from obskit_gunicorn._log import log
from obskit_gunicorn._store.identity import pid_namespace
from obskit_gunicorn._store.slots import SlotDirectory

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_PREFIX = "gunicorn_process_"
_LABELS = ["role", "worker"]
_FIGURES = (
    ("cpu_seconds", "counter", "CPU time that the process has used, in user and kernel mode."),
    ("resident_memory_bytes", "gauge", "Memory of the process, shared pages counted in full."),
    ("proportional_memory_bytes", "gauge", "Memory of the process, shared pages divided up."),
    ("open_fds", "gauge", "Open file descriptors."),
    ("max_fds", "gauge", "How many file descriptors the process may open."),
    ("threads", "gauge", "Threads of the process."),
    ("start_time_seconds", "gauge", "When the process was started, in Unix time."),
)
_LISTENING = b" 0A "


class Processes(Collector):
    """Figures of the arbiter and the workers of one multiprocess directory."""

    def __init__(self, directory: str) -> None:
        """Name the directory; nothing is read."""
        self._directory = SlotDirectory(directory)
        self._namespace = pid_namespace()
        self._has_reported = False

    def collect(self) -> Iterable[Metric]:
        """Return the families; what cannot be read is absent."""
        try:
            records = self._directory.records()
        except OSError:
            return []
        held = {slot: record for slot, record in records.items() if record}
        return [*self._process_families(held), *_listen_families(held.values())]

    def _process_families(self, held: dict[str, dict[str, Any]]) -> Iterator[Metric]:
        families: dict[str, Metric] = {}
        for name, kind, text in _FIGURES:
            make = CounterMetricFamily if kind == "counter" else GaugeMetricFamily
            families[name] = make(_PREFIX + name, text, labels=_LABELS)
        elsewhere = 0
        for slot, record in held.items():
            role, pid = record.get("role"), record.get("pid")
            if role not in ("arbiter", "worker") or type(pid) is not int:
                continue
            if record.get("pid_namespace") != self._namespace:
                elsewhere += 1
                continue
            for name, value in _figures(pid, record.get("start_ticks")).items():
                families[name].add_metric([role, slot], value)  # type: ignore[attr-defined]
        if elsewhere and not self._has_reported:
            self._has_reported = True
            log.warning(
                "obskit: the processes of %s are in another pid namespace: there are no %s* here; "
                "shareProcessNamespace would make them visible",
                self._directory.path,
                _PREFIX,
            )
        return (family for family in families.values() if family.samples)


def _figures(pid: int, start_ticks: object) -> dict[str, float]:
    """Return what /proc says of a process, as far as this one may read it; see proc(5)."""
    found: dict[str, float] = {}
    folder = f"/proc/{pid}/"
    try:
        fields = _read(folder + "stat").rpartition(b")")[2].split()
    except OSError:
        return found
    if int(fields[19]) != start_ticks:
        return found  # another process has the pid now
    per_second = os.sysconf("SC_CLK_TCK")
    found["cpu_seconds"] = (int(fields[11]) + int(fields[12])) / per_second
    found["threads"] = int(fields[17])
    found["resident_memory_bytes"] = int(fields[21]) * os.sysconf("SC_PAGE_SIZE")
    booted = _boot_time()
    if booted is not None:
        found["start_time_seconds"] = booted + int(fields[19]) / per_second
    # Closed to others where the process has changed its user.
    for line in _lines(folder + "smaps_rollup"):
        if line.startswith(b"Pss:"):
            found["proportional_memory_bytes"] = int(line.split()[1]) * 1024
    for line in _lines(folder + "limits"):
        if line.startswith(b"Max open files"):
            limit = line.split()[3]
            found["max_fds"] = float("inf") if limit == b"unlimited" else int(limit)
    try:
        found["open_fds"] = len(os.listdir(folder + "fd"))
    except OSError:
        pass
    return found


def _listen_families(records: Iterable[dict[str, Any]]) -> Iterator[Metric]:
    limits: dict[tuple[str, int], tuple[str, int]] = {}
    for record in records:
        for address in record.get("listeners") or ():
            host, port = address[0], address[1]
            limits[host, port] = (_text(host, port), record.get("backlog") or 0)
    if not limits:
        return
    waiting: dict[tuple[str, int], int] = {}
    sockets: Counter[tuple[str, int]] = Counter()  # several where they share a port
    for address, connections in _waiting_connections():
        waiting[address] = waiting.get(address, 0) + connections
        sockets[address] += 1
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
    system = _system_limit()
    for (host, port), (text, limit) in limits.items():
        if (host, port) in waiting:
            current.add_metric([text], waiting[host, port])
            each = min(limit, system) if system else limit
            most.add_metric([text], each * sockets[host, port])
    if current.samples:
        yield current
        yield most


def _waiting_connections() -> Iterator[tuple[tuple[str, int], int]]:
    """Yield the address of each listening TCP socket, and how many connections wait there.

    For a listening socket, the kernel shows the length of its accept queue as ``rx_queue``.
    """
    for name, family in (("tcp", 4), ("tcp6", 6)):
        for line in _lines(f"/proc/net/{name}"):
            if _LISTENING in line:  # a busy server has thousands of others
                fields = line.decode().split()
                address, _, port = fields[1].partition(":")
                yield (
                    (_address(address, family), int(port, 16)),
                    int(fields[4].partition(":")[2], 16),
                )


def _address(text: str, family: int) -> str:
    """Return an IP address that the kernel has written as words of its own byte order."""
    words = [bytes.fromhex(text[at : at + 8]) for at in range(0, len(text), 8)]
    if sys.byteorder == "little":
        words = [word[::-1] for word in words]
    kind = socket.AF_INET if family == 4 else socket.AF_INET6
    return socket.inet_ntop(kind, b"".join(words))


def _text(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _system_limit() -> int:
    try:
        return int(_read("/proc/sys/net/core/somaxconn"))
    except (OSError, ValueError):
        return 0


def _boot_time() -> int | None:
    for line in _lines("/proc/stat"):
        if line.startswith(b"btime"):
            return int(line.split()[1])
    return None


def _lines(path: str) -> list[bytes]:
    try:
        return _read(path).splitlines()
    except OSError:
        return []


def _read(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()
