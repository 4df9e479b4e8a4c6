"""Processes that count a label set while others remove it, and are killed at any moment.

Each writer announces what it is about to count, and then that it has counted it. When a removal has
returned, a scrape must find at least what was counted after that, and at most what was not yet
counted when the removal began; and never anything below zero.
"""

from __future__ import annotations

import mmap
import os
import random
import struct
import time
from pathlib import Path
from typing import NamedTuple

import pytest

from obskit_gunicorn._scrape.collector import DirectoryCollector
from tests.support.forks import Nursery, RemoteProcess, join, metric, wait_until

_TALLY = struct.Struct("2q")
_MOST = 10_000
_VALUE = 3
X = {"label": "x"}
NAMES = {"counter": "_total", "histogram": "_count", "summary": "_count"}


def write_for_ever(path: str, tally_path: str, number: int) -> None:
    """Count with all kinds of metrics; in a remote process."""
    join(path)
    with open(tally_path, "r+b") as file:
        everybody = memoryview(mmap.mmap(file.fileno(), 0))
    cells = everybody[_TALLY.size * number : _TALLY.size * (number + 1)].cast("q")
    while True:
        cells[0] += 1
        metric("counter", "counter", X).inc()
        metric("histogram", "histogram", X).observe(_VALUE)
        metric("summary", "summary", X).observe(_VALUE)
        cells[1] += 1


def remove_all() -> None:
    """Remove the label set of all metrics; in a remote process."""
    from tests.support import forks

    for kind in NAMES:
        metric(kind, kind, X)
        forks._metrics[kind, kind].remove("x")


class Counts(NamedTuple):
    """What all writers have announced, and what they have done."""

    announced: int
    done: int


class _Race:
    """Some writers, and a process that removes."""

    def __init__(self, nursery: Nursery, place: Path) -> None:
        self.path = str(place / "metrics")
        os.mkdir(self.path)
        self._nursery = nursery
        self._tally_path = place / "tally"
        self._tally_path.write_bytes(bytes(_TALLY.size * _MOST))
        with self._tally_path.open("rb") as file:
            self._tally = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self._count = 0
        self._collector = DirectoryCollector(self.path)

    def writer(self) -> RemoteProcess:
        process = self._nursery.start()
        process.tell(write_for_ever, self.path, str(self._tally_path), self._count)
        self._count += 1
        return process

    def remover(self) -> RemoteProcess:
        process = self._nursery.start()
        process.call(join, self.path)
        return process

    def counts(self) -> Counts:
        columns = zip(*_TALLY.iter_unpack(self._tally[: _TALLY.size * self._count]), strict=True)
        return Counts(*map(sum, columns))

    def check(self, begun: Counts, returned: Counts) -> None:
        """Scrape, and compare with what was counted when a removal began and had returned.

        Each writer may have been in the middle of counting then: one that was killed is for ever.
        """
        low = self.counts().done - returned.announced
        found = {
            sample.name: sample.value
            for family in self._collector.collect().metrics()
            for sample in family.samples
        }
        high = self.counts().announced - begun.done
        assert all(value >= 0 for value in found.values()), found
        for kind, suffix in NAMES.items():
            assert low <= found.get(kind + suffix, 0.0) <= high, (kind, low, found, high)
        for kind in ("histogram", "summary"):
            # What was under way at the removal, or is now, may be half counted.
            half = abs(found.get(f"{kind}_sum", 0.0) - _VALUE * found.get(f"{kind}_count", 0.0))
            assert half <= 2 * _VALUE * self._count, (kind, found)


def race(nursery: Nursery, place: Path, seconds: float) -> int:
    """Remove again and again; return how often."""
    rng = random.Random(seconds)
    run = _Race(nursery, place)
    writers = [run.writer() for _ in range(3)]
    remover = run.remover()
    removals = kills = 0
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline or kills < 4 or removals < 8:
        counted = run.counts().done
        wait_until(lambda: run.counts().done > counted + 20, "writers count")  # noqa: B023
        if rng.random() < 0.3:
            remover.tell(remove_all)
            wait_until(lambda: rng.random() < 0.01, "some time has passed")
            remover.forget()
            kills += 1
            remover = run.remover()
        begun = run.counts()
        remover.call(remove_all)
        returned = run.counts()
        removals += 1
        for _ in range(3):
            run.check(begun, returned)
        if rng.random() < 0.3:
            at = rng.randrange(len(writers))
            writers[at].forget()
            writers[at] = run.writer()
            kills += 1
        run.check(begun, returned)
    for writer in writers:
        writer.kill()
    run.check(begun, returned)
    return removals


def test_race(nursery: Nursery, tmp_path: Path) -> None:
    """What is removed is gone, and what is counted then is counted."""
    assert race(nursery, tmp_path, 2.0) >= 8


@pytest.mark.load
@pytest.mark.timeout(600)
def test_long_race(nursery: Nursery, tmp_path: Path) -> None:
    """The same for minutes."""
    assert race(nursery, tmp_path, 120.0) > 100
