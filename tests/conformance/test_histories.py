"""Random histories of processes, played twice: with prometheus_client's files, and with ours.

prometheus_client is the judge. Its side of a history has a file set per pid, of which nothing is
ever deleted but the live gauges of ended processes, as its documentation asks. Our side plays the
same with slots. After each part of a history all readers must find the same.

What differs on purpose is taken into account where it is played, and nowhere else: a child on
prometheus_client's side makes its metrics anew instead of copying its parent's series as zeros, and
of the modes that show each process only the last holder of each slot is compared.
"""

from __future__ import annotations

import os
import select
import shutil
import signal
import tempfile
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from prometheus_client import Metric
from prometheus_client import values as prometheus_values
from prometheus_client.multiprocess import MultiProcessCollector as TheirCollector
from prometheus_client.multiprocess import mark_process_dead as their_mark_process_dead

from obskit_gunicorn._store.membership import membership
from obskit_gunicorn.multiprocess import MultiProcessCollector, mark_process_dead
from tests.support import forks
from tests.support.forks import Nursery, RemoteProcess, act, metric

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

pytestmark = pytest.mark.conformance

MOST_ALIVE = 4

settings.register_profile(
    "ci",
    max_examples=12,
    deadline=None,
    database=None,
    print_blob=True,
    suppress_health_check=list(HealthCheck),
)
settings.register_profile("load", settings.get_profile("ci"), max_examples=1000)

SUMS = ("counter", "histogram", "summary")
GROUPS = {
    "sums": (*SUMS, "gauge_sum"),
    "extremes": ("gauge_max", "gauge_min"),
    "most recent": ("gauge_mostrecent",),
    "live": ("gauge_livesum", "gauge_livemax", "gauge_livemin", "gauge_livemostrecent"),
    "each process": ("gauge_all", "gauge_liveall"),
}
KINDS = tuple(kind for group in GROUPS.values() for kind in group)
DIVISIBLE = ("histogram", "summary")
"""Whose calls consist of several writes."""

# A fraction of a power of two, so that sums do not depend on their order.
numbers = st.integers(-40, 40).map(lambda number: number / 4)


class Write(NamedTuple):
    """A process uses a metric."""

    who: int
    kind: str
    label: str | None
    action: str
    values: tuple[float, ...]


class Die(NamedTuple):
    """A process is killed by a signal in or right behind a metric call."""

    who: int
    kind: str
    value: float


class Start(NamedTuple):
    """A process starts that has no metrics yet."""


class Fork(NamedTuple):
    """A process forks; the child inherits its metrics."""

    who: int


class End(NamedTuple):
    """A process ends between two metric calls."""

    who: int
    is_killed: bool


class Scrape(NamedTuple):
    """All readers look at what is there, while processes live."""


Step = Write | Die | Start | Fork | End | Scrape


whos = st.integers(0, MOST_ALIVE - 1)


@st.composite
def writes(draw: st.DrawFn, kinds: list[str]) -> Write:
    """Draw a use of a metric of one of some kinds."""
    kind = draw(st.sampled_from(kinds))
    value = draw(numbers)
    values: tuple[float, ...] = (value,)
    if kind == "counter":
        action = draw(st.sampled_from(["inc", "inc", "inc", "reset"]))
        values = () if action == "reset" else (abs(value),)
    elif kind in SUMS:
        action = "observe"
    elif kind.endswith("mostrecent"):
        action, values = "set_at", (value, float(draw(st.integers(1, 20))))
    else:
        action = draw(st.sampled_from(["set", "inc", "dec"]))
    label = draw(st.sampled_from([None, None, "a"]))
    return Write(draw(whos), kind, label, action, values)


@st.composite
def histories(draw: st.DrawFn, among: tuple[str, ...], longest: int) -> list[Step]:
    """Draw what some processes do with metrics of a few kinds, so that they meet in slots."""
    kinds = draw(st.lists(st.sampled_from(among), min_size=1, max_size=3, unique=True))
    fatal = [kind for kind in kinds if kind in DIVISIBLE] or ["counter"]
    writing = writes(kinds)
    ends = st.builds(End, whos, st.booleans())
    single = st.one_of(
        writing,
        writing,
        writing,
        st.builds(Fork, whos),
        ends,
        st.builds(Die, whos, st.sampled_from(fatal), numbers),
        st.builds(Scrape),
    )
    # What a server does all the time: one process takes the place of another.
    recycling = st.tuples(ends, st.just(Start()), writing)
    parts = draw(
        st.lists(
            st.one_of(st.tuples(single), st.tuples(single, single), recycling),
            min_size=3,
            max_size=longest,
        )
    )
    return [step for part in parts for step in part]


@pytest.mark.timeout(900)  # a failure is made small before it is shown
@pytest.mark.parametrize("among", GROUPS.values(), ids=GROUPS.keys())
@given(data=st.data())
@settings(settings.get_profile("ci"))
def test_histories(
    among: tuple[str, ...], data: st.DataObject, nursery: Nursery, tmp_path: Path
) -> None:
    """Whatever processes do and however they end, all readers find prometheus_client's result."""
    _play(data.draw(histories(among, longest=20)), nursery, tmp_path)


@pytest.mark.load
@pytest.mark.timeout(7200)
@given(data=st.data())
@settings(settings.get_profile("load"))
def test_many_long_histories(data: st.DataObject, nursery: Nursery, tmp_path: Path) -> None:
    """The same with more and longer histories."""
    _play(data.draw(histories(KINDS, longest=80)), nursery, tmp_path)


