"""Random histories with removals: prometheus_client in one process is the judge.

Whatever several processes count and remove, and however they end, there must be what one process
would show that has done all of it in the same order.

One thing is left out, for it differs on purpose: a process that has a label set which another one
has removed shows it again when it counts, and not when it only asks for it.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from prometheus_client import values as prometheus_values

from tests.support import forks
from tests.support.forks import Nursery, RemoteProcess, act, flatten, metric, read_ours

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.conformance

MOST_ALIVE = 4
KINDS = ("counter", "histogram", "summary")
LABELS = ({"a": "1", "z": "1"}, {"a": "1", "z": "2"}, {"a": '"}, {', "z": "2"})

SETTINGS = settings(
    max_examples=15,
    deadline=None,
    database=None,
    print_blob=True,
    suppress_health_check=list(HealthCheck),
)

whos = st.integers(0, MOST_ALIVE - 1)
kinds = st.sampled_from(KINDS)
labels = st.integers(0, len(LABELS) - 1)


class Count(NamedTuple):
    """A process counts."""

    who: int
    kind: str
    labels: int
    quarters: int


class Remove(NamedTuple):
    """A process removes a label set, and may make it again."""

    who: int
    kind: str
    labels: int
    how: str


class Fork(NamedTuple):
    """A process forks; the child inherits its metrics."""

    who: int


class End(NamedTuple):
    """A process ends, and another one takes its place, and its slot."""

    who: int
    is_killed: bool


counts = st.builds(Count, whos, kinds, labels, st.integers(-8, 8))
steps = st.one_of(
    counts,
    counts,
    counts,
    st.builds(Remove, whos, kinds, labels, st.sampled_from(["remove", "again", "clear", "some"])),
    st.builds(Fork, whos),
    st.builds(End, whos, st.booleans()),
)


@pytest.mark.timeout(900)
@given(history=st.lists(steps, min_size=5, max_size=25))
@SETTINGS
def test_histories(history: list[Any], nursery: Nursery, tmp_path: Path) -> None:
    """After each step there is what the judge shows."""
    _play(history, nursery, tmp_path)


@pytest.mark.load
@pytest.mark.timeout(7200)
@given(history=st.lists(steps, min_size=20, max_size=80))
@settings(SETTINGS, max_examples=1000)
def test_many_long_histories(history: list[Any], nursery: Nursery, tmp_path: Path) -> None:
    """The same with more and longer histories."""
    _play(history, nursery, tmp_path)


def _play(history: list[Any], nursery: Nursery, place: Path) -> None:
    path = tempfile.mkdtemp(dir=place)
    try:
        judge = nursery.start()
        judge.call(_be_the_judge)
        alive = [_start(nursery, path)]
        for step in history:
            who = step.who % len(alive)
            process = alive[who]
            if isinstance(step, Fork):
                if len(alive) < MOST_ALIVE:
                    alive.append(process.fork())
            elif isinstance(step, End):
                if step.is_killed:
                    process.kill()
                else:
                    process.end()
                alive[who] = _start(nursery, path)
            else:
                function = _count if isinstance(step, Count) else _remove
                judge.call(function, *step[1:])
                process.call(function, *step[1:])
            assert read_ours(path) == judge.call(_judgement)
        for process in alive:
            process.kill()
        assert read_ours(path) == judge.call(_judgement)
    finally:
        nursery.forget_all()
        shutil.rmtree(path)


# ------------------------------------------------------------------------------------------------
# What the processes do


def _start(nursery: Nursery, path: str) -> RemoteProcess:
    process = nursery.start()
    process.call(forks.join, path)
    return process


def _be_the_judge() -> None:
    """Keep values in memory, as prometheus_client does for a single process."""
    os.environ.pop("PROMETHEUS_MULTIPROC_DIR", None)
    prometheus_values.ValueClass = prometheus_values.MutexValue
    forks.forget_metrics()


def _judgement() -> dict[str, float]:
    families = [family for each in forks._metrics.values() for family in each.collect()]
    samples = flatten(families)
    return {name: value for name, value in samples.items() if "_created" not in name}


def _count(kind: str, number: int, quarters: int) -> None:
    if kind == "counter":
        # One that adds nothing is no change.
        act(kind, kind, "inc", (abs(quarters) or 1) / 4, labels=LABELS[number])
    else:
        act(kind, kind, "observe", quarters / 4, labels=LABELS[number])


def _remove(kind: str, number: int, how: str) -> None:
    labels = LABELS[number]
    metric(kind, kind, labels)
    parent = forks._metrics[kind, kind]
    if how == "clear":
        parent.clear()
    elif how == "some" and hasattr(parent, "remove_by_labels"):
        parent.remove_by_labels({"z": labels["z"]})
    else:
        parent.remove(*labels.values())
        if how == "again":
            metric(kind, kind, labels)
