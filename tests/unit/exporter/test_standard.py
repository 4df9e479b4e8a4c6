"""The names that prometheus_client has in one process, shown for a whole server."""

from __future__ import annotations

import logging
import os
import platform
import resource
import signal
import time
from typing import TYPE_CHECKING

import pytest
from prometheus_client import GCCollector, PlatformCollector, ProcessCollector
from prometheus_client.core import CollectorRegistry, GaugeMetricFamily
from prometheus_client.registry import Collector

from obskit_gunicorn._exporter import standard
from obskit_gunicorn._exporter.host import HostFigures
from obskit_gunicorn._exporter.procfs import Processes
from obskit_gunicorn._exporter.standard import StandardNames
from obskit_gunicorn._scrape.own_metrics import Scrape
from obskit_gunicorn._scrape.registry import SharedRegistry, setup_multiprocess_registry
from obskit_gunicorn._store.directory import SlotDirectory
from tests.support.forks import Nursery, RemoteProcess, act, join, reap

if TYPE_CHECKING:
    from collections.abc import Iterator

    from prometheus_client.core import Metric
    from pytest_mock import MockerFixture

TICK = 1 / os.sysconf("SC_CLK_TCK")
GC = ("objects_collected", "objects_uncollectable", "collections")


def _burn(seconds: float) -> None:
    end = time.process_time() + seconds
    while time.process_time() < end:
        pass


def _used() -> float:
    """Return the CPU time of a process and of its children that it has reaped."""
    return sum(os.times()[:4])


def _be_arbiter(directory: str) -> None:
    from obskit_gunicorn._store.membership import membership

    join(directory)
    act("counter", "served", "inc")
    membership.note(
        role="arbiter",
        workers=1,
        python=platform.python_version(),
        implementation=platform.python_implementation(),
    )


def _be_worker() -> None:
    from obskit_gunicorn._store.membership import membership

    act("counter", "served", "inc")
    membership.note(role="worker", state="booted")
    for name in GC:
        for generation in range(3):
            labels = {"generation": str(generation)}
            act("counter", f"gunicorn_gc_{name}", "inc", 2, labels=labels)


class Server:
    """An arbiter and its workers, and what is shown of them."""

    def __init__(self, nursery: Nursery, directory: str) -> None:
        self.directory = directory
        self.arbiter = nursery.start()
        self.arbiter.call(_be_arbiter, directory)
        self.workers: list[RemoteProcess] = []
        self.registry = setup_multiprocess_registry(directory)
        self.registry.register_reader(HostFigures(directory, standard=True).read)

    def start(self) -> RemoteProcess:
        """Fork a worker."""
        worker = self.arbiter.fork()
        worker.call(_be_worker)
        self.workers.append(worker)
        return worker

    def another(self) -> Scrape:
        """Scrape when there is another arbiter."""
        scrape = Scrape(self.directory)
        record = {**(scrape.records["slot0"] or {}), "pid": os.getpid(), "start_ticks": None}
        scrape.records = {"slot0": record}
        return scrape

    def families(self) -> dict[str, Metric]:
        """Scrape; fails if a family is there twice."""
        found = list(self.registry.collect())
        by_name = {family.name: family for family in found}
        assert len(by_name) == len(found)
        return by_name

    def value(self, name: str) -> float:
        """Return the one sample of a family."""
        (sample,) = self.families()[name].samples
        return float(sample.value)

    def cpu(self) -> float:
        """Return the CPU time as an exporter shows it that has just been started."""
        return cpu_of(StandardNames(), Scrape(self.directory))

    def used(self, *gone: RemoteProcess) -> float:
        """Return the CPU time by what the processes themselves say."""
        alive = [worker for worker in self.workers if worker not in gone]
        return float(sum(each.call(_used) for each in (self.arbiter, *alive)))


def cpu_of(names: StandardNames, scrape: Scrape) -> float:
    """Return the CPU time of a server."""
    seen = Processes(scrape.path or "").look(scrape.records)
    (family,) = (one for one in names.families(scrape, seen) if one.name == "process_cpu_seconds")
    found: float = family.samples[0].value
    return found


