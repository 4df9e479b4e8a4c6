"""A load client that knows which requests were answered, and a watch over the metrics meanwhile."""

from __future__ import annotations

import abc
import contextlib
import http.client
import signal
import threading
from typing import TYPE_CHECKING

from tests.support.process import (
    HOST,
    GunicornProcess,
    Metrics,
    Response,
    get,
    parse_metrics,
    wait_until,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType

    from typing_extensions import Self

__all__ = ["Load", "Repeating", "Watch", "reload_under_load"]

_COUNTED_SUFFIXES = ("_total", "_count", "_bucket", "_sum")


class Load:
    """Threads that send requests to ``/``, each on a connection of its own; a context manager.

    A request whose answer has been read whole is *answered*. One that was sent and got no answer
    with status 200 is *unknown*: it may have been counted or not. One that found nobody to connect
    to is neither.

    Attributes:
        answered: How many requests were answered.
        unknown: What became of the others, in words.
    """

    def __init__(self, port: int, *, threads: int = 3, pause: float = 0.01) -> None:
        """Prepare the threads; entering the context starts them.

        Args:
            port: The server's port on 127.0.0.1.
            threads: How many.
            pause: How long each waits between two requests, in seconds; three times as long while
                nobody waits for them.
        """
        self.answered = 0
        self._goal = 0
        self.unknown: list[str] = []
        self._port = port
        self._pause = pause
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._may_run = threading.Event()
        self._may_run.set()
        self._in_flight = 0
        self._threads = [threading.Thread(target=self._run, daemon=True) for _ in range(threads)]

    def __enter__(self) -> Load:
        """Start to send."""
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stop, once every request has its outcome."""
        self.stop()

    def stop(self) -> None:
        """Stop, once every request has its outcome."""
        self._stopped.set()
        self._may_run.set()
        for thread in self._threads:
            thread.join(30)
            assert not thread.is_alive(), "a request has no outcome after 30 s"

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Hold the threads between two requests, so that none is in flight."""
        self._may_run.clear()
        wait_until(lambda: self._in_flight == 0, "no request is in flight")
        try:
            yield
        finally:
            self._may_run.set()

    def wait_for(self, count: int) -> None:
        """Wait until so many more requests have been answered."""
        goal = self._goal = self.answered + count
        wait_until(lambda: self.answered >= goal, f"{count} more requests are answered")

    def _run(self) -> None:
        while not self._stopped.is_set():
            with self._lock:
                runs = self._may_run.is_set()
                self._in_flight += runs
            if not runs:
                self._may_run.wait()
                continue
            try:
                self._send()
            finally:
                with self._lock:
                    self._in_flight -= 1
            self._stopped.wait(self._pause * (1 if self.answered < self._goal else 3))

    def _send(self) -> None:
        connection = http.client.HTTPConnection(HOST, self._port, timeout=20)
        try:
            try:
                connection.connect()
            except OSError:
                return
            try:
                connection.request("GET", "/", headers={"Connection": "close"})
                response = connection.getresponse()
                response.read()
                outcome = "" if response.status == 200 else f"status {response.status}"
            except (OSError, http.client.HTTPException) as error:
                outcome = repr(error)
            with self._lock:
                if outcome:
                    self.unknown.append(outcome)
                else:
                    self.answered += 1
        finally:
            connection.close()


class Repeating(abc.ABC):
    """A thread that does one thing again and again; a context manager."""

    def __init__(self, pause: float) -> None:
        """Prepare the thread; entering the context starts it.

        Args:
            pause: How long to wait before each time, in seconds.
        """
        self._pause = pause
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        """Start."""
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stop."""
        self.halt()
        self._thread.join(30)

    def halt(self) -> None:
        """Do it no more; what is being done goes on to its end."""
        self._stopped.set()

    def _run(self) -> None:
        while not self._stopped.wait(self._pause):
            self.once()

    @abc.abstractmethod
    def once(self) -> None:
        """Do it."""


class Watch(Repeating):
    """A thread that scrapes again and again and notes what must never be; a context manager.

    Attributes:
        scrapes: How many scrapes were answered.
        wrong: What went wrong, in words: a counter that went down or away, a scrape that failed
            with a status of 500 or more.
        refused: How many found nobody, or were cut off.
        most_processes: The largest number of processes that were seen alive at once.
        last: The samples of the last scrape.
    """

    def __init__(
        self, server: GunicornProcess, *, pause: float | None = None, port: int | None = None
    ) -> None:
        """Prepare the thread; entering the context starts it.

        Args:
            server: The server to scrape.
            pause: How long to wait between two scrapes, in seconds; by default longer at another
                port, where an exporter reads much of /proc for each.
            port: Where to scrape it; by default, whichever worker answers.
        """
        self.scrapes = 0
        self.wrong: list[str] = []
        self.most_processes = 0
        self.last: Metrics = {}
        self.refused = 0
        self._server = server
        self._port = port or server.port
        super().__init__(pause or (0.08 if port else 0.04))

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stop, once there were enough scrapes to have seen something."""
        try:
            if kind is None:
                wait_until(lambda: self.scrapes > 5, "there are more than five scrapes")
        finally:
            super().__exit__(kind, error, trace)

    def wait_for_scrapes(self, count: int) -> None:
        """Wait until so many more scrapes were answered."""
        goal = self.scrapes + count
        wait_until(lambda: self.scrapes >= goal, f"{count} more scrapes are answered")

    def once(self) -> None:
        """Scrape."""
        self.most_processes = max(self.most_processes, len(self._server.processes()))
        try:
            response = get(self._port, "/metrics")
        except (OSError, http.client.HTTPException):
            self.refused += 1
            return  # the worker was killed, or nobody listens
        self._take(response)

    def _take(self, response: Response) -> None:
        if response.status != 200:
            self.wrong.append(f"scrape {self.scrapes}: status {response.status}")
            return
        now = parse_metrics(response.body)
        for key, before in self.last.items():
            name, labels = key
            # Those of a process begin anew with the next holder of its slot.
            if not name.endswith(_COUNTED_SUFFIXES) or name.startswith("gunicorn_process_"):
                continue
            # That of an arbiter begins anew with the next one; see test_standard_names.py.
            if name == "process_cpu_seconds_total" and any(
                count for (other, _), count in now.items() if other == "gunicorn_upgrades_total"
            ):
                continue
            value = now.get(key)
            if value is None or value < before:
                self.wrong.append(
                    f"scrape {self.scrapes}: {name}{dict(labels)} was {before}, is {value}"
                )
        self.last = now
        self.scrapes += 1


def reload_under_load(server: GunicornProcess) -> tuple[Load, set[int]]:
    """Send a SIGHUP to a server with two workers while clients ask.

    Returns:
        The load, which has stopped, and all workers, those of before too.
    """
    old = server.wait_for_workers(2)
    with Load(server.port) as load:
        load.wait_for(20)
        server.send_signal(signal.SIGHUP)
        new = server.wait_for_workers(2, without=old)
        load.wait_for(20)
    return load, old | new
