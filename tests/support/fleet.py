"""Several real servers that come together in one real store, and one who scrapes any of them."""

from __future__ import annotations

import contextlib
import http.client
import os
import random
import shutil
import signal
import socket
import threading
from typing import TYPE_CHECKING, NamedTuple

from tests.support import apps
from tests.support.client import Load, Repeating
from tests.support.process import (
    HOST,
    GunicornProcess,
    Metrics,
    free_port,
    get,
    interpreters,
    parse_metrics,
    wait_until,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

CONFIG = """
from obskit_gunicorn import ObskitGunicornConfig


class Config(ObskitGunicornConfig):
    workers = 2
    worker_class = "gthread"
    threads = 2
"""

FLEET = "/metrics/fleet"
COUNTER = "app_requests_total"
INTERVAL = 0.5


class Fleet:
    """Servers with a name each; a context manager that ends those that are left.

    Attributes:
        alive: The servers that run.
        ended: The bookkeeping of all that have ended: how many requests each had counted.
    """

    def __init__(self, url: str, *, interval: float = INTERVAL, name: str = "default") -> None:
        """Name the store; nothing is started."""
        self.url, self.interval, self.name = url, interval, name
        self.alive: list[GunicornProcess] = []
        self.ended: dict[str, int] = {}
        self._stack = contextlib.ExitStack()
        self._loads: dict[GunicornProcess, Load] = {}
        self._number = 0

    def __enter__(self) -> Fleet:
        """Start nothing yet."""
        return self

    def __exit__(self, *error: object) -> None:
        """End every server; prints their logs."""
        self._stack.__exit__(*error)  # type: ignore[arg-type]

    def start(
        self,
        config: str = CONFIG,
        *,
        url: str | None = None,
        environment: Mapping[str, str] | None = None,
        load: bool = True,
        app: str = apps.WSGI,
        index: int = -1,
        shared: bool = True,
        again: GunicornProcess | None = None,
    ) -> GunicornProcess:
        """Start a server, and send requests to it.

        Args:
            config: Its configuration file.
            url: Its way to the store, if that is another one.
            environment: More variables.
            load: Send requests.
            app: Its application.
            index: Which of the interpreters runs it; by default that of the newest Gunicorn.
            shared: Name its directory; otherwise it has a private one.
            again: Start it where this server was, with what that has left.
        """
        self._number += 1
        server = GunicornProcess(
            interpreters()[index],
            config,
            app,
            shared=shared,
            exporter=True,
            root=again.root if again is not None else None,
            environment={
                "OBSKIT_METRICS_REDIS": url or self.url,
                "OBSKIT_METRICS_REDIS_NAME": self.name,
                "OBSKIT_METRICS_REDIS_INTERVAL": str(self.interval),
                "OBSKIT_METRICS_HOST": f"web-{self._number}",
                **(environment or {}),
            },
        )
        if again is not None:
            server.tally_path = again.tally_path
        self._stack.enter_context(server)
        self.alive.append(server)
        if load:
            self._loads[server] = self._stack.enter_context(Load(server.port, threads=1))
        return server

    def load(self, server: GunicornProcess) -> Load:
        """Return what sends requests to a server."""
        return self._loads[server]

    def rest(self) -> None:
        """Send no more requests to anybody."""
        for load in self._loads.values():
            load.stop()

    def stop(self, server: GunicornProcess) -> None:
        """End a server in an orderly way, as a rolling deployment does."""
        self.alive.remove(server)
        server.stop()
        if server in self._loads:
            self._loads[server].stop()
        server.wait_until_gone()
        self.ended[str(server.root)] = server.tally()

    def kill(self, server: GunicornProcess, *, volume_stays: bool = False) -> int:
        """Kill all processes of a server at once; return how many requests it had counted."""
        self.alive.remove(server)
        if server in self._loads:  # a request under way may be counted and not in the bookkeeping
            self._loads[server].stop()
        for process in server.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGSTOP)
        for process in server.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGKILL)
        server.wait_until_gone()
        server.pid_path.unlink(missing_ok=True)
        counted = server.tally()
        if not volume_stays:
            shutil.rmtree(server.metrics_directory, ignore_errors=True)
            self.ended[str(server.root)] = counted
        return counted

    def truth(self) -> int:
        """Return how many requests all servers have counted, by their own bookkeeping."""
        counted = {str(server.root): server.tally() for server in self.alive}
        return sum({**self.ended, **counted}.values())

    def scrape(self, server: GunicornProcess | None = None) -> Metrics:
        """Scrape the whole fleet at one of its servers."""
        port = (server or random.choice(self.alive)).metrics_port
        response = get(port, FLEET)
        assert response.status == 200, response
        return parse_metrics(response.body)

    def total(self, server: GunicornProcess | None = None) -> float:
        """Return how many requests the fleet has counted, as one of its servers says."""
        return value(self.scrape(server))

    def publish_all(self) -> None:
        """Scrape every server, so that each has published what it has counted."""
        for server in self.alive:
            _wait_for_page(server.metrics_port)