@pytest.fixture(name="server")
def _server(nursery: Nursery, directory: str) -> Server:
    return Server(nursery, directory)


def _shape(families: list[Metric]) -> dict[str, tuple[str, str, set[str]]]:
    return {
        family.name: (
            family.type,
            family.unit,
            {label for sample in family.samples for label in sample.labels},
        )
        for family in families
    }


def test_names_types_and_labels_are_prometheus_clients(server: Server) -> None:
    """Its own collectors of one process are the judges, and each family says what it is."""
    server.start()
    everything = CollectorRegistry()
    ProcessCollector(registry=everything)
    PlatformCollector(registry=everything)
    GCCollector(registry=everything)
    expected = _shape(list(everything.collect()))
    found = [
        family
        for name, family in server.families().items()
        if name.startswith(("process_", "python_"))
    ]
    assert _shape(found) == expected
    for theirs in everything.collect():
        (ours,) = (family for family in found if family.name == theirs.name)
        assert ours.documentation != theirs.documentation
        start = theirs.documentation.split(" in ", maxsplit=1)[0].rstrip(".").lower()
        assert ours.documentation.lower().startswith(start.split(" of the process")[0])


def test_gc_is_the_sum_over_workers_that_ever_were(server: Server) -> None:
    """A worker that has ended is not forgotten."""
    server.start().kill()
    server.start()
    samples = server.families()["python_gc_collections"].samples
    assert {one.labels["generation"]: one.value for one in samples} == {"0": 4, "1": 4, "2": 4}


