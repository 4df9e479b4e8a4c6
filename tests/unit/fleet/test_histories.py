"""Histories of hosts that publish, die, are folded and return, against a plain sum; real stores."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import tempfile
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    multiple,
    precondition,
    rule,
    run_state_machine_as_test,
)

from obskit_gunicorn._fleet.publisher import Publisher, Reading
from obskit_gunicorn._fleet.source import FORGET_SECONDS, GRACE_SECONDS, FleetSource
from obskit_gunicorn._fleet.store import Store
from obskit_gunicorn._scrape.source import Part
from obskit_gunicorn._store import baselines
from obskit_gunicorn._store.fileformat import pack_entry
from tests.support import stores

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.support.stores import StoreServer

PAIR_BYTES = 16
LABELS = ("a", "b", "c")
numbers = itertools.count()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StoreServer]:
    """Return a store for all histories; each has a name of its own."""
    yield from stores.running(tmp_path_factory.mktemp("store"))


class Directory:
    """A host's directory: what is counted in it, in one generation after the other."""

    def __init__(self) -> None:
        self.path = tempfile.mkdtemp(prefix="history-")
        self.counts: Counter[str] = Counter()
        self.generation = ""
        self.begin()

    def begin(self) -> None:
        """Begin a generation: all counts are gone."""
        self.generation = f"{next(numbers):016x}"
        self.counts = Counter()

    def read(self) -> Reading:
        """Return what an exporter would read."""
        keys = tuple(_key(label) for label in self.counts)
        parts = [Part("counter", "", keys, tuple(map(float, self.counts.values())))]
        return Reading(self.path, self.generation, parts, ())


def _key(label: str) -> bytes:
    text = json.dumps(["things", "things_total", {"label": label}, "Things."])
    return pack_entry(text.encode(), 0.0, 0.0)[:-PAIR_BYTES]


class Host:
    """A host: a directory, an exporter that publishes it, and one that may come besides."""

    def __init__(self, url: str, name: str, clock: Any, *, returns: bool) -> None:
        self.directory = Directory()
        self._url, self._name, self._clock, self._returns = url, name, clock, returns
        self.publishers: list[Publisher] = []
        self.published: Counter[str] = Counter()
        self.start_exporter()

    def start_exporter(self) -> None:
        """Start an exporter; the one before, if there is one, goes on."""
        store = Store(self._url, self._name)
        publisher = Publisher(
            store, self.directory.read, host="host", interval=5.0, returns=self._returns
        )
        self.publishers = [*self.publishers[-1:], publisher]
        self.source = FleetSource(store, clock=self._clock)

    def kill_exporters(self) -> None:
        """Kill them all, and start another one."""
        self.publishers = []
        self.start_exporter()

    def publish(self, *, ended: bool = False) -> None:
        """Publish through the exporters, the newest one last."""
        for publisher in self.publishers:
            publisher.publish(ended=ended)
        self.published = self.directory.counts.copy()


