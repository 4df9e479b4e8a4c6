"""Figures of Gunicorn's processes, read from /proc at each scrape.

Runs in the exporter and costs workers nothing. The leases say which processes there are. A lease's
record is used only if its pid means the same process here: same pid namespace, same start time. In
another container, such as a sidecar without a shared pid namespace, nothing can be read, and the
log says so once.
"""

from __future__ import annotations

import contextlib
import os
import resource
import time
from typing import TYPE_CHECKING, Any, NamedTuple

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from obskit_gunicorn._log import log
from obskit_gunicorn._store.identity import pid_namespace, start_ticks

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

_PREFIX = "gunicorn_process_"
UNREADABLE = (OSError, LookupError, ValueError)
"""What reading a file of /proc may raise."""

TICKS = os.sysconf("SC_CLK_TCK")
"""How many clock ticks there are in a second."""

_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_READ_BYTES = 1 << 16


class Process:
    """A process as /proc shows it; see proc(5).

    Attributes:
        pid: Its pid.
        folder: Where ``/proc`` has it.
        name: Its name, of which the kernel keeps 15 characters.
    """

    def __init__(self, pid: int) -> None:
        """Read its status.

        Raises:
            OSError: There is no such process.
        """
        self.pid = pid
        self.folder = f"/proc/{pid}"
        start, _, fields = read(f"{self.folder}/stat").rpartition(b")")
        self.name = start.partition(b"(")[2]
        self._fields = fields.split()

    def field(self, number: int) -> int:
        """Return a field of its status, numbered as in proc(5)."""
        return int(self._fields[number - 3])

    def seconds(self, *numbers: int) -> float:
        """Return the sum of fields that are in clock ticks, in seconds."""
        return sum(map(self.field, numbers)) / TICKS


def children(pid: int) -> set[int]:
    """Return the children of a process that live or wait to be reaped; empty if that is unknown."""
    # The kernel gives one page of them at a time, so they are read to the end.
    with contextlib.suppress(*UNREADABLE), open(f"/proc/{pid}/task/{pid}/children", "rb") as file:
        return set(map(int, file.read().split()))
    return set()


class Seen(NamedTuple):
    """A process of the server, and what was read of it."""

    role: str
    """``arbiter``, ``worker`` or ``exporter``."""

    slot: str
    """Empty for the exporter."""

    process: Process
    figures: dict[str, float]
    """By the name of the figure; what cannot be read is not there."""


def _words(path: str, start: bytes) -> list[bytes]:
    """Return the words of the first line of a file that begins with a text; none if no line does.

    Raises:
        OSError: The file cannot be read.
    """
    return next((line.split() for line in read(path).splitlines() if line.startswith(start)), [])


def _open_fds(process: Process) -> int:
    # From Linux 6.2 on the kernel says how many there are; before, it says 0.
    path = f"{process.folder}/fd"
    return os.stat(path).st_size or len(os.listdir(path))


def _max_fds(process: Process) -> float:
    try:
        limit = resource.prlimit(process.pid, resource.RLIMIT_NOFILE)[0]
    except OSError:  # it is another user's
        text = _words(f"{process.folder}/limits", b"Max open files")[3]
        return float("inf") if text == b"unlimited" else int(text)
    return float("inf") if limit == resource.RLIM_INFINITY else limit


def boot_time() -> int:
    """Return when the machine was started, in Unix time, as its kernel's clock has it now.

    Raises:
        OSError: There is no /proc.
    """
    return int(_words("/proc/stat", b"btime")[1])


class _Figure(NamedTuple):
    """A figure of each process."""

    name: str
    help: str
    read: Callable[[Process], float]
    """Raises one of :data:`UNREADABLE` if there is nothing to show."""

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
        lambda process: process.field(24) * _PAGE_BYTES,
    ),
    _Figure(
        "proportional_memory_bytes",
        "Memory of the process, shared pages divided up.",
        lambda process: int(_words(f"{process.folder}/smaps_rollup", b"Pss:")[1]) * 1024,
    ),
    _Figure("open_fds", "Open file descriptors.", _open_fds),
    _Figure("max_fds", "How many file descriptors the process may open.", _max_fds),
    _Figure("threads", "Threads of the process.", lambda process: process.field(20)),
)
"""Every figure of a process but its start, in the order of the exposition.

Memory and descriptors of a process that has changed its user are closed to others.
"""

_START = _Figure(
    "start_time_seconds",
    "When the process was started, in Unix time.",
    lambda process: boot_time() + process.seconds(22),
)
_ROLES = ("arbiter", "worker")
_EXPORTER_NAME = b"gunicorn: metrics exporter"[:15]