def test_own_metrics_win(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    """A metric of the user's with such a name is shown in its place, and nothing is said."""

    class Mine(Collector):
        def collect(self) -> Iterator[Metric]:
            yield GaugeMetricFamily("python_info", "Mine.", value=7)
            yield GaugeMetricFamily("process_max_fds", "Mine.", value=8)

    server.registry.register(Mine())
    worker = server.start()
    worker.call(act, "counter", "process_cpu_seconds", "inc", 1000)
    worker.call(act, "counter", "python_gc_collections", "inc", 5)
    with caplog.at_level(logging.INFO, "obskit_gunicorn"):
        assert server.value("process_cpu_seconds") == 1000
        assert server.value("python_gc_collections") == 5
        assert (server.value("python_info"), server.value("process_max_fds")) == (7, 8)
        assert server.value("process_open_fds") > 0
    assert not caplog.records


def test_they_can_be_left_out(server: Server) -> None:
    """Without them there is what there was."""
    server.start()
    registry = SharedRegistry(server.directory)
    registry.register_reader(HostFigures(server.directory, standard=False).read)
    names = {family.name for family in registry.collect()}
    assert not [name for name in names if name.startswith(("process_", "python_"))]
    assert "gunicorn_process_threads" in names


def test_cpu_time_of_who_has_ended(server: Server) -> None:
    """A worker's time is there while it lives, when it waits to be reaped, and ever after."""
    server.start().call(_burn, 0.1)
    first = server.start()
    first.call(_burn, 0.3)
    before = server.used()
    shown = [server.cpu()]
    after = server.used()
    # The kernel rounds each figure down to ticks; os.times() does too.
    assert before - 12 * TICK <= shown[0] <= after + 12 * TICK
    first.kill()
    shown.append(server.cpu())
    server.arbiter.call(reap, first.pid)
    shown.append(server.cpu())
    assert shown == sorted(shown)
    assert shown[2] - shown[0] < 0.15
    assert server.used(first) - 12 * TICK <= shown[2]


@pytest.mark.parametrize("has_lease", [False, True])
def test_cpu_time_of_who_ends_during_a_scrape(server: Server, has_lease: bool) -> None:
    """A worker that is reaped while a scrape reads counts once."""
    worker = server.start()
    worker.call(_burn, 0.3)
    scrape = Scrape(server.directory)
    seen = Processes(server.directory).look(scrape.records)
    worker.kill()
    server.arbiter.call(reap, worker.pid)
    if not has_lease:  # only its arbiter was read
        seen = [each for each in seen if each.role == "arbiter"]
    (family,) = (
        one for one in StandardNames().families(scrape, seen) if one.name == "process_cpu_seconds"
    )
    assert abs(family.samples[0].value - server.used(worker)) < 12 * TICK


def test_proc_of_another_pid_namespace(server: Server, mocker: MockerFixture) -> None:
    """There the exporter's pid is another process, which is not shown for it."""
    records = Scrape(server.directory).records
    assert [each.role for each in Processes("").look(records)].count("exporter") == 1
    mocker.patch("obskit_gunicorn._exporter.procfs.os.getpid", return_value=1)
    assert [each.role for each in Processes("").look(records)].count("exporter") == 0


def test_cpu_time_without_leases(server: Server) -> None:
    """A worker that has no lease yet, as while it loads the application, counts as well."""
    before = server.cpu()
    server.arbiter.fork().call(_burn, 0.3)
    assert server.cpu() >= before + 0.29


def _fork_many(number: int) -> list[int]:
    pids = []
    for _ in range(number):
        pid = os.fork()
        if not pid:
            while os.getppid() != 1:
                signal.pause()
            os._exit(0)
        pids.append(pid)
    return pids


def _end_all(pids: list[int]) -> None:
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


@pytest.mark.load
def test_cpu_time_of_many_workers(server: Server) -> None:
    """The kernel lists an arbiter's children in pieces, of which each is read."""
    pids = server.arbiter.call(_fork_many, 700)
    arbiter = server.arbiter.pid
    found = list(standard._family({}, {arbiter}, {arbiter}))
    server.arbiter.call(_end_all, pids)
    assert {process.pid for process in found} == {arbiter, *pids}


def test_cpu_time_never_falls(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was shown stays, also if a reading lacks something; another arbiter begins anew."""
    worker = server.start()
    worker.call(_burn, 0.2)
    names, scrape = StandardNames(), Scrape(server.directory)
    shown = cpu_of(names, scrape)
    other = server.another()
    monkeypatch.setattr(standard, "_family", lambda *args: ())
    assert cpu_of(names, scrape) == shown
    assert cpu_of(names, other) == 0


def test_figures_of_processes(server: Server) -> None:
    """Memory is a sum, descriptors are those of the fullest process, the start is the arbiter's."""
    server.start()
    full = server.start()
    full.call(resource.setrlimit, resource.RLIMIT_NOFILE, (100, 100))
    families = server.families()

    def figures(name: str) -> dict[str, float]:
        samples = families[f"gunicorn_process_{name}"].samples
        return {sample.labels["worker"]: sample.value for sample in samples}

    def shown(name: str) -> float:
        (sample,) = families[f"process_{name}"].samples
        return float(sample.value)

    # Here nobody's exporter is asked, so this process is none of them.
    memory = figures("proportional_memory_bytes")
    own = {slot: number for slot, number in memory.items() if slot}
    assert len(own) == 3
    assert shown("resident_memory_bytes") == sum(own.values())
    assert 0 < shown("resident_memory_bytes") < sum(figures("resident_memory_bytes").values())
    assert shown("virtual_memory_bytes") > shown("resident_memory_bytes")
    assert shown("max_fds") == 100
    assert shown("open_fds") == figures("open_fds")["slot2"]
    assert shown("start_time_seconds") == figures("start_time_seconds")["slot0"]
    assert abs(shown("start_time_seconds") - time.time()) < 3600


def test_leases_are_read_once(server: Server, mocker: MockerFixture) -> None:
    """A scrape with live gauges and figures of processes asks once who holds which lease."""
    server.start().call(act, "gauge_livesum", "level", "set", 3)
    reading = mocker.spy(SlotDirectory, "records")
    assert server.value("level") == 3
    assert reading.call_count == 1
