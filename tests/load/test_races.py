"""Writers that race the reader: counting, growing, ending, being killed and replaced.

Each writer announces what it is about to write, and then that it has written it, in its *tally*: a
stretch of a file that all have mapped, so that what it has announced outlives it. A scrape must
find at least what was written before it began, and at most what was announced when it was over.
"""

from __future__ import annotations

import itertools
import mmap
import operator
import os
import random
import select
import struct
import threading
import time
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import pytest
from prometheus_client.parser import text_string_to_metric_families

from obskit_gunicorn._scrape.collector import DirectoryCollector
from obskit_gunicorn._store.fileformat import encode_key
from obskit_gunicorn._store.reader import MetricFileReader
from obskit_gunicorn._store.writer import MetricFile
from tests.support.forks import (
    Nursery,
    RemoteProcess,
    act,
    join,
    metric,
    read,
    read_ours,
    wait_until,
)

_CELLS = ("c", "labelled", "series", "h", "h_sum", "s", "sum", "max")
"""What a tally counts; each twice, announced and done."""

_TALLY = struct.Struct(f"{2 * len(_CELLS)}q")
_BOUNDS = ("1.0", "2.0", "5.0", "+Inf")
_THREADS = 3
_MOST_WRITERS = 10_000


# ------------------------------------------------------------------------------------------------
# What writers do


def write_for(
    path: str, tally_path: str, stop_path: str, number: int, most_series: int, padding: int
) -> None:
    """Use metrics until a file appears; in a remote process.

    Args:
        path: The multiprocess directory.
        tally_path: Where everybody announces what is written.
        stop_path: The file that ends it.
        number: The writer's own number.
        most_series: How many label sets of its own to make.
        padding: How long their label is.
    """
    join(path)
    rng = random.Random(number)
    with open(tally_path, "r+b") as file:
        everybody = memoryview(mmap.mmap(file.fileno(), 0))
    cells = everybody[_TALLY.size * number : _TALLY.size * (number + 1)].cast("q")
    at = {name: 2 * index for index, name in enumerate(_CELLS)}

    def announce(**amounts: int) -> None:
        for name, amount in amounts.items():
            cells[at[name]] += amount

    def done(**amounts: int) -> None:
        for name, amount in amounts.items():
            cells[at[name] + 1] += amount

    act("gauge_liveall", "live", "set", number)
    series = 0
    for step in itertools.count():
        announce(c=1)
        act("counter", "c", "inc")
        done(c=1)
        announce(labelled=1)
        act("counter", "labelled", "inc", labels={"code": str(rng.randrange(5))})
        done(labelled=1)
        value = rng.randrange(8)
        announce(h=1, h_sum=value, s=1)
        act("histogram", "h", "observe", value)
        act("summary", "s", "observe", value)
        done(h=1, h_sum=value, s=1)
        announce(sum=1)
        act("gauge_sum", "sum", "inc")
        done(sum=1)
        largest = number * 10 + step // 50
        cells[at["max"]] = max(cells[at["max"]], largest)
        metric("gauge_max", "max").set(largest)
        cells[at["max"] + 1] = max(cells[at["max"] + 1], largest)
        if series < most_series and step % 3 == 0:
            label = f"{number}-{series}-".ljust(padding, "x")
            announce(series=1)
            act("counter", "series", "inc", labels={"label": label})
            done(series=1)
            series += 1
        if step % 10 == 0:
            select.select([], [], [], 0.002)
            if os.path.exists(stop_path):
                return


class Tally(NamedTuple):
    """What writers have announced, or done."""

    announced: dict[str, int]
    done: dict[str, int]