def _wait_for_page(port: int) -> None:
    wait_until(lambda: shows_fleet(port), "the fleet is shown")


def shows_fleet(port: int) -> bool:
    """Return whether an exporter shows the fleet; one that is being replaced does not."""
    try:
        return get(port, FLEET).status == 200
    except (OSError, http.client.HTTPException):
        return False


def value(metrics: Metrics, name: str = COUNTER, **labels: str) -> float:
    """Return a sample, 0 if there is none."""
    return metrics.get((name, frozenset(labels.items())), 0.0)


class Drop(NamedTuple):
    """A total that was lower than the one before, and what may tell why."""

    before: float
    now: float
    port: int
    facts: list[str]


def _facts(body: str) -> list[str]:
    """Return what an exposition says about the fleet."""
    return [line for line in body.splitlines() if line.startswith("obskit_gunicorn_fleet_")]


class FleetWatch(Repeating):
    """Scrapes a random server again and again, and does Prometheus's arithmetic.

    Attributes:
        scrapes: How many scrapes were answered.
        refused: How many were not.
        drops: Each total that was lower than the one before.
        increase: What ``increase()`` adds up to.
        last: The last total.
    """

    def __init__(self, fleet: Fleet, *, pause: float = 0.1) -> None:
        """Prepare the thread; entering the context starts it."""
        super().__init__(pause)
        self._fleet = fleet
        self._lock = threading.Lock()
        self.scrapes = self.refused = 0
        self.drops: list[Drop] = []
        self.increase = self.last = 0.0

    def once(self) -> None:
        """Scrape."""
        with self._lock:
            servers = list(self._fleet.alive)
            if not servers:
                return
            chosen = random.choice(servers)
            try:
                response = get(chosen.metrics_port, FLEET)
            except (OSError, http.client.HTTPException):
                self.refused += 1
                return
            if response.status != 200:
                self.refused += 1
                return
            self.scrapes += 1
            now = value(parse_metrics(response.body))
            if now < self.last:
                self.drops.append(Drop(self.last, now, chosen.metrics_port, _facts(response.body)))
                self.increase += now
            else:
                self.increase += now - self.last
            self.last = now


class Proxy:
    """A way to a store that can be cut and mended; a context manager."""

    def __init__(self, port: int) -> None:
        """Name the store's port; entering the context opens the way."""
        self.to, self.port = port, free_port()
        self._pairs: list[tuple[socket.socket, socket.socket]] = []
        self._is_cut = False
        self._listener = socket.create_server((HOST, self.port))
        self._thread = threading.Thread(target=self._accept, daemon=True)

    @property
    def url(self) -> str:
        """The address of the store by this way."""
        return f"redis://{HOST}:{self.port}/0"

    def __enter__(self) -> Proxy:
        """Open the way."""
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        """Close it."""
        self._is_cut = True
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # wakes the thread that accepts
        self._thread.join(10)
        self._listener.close()
        self.cut()

    def cut(self) -> None:
        """Cut every connection, and let nobody in."""
        self._is_cut = True
        for pair in self._pairs:
            for end in pair:
                with contextlib.suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)
        self._pairs = []

    def mend(self, to: int | None = None) -> None:
        """Let everybody in again, perhaps to another store."""
        self.to = to or self.to
        self._is_cut = False

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            if self._is_cut:
                client.close()
                continue
            try:
                store = socket.create_connection((HOST, self.to), 1)
            except OSError:
                client.close()
                continue
            store.settimeout(None)
            self._pairs.append((client, store))
            for ends in ((client, store), (store, client)):
                threading.Thread(target=self._pump, args=ends, daemon=True).start()

    def _pump(self, source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                target.sendall(data)
        # The other thread sees the end of the stream, and closes what it reads from.
        for end in (source, target):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        source.close()