class Processes:
    """Reads figures of this process, the exporter, and of arbiters and workers of a directory.

    Thread-safe.
    """

    def __init__(self, directory: str) -> None:
        """Name the directory, for the log; nothing is read."""
        self._directory = directory
        self._namespace = pid_namespace()
        self._has_reported = False

    def look(self, records: Mapping[str, dict[str, Any] | None]) -> list[Seen]:
        """Read what can be read: arbiters first, so that who is reaped meanwhile is not in both.

        Args:
            records: The record of each lease, by slot.
        """
        seen: list[Seen] = []
        try:
            started = boot_time()
        except UNREADABLE:
            return seen
        elsewhere = 0
        for wanted in _ROLES:
            for slot, record in records.items():
                if record is None or record.get("role") != wanted:
                    continue
                pid = record.get("pid")
                if type(pid) is not int:
                    continue
                if record.get("pid_namespace") != self._namespace:
                    elsewhere += 1
                    continue
                seen += _seen(wanted, slot, pid, started, record.get("start_ticks"))
        seen += _exporter(seen, started)
        if elsewhere and not self._has_reported:
            self._has_reported = True
            log.warning(
                "obskit: the processes of %s are in another pid namespace: there are no %s* here; "
                "shareProcessNamespace would make them visible",
                self._directory,
                _PREFIX,
            )
        return seen


def _seen(
    role: str, slot: str, pid: int, started: int, start_ticks: int | None = None
) -> list[Seen]:
    """Return what can be read of a process; nothing if the pid is another process's now."""
    try:
        process = Process(pid)
        if start_ticks not in (None, process.field(22)):
            return []
    except UNREADABLE:
        return []
    figures: dict[str, float] = {}
    for figure in _FIGURES:
        with contextlib.suppress(*UNREADABLE):
            figures[figure.name] = figure.read(process)
    figures[_START.name] = started + process.seconds(22)
    return [Seen(role, slot, process, figures)]


def _exporter(seen: list[Seen], started: int) -> list[Seen]:
    """Return what can be read of the exporter: that of the newest arbiter, if there are several.

    While a SIGUSR2 is under way each of them has one, and either answers. If each showed itself,
    its CPU time would be reset at every other scrape, and it would seem to be started again.

    Args:
        seen: What was read of arbiters and workers.
        started: When the machine was started.
    """
    # Where /proc is of another pid namespace, our pid is another process there.
    own = _seen("exporter", "", os.getpid(), started, start_ticks() or None)
    arbiters = {each.process.pid: each.process for each in seen if each.role == "arbiter"}
    # A sidecar is no arbiter's child.
    if len(arbiters) < 2 or not own or own[0].process.field(4) not in arbiters:
        return own
    newest = max(arbiters, key=lambda pid: (arbiters[pid].field(22), pid))
    others: list[Process] = []
    for pid in children(newest) - {each.process.pid for each in seen}:
        with contextlib.suppress(*UNREADABLE):
            others.append(Process(pid))
    # What has another name is a worker without a lease, or an exporter that is being started.
    others = [each for each in others if each.name == _EXPORTER_NAME]
    if not others:
        return own
    other = max(others, key=lambda each: (each.field(22), each.pid))
    return _seen("exporter", "", other.pid, started, other.field(22)) or own


def process_families(seen: Iterable[Seen]) -> list[Metric]:
    """Return each figure of each process, by role and slot; what nobody has is absent."""
    families: dict[str, Any] = {
        figure.name: figure.kind(_PREFIX + figure.name, figure.help, labels=["role", "worker"])
        for figure in (*_FIGURES, _START)
    }
    for each in seen:
        for name, value in each.figures.items():
            families[name].add_metric([each.role, each.slot], value)
    return [family for family in families.values() if family.samples]


class Usage(NamedTuple):
    """What a process uses, and since when."""

    age_seconds: float
    cpu_seconds: float
    memory_bytes: float
    """Shared pages counted in full."""


def usage(record: dict[str, Any], namespace: str) -> Usage | None:
    """Return what the holder of a lease uses; ``None`` where /proc does not show it.

    Args:
        record: The record of its lease.
        namespace: The pid namespace of this process.
    """
    pid = record.get("pid")
    if type(pid) is not int or record.get("pid_namespace") != namespace:
        return None
    with contextlib.suppress(*UNREADABLE):
        process = Process(pid)
        if record.get("start_ticks") in (None, process.field(22)):
            age = time.clock_gettime(time.CLOCK_BOOTTIME) - process.seconds(22)
            memory = process.field(24) * _PAGE_BYTES
            return Usage(max(0.0, age), process.seconds(14, 15), memory)
    return None


def read(path: str) -> bytes:
    """Return the content of a small file.

    Raises:
        OSError: It cannot be read.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(descriptor, _READ_BYTES)
    finally:
        os.close(descriptor)