class Histories(RuleBasedStateMachine):
    """Hosts and one who scrapes them, as Prometheus does through a load balancer."""

    hosts = Bundle("hosts")
    server: StoreServer
    client: Any

    def __init__(self) -> None:
        super().__init__()
        self.name = f"history-{next(numbers)}"
        self.now = 0.0
        self.truth: Counter[str] = Counter()
        self.alive: list[Host] = []
        self.seen: Counter[str] = Counter()
        self.increase: Counter[str] = Counter()
        self.has_restarted = False
        store = Store(self.server.url, self.name)
        self.idle = FleetSource(store, clock=lambda: self.now)

    def teardown(self) -> None:
        """Check the sums at the end, and leave nothing."""
        try:
            for host in self.alive:
                host.publish()
            self.look(self.idle)
            self.look(FleetSource(Store(self.server.url, self.name)))
            assert +self.increase == +self.truth
            if not self.has_restarted:
                assert +self.seen == +self.truth
        finally:
            for host in self.alive:
                shutil.rmtree(host.directory.path, ignore_errors=True)
            self.client.delete(f"obskit:{self.name}")

    def look(self, source: FleetSource) -> None:
        """Scrape, and do Prometheus's arithmetic; a total may fall only at a restart."""
        found: Counter[str] = Counter()
        for metric in source.read().snapshot.metrics():
            for sample in metric.samples:
                found[sample.labels["label"]] = int(sample.value)
                assert sample.value == int(sample.value)
        for label in LABELS:
            before, now = self.seen[label], found[label]
            assert now >= before or self.has_restarted, (label, before, now)
            self.increase[label] += now - before if now >= before else now
        self.seen = found

    def lose_unpublished(self, host: Host) -> None:
        """Take out of the truth what nobody can know any more."""
        self.truth.subtract(host.directory.counts - host.published)
        host.published = Counter()

    @initialize(target=hosts, returns=st.booleans())
    def first_host(self, returns: bool) -> Host:
        """Start with one host."""
        return self.start_host(returns)

    def start_host(self, returns: bool) -> Host:
        """Start a host."""
        host = Host(self.server.url, self.name, lambda: self.now, returns=returns)
        self.alive.append(host)
        return host

    @rule(target=hosts, returns=st.booleans())
    def another_host(self, returns: bool) -> Host:
        """Start another host."""
        return self.start_host(returns)

    @rule(host=hosts, label=st.sampled_from(LABELS), amount=st.integers(1, 9))
    def count(self, host: Host, label: str, amount: int) -> None:
        """Count something."""
        host.directory.counts[label] += amount
        self.truth[label] += amount

    @rule(host=hosts)
    def publish(self, host: Host) -> None:
        """Publish at the interval."""
        host.publish()

    @rule(host=hosts)
    def scrape(self, host: Host) -> None:
        """Scrape a host: it publishes first."""
        host.publish()
        self.look(host.source)

    @rule()
    def scrape_idle(self) -> None:
        """Scrape one who publishes nothing."""
        self.look(self.idle)

    @rule(host=hosts)
    def second_exporter(self, host: Host) -> None:
        """Have two exporters publish one directory, as at a SIGUSR2."""
        host.start_exporter()

    @rule(host=hosts)
    def kill_exporter(self, host: Host) -> None:
        """Kill the exporter; the directory stays."""
        host.kill_exporters()

    @rule(host=hosts, folds=st.booleans())
    def silence(self, host: Host, folds: bool) -> None:
        """Let so much time go by that silent hosts are forgotten; all but one publish."""
        for source in (self.idle, host.source):
            source.read()
        self.now += FORGET_SECONDS + 1
        if folds:
            for other in self.alive:
                if other is not host:
                    other.publish()
            self.idle.read()

    @rule(host=hosts)
    def end_and_start(self, host: Host) -> None:
        """End a host in an orderly way and start it again: its directory is wiped."""
        host.publish(ended=True)
        host.directory.begin()
        host.published = Counter()
        host.kill_exporters()

    @rule(host=hosts)
    def end_and_return(self, host: Host) -> None:
        """End a host, let it be folded, and go on with its totals, as with metrics_keep."""
        host.publish(ended=True)
        self.idle.read()
        self.now += GRACE_SECONDS + 1
        self.idle.read()
        host.kill_exporters()

    @rule(host=hosts)
    def kill_and_wipe(self, host: Host) -> None:
        """Kill a host with its volume; another one has its name."""
        self.lose_unpublished(host)
        host.directory.begin()
        host.kill_exporters()

    @precondition(lambda self: len(self.alive) > 1)
    @rule(host=consumes(hosts))
    def end(self, host: Host) -> None:
        """End a host for good."""
        host.publish(ended=True)
        self.alive.remove(host)
        shutil.rmtree(host.directory.path, ignore_errors=True)

    @rule(host=hosts, target=hosts)
    def fold_what_has_ended(self, host: Host) -> Any:
        """Let a host fold what has ended."""
        host.source.read()
        self.now += GRACE_SECONDS + 1
        host.source.read()
        return multiple()

    @invariant()
    def folds_are_few(self) -> None:
        """What is kept in the store is bounded by what is alive or has just ended."""
        assert self.client.hlen(f"obskit:{self.name}") < 2000


class HistoriesWithLosses(Histories):
    """The same, with a store that loses things."""

    def settle(self) -> None:
        """Have everything published and scraped, through everybody."""
        for host in self.alive:
            host.publish()
            self.look(host.source)
        self.look(self.idle)

    def restart(self) -> None:
        """Have somebody notice, and scrape before much is counted."""
        self.has_restarted = True
        for host in self.alive:
            host.publish()
        self.look(self.alive[0].source)

    @rule()
    def reset(self) -> None:
        """Begin anew, by command."""
        self.settle()
        Store(self.server.url, self.name).reset()
        self.restart()

    @rule()
    def blank(self) -> None:
        """Restart the store without its data."""
        self.settle()
        self.client.delete(f"obskit:{self.name}")
        self.restart()

    @rule(kills=st.booleans())
    def blank_and_new_exporters(self, kills: bool) -> None:
        """Restart the store without its data, and the exporters at the same time."""
        self.settle()
        self.client.delete(f"obskit:{self.name}")
        if kills:
            for host in self.alive:
                host.kill_exporters()
        self.restart()

    @rule(label=st.sampled_from(LABELS), amount=st.integers(1, 9))
    def old_snapshot(self, label: str, amount: int) -> None:
        """Restart the store with an old snapshot: something was published since."""
        self.settle()
        dump: Any = self.client.dump(f"obskit:{self.name}")
        for host in self.alive:
            host.directory.counts[label] += amount
            self.truth[label] += amount
        self.settle()
        self.client.restore(f"obskit:{self.name}", 0, dump, replace=True)
        self.restart()


