"""Exemplars, with prometheus_client in one process as the judge: which bucket, and how written.

What several of our processes observe, one after the other, is observed again by a process that has
prometheus_client's own values in its memory. What both show in OpenMetrics must be the same, byte
by byte. The clock is a counter, so that it is known which exemplar is the newest.
"""

from __future__ import annotations

import itertools
import os
import shutil
import tempfile
from typing import TYPE_CHECKING, Any

import prometheus_client.metrics
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client import values as prometheus_values
from prometheus_client.openmetrics.exposition import generate_latest

from obskit_gunicorn._scrape.collector import DirectoryCollector
from obskit_gunicorn._scrape.formats import negotiated
from obskit_gunicorn.multiprocess import MultiProcessCollector
from tests.support.forks import Nursery, join
from tests.support.openmetrics import OPENMETRICS, families

if TYPE_CHECKING:
    from collections.abc import Iterable

pytestmark = pytest.mark.conformance

WORKERS = 3
BOUNDS = (0.5, 1.0, 1e6)

Step = tuple[int, str, str, float, dict[str, str]]
"""Who, which metric, which label, the number, and the labels of the exemplar."""

_made: dict[str, Any] = {}


def use(steps: Iterable[tuple[float, str, str, float, dict[str, str]]]) -> None:
    """Observe, each at its time."""
    for now, kind, label, number, exemplar in steps:
        prometheus_client.metrics.time = _Clock(now)  # type: ignore[assignment, attr-defined]
        if kind not in _made:
            registry = _made.setdefault("registry", CollectorRegistry())
            _made["counter"] = Counter("c", "Help.", ["n"], registry=registry)
            _made["histogram"] = Histogram("h", "Help.", ["n"], buckets=BOUNDS, registry=registry)
        if kind == "counter":
            _made[kind].labels(label).inc(abs(number), exemplar=exemplar)
        else:
            _made[kind].labels(label).observe(number, exemplar=exemplar)


class _Clock:
    """Stands for the module ``time`` where prometheus_client asks it for the time."""

    def __init__(self, now: float) -> None:
        self._now = now

    def time(self) -> float:
        """Return the time."""
        return self._now


def forget() -> None:
    """Begin anew."""
    _made.clear()


def in_one_process(steps: Iterable[tuple[float, str, str, float, dict[str, str]]]) -> str:
    """Observe in this process alone, and return what prometheus_client shows."""
    forget()
    prometheus_values.ValueClass = prometheus_values.MutexValue
    prometheus_client.metrics._use_created = False
    use(steps)
    text: bytes = generate_latest(_made.get("registry", CollectorRegistry()))  # type: ignore[no-untyped-call]
    return text.decode()


TEXTS = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=12)
STEPS = st.lists(
    st.tuples(
        st.integers(0, WORKERS - 1),
        st.sampled_from(["counter", "histogram"]),
        st.sampled_from(["", "a", 'b"\\\n']),
        st.sampled_from([0.25, 0.5, 0.75, 1.0, 3.0, 1e6, 2e7]),
        st.dictionaries(st.sampled_from(["trace_id", "span_id", "A", "z_9"]), TEXTS, max_size=3),
    ),
    max_size=25,
)


def lines(text: str) -> list[str]:
    """Return the lines of an exposition, whose order depends on who was first to observe what.

    A metric that has no series yet has a head in one process, and none here.
    """
    found = sorted(line for line in text.splitlines() if line)
    heads = [line for line in found if line.startswith("# ") and line != "# EOF"]
    names = {line.partition("_")[0] for line in found if not line.startswith("# ")}
    return [line for line in found if line not in heads or line.split()[2] in names]


def is_read(text: str) -> bool:
    """Return whether prometheus_client's parser reads what prometheus_client has written."""
    try:
        families(text)
    except ValueError:
        return False
    return True


def test_as_in_one_process(nursery: Nursery) -> None:
    """Whatever is observed by whom, and with whatever labels; also while workers are replaced."""
    judge = nursery.start()

    @settings(
        max_examples=6,
        deadline=None,
        phases=[Phase.explicit, Phase.generate],  # each history costs processes
        suppress_health_check=list(HealthCheck),
    )
    @given(STEPS, st.sets(st.integers(0, 24)))
    def play(steps: list[Step], ends: set[int]) -> None:
        directory = tempfile.mkdtemp(prefix="obskit-exemplars-")
        workers = [nursery.start() for _ in range(WORKERS)]
        try:
            for worker in workers:
                worker.call(join, directory)
            collector, clock = DirectoryCollector(directory), itertools.count(1)
            played = []
            for number, (who, *step) in enumerate(steps):
                at = (next(clock) / 8, *step)
                played.append(at)
                workers[who].call(use, [at])
                if number in ends:
                    workers[who].forget()
                    workers[who] = nursery.start()
                    workers[who].call(join, directory)
                    collector.collect()
            expected = judge.call(in_one_process, played)
            found = collector.collect().rendered(negotiated(OPENMETRICS)).decode() + "# EOF\n"
            assert lines(found) == lines(expected)
            if is_read(expected):  # not with some quotation marks and brackets in an exemplar
                families(found)
            registry = CollectorRegistry()
            MultiProcessCollector(registry, directory)
            drop_in: bytes = generate_latest(registry)  # type: ignore[no-untyped-call]
            assert lines(drop_in.decode()) == lines(expected)
        finally:
            for worker in workers:
                worker.forget()
            shutil.rmtree(directory)

    play()


def test_help_that_differs(nursery: Nursery, directory: str) -> None:
    """Samples that are merged one by one have their exemplars too, of all spellings the newest."""
    for number, (help_text, bound) in enumerate((("One.", 1), ("Two.", 1.0)), start=1):
        worker = nursery.start()
        worker.call(join, directory)
        worker.call(_observe, help_text, bound, {"trace_id": str(number)})
    found = DirectoryCollector(directory).collect().rendered(negotiated(OPENMETRICS)).decode()
    shown = [line for line in found.splitlines() if " # " in line]
    assert len(shown) == 2
    assert all('{trace_id="2"}' in line for line in shown)
    families(found + "# EOF\n")


def _observe(help_text: str, bound: float, exemplar: dict[str, str]) -> None:
    histogram = Histogram("h", help_text, buckets=(bound, 2), registry=None)
    histogram.observe(0.5, exemplar=exemplar)
    counter = Counter("c", help_text, registry=None)
    counter.inc(exemplar=exemplar)


def test_the_judge_shows_exemplars() -> None:
    """A comparison of pages that have none would prove nothing."""
    environment = dict(os.environ)
    before = prometheus_values.ValueClass, prometheus_client.metrics._use_created
    clock = prometheus_client.metrics.time  # type: ignore[attr-defined]
    try:
        text = in_one_process([(1.5, "histogram", "", 0.75, {"trace_id": "x"})])
    finally:
        prometheus_values.ValueClass, prometheus_client.metrics._use_created = before
        prometheus_client.metrics.time = clock  # type: ignore[attr-defined]
        forget()
    assert os.environ == environment
    assert 'h_bucket{le="1.0",n=""} 1.0 # {trace_id="x"} 0.75 1.5' in text
