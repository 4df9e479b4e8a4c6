"""Exemplars and states while they are read: their writers race the reader and are killed.

Whatever a writer says is made of one number, so that half of it, or halves of two, would show.
"""

from __future__ import annotations

import random
import time
import warnings
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, Counter, Enum, Histogram, Info

from obskit_gunicorn._scrape.collector import DirectoryCollector
from obskit_gunicorn._scrape.formats import negotiated
from tests.support.forks import Nursery, RemoteProcess, join, wait_until
from tests.support.openmetrics import OPENMETRICS, families, is_whole

WRITERS = 3
STATES = tuple("abcdefg")


def write(path: str, seed: int) -> None:
    """Count with exemplars, and say things, until killed; in a remote process."""
    join(path)
    warnings.simplefilter("ignore")  # prometheus_client's, about remove()
    registry = CollectorRegistry()
    counter = Counter("c", "Help.", ["n"], registry=registry)
    histogram = Histogram("h", "Help.", buckets=(1e12,), registry=registry)
    info = Info("i", "Help.", ["n"], registry=registry)
    enum = Enum("e", "Help.", states=STATES, registry=registry)
    rng = random.Random(seed)
    while True:
        number = rng.randrange(10**9)
        exemplar = {"a": str(number), "b": "é" * (number % 50), "c": str(number)}
        histogram.observe(number, exemplar=exemplar)
        counter.labels(str(number % 400)).inc(number, exemplar=exemplar)
        content = {"a": str(number), "b": "x" * (number % 700), "c": str(number)}
        info.labels(str(number % 3)).info(content)
        enum.state(STATES[number % len(STATES)])
        if number % 50 == 0:
            info.remove(str(number % 3))


def text_of(collector: DirectoryCollector) -> str:
    """Scrape once."""
    return collector.collect().rendered(negotiated(OPENMETRICS)).decode() + "# EOF\n"


def look(collector: DirectoryCollector) -> tuple[int, int]:
    """Scrape once; return how many exemplars and how many Infos are shown."""
    found = families(text_of(collector))
    assert not collector.skipped
    exemplars = [
        sample.exemplar
        for name in ("c", "h")
        for sample in getattr(found.get(name), "samples", ())
        if sample.exemplar is not None
    ]
    for exemplar in exemplars:
        number = int(exemplar.value)
        assert exemplar.labels == {
            "a": str(number),
            "b": "é" * (number % 50),
            "c": str(number),
        }
    infos: list[Any] = list(getattr(found.get("i"), "samples", ()))
    for sample in infos:
        if "a" not in sample.labels:  # it was only made
            continue
        number = int(sample.labels["a"])
        assert sample.labels == {
            "n": str(number % 3),
            "a": str(number),
            "b": "x" * (number % 700),
            "c": str(number),
        }
    states = [sample.value for sample in getattr(found.get("e"), "samples", ())]
    assert sum(states) == bool(states)
    return len(exemplars), len(infos)


@pytest.mark.parametrize(
    ("seconds", "kills"),
    [(2.0, 10), pytest.param(60.0, 400, marks=[pytest.mark.load, pytest.mark.timeout(600)])],
)
def test_nothing_torn(nursery: Nursery, directory: str, seconds: float, kills: int) -> None:
    """At no scrape, whenever writers are killed; and what has been shown does not go away."""
    rng = random.Random(7)
    collector = DirectoryCollector(directory)

    def start() -> RemoteProcess:
        process = nursery.start()
        process.tell(write, directory, rng.randrange(10**6))
        return process

    writers = [start() for _ in range(WRITERS)]
    wait_until(
        lambda: is_whole(text_of(collector)) and min(look(collector)) > 0, "everything is shown"
    )
    end, killed, most, scrapes = time.monotonic() + seconds, 0, 0, 0
    while time.monotonic() < end or killed < kills:
        exemplars, _infos = look(collector)
        scrapes += 1
        assert exemplars >= most
        most = max(most, exemplars)
        if killed < kills and rng.random() < 0.5:
            at = rng.randrange(WRITERS)
            writers[at].forget()
            writers[at] = start()
            killed += 1
    for writer in writers:
        writer.kill()
    # A reader that has never seen the directory finds the same as the one that has.
    fresh = DirectoryCollector(directory)
    for _ in range(2):
        assert look(fresh) == look(collector)
    format_ = negotiated(OPENMETRICS)
    one, other = (set(each.collect().rendered(format_).splitlines()) for each in (fresh, collector))
    assert one ^ other == set()  # in which order depends on who came first
    print(f"{scrapes} scrapes, {killed} kills, {most} exemplars")
