"""The names that all of prometheus_client's users know, made to speak of a whole server.

``process_*``, ``python_info`` and ``python_gc_*`` have the types, units and labels that they have
in one process; what each of them is here, its HELP says. They are made of what a scrape has read
anyway, and shown where nobody else has a metric of the name.
"""

from __future__ import annotations

import contextlib
import threading
from typing import TYPE_CHECKING

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

from obskit_gunicorn._exporter.procfs import TICKS, UNREADABLE, Process, Seen, children

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from prometheus_client.core import Metric

    from obskit_gunicorn._scrape.own_metrics import Scrape

_GC = (
    (
        "objects_collected",
        "Objects collected during gc, in all workers, ended ones included.",
    ),
    (
        "objects_uncollectable",
        "Uncollectable objects found during GC, in all workers, ended ones included.",
    ),
    (
        "collections",
        "Number of times this generation was collected, in all workers, ended ones included.",
    ),
)

_CPU_FIELDS = (14, 15, 16, 17)
"""User and system time of a process, and of its children that it has reaped."""

_REAPED_FIELDS = (16, 17)
_MOST_READINGS = 3


class StandardNames:
    """Makes the families of the standard names. Thread-safe."""

    def __init__(self) -> None:
        """Nothing was read yet."""
        self._cpu = _CpuTime()

    def families(self, scrape: Scrape, seen: Sequence[Seen]) -> Iterator[Metric]:
        """Yield the families; what is not known is absent.

        Args:
            scrape: The scrape.
            seen: What was read of the processes.
        """
        arbiters = [each for each in seen if each.role == "arbiter"]
        if arbiters:
            yield from self._of_processes(arbiters, seen)
        yield from _python_info(scrape)
        yield from _collections(scrape)

    def _of_processes(self, arbiters: Sequence[Seen], seen: Sequence[Seen]) -> Iterator[Metric]:
        pids = {each.process.pid for each in arbiters}
        # One that moves to another slot has two leases for a moment; a sidecar is no part of it.
        ours = {
            each.process.pid: each
            for each in seen
            if each.role != "exporter" or each.process.field(4) in pids
        }
        yield _gauge(
            "process_virtual_memory_bytes",
            "Virtual memory size in bytes: the sum over arbiter, workers and exporter.",
            sum(each.process.field(23) for each in ours.values()),
        )
        yield _gauge(
            "process_resident_memory_bytes",
            "Resident memory size in bytes of arbiter, workers and exporter together: pages that "
            "they share count once.",
            sum(
                each.figures.get("proportional_memory_bytes", each.figures["resident_memory_bytes"])
                for each in ours.values()
            ),
        )
        yield _gauge(
            "process_start_time_seconds",
            "Start time of the newest arbiter since unix epoch in seconds.",
            max(each.figures["start_time_seconds"] for each in arbiters),
        )
        yield CounterMetricFamily(
            "process_cpu_seconds_total",
            "Total user and system CPU time spent in seconds, by arbiter, workers and exporter, "
            "ended ones included.",
            value=self._cpu.total({each.process.pid: each.process for each in seen}, pids),
        )
        fullest = max(
            (
                each
                for each in seen
                if each.role != "exporter" and {"open_fds", "max_fds"} <= set(each.figures)
            ),
            key=_share_of_fds,
            default=None,
        )
        if fullest is not None:
            yield _gauge(
                "process_open_fds",
                "Number of open file descriptors of the process that is nearest its limit: a "
                "worker or the arbiter.",
                fullest.figures["open_fds"],
            )
            yield _gauge(
                "process_max_fds",
                "Maximum number of open file descriptors of the same process.",
                fullest.figures["max_fds"],
            )


class _CpuTime:
    """The CPU time of arbiters and of all their children, the ended ones and the living.

    Thread-safe. It never falls as long as the oldest arbiter is the same.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._of: frozenset[tuple[int, int]] = frozenset()
        self._shown = 0.0

    def total(self, known: dict[int, Process], arbiters: set[int]) -> float:
        """Return it, in seconds.

        Args:
            known: What was read of processes, of the arbiters first.
            arbiters: The pids of the arbiters.
        """
        oldest = frozenset(
            (pid, known[pid].field(22)) for pid in arbiters if known[pid].field(4) not in arbiters
        )
        pids = arbiters | {pid for pid, each in known.items() if each.field(4) in arbiters}
        for _ in range(_MOST_READINGS):
            # Whole ticks: a sum of seconds would depend on their order, and fall by a rounding.
            ticks = sum(
                each.field(number)
                for each in _family(known, arbiters, pids)
                for number in _CPU_FIELDS
            )
            # The time of a child that is reaped meanwhile is its arbiter's from then on.
            again = dict(_read(arbiters))
            if all(_reaped(again.get(pid)) == _reaped(known.get(pid)) for pid in arbiters):
                break
            known = again
        with self._lock:
            if oldest != self._of:
                self._of, self._shown = oldest, 0.0
            # A child was reaped at each reading: this one may lack its time.
            self._shown = max(self._shown, ticks / TICKS)
            return self._shown


def _family(known: dict[int, Process], arbiters: set[int], pids: set[int]) -> Iterator[Process]:
    """Yield arbiters and all their children that live, or wait to be reaped.

    Args:
        known: What was read already.
        arbiters: The pids of the arbiters.
        pids: Them and the children that are known.
    """
    pids = set(pids)
    for pid in arbiters:
        # Workers without a lease, and whatever else an arbiter may have started.
        pids |= children(pid)
    yield from (known[pid] for pid in pids if pid in known)
    yield from (process for _pid, process in _read(pids - set(known)))


def _read(pids: set[int]) -> Iterator[tuple[int, Process]]:
    for pid in pids:
        with contextlib.suppress(*UNREADABLE):
            yield pid, Process(pid)


def _reaped(arbiter: Process | None) -> tuple[int, ...] | None:
    return None if arbiter is None else tuple(map(arbiter.field, _REAPED_FIELDS))


def _share_of_fds(each: Seen) -> tuple[float, float]:
    is_open, most = each.figures["open_fds"], each.figures["max_fds"]
    return (is_open / most if most else 1.0), is_open


def _python_info(scrape: Scrape) -> Iterator[Metric]:
    """Yield the interpreter of the arbiters, which is that of the workers."""
    info = GaugeMetricFamily(
        "python_info",
        "Python platform information: of arbiter and workers.",
        labels=["version", "implementation", "major", "minor", "patchlevel"],
    )
    found = {(record.get("python"), record.get("implementation")) for record in scrape.arbiters}
    for version, implementation in found:
        parts = str(version).split(".", 2)
        if implementation and len(parts) == 3:
            info.add_metric([str(version), str(implementation), *parts], 1)
    if info.samples:
        yield info


def _collections(scrape: Scrape) -> Iterator[Metric]:
    """Yield what workers have noted of their garbage collectors."""
    for name, text in _GC:
        noted = scrape.snapshot.samples(f"gunicorn_gc_{name}")
        if noted:
            family = CounterMetricFamily(f"python_gc_{name}", text, labels=["generation"])
            for _sample, labels, value in noted:
                family.add_metric([dict(labels).get("generation", "")], value)
            yield family


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(name, text, value=value)
