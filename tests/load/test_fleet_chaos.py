"""Everything at once: hosts, exporters and a store that come, go, hang and are killed."""

from __future__ import annotations

import contextlib
import http.client
import os
import random
import signal
import time
from typing import TYPE_CHECKING

import pytest

from obskit_gunicorn._fleet.source import FleetSource
from obskit_gunicorn._fleet.store import Store
from tests.support import stores
from tests.support.fleet import Fleet, FleetWatch, Proxy, shows_fleet, value
from tests.support.process import process_stat, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.support.process import GunicornProcess
    from tests.support.stores import StoreServer

pytestmark = [pytest.mark.live, pytest.mark.load, pytest.mark.timeout(0)]

SECONDS = float(os.environ.get("OBSKIT_SOAK_SECONDS", "3600"))
HOSTS = 4
FORGET_SECONDS = 3.0


class Chaos:
    """What may happen to a fleet.

    Attributes:
        happened: How often each thing has happened.
        lost: How many requests may be lost, with the volumes of hosts that were killed.
    """

    def __init__(self, fleet: Fleet, store: StoreServer, stack: contextlib.ExitStack) -> None:
        """Name the fleet and its store."""
        self._fleet, self._store, self._stack = fleet, store, stack
        self._proxies: dict[GunicornProcess, Proxy] = {}
        self._folder = FleetSource(Store(store.url, "default"), forget_seconds=FORGET_SECONDS)
        self.happened: dict[str, int] = {}
        self.lost = 0

    def once(self) -> None:
        """Let one thing happen."""
        things: list[Callable[[], None]] = [
            self.replace,
            self.kill_exporter,
            self.kill_worker,
            self.reload,
            self.upgrade,
            self.kill_with_volume,
            self.kill_without_volume,
            self.cut_off,
            self.kill_store,
            self.hang_store,
            self.cut_connections,
        ]
        thing = random.choice(things)
        thing()
        self.happened[thing.__name__] = self.happened.get(thing.__name__, 0) + 1
        with contextlib.suppress(Exception):  # the store may be gone at this moment
            self._folder.read()

    def start(self, again: GunicornProcess | None = None) -> None:
        """Start a host, with a way to the store of its own."""
        proxy = self._stack.enter_context(Proxy(self._store.port))
        server = self._fleet.start(url=proxy.url, again=again)
        self._proxies[server] = proxy

    def replace(self) -> None:
        """Start a host, and end another one in an orderly way."""
        self.start()
        self._fleet.stop(self._fleet.alive[0])

    def kill_exporter(self) -> None:
        """Kill an exporter."""
        for pid in self._any().exporter_pids():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def kill_worker(self) -> None:
        """Kill a worker."""
        self._any().kill_a_worker()

    def reload(self) -> None:
        """Send SIGHUP."""
        self._any().send_signal(signal.SIGHUP)

    def upgrade(self) -> None:
        """Send SIGUSR2, and end the old arbiter."""
        server = self._any()
        old = server.arbiter_pid
        new = server.start_upgrade()
        self._fleet.load(server).wait_for(20)
        os.kill(old, signal.SIGQUIT)
        wait_until(lambda: _has_ended(old), "the old arbiter has ended")
        wait_until(lambda: server.pid_path.exists() and server.arbiter_pid == new, "its own pid")

    def kill_with_volume(self) -> None:
        """Kill a host and all it had; what it had not published is lost."""
        server = self._any()
        with self._fleet.load(server).paused():
            before = self._published(server)
            counted = server.tally()
            self._fleet.kill(server)
        self.lost += max(0, counted - before)
        self.start()

    def kill_without_volume(self) -> None:
        """Kill a host whose volume stays, and start it again."""
        server = self._any()
        self._fleet.kill(server, volume_stays=True)
        self.start(again=server)

    def cut_off(self) -> None:
        """Cut a host off for so long that it is folded."""
        server = self._any()
        self._fleet.alive.remove(server)
        self._proxies[server].cut()
        deadline = time.monotonic() + FORGET_SECONDS + 2
        while time.monotonic() < deadline:
            self._folder.read()
            time.sleep(0.3)
        self._proxies[server].mend()
        wait_until(lambda: shows_fleet(server.metrics_port), "it is back")
        self._fleet.alive.append(server)

    def kill_store(self) -> None:
        """Kill the store, and start it with its log."""
        self._store.stop(signal.SIGKILL)
        time.sleep(random.random() * 2)
        self._store.start()

    def hang_store(self) -> None:
        """Stop the store for a while."""
        self._store.send(signal.SIGSTOP)
        time.sleep(random.random() * 3)
        self._store.send(signal.SIGCONT)

    def cut_connections(self) -> None:
        """Close all connections to the store."""
        with self._store.client() as client:
            client.client_kill_filter(_type="normal", skipme=True)

    def _any(self) -> GunicornProcess:
        """Return a host that is well."""
        server = random.choice(self._fleet.alive)
        wait_until(lambda: _serves(server), "it serves")
        wait_until(lambda: len(server.exporter_pids()) == 1, "there is one exporter")
        return server

    def _published(self, server: GunicornProcess) -> int:
        """Return how much of what a host has counted is certainly published."""
        return server.tally() if shows_fleet(server.metrics_port) else 0


def _serves(server: GunicornProcess) -> bool:
    try:
        return server.get("/pid").status == 200
    except (OSError, http.client.HTTPException):
        return False


def _has_ended(pid: int) -> bool:
    try:
        return process_stat(pid)[0] == "Z"
    except OSError:
        return True


@pytest.fixture
def store(tmp_path: Path) -> Iterator[StoreServer]:
    """Return a store that keeps a log."""
    yield from stores.running(tmp_path / "store", "--appendonly", "yes", "--appendfsync", "always")


def test_everything_at_once(store: StoreServer, capsys: pytest.CaptureFixture[str]) -> None:
    """Whatever happens, no request is counted twice or not at all, and no total falls."""
    with contextlib.ExitStack() as stack:
        fleet = stack.enter_context(Fleet(store.url))
        chaos = Chaos(fleet, store, stack)
        for _ in range(HOSTS):
            chaos.start()
        deadline = time.monotonic() + SECONDS
        with FleetWatch(fleet) as watch:
            while time.monotonic() < deadline:
                chaos.once()
                assert watch.drops == [], (watch.drops, chaos.happened)
            fleet.rest()
            fleet.publish_all()
            time.sleep(1)
            fleet.publish_all()
            watch.once()
        truth, total = fleet.truth(), value(fleet.scrape())
        with store.client() as client:
            fields = client.hlen("obskit:default")
        with capsys.disabled():
            print(
                f"\n{SECONDS:g} s, {sum(chaos.happened.values())} things {chaos.happened}; "
                f"{watch.scrapes} scrapes, {watch.refused} refused; counted {truth}, shown "
                f"{total:g}, lost at most {chaos.lost}; {fields} fields in the store"
            )
        assert truth - chaos.lost <= total <= truth + chaos.happened.get("kill_worker", 0)
        assert watch.increase == total
        assert watch.drops == []
