"""Processes that write metrics, as the workers of a server do: real values, real files.

Half of the series are counters, half belong to histograms. ``python -m benchmarks.support.writers``
is the program that forks them; :class:`Writers` starts it and tells it what to do.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType

BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)


class Change(NamedTuple):
    """Which values change between two scrapes."""

    share: float
    """How many of all, from 0 to 1."""

    is_hot: bool = False
    """The same ones in every process, next to each other, as of a few busy routes."""

    @property
    def name(self) -> str:
        """How a table calls it."""
        where = "" if self.share in (0, 1) else " hot" if self.is_hot else " anywhere"
        return f"{self.share:.0%}{where}"


class Writers:
    """So many processes in a directory; a context manager."""

    def __init__(
        self,
        directory: Path,
        workers: int,
        series: int,
        *,
        theirs: bool = False,
        mixed: bool = False,
    ) -> None:
        """Start them, and wait until all have written their series.

        Args:
            directory: Where to.
            workers: How many processes.
            series: How many series each of them writes.
            theirs: With prometheus_client's own value class, in place of ours.
            mixed: Each process makes its series in an order of its own.
        """
        command = [sys.executable, "-m", "benchmarks.support.writers"]
        command += [str(workers), str(series), str(int(theirs)), str(int(mixed))]
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(directory)},
        )
        self._wait()

    def __enter__(self) -> Writers:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End them."""
        self._process.communicate()

    def change(self, change: Change) -> None:
        """Change values."""
        self._tell(f"change {change.share} {int(change.is_hot)}")

    def grow(self, counters: int) -> None:
        """Have every process make so many more series."""
        self._tell(f"grow {counters}")

    def _tell(self, line: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()
        self._wait()

    def _wait(self) -> None:
        assert self._process.stdout is not None
        if self._process.stdout.readline() != "done\n":
            raise RuntimeError("the writers have ended")


class _Worker:
    """What one process does."""

    def __init__(self, series: int, *, mixed: bool) -> None:
        from prometheus_client import CollectorRegistry, Counter, Histogram

        registry = CollectorRegistry()
        self._counter = Counter("app_requests", "R.", ["method", "path"], registry=registry)
        self._seconds = Histogram("app_seconds", "S.", ["path"], registry=registry, buckets=BUCKETS)
        self._values: list[Any] = []
        self._known, self._mixed = 0, mixed
        self.grow(series // 2)
        for number in self._ordered(range(series // 2 // (len(BUCKETS) + 2))):
            child = self._seconds.labels(f"/item/{number}")
            self._values += [child._sum, *child._buckets]

    def _ordered(self, numbers: range) -> list[int]:
        return random.sample(numbers, len(numbers)) if self._mixed else list(numbers)

    def grow(self, counters: int) -> None:
        for number in self._ordered(range(self._known, self._known + counters)):
            self._values.append(self._counter.labels("GET", f"/item/{number}")._value)
        self._known += counters

    def change(self, share: float, is_hot: bool) -> None:
        count = round(len(self._values) * share)
        values = self._values[:count] if is_hot else random.sample(self._values, count)
        for value in values:
            value.inc(random.randrange(1, 9))


def _serve(worker: _Worker, orders: int, answers: int) -> None:
    os.write(answers, b".")
    while order := os.read(orders, 100).decode().split():
        if order[0] == "grow":
            worker.grow(int(order[1]))
        else:
            worker.change(float(order[1]), order[2] == "1")
        os.write(answers, b".")


def main() -> None:
    """Fork the processes, and pass on what is read from the standard input."""
    workers, series, theirs, mixed = map(int, sys.argv[1:])
    if not theirs:
        import obskit_gunicorn.multiprocess  # noqa: F401
    answers, answer = os.pipe()
    orders: list[int] = []
    for _ in range(workers):
        read, write = os.pipe()
        pid = os.fork()
        if pid == 0:
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            for each in (*orders, write):
                os.close(each)
            _serve(_Worker(series, mixed=bool(mixed)), read, answer)
            os._exit(0)
        os.close(read)
        orders.append(write)

    def wait() -> None:
        missing = workers
        while missing:
            missing -= len(os.read(answers, missing))
        print("done", flush=True)

    wait()
    for line in sys.stdin:
        for each in orders:
            os.write(each, line.encode())
        wait()
    for each in orders:
        os.close(each)
    for _ in range(workers):
        os.wait()


if __name__ == "__main__":
    main()