class Fleet:
    """The writers of a test.

    Attributes:
        path: The multiprocess directory.
        ended: How writers have ended so far.
    """

    def __init__(self, nursery: Nursery, place: Path, most_series: int, padding: int) -> None:
        """Make the directories; nobody writes yet."""
        self.path = str(place / "metrics")
        self._place = place
        self._nursery = nursery
        self._count = 0
        self._most_series = most_series
        self._padding = padding
        self._tallies = place / "tallies"
        self._tallies.write_bytes(bytes(_TALLY.size * _MOST_WRITERS))
        with self._tallies.open("rb") as file:
            self._tally = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self._writers: list[tuple[RemoteProcess, Path]] = []
        self.ended: Counter[str] = Counter()
        os.mkdir(self.path)

    def start(self) -> None:
        """Start a writer."""
        number = self._count
        self._count += 1
        assert number < _MOST_WRITERS
        stop = self._place / f"{number}.stop"
        writer = self._nursery.start()
        arguments = (number, self._most_series, self._padding)
        writer.tell(write_for, self.path, str(self._tallies), str(stop), *arguments)
        self._writers.append((writer, stop))

    def replace(self, rng: random.Random) -> None:
        """End one writer, in one way or the other, and start another one."""
        writer, stop = self._writers.pop(rng.randrange(len(self._writers)))
        if rng.random() < 0.5:
            writer.forget()
            self.ended["killed"] += 1
        else:
            self._end(writer, stop)
        self.start()

    def end(self) -> None:
        """End every writer when it has finished what it is at."""
        while self._writers:
            self._end(*self._writers.pop())

    def tally(self) -> Tally:
        """Return what all writers, living and ended, have announced and done."""
        columns = zip(*_TALLY.iter_unpack(self._tally[: _TALLY.size * self._count]), strict=True)
        amounts = [(sum(column), max(column)) for column in columns]
        by_kind = [
            {name: amounts[2 * index + kind][name == "max"] for index, name in enumerate(_CELLS)}
            for kind in range(2)
        ]
        return Tally(*by_kind)

    def _end(self, writer: RemoteProcess, stop: Path) -> None:
        stop.touch()
        writer.answer()
        writer.end()
        writer.forget()
        self.ended["ended"] += 1


# ------------------------------------------------------------------------------------------------
# What must hold

Samples = dict[str, float]


def samples_of(text: bytes) -> Samples:
    """Return the samples of an exposition by their names, and check that none occurs twice."""
    found: Samples = {}
    for line in text.decode().split("\n"):
        if line and not line.startswith("#"):
            name, _, value = line.rpartition(" ")
            assert name not in found, f"{name} occurs twice"
            found[name] = float(value)
    return found


def check(samples: Samples, low: dict[str, int], high: dict[str, int]) -> None:
    """Compare a scrape with what was written before it and what was announced after it."""
    sums = {
        "c": samples.get("c_total", 0.0),
        "labelled": _sum_of(samples, "labelled_total{"),
        "series": _sum_of(samples, "series_total{"),
        "h": samples.get("h_count", 0.0),
        "h_sum": samples.get("h_sum", 0.0),
        "s": samples.get("s_count", 0.0),
        "sum": samples.get("sum", 0.0),
        "max": samples.get("max", 0.0),
    }
    for name, value in sums.items():
        assert value.is_integer(), (name, value)
        assert low[name] <= value <= high[name], name
    # A new series is there before its first count.
    assert all(value in (0, 1) for name, value in samples.items() if name.startswith("series_"))
    buckets = [samples.get(f'h_bucket{{le="{bound}"}}', 0.0) for bound in _BOUNDS]
    assert buckets == sorted(buckets)
    assert all(map(float.is_integer, buckets))
    assert buckets[-1] == sums["h"]


def _sum_of(samples: Samples, prefix: str) -> float:
    return sum((value for name, value in samples.items() if name.startswith(prefix)), 0.0)


class Watch:
    """Threads that scrape one directory through one collector, and compare all they see."""

    def __init__(self, fleet: Fleet) -> None:
        """Prepare; nothing is scraped yet."""
        self.scrapes = 0
        self._fleet = fleet
        self._collector = DirectoryCollector(fleet.path)
        self._seen: Samples = {}
        self._lock = threading.Lock()
        self._is_over = threading.Event()
        self._wrong: list[BaseException] = []
        self._threads = [threading.Thread(target=self._run) for _ in range(_THREADS)]

    def __enter__(self) -> Watch:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        for thread in self._threads:
            thread.join()

    def confirm(self) -> None:
        """Raise what a thread has found wrong."""
        for error in self._wrong:
            raise error

    def wait_for_more(self, scrapes: int) -> None:
        """Wait until so many more scrapes were made, and raise what they have found wrong."""
        enough = self.scrapes + scrapes
        wait_until(lambda: self.scrapes >= enough or self._wrong, "scrapes go on")
        self.confirm()

    def scrape(self) -> Samples:
        """Scrape once and check it, and return the samples."""
        with self._lock:
            seen = self._seen
        low = self._fleet.tally().done
        text = self._collector.collect().text()
        high = self._fleet.tally().announced
        samples = samples_of(text)
        check(samples, low, high)
        for name, value in seen.items():
            assert samples.get(name, -1.0) >= value, f"{name} fell from {value}"
        assert not self._collector.skipped
        with self._lock:
            kept = {name: value for name, value in samples.items() if not name.startswith("live{")}
            self._seen = {
                name: max(value, self._seen.get(name, value)) for name, value in kept.items()
            } | {name: value for name, value in self._seen.items() if name not in kept}
            self.scrapes += 1
            is_to_parse = self.scrapes % 25 == 1
        if is_to_parse:
            families = text_string_to_metric_families(text.decode())
            assert sum(len(family.samples) for family in families) == len(samples)
        return samples

    def _run(self) -> None:
        # A pause, so that whoever ends and starts writers gets a turn.
        while not self._is_over.wait(0.002) and not self._wrong:
            try:
                self.scrape()
            except BaseException as error:
                self._wrong.append(error)