@pytest.mark.parametrize("machine", [Histories, HistoriesWithLosses])
@pytest.mark.parametrize("examples", [25, pytest.param(400, marks=pytest.mark.load)])
def test_the_sum_is_right(server: StoreServer, machine: type[Histories], examples: int) -> None:
    """Every total is the plain sum, and falls only where the store has lost something."""
    machine.server = server
    with server.client() as machine.client:
        run_state_machine_as_test(
            machine,
            settings=settings(
                max_examples=examples,
                stateful_step_count=30,
                deadline=None,
                suppress_health_check=list(HealthCheck),
            ),
        )


def test_sums_do_not_fall_by_rounding(server: StoreServer, tmp_path: Path) -> None:
    """A total of numbers that are not exact is the same before and after folding, bit by bit."""
    name, now = f"rounding-{next(numbers)}", [0.0]
    source = FleetSource(Store(server.url, name), clock=lambda: now[0])
    hosts = [Host(server.url, name, lambda: now[0], returns=False) for _ in range(9)]
    seen = 0.0
    for number in range(60):
        host = hosts[number % len(hosts)]
        host.directory.counts["a"] += (number + 1) / 7  # type: ignore[assignment]
        host.publish(ended=number % 5 == 0)
        if number % 5 == 0:
            hosts[number % len(hosts)] = Host(server.url, name, lambda: now[0], returns=False)
        for _ in range(2):
            (metric,) = source.read().snapshot.metrics()
            assert metric.samples[0].value >= seen
            seen = metric.samples[0].value
            now[0] += GRACE_SECONDS + 1
    assert seen == pytest.approx(sum((number + 1) / 7 for number in range(60)), abs=1e-12)


def test_what_was_read_earlier_is_not_published_later(server: StoreServer) -> None:
    """Another exporter of the same directory has read it later, and published it earlier."""
    name = f"order-{next(numbers)}"
    host = Host(server.url, name, lambda: 0.0, returns=False)
    host.directory.counts["a"] = 1
    host.publish()
    other = Publisher(
        Store(server.url, name), host.directory.read, host="host", interval=5.0, returns=False
    )
    has_read: list[bool] = []

    def read_slowly() -> Reading:
        reading = host.directory.read()
        if not has_read:
            has_read.append(True)
            host.directory.counts["a"] += 5
            other.publish()
        return reading

    late = Publisher(Store(server.url, name), read_slowly, host="host", interval=5.0, returns=False)
    late.publish()
    (metric,) = host.source.read().snapshot.metrics()
    assert metric.samples[0].value == 6


def test_a_label_set_that_is_removed(server: StoreServer) -> None:
    """A removal travels; what was folded before is not counted twice, and nothing is negative."""
    now = 0.0
    name = f"removed-{next(numbers)}"
    host = Host(server.url, name, lambda: now, returns=True)
    idle = FleetSource(Store(server.url, name), clock=lambda: now)

    def total() -> dict[str, float]:
        metrics = idle.read().snapshot.metrics()
        return {s.labels["label"]: s.value for metric in metrics for s in metric.samples}

    try:
        host.directory.counts.update(a=100, b=10)
        host.publish()
        assert total() == {"a": 100, "b": 10}
        with open(os.path.join(host.directory.path, baselines.NAME), "xb"):
            pass
        del host.directory.counts["a"]
        host.publish()
        assert total() == {"b": 10}
        host.directory.counts["a"] = 2
        host.publish()
        assert total() == {"a": 2, "b": 10}
        # It is silent for so long that it is folded, and comes back.
        now += FORGET_SECONDS + 1
        idle.read()
        host.publish()
        host.directory.counts.update(b=1)
        host.publish()
        assert total() == {"a": 2, "b": 11}
        host.directory.counts["b"] = 3
        host.publish()
        assert total() == {"a": 2, "b": 10 + 3}
        # Another exporter goes on from what the store knows.
        host.kill_exporters()
        host.directory.counts["b"] = 4
        host.publish()
        assert total() == {"a": 2, "b": 10 + 4}
    finally:
        shutil.rmtree(host.directory.path, ignore_errors=True)
        with server.client() as client:
            client.delete(f"obskit:{name}")