def _play(history: list[Step], nursery: Nursery, place: Path) -> None:
    path = tempfile.mkdtemp(dir=place)
    try:
        played = _History(nursery, path)
        for number, step in enumerate(history):
            played.play(number, step)
        played.compare()
        while played.alive:
            played.play(0, End(0, is_killed=True))
        played.compare()
    finally:
        nursery.forget_all()
        shutil.rmtree(path)


class _Twins(NamedTuple):
    """A process of the history, on both sides."""

    theirs: RemoteProcess
    ours: RemoteProcess


class _History:
    """A history while it is played."""

    def __init__(self, nursery: Nursery, path: str) -> None:
        self.alive: list[_Twins] = []
        self._nursery = nursery
        self._theirs = os.path.join(path, "theirs")
        self._ours = os.path.join(path, "ours")
        self._holders: dict[str, int] = {}
        """The pid that each slot's last holder has on their side."""
        os.mkdir(self._theirs)
        os.mkdir(self._ours)

    def play(self, number: int, step: Step) -> None:
        if isinstance(step, Scrape):
            self.compare()
        elif isinstance(step, Start) or not self.alive:
            self._start()
        else:
            index = step.who % len(self.alive)
            twins = self.alive[index]
            if isinstance(step, Fork):
                self._fork(twins)
            elif isinstance(step, End):
                for process in twins:
                    if step.is_killed:
                        process.kill()
                    else:
                        process.end()
                self._ended(index)
            elif isinstance(step, Die):
                self._note_slot(twins)
                for process in twins:
                    process.tell(_die, step.kind, step.value)
                    process.wait_ended()
                self._ended(index)
            else:
                self._write(twins, number, step)

    def compare(self) -> None:
        """Check that all readers of both sides find the same."""
        expected = self._expected(TheirCollector(None, self._theirs).collect())  # type: ignore[no-untyped-call]
        ours: Any = MultiProcessCollector(None, self._ours)
        assert _samples(ours.collect()) == expected
        # Readers that know of no leases need the live gauges of ended processes removed. Whoever
        # looks into /proc at the wrong moment keeps an ended process's files open a little longer.
        for _ in range(100):
            mark_process_dead("slot0", self._ours)
            theirs: Any = TheirCollector(None, self._ours)  # type: ignore[no-untyped-call]
            if (found := _samples(theirs.collect())) == expected:
                return
            select.select([], [], [], 0.02)
        assert found == expected

    def _start(self) -> None:
        if len(self.alive) == MOST_ALIVE:
            return
        twins = _Twins(self._nursery.start(), self._nursery.start())
        twins.theirs.call(_join_theirs, self._theirs)
        twins.ours.call(forks.join, self._ours)
        self.alive.append(twins)

    def _fork(self, parent: _Twins) -> None:
        if len(self.alive) == MOST_ALIVE:
            return
        twins = _Twins(parent.theirs.fork(), parent.ours.fork())
        twins.theirs.call(_join_theirs, self._theirs)
        self.alive.append(twins)

    def _write(self, twins: _Twins, number: int, step: Write) -> None:
        values = step.values
        if step.action == "set_at":
            # No two timestamps are the same, since then the winner would be a matter of luck.
            values = (values[0], values[1] + number / 1024)
        for process in twins:
            process.tell(_write, step.kind, step.label, step.action, values)
        for process in twins:
            process.answer()
        self._note_slot(twins)

    def _note_slot(self, twins: _Twins) -> None:
        self._holders[twins.ours.call(_take_slot)] = twins.theirs.pid

    def _ended(self, index: int) -> None:
        twins = self.alive.pop(index)
        their_mark_process_dead(twins.theirs.pid, self._theirs)  # type: ignore[no-untyped-call]

    def _expected(self, families: Iterable[Metric]) -> dict[str, Any]:
        """Return their samples, those that show a process labelled with the slot it held last."""
        slots_by_pid = {str(pid): slot for slot, pid in self._holders.items()}
        for family in families:
            kept = []
            for sample in family.samples:
                pid = sample.labels.get("pid")
                if pid is None:
                    kept.append(sample)
                elif pid in slots_by_pid:
                    labels = {**sample.labels, "pid": slots_by_pid[pid]}
                    kept.append(sample._replace(labels=labels))
            family.samples = kept
        return _samples(families)


def _samples(families: Iterable[Metric]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for family in families:
        for sample in family.samples:
            key = f"{sample.name}{sorted(sample.labels.items())}"
            assert key not in found
            found[key] = sample.value
            found[family.name] = (family.type, family.documentation)
    return found


# What the processes do.


def _join_theirs(path: str) -> None:
    """Use prometheus_client's own value class, with no metric made yet."""
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = path
    prometheus_values.ValueClass = prometheus_values.MultiProcessValue()  # type: ignore[no-untyped-call]
    forks.forget_metrics()


def _name(kind: str, label: str | None) -> str:
    return kind if label is None else f"{kind}_labelled"


def _write(kind: str, label: str | None, action: str, values: tuple[float, ...]) -> None:
    labels = None if label is None else {"label": label}
    act(kind, _name(kind, label), action, *values, labels=labels)


def _take_slot() -> str:
    return membership.acquire().slot


def _die(kind: str, value: float) -> None:
    """Do the first of the writes that a call of the metric consists of."""
    used = metric(kind, _name(kind, None))
    if kind == "histogram":
        used._sum.inc(value)
    elif kind == "summary":
        used._count.inc(1)
    else:
        used.inc(abs(value))
    os.kill(os.getpid(), signal.SIGKILL)