def race(
    nursery: Nursery,
    place: Path,
    *,
    seconds: float,
    writers: int,
    most_series: int,
    padding: int,
) -> Fleet:
    """Let writers race scrapes for some time, and compare the end with what was written."""
    rng = random.Random(seconds)
    fleet = Fleet(nursery, place, most_series, padding)
    for _ in range(writers):
        fleet.start()
    deadline = time.monotonic() + seconds
    with Watch(fleet) as watch:
        while (
            time.monotonic() < deadline
            or watch.scrapes <= 10
            or min(fleet.ended["killed"], fleet.ended["ended"]) == 0
        ):
            watch.wait_for_more(2)
            fleet.replace(rng)
        fleet.end()
    watch.confirm()
    samples = watch.scrape()
    tally = fleet.tally()
    check(samples, tally.done, tally.announced)
    unsure = sum(tally.announced[name] - tally.done[name] for name in _CELLS if name != "h_sum")
    assert unsure <= 3 * fleet.ended["killed"]
    theirs = {name: value for name, value in read(fleet.path).items() if "live" not in name}
    ours = {name: value for name, value in read_ours(fleet.path).items() if "live" not in name}
    assert ours == theirs
    slots = {name for name in os.listdir(fleet.path) if name.endswith(".lease")}
    # Who asks whether a slot is free holds it for an instant, so one more may be taken at times.
    assert len(slots) <= writers + 2
    assert watch.scrapes > 10
    assert min(fleet.ended["killed"], fleet.ended["ended"]) > 0
    return fleet


def largest_file(path: str) -> int:
    """Return the size of the largest metric file."""
    return max(file.stat().st_size for file in Path(path).glob("*.db"))


def test_race(nursery: Nursery, tmp_path: Path) -> None:
    """Scrapes are right while writers count, grow their files, end and are replaced."""
    fleet = race(nursery, tmp_path, seconds=4, writers=3, most_series=150, padding=300)
    assert largest_file(fleet.path) > 1 << 15


def test_race_of_large_files(nursery: Nursery, tmp_path: Path) -> None:
    """The same while files grow beyond a MiB."""
    fleet = race(nursery, tmp_path, seconds=3, writers=2, most_series=300, padding=8000)
    assert largest_file(fleet.path) > 1 << 20


@pytest.mark.load
@pytest.mark.timeout(600)
def test_long_race(nursery: Nursery, tmp_path: Path) -> None:
    """The same for minutes, with thousands of label sets and many recycles."""
    fleet = race(nursery, tmp_path, seconds=170, writers=4, most_series=100, padding=400)
    assert largest_file(fleet.path) > 1 << 20
    assert fleet.ended.total() > 50


_PAIRS = 8


def write_pairs(path: str, stop_path: str) -> int:
    """Write equal values and timestamps until a file appears; in a remote process.

    Returns:
        How often each was written.
    """
    file = MetricFile(path)
    keys = [encode_key("g", "g", ["n"], ["x" * 8 * number], "") for number in range(_PAIRS)]
    indexes = [file.add(key, 0.0, 0.0) for key in keys]
    for step in itertools.count():
        for index in indexes:
            for number in range(256):
                file.write_pair(index, float(number), float(number))
        if os.path.exists(stop_path):
            file.release()
            return 256 * step
    raise AssertionError


@pytest.mark.load
def test_no_pair_is_torn(nursery: Nursery, directory: str, tmp_path: Path) -> None:
    """A scrape never sees the value of one moment with the timestamp of another."""
    path, stop = f"{directory}/gauge_mostrecent_slot0.db", tmp_path / "stop"
    writer = nursery.start()
    writer.tell(write_pairs, path, str(stop))
    wait_until(lambda: os.path.exists(path), "the writer has made its file")
    reader = MetricFileReader(path)
    seen = torn = 0
    deadline = time.monotonic() + 8.0
    while time.monotonic() < deadline:
        reader.refresh()
        pairs = list(reader.pairs())
        seen += len(pairs) // 2
        torn += sum(map(operator.ne, pairs[::2], pairs[1::2]))
    stop.touch()
    assert writer.answer() > 1000
    assert seen > 10_000
    assert torn == 0, f"{torn} of {seen}"
