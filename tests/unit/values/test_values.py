"""The value class: what metrics store their numbers in, and what it survives."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import gc
import logging
import os
import random
import resource
import select
import shutil
import signal
import struct
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

import pytest
from prometheus_client import Counter, Gauge
from prometheus_client import values as prometheus_values
from prometheus_client.mmap_dict import MmapedDict, mmap_key
from prometheus_client.samples import Exemplar

from obskit_gunicorn._log import log
from obskit_gunicorn._store.directory import SlotDirectory
from obskit_gunicorn._store.membership import membership
from obskit_gunicorn._values import values
from tests.support import forks
from tests.support.forks import (
    Nursery,
    RemoteProcess,
    act,
    join,
    log_lines,
    mapped_files,
    metric,
    own_value,
    read,
    read_ours,
    slot,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
needs_closing = pytest.mark.skipif(
    not hasattr(prometheus_values, "close_all_multiprocess_files"),
    reason="this prometheus_client has no close_all_multiprocess_files",
)

Step = tuple[Any, ...]


@pytest.fixture(name="holder")
def _holder(nursery: Nursery, directory: str) -> RemoteProcess:
    """A process that shares its metrics and has not used any."""
    process = nursery.start()
    process.call(join, directory)
    return process


def do(kind: str, steps: Iterable[Step]) -> float:
    """Use the metric ``m``; return what this process has contributed to it."""
    for step in steps:
        act(kind, "m", *step)
    return own_value(kind, "m")


def count(name: str = "c", amount: float = 1) -> None:
    """Add to a counter."""
    act("counter", name, "inc", amount)


def _make_metric(kind: str, name: str) -> None:
    metric(kind, name)


def _count_when_called_back(kind: str, series: int) -> int:
    """Make series of a kind, and count wherever objects are collected meanwhile; return how often.

    The first call under the lock is one of these callbacks too: none of them was used before.
    """
    level, seconds, done = (
        metric("gauge_max", "level"),
        metric("histogram", "seconds"),
        metric("summary", "done"),
    )
    calls = 0

    def called_back(_phase: str, _facts: object) -> None:
        nonlocal calls
        calls += 1
        level.inc()
        seconds.observe(1)
        done.observe(1)

    before = gc.get_threshold()
    gc.callbacks.append(called_back)
    gc.set_threshold(5)
    try:
        for number in range(series):
            act(kind, "made", "inc", 1, labels={"number": str(number)})
    finally:
        gc.set_threshold(*before)
        gc.callbacks.remove(called_back)
    return calls


def _count_in_signal_handlers(count: int) -> int:
    """Count in one loop, and in a signal handler that interrupts it; return how often."""
    level, total = metric("gauge_max", "level"), metric("counter", "total")
    calls = 0

    def handle(*_: object) -> None:
        nonlocal calls
        calls += 1
        level.inc()
        total.inc()

    signal.signal(signal.SIGALRM, handle)
    signal.setitimer(signal.ITIMER_REAL, 0.0002, 0.0002)
    try:
        while calls < count:
            level.inc()
            own_value("gauge_max", "level")
            values.close_files()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    return calls


class TestCallsUnderCalls:
    """What the thread that holds the lock counts meanwhile waits, and counts."""

    @pytest.mark.parametrize("kind", ["counter", "gauge_livesum", "gauge_max"])
    def test_callbacks_of_the_garbage_collector(
        self, holder: RemoteProcess, directory: str, kind: str
    ) -> None:
        """As finalizers do, they come whenever an object is made."""
        calls = holder.call(_count_when_called_back, kind, 200)
        found = read(directory)
        assert calls > 0
        assert found["seconds_count"] == found["done_count"] == found["level"] == calls
        made = [value for name, value in found.items() if name.startswith("made")]
        assert made == [1] * 200

    def test_signal_handlers(self, holder: RemoteProcess, directory: str) -> None:
        """They come on any line that is no straight one."""
        calls = holder.call(_count_in_signal_handlers, 500)
        assert read(directory)["total_total"] == calls


class TestSemantics:
    """Base + own: what a slot's second holder finds and leaves."""

    @pytest.mark.parametrize(
        ("kind", "first", "second", "total", "own"),
        [
            ("counter", [("inc", 1000)], [("inc", 1)], 1001, 1),
            ("counter", [("inc", 1000)], [("inc", 5), ("reset",)], 1000, 0),
            ("counter", [("inc", 5), ("reset",)], [("inc", 1)], 1, 1),
            ("counter", [("inc", 0.5)], [], 0.5, 0),
            ("gauge_sum", [("inc", 5)], [("inc", 1)], 6, 1),
            ("gauge_sum", [("set", 5)], [("set", 2), ("set", 3)], 8, 3),
            ("gauge_sum", [("inc", 5)], [("dec", 2)], 3, -2),
            ("gauge_max", [("set", 5)], [("set", 1)], 5, 1),
            ("gauge_max", [("set", 5)], [("set", 9), ("set", 1)], 5, 1),
            ("gauge_max", [("set", -3)], [("set", -7)], -3, -7),
            ("gauge_max", [("set", -7)], [("set", -3)], -3, -3),
            ("gauge_max", [("set", 5)], [("set", float("nan")), ("set", 6)], 6, 6),
            ("gauge_min", [("set", 5)], [("set", 7)], 5, 7),
            ("gauge_min", [("set", 5)], [("set", 3)], 3, 3),
            ("gauge_min", [("set", -5)], [("inc", 2)], -5, 2),
            ("gauge_mostrecent", [("set_at", 5, 100)], [("set_at", 9, 50)], 5, 9),
            ("gauge_mostrecent", [("set_at", 5, 100)], [("set_at", 9, 150)], 9, 9),
            ("gauge_mostrecent", [("set_at", 5, 100)], [], 5, 0),
            ("gauge_livesum", [("inc", 3)], [("inc", 1)], 1, 1),
            ("gauge_livemax", [("set", 3)], [("set", 1)], 1, 1),
            ("gauge_livemin", [("set", -3)], [("set", 1)], 1, 1),
            ("gauge_livemostrecent", [("set_at", 5, 100)], [("set_at", 9, 50)], 9, 9),
        ],
    )
    def test_second_holder(
        self,
        nursery: Nursery,
        directory: str,
        kind: str,
        first: list[Step],
        second: list[Step],
        total: float,
        own: float,
    ) -> None:
        """The file says what both together contributed; ``get`` what this one did."""
        holders = []
        for steps in (first, second):
            holder = nursery.start()
            holder.call(join, directory)
            contributed = holder.call(do, kind, steps)
            assert holder.call(slot) == "slot0"
            holders.append(holder)
            if steps is first:
                holder.kill()
        assert contributed == own
        name = "m_total" if kind == "counter" else "m"
        assert read(directory) == {name: total}
        assert read_ours(directory) == {name: total}

    @pytest.mark.parametrize("mode", ["all", "liveall"])
    def test_one_series_per_holder(self, nursery: Nursery, directory: str, mode: str) -> None:
        """Modes that show each process show the slot's present holder."""
        for value in (3, 8):
            holder = nursery.start()
            holder.call(join, directory)
            holder.call(do, f"gauge_{mode}", [("set", value)])
            assert read_ours(directory) == {'m{pid="slot0"}': value}
            holder.kill()

    def test_histogram_and_summary_go_on(self, nursery: Nursery, directory: str) -> None:
        """Sums, counts and buckets of all holders add up."""
        for value in (0.5, 1.5, 4, 100):
            holder = nursery.start()
            holder.call(join, directory)
            holder.call(act, "histogram", "h", "observe", value)
            holder.call(act, "summary", "s", "observe", value)
            holder.kill()
        assert read(directory) == {
            "h_sum": 106,
            "h_count": 4,
            'h_bucket{le="1.0"}': 1,
            'h_bucket{le="2.0"}': 2,
            'h_bucket{le="5.0"}': 3,
            'h_bucket{le="+Inf"}': 4,
            "s_sum": 106,
            "s_count": 4,
        }

    def test_labels(self, holder: RemoteProcess, directory: str) -> None:
        """Each label set is a number of its own, whatever text its values are."""
        texts = ["plain", 'quo"te', "line\nbreak", "snow ☃", "", "back\\slash"]
        for number, text in enumerate(texts, start=1):
            holder.call(act, "counter", "c", "inc", number, labels={"text": text})
        assert read_ours(directory) == {
            f'c_total{{text="{text}"}}': number for number, text in enumerate(texts, start=1)
        }

    def test_twins_share_their_number(self, holder: RemoteProcess, directory: str) -> None:
        """Values of one key in one process are one number; none overwrites the other."""
        assert holder.call(_twins) == [5.0, 5.0, 1.0, 1.0]
        assert read(directory) == {"c_total": 5.0, "g": 1.0}

    def test_a_gauge_goes_up_and_down(self, holder: RemoteProcess, directory: str) -> None:
        """The context managers and decorators of metrics work on it."""
        assert holder.call(_inside_gauge) == {"g": 1.0}
        assert read(directory) == {"g": 0.0}

    def test_mode_all_is_labelled_by_slot(self, holder: RemoteProcess, directory: str) -> None:
        """A gauge without a mode is mode ``all``, and its pid label is the slot."""
        holder.call(act, "gauge", "g", "set", 4)
        assert read(directory) == {'g{pid="slot0"}': 4.0}

    def test_entries_are_there_when_made(self, holder: RemoteProcess, directory: str) -> None:
        """A metric that was made and never used is exposed as 0, as with prometheus_client."""
        holder.call(count, "c", 0)
        holder.fork().call(_make_metric, "counter", "d")
        assert read(directory) == {"c_total": 0.0, "d_total": 0.0}

    def test_values_of_other_libraries_protocol(self, holder: RemoteProcess) -> None:
        """Everything that prometheus_client asks of a value is there."""
        assert holder.call(_protocol) == [True, None, None, 2.5]


def _twins() -> list[float]:
    counters: list[Any] = [Counter("c", "Help.", registry=None) for _ in range(2)]
    gauges: list[Any] = [
        Gauge("g", "Help.", registry=None, multiprocess_mode="max") for _ in range(2)
    ]
    counters[0].inc(2)
    counters[1].inc(3)
    gauges[0].set(7)
    gauges[1].set(1)
    return [one._value.get() for one in (*counters, *gauges)]


def _inside_gauge() -> dict[str, float]:
    gauge = Gauge("g", "Help.", registry=None, multiprocess_mode="livesum")
    with gauge.track_inprogress():
        return read(os.environ["PROMETHEUS_MULTIPROC_DIR"])


def _protocol() -> list[Any]:
    value: Any = values.Value("counter", "c", "c_total", (), (), "Help.", some_later_argument=1)
    value.inc(2.5)
    kept = value.set_exemplar(Exemplar({"trace_id": "a"}, 2.5, 1.0))
    return [value._multiprocess, value.get_exemplar(), kept, value.get()]


class TestForks:
    """Values that children inherit."""

    def test_a_child_starts_from_zero(self, holder: RemoteProcess, directory: str) -> None:
        """A child's own part is 0 until it counts; both together are the total."""
        holder.call(count, "c", 5)
        child = holder.fork()
        assert child.call(own_value, "counter", "c") == 0
        child.call(count, "c", 2)
        assert child.call(own_value, "counter", "c") == 2
        assert holder.call(own_value, "counter", "c") == 5
        holder.call(count, "c", 1)
        assert read(directory) == {"c_total": 8.0}

    def test_asking_binds_nothing(self, holder: RemoteProcess, directory: str) -> None:
        """A child that only reads its values makes no file and takes no slot."""
        holder.call(count)
        before = set(os.listdir(directory))
        child = holder.fork()
        assert child.call(own_value, "counter", "c") == 0
        assert child.call(slot) is None
        assert set(os.listdir(directory)) == before

    def test_generations_of_children(self, holder: RemoteProcess, directory: str) -> None:
        """Children of children count too, while all live and after some have ended."""
        line = [holder]
        for _ in range(4):
            line[-1].call(count)
            line.append(line[-1].fork())
        line[1].kill()
        line[2].kill()
        for process in (line[0], line[3], line[4]):
            process.call(count)
        assert read(directory) == {"c_total": 7.0}

    def test_a_child_that_retakes_its_dead_parents_slot(
        self, holder: RemoteProcess, directory: str
    ) -> None:
        """It goes on from where the parent's file stands: 105 becomes 106, never 6."""
        holder.call(count, "c", 5)
        child = holder.fork()
        holder.call(count, "c", 100)
        holder.kill()
        child.call(count)
        assert child.call(slot) == "slot0"
        assert read(directory) == {"c_total": 106.0}

    def test_a_child_forked_behind_pythons_back(
        self, holder: RemoteProcess, directory: str
    ) -> None:
        """A child of C code takes a slot of its own: 4000 counts of two are 4000."""
        assert holder.call(_count_with_stray_child, 2000) == 0
        assert read(directory) == {"c_total": 4000.0}

    def test_a_first_metric_does_not_walk_the_parents(
        self, nursery: Nursery, tmp_path: Path
    ) -> None:
        """A child's first metric costs the same beside ten series of its parent and thousands."""
        calls = []
        for number in (10, 3000):
            path = tmp_path / str(number)
            path.mkdir()
            parent = nursery.start()
            parent.call(join, str(path))
            parent.call(_make_series, number)
            child = parent.fork()
            calls.append(child.call(_calls_of_first_metric))
            assert _keys(path / "counter_slot1.db") == 1
        assert abs(calls[0] - calls[1]) <= 5, calls

    def test_a_lock_that_another_thread_held(self, holder: RemoteProcess, directory: str) -> None:
        """Children forked while threads of the parent count do not hang, and all is counted."""
        counted, statuses = holder.call(_fork_beside_counting_threads, 40)
        assert statuses == [0] * 40
        assert read(directory) == {"c_total": counted + 40.0, "g": 1.0}

    def test_memory_is_not_counted_twice(self, nursery: Nursery, directory: str) -> None:
        """What a parent keeps in memory is not its child's: when both can share, it counts once."""
        parent = nursery.start()
        parent.call(_install)
        parent.call(count, "c", 5)
        child = parent.fork()
        child.call(count, "c", 1)
        for process in (parent, child):
            process.call(join, directory)
        assert read(directory) == {"c_total": 6.0}


def _count_with_stray_child(rounds: int) -> int:
    count("c", 0)
    pid = int(ctypes.PyDLL(None).fork())
    for _ in range(rounds):
        count()
    if pid == 0:
        os._exit(0)
    return forks.reap(pid)


def _make_series(number: int) -> None:
    for index in range(number):
        act("counter", "s", "inc", labels={"index": str(index)})


def _calls_of_first_metric() -> int:
    child = metric("counter", "s", {"index": "0"})
    calls = 0

    def profile(_frame: object, event: str, _argument: object) -> None:
        nonlocal calls
        calls += event in ("call", "c_call")

    sys.setprofile(profile)
    child.inc()
    sys.setprofile(None)
    return calls


def _keys(path: Path) -> int:
    found = MmapedDict.read_all_values_from_file(str(path))  # type: ignore[no-untyped-call]
    return len(list(found))


def _fork_beside_counting_threads(rounds: int) -> tuple[int, list[int]]:
    stop = threading.Event()
    counted = [0] * 2
    counter = metric("counter", "c")

    gauge = metric("gauge_max", "g")

    def keep_counting(number: int) -> None:
        while not stop.is_set():
            counter.inc()
            counted[number] += 1
            # Here threads are switched while the lock is held, which a counter does not allow.
            for _ in range(20):
                gauge.set(1)

    threads = [threading.Thread(target=keep_counting, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    statuses = []
    for _ in range(rounds):
        pid = forks.fork_call(counter.inc)
        statuses.append(forks.reap(pid))
    stop.set()
    for thread in threads:
        thread.join()
    return sum(counted), statuses


def _install() -> None:
    values.install()


class TestThreads:
    """Any thread may use any value."""

    def test_no_increment_is_lost(self, holder: RemoteProcess, directory: str) -> None:
        """Eight threads that count at once, on shared and on own series, lose nothing."""
        holder.call(_count_in_threads, 8, 3000)
        assert read(directory) == {
            'c_total{index="shared"}': 8 * 3000.0,
            **{f'c_total{{index="{index}"}}': 3000.0 for index in range(8)},
        }

    def test_threads_of_a_new_child(self, holder: RemoteProcess, directory: str) -> None:
        """In a forked child the threads that count first take one slot together."""
        holder.call(_count_in_threads, 1, 1)
        child = holder.fork()
        child.call(_count_in_threads, 8, 500)
        assert child.call(slot) == "slot1"
        assert read(directory)['c_total{index="shared"}'] == 8 * 500 + 1

    def test_making_metrics_in_threads(self, holder: RemoteProcess, directory: str) -> None:
        """Files that grow in one thread while others write into them lose nothing."""
        holder.call(_make_series_in_threads, 6, 300)
        flat = read(directory)
        assert len(flat) == 6 * 300
        assert set(flat.values()) == {3.0}


def _run_threads(function: Callable[[int], None], number: int) -> None:
    errors: list[BaseException] = []

    def run(index: int) -> None:
        try:
            function(index)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(index,)) for index in range(number)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


def _count_in_threads(number: int, rounds: int) -> None:
    metric("counter", "c", {"index": "shared"})

    def run(index: int) -> None:
        for _ in range(rounds):
            act("counter", "c", "inc", labels={"index": "shared"})
            act("counter", "c", "inc", labels={"index": str(index)})

    if number == 1:
        act("counter", "c", "inc", labels={"index": "shared"})
        return
    _run_threads(run, number)


def _make_series_in_threads(number: int, series: int) -> None:
    metric("counter", "c", {"index": "0"})

    def run(index: int) -> None:
        for one in range(series):
            child = metric("counter", "c", {"index": f"{index * series + one}"})
            for _ in range(3):
                child.inc()

    _run_threads(run, number)


class TestKilled:
    """SIGKILL at any moment."""

    def test_killed_while_files_are_made_and_grow(self, nursery: Nursery, directory: str) -> None:
        """Whatever a killed holder was at, the next one goes on, and no told count is missing."""
        chance = random.Random(4711)
        told = os.path.join(directory, "told")
        expected = 0.0
        for number in range(50):
            Path(told).write_bytes(bytes(8))
            holder = nursery.start()
            holder.call(join, directory)
            holder.tell(_count_and_tell, told, number)
            select.select([], [], [], chance.uniform(0, 0.012))
            assert not holder.has_ended()
            holder.kill()
            (counted,) = struct.unpack("d", Path(told).read_bytes())
            total = sum(value for name, value in read(directory).items() if name[0] == "c")
            assert expected + counted <= total <= expected + counted + 1
            expected = total
        assert read_ours(directory) == read(directory)
        heir = nursery.start()
        heir.call(join, directory)
        heir.call(act, "counter", "c", "inc", labels={"series": "0"})
        assert heir.call(log_lines) == []
        assert not [name for name in os.listdir(directory) if name.endswith(".damaged")]


def _count_and_tell(told: str, number: int) -> None:
    """Count in ever more series, and say how many were counted, until killed."""
    counted = 0
    with open(told, "r+b", buffering=0) as file:
        while True:
            # A new series each time, and a new file now and then.
            series = {"series": f"{number}.{counted}" + "x" * 200}
            act("gauge_max", "g", "set", 1, labels=series)
            act("counter", "c", "inc", labels=series)
            counted += 1
            os.pwrite(file.fileno(), struct.pack("d", counted), 0)
            if counted % 20 == 1:
                act("histogram", "h", "observe", 1, labels=series)


class TestFullVolume:
    """A volume without room: an error that is handled, never a SIGBUS."""

    @needs_root
    def test_counts_wait_in_memory(self, nursery: Nursery, directory: str) -> None:
        """Nothing raises; what is in the file counts on there, the rest when there is room."""
        process = nursery.start()
        process.call(forks.mount_small, directory, 128)
        process.call(join, directory)
        process.call(count, "before", 1)
        ballast = process.call(forks.fill_volume, directory)
        for _ in range(3):
            process.call(count, "before", 1)
            process.call(_make_series, 100)
            process.call(act, "gauge_max", "g", "set", 7)
        assert process.call(read, directory)["before_total"] == 4
        assert process.call(values.not_shared) > 0
        lines = process.call(log_lines)
        assert len(lines) == 1
        assert "the volume is full" in lines[0]
        process.call(os.unlink, ballast)
        process.call(_until_shared)
        flat = process.call(read, directory)
        assert flat["g"] == 7
        assert sum(value for name, value in flat.items() if name.startswith("s_total")) == 300
        assert process.call(values.not_shared) == 0
        assert len(process.call(log_lines)) == 2

    @needs_root
    def test_an_inherited_sparse_file(self, nursery: Nursery, directory: str) -> None:
        """A sparse file of an earlier holder is not mapped before its room is reserved."""
        process = nursery.start()
        process.call(forks.mount_small, directory, 128)
        process.call(_make_sparse_file, directory)
        ballast = process.call(forks.fill_volume, directory)
        holder = process.fork()
        holder.call(join, directory)
        for _ in range(3):
            holder.call(_make_series, 100)
            holder.call(count, "old", 1)
        assert holder.call(read, directory) == {"old_total": 5.0}
        holder.call(os.unlink, ballast)
        holder.call(_until_shared)
        flat = holder.call(read, directory)
        assert flat["old_total"] == 8
        assert sum(value for name, value in flat.items() if name.startswith("s_total")) == 300

    @needs_root
    def test_what_is_used_no_more_moves_too(self, nursery: Nursery, directory: str) -> None:
        """A value that was used once while there was no room moves when any metric is used."""
        process = nursery.start()
        process.call(forks.mount_small, directory, 64)
        process.call(join, directory)
        process.call(count, "often", 1)
        ballast = process.call(forks.fill_volume, directory)
        process.call(act, "gauge_min", "first", "set", 5)  # takes the room of the column
        assert process.call(values.not_shared) == 0
        process.call(act, "gauge_max", "once", "set", 7)
        assert process.call(values.not_shared) == 1
        process.call(os.unlink, ballast)
        process.call(_count_until, 30.0, "often", values.not_shared)
        assert process.call(read, directory)["once"] == 7

    @needs_root
    def test_every_new_holder_survives(self, nursery: Nursery, directory: str) -> None:
        """Each process that starts on the full volume goes on, one after the other."""
        process = nursery.start()
        process.call(forks.mount_small, directory, 64)
        process.call(join, directory)
        process.call(count)
        process.call(forks.fill_volume, directory)
        for _ in range(4):
            child = process.fork()
            child.call(count)
            child.call(_make_series, 50)
            child.call(count)
            child.kill()
        assert process.call(own_value, "counter", "c") == 1


def _make_sparse_file(directory: str) -> None:
    path = os.path.join(directory, "counter_slot0.db")
    file = MmapedDict(path)  # type: ignore[no-untyped-call]
    key = mmap_key("old", "old_total", [], [], "Help of old.")
    file.write_value(key, 5.0, 0.0)  # type: ignore[no-untyped-call]
    file.close()  # type: ignore[no-untyped-call]
    status = os.stat(path)
    assert status.st_blocks * 512 < status.st_size


def _until_shared() -> None:
    """Use a metric that is not bound yet, again and again, until all values are shared."""
    attempt = 0
    deadline = time.monotonic() + 30
    while values.not_shared():
        assert time.monotonic() < deadline
        attempt += 1
        act("counter", "poll", "inc", labels={"attempt": str(attempt % 3)})
        select.select([], [], [], 0.05)


def _count_until(seconds: float, name: str, condition: Callable[[], object]) -> None:
    """Count for a while, or until a function says 0."""
    deadline = time.monotonic() + seconds
    while condition() and time.monotonic() < deadline:
        count(name)
        select.select([], [], [], 0.05)


class TestNoFile:
    """Other things that keep a process from its files."""

    def test_no_descriptors(self, holder: RemoteProcess, directory: str) -> None:
        """Without a descriptor to be had values wait in memory; one line says what to do."""
        holder.call(_limit_descriptors, 0)
        for _ in range(5):
            holder.call(count, "c", 1)
        assert os.listdir(directory) == []
        lines = holder.call(log_lines)
        assert len(lines) == 1
        assert "ulimit" in lines[0]
        holder.call(_limit_descriptors, 64)
        holder.call(_until_shared)
        assert read(directory)["c_total"] == 5

    def test_no_descriptor_for_another_file(self, holder: RemoteProcess, directory: str) -> None:
        """A process that can open no further file counts on in those that it has."""
        holder.call(count, "c", 1)
        holder.call(_limit_descriptors, 0)
        holder.call(act, "gauge_max", "g", "set", 3)  # takes the descriptors of the column
        holder.call(act, "gauge_min", "h", "set", 3)
        holder.call(count, "c", 1)
        holder.call(count, "d", 1)
        flat = read(directory)
        assert flat.pop("d_total", 1.0) == 1.0
        assert flat == {"c_total": 2.0, "g": 3.0}
        holder.call(_limit_descriptors, 64)
        holder.call(_until_shared)
        flat = read(directory)
        assert (flat["c_total"], flat["d_total"], flat["g"], flat["h"]) == (2.0, 1.0, 3.0, 3.0)

    @needs_root
    def test_no_right_to_write(self, nursery: Nursery) -> None:
        """A process that may not write the directory counts in memory, and says so once."""
        with forks.public_directory() as path:
            process = nursery.start()
            process.call(forks.become_nobody)
            process.call(join, str(path))
            for _ in range(5):
                process.call(count)
            assert process.call(own_value, "counter", "c") == 5
            lines = process.call(log_lines)
            assert len(lines) == 1
            assert "writable for uid 65534" in lines[0]
            path.chmod(0o777)
            process.call(_until_shared)
            assert read(path)["c_total"] == 5

    @needs_root
    def test_a_read_only_volume(self, nursery: Nursery, directory: str) -> None:
        """A volume that is mounted read-only is said to be one that cannot be written."""
        process = nursery.start()
        process.call(forks.mount_small, directory, 64)
        process.call(_remount_read_only, directory)
        process.call(join, directory)
        process.call(count)
        (line,) = process.call(log_lines)
        assert "writable" in line

    def test_no_flock(self, nursery: Nursery, directory: str) -> None:
        """On a file system without flock values stay in memory; one line says what to do."""
        process = nursery.start()
        process.call(_patch_flock, True)
        process.call(join, directory)
        for _ in range(5):
            process.call(count)
        (line,) = process.call(log_lines)
        assert "flock" in line
        process.call(_patch_flock, False)
        process.call(_until_shared)
        assert read(directory)["c_total"] == 5

    @pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EFBIG])
    def test_whatever_reserving_says(
        self, holder: RemoteProcess, directory: str, number: int
    ) -> None:
        """No error of the kernel reaches the application, and each is said once."""
        assert holder.call(_count_without_room, number, 20) == 20
        assert len(holder.call(log_lines)) == 1
        holder.call(_until_shared)
        assert read(directory)["c_total"] == 20

    def test_a_stuck_lock_is_awaited_once(self, holder: RemoteProcess, nursery: Nursery) -> None:
        """A process that keeps the directory lock for ever delays one call, not one a second."""
        keeper = nursery.start()
        keeper.tell(_keep_lock, os.path.dirname(holder.call(_directory_path)) + "/metrics")
        first, later = holder.call(_pauses_of_counting)
        assert first > 0
        assert later == 0
        keeper.kill()
        holder.call(_until_shared)

    def test_a_directory_that_is_not_there(self, nursery: Nursery, directory: str) -> None:
        """A directory that vanished before the first metric is one line, and nothing raises."""
        process = nursery.start()
        process.call(join, directory)
        os.rmdir(directory)
        for _ in range(5):
            process.call(count)
        (line,) = process.call(log_lines)
        assert "it was removed" in line
        os.mkdir(directory)
        process.call(_until_shared)
        assert read(directory)["c_total"] == 5

    def test_without_a_directory(self, nursery: Nursery) -> None:
        """A process that has no directory counts in memory and says nothing."""
        process = nursery.start()
        process.call(_install)
        process.call(count, "c", 2)
        assert process.call(own_value, "counter", "c") == 2
        assert process.call(log_lines) == []
        assert process.call(values.not_shared) == 1

    def test_a_log_handler_that_counts(self, nursery: Nursery, directory: str) -> None:
        """An application that counts its log lines does not hang when we log."""
        process = nursery.start()
        process.call(join, directory)
        os.rmdir(directory)
        process.call(_count_log_lines)
        process.call(count)
        assert process.call(own_value, "counter", "lines") == 1


def _limit_descriptors(more: int) -> None:
    """Allow this many descriptors beside those that are open."""
    # The lowest number that is free is what the next file would get.
    free = next(number for number in range(1000) if not _is_open(number))
    resource.setrlimit(
        resource.RLIMIT_NOFILE, (free + more, resource.getrlimit(resource.RLIMIT_NOFILE)[1])
    )


def _is_open(number: int) -> bool:
    try:
        os.fstat(number)
    except OSError:
        return False
    return True


def _remount_read_only(path: str) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    remount_read_only = 0x21  # MS_REMOUNT | MS_RDONLY in <linux/mount.h>
    assert libc.mount(b"none", os.fsencode(path), b"tmpfs", remount_read_only, None) == 0


_flock = mock.patch.object(fcntl, "flock", side_effect=OSError(errno.ENOLCK, "no locks"))


def _patch_flock(is_on: bool) -> None:
    if is_on:
        _flock.start()
    else:
        _flock.stop()


def _count_without_room(number: int, rounds: int) -> float:
    error = OSError(number, os.strerror(number))
    with mock.patch.object(os, "posix_fallocate", side_effect=error):
        for _ in range(rounds):
            count()
    return own_value("counter", "c")


def _keep_lock(directory: str) -> None:
    with SlotDirectory(directory).locked():
        threading.Event().wait()


def _directory_path() -> str:
    assert membership.directory is not None
    return membership.directory.path


def _pauses_of_counting() -> tuple[int, int]:
    """Return how often a first metric call has paused, and how often all of the next seconds."""
    forks.wait_until(lambda: os.path.exists(_directory_path() + "/slots.lock"), "it is locked")
    first = forks.pauses(count)[1]
    later = 0
    deadline = time.monotonic() + 4
    while time.monotonic() < deadline:
        later += forks.pauses(count)[1]
        select.select([], [], [], 0.05)
    return first, later


class _Counting(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        count("lines")


def _count_log_lines() -> None:
    log.addHandler(_Counting())


class TestRemovedFiles:
    """Files that somebody removes under a running process."""

    def test_the_directory_goes(self, holder: RemoteProcess, directory: str) -> None:
        """A vanished directory raises nothing; what was counted goes on in the new one."""
        holder.call(count, "c", 5)
        shutil.rmtree(directory)
        for number in range(30):
            holder.call(count, "c", 1)
            holder.call(count, f"d{number}", 1)
        assert len(holder.call(log_lines)) <= 2
        assert holder.call(values.not_shared) > 0
        os.mkdir(directory)
        holder.call(_until_shared)
        flat = read(directory)
        assert flat["c_total"] == 35
        assert sum(value for name, value in flat.items() if name[0] == "d") == 30

    def test_everything_is_removed(
        self, holder: RemoteProcess, nursery: Nursery, directory: str
    ) -> None:
        """After ``rm DIR/*`` a newcomer with the same slot number never shares a file with us."""
        holder.call(count, "c", 100)
        holder.call(act, "gauge_livesum", "g", "inc", 3)
        _remove_all(directory)
        newcomer = nursery.start()
        newcomer.call(join, directory)
        newcomer.call(count, "c", 7)
        newcomer.call(act, "gauge_livesum", "g", "inc", 2)
        assert newcomer.call(slot) == "slot0"
        holder.call(count, "c", 1)
        assert not mapped_files(holder.pid) & mapped_files(newcomer.pid)
        assert read(directory) == {"c_total": 7.0, "g": 2.0}
        # It meets a new key and so notices; what it has counted itself is carried over.
        holder.call(count, "new", 1)
        assert holder.call(slot) == "slot1"
        newcomer.call(count, "c", 1)
        assert not mapped_files(holder.pid) & mapped_files(newcomer.pid)
        assert read(directory) == {"c_total": 109.0, "new_total": 1.0, "g": 2.0} or (
            read(directory) == {"c_total": 109.0, "new_total": 1.0, "g": 5.0}
        )
        holder.call(act, "gauge_livesum", "g", "dec", 1)
        assert read(directory)["g"] == 4.0
        assert holder.call(own_value, "counter", "c") == 101

    def test_the_lease_alone_is_removed(
        self, holder: RemoteProcess, nursery: Nursery, directory: str
    ) -> None:
        """A newcomer is kept out by the files; nothing is lost or counted twice."""
        holder.call(count, "c", 100)
        os.unlink(os.path.join(directory, "slot0.lease"))
        newcomer = nursery.start()
        newcomer.call(join, directory)
        newcomer.call(count, "c", 7)
        assert newcomer.call(slot) == "slot1"
        assert not mapped_files(holder.pid) & mapped_files(newcomer.pid)
        holder.call(count, "c", 1)
        holder.call(count, "new", 1)
        holder.call(count, "c", 1)
        newcomer.call(count, "c", 1)
        assert not mapped_files(holder.pid) & mapped_files(newcomer.pid)
        assert read(directory) == {"c_total": 110.0, "new_total": 1.0}

    def test_a_move_keeps_live_gauges(self, holder: RemoteProcess, directory: str) -> None:
        """A process that must leave its slot takes along what only it can mean."""
        holder.call(act, "gauge_livesum", "g", "inc", 5)
        holder.call(act, "gauge_all", "a", "set", 3)
        os.unlink(os.path.join(directory, "slot0.lease"))
        holder.call(count, "new", 1)
        holder.call(act, "gauge_livesum", "g", "dec", 2)
        flat = read_ours(directory)
        assert flat["g"] == 3.0
        assert sum(value for name, value in flat.items() if name.startswith("a{")) == 3.0

    def test_a_move_keeps_what_get_says(self, holder: RemoteProcess, directory: str) -> None:
        """Setting a gauge after a move replaces what was set before it."""
        holder.call(act, "gauge_sum", "g", "set", 5)
        os.unlink(os.path.join(directory, "slot0.lease"))
        holder.call(count, "new", 1)
        assert holder.call(own_value, "gauge_sum", "g") == 5
        holder.call(act, "gauge_sum", "g", "set", 7)
        assert read(directory)["g"] == 7.0

    def test_one_data_file_is_removed(self, holder: RemoteProcess, directory: str) -> None:
        """A file that is removed alone is made anew with what this process has counted."""
        holder.call(count, "c", 5)
        holder.call(act, "gauge_max", "g", "set", 9)
        os.unlink(os.path.join(directory, "counter_slot0.db"))
        holder.call(count, "c", 1)
        holder.call(count, "new", 1)
        assert read(directory) == {"c_total": 6.0, "new_total": 1.0, "g": 9.0}

    def test_a_replaced_file_is_not_shared(
        self, holder: RemoteProcess, nursery: Nursery, directory: str
    ) -> None:
        """When somebody puts back a copy of a file, its next writer is another one than ours."""
        holder.call(count, "c", 5)
        path = Path(directory, "counter_slot0.db")
        content = path.read_bytes()
        path.unlink()
        path.write_bytes(content)
        holder.call(count, "new", 1)
        newcomer = nursery.start()
        newcomer.call(join, directory)
        newcomer.call(count, "c", 1)
        assert not mapped_files(holder.pid) & mapped_files(newcomer.pid)
        holder.call(count, "c", 1)
        assert read(directory)["c_total"] >= 7


def _remove_all(directory: str) -> None:
    for path in Path(directory).iterdir():
        path.unlink()


class TestClosedDescriptors:
    """Applications that close every descriptor, as daemons do."""

    def test_a_newcomer_gets_other_files(
        self, holder: RemoteProcess, nursery: Nursery, directory: str
    ) -> None:
        """Although its descriptors are gone, nobody else gets into the files of the process."""
        holder.call(count, "c", 100)
        holder.call(forks.close_descriptors)
        newcomer = nursery.start()
        newcomer.call(join, directory)
        newcomer.call(count, "c", 7)
        holder.call(count, "c", 1)
        assert not mapped_files(holder.pid) & mapped_files(newcomer.pid)
        assert read(directory) == {"c_total": 108.0}

    def test_nothing_is_counted_twice(
        self, holder: RemoteProcess, nursery: Nursery, directory: str
    ) -> None:
        """A process that meets a new key afterwards does not count again what readers can see."""
        holder.call(count, "c", 100)
        holder.call(forks.close_descriptors)
        holder.call(count, "new", 1)
        assert read(directory) == {"c_total": 100.0, "new_total": 1.0}
        holder.call(count, "c", 1)
        newcomer = nursery.start()
        newcomer.call(join, directory)
        newcomer.call(count, "c", 1)
        assert not mapped_files(holder.pid) & mapped_files(newcomer.pid)
        assert read(directory) == {"c_total": 102.0, "new_total": 1.0}

    def test_children_close_none_of_the_applications(
        self, holder: RemoteProcess, directory: str
    ) -> None:
        """A forked child leaves alone the files that took the numbers of ours."""
        holder.call(count, "c", 100)
        holder.call(act, "gauge_max", "g", "set", 1)
        assert holder.call(_lost_in_child, directory) == []
        assert holder.call(_lost_here) == []

    def test_files_of_the_application_are_not_written(
        self, holder: RemoteProcess, tmp_path: Path
    ) -> None:
        """New series, growing files and notes do not touch what took the numbers of ours."""
        holder.call(count, "c", 100)
        assert holder.call(_write_after_closing, str(tmp_path)) == [b"precious"] * 8


_opened: list[int] = []


def _lost_in_child(directory: str) -> list[int]:
    forks.close_descriptors()
    _opened.extend(os.open(directory, os.O_RDONLY) for _ in range(10))
    read_end, write_end = os.pipe()

    def look() -> None:
        lost = [number for number in _opened if not _is_open(number)]
        os.write(write_end, bytes(lost))

    pid = forks.fork_call(look)
    os.close(write_end)
    with open(read_end, "rb") as answer:
        lost = list(answer.read())
    assert forks.reap(pid) == 0
    return lost


def _lost_here() -> list[int]:
    count("another")
    return [number for number in _opened if not _is_open(number)]


def _write_after_closing(place: str) -> list[bytes]:
    forks.close_descriptors()
    paths = [os.path.join(place, f"application{number}") for number in range(8)]
    for path in paths:
        os.write(os.open(path, os.O_RDWR | os.O_CREAT), b"precious")
    for number in range(200):
        act("counter", f"new{number}", "inc")
    membership.note(state="leaving")
    values.withdraw()
    membership.release()
    return [Path(path).read_bytes() for path in paths]


class TestLettingGo:
    """Withdrawing, installing, and prometheus_client's own clean-up."""

    @needs_closing
    def test_values_bind_again(self, holder: RemoteProcess, directory: str) -> None:
        """After the files are closed the next use opens them again and goes on."""
        holder.call(count, "c", 5)
        holder.call(_close_all)
        assert not mapped_files(holder.pid)
        holder.call(count, "c", 1)
        assert read(directory) == {"c_total": 6.0}

    def test_the_class_closes_too(self, holder: RemoteProcess, directory: str) -> None:
        """``close_all_files`` of the value class does the same."""
        holder.call(count, "c", 5)
        holder.call(values.Value.close_all_files)
        assert not mapped_files(holder.pid)
        holder.call(count, "c", 1)
        assert read(directory) == {"c_total": 6.0}

    def test_closing_twice(self, holder: RemoteProcess, directory: str) -> None:
        """A value that was not used between two closes is still set, not added to."""
        holder.call(act, "gauge_sum", "g", "set", 5)
        for number in range(2):
            holder.call(values.Value.close_all_files)
            holder.call(count, f"c{number}")
        holder.call(act, "gauge_sum", "g", "set", 7)
        assert read(directory) == {"c0_total": 1.0, "c1_total": 1.0, "g": 7.0}

    def test_install_may_be_called_again(self, nursery: Nursery, directory: str) -> None:
        """Installing twice is installing once."""
        process = nursery.start()
        assert process.call(_install_twice) == [False, True, True]
        process.call(join, directory)
        process.call(count)
        assert read(directory) == {"c_total": 1.0}

    def test_memory_moves_in(self, nursery: Nursery, directory: str) -> None:
        """What was counted before there was a directory is shared as soon as there is one."""
        process = nursery.start()
        process.call(_install)
        process.call(count, "c", 3)
        process.call(act, "gauge_max", "g", "set", -2)
        process.call(act, "gauge_mostrecent", "r", "set_at", 4, 50)
        process.call(join, directory)
        assert read(directory) == {"c_total": 3.0, "g": -2.0, "r": 4.0}
        assert process.call(values.not_shared) == 0

    def test_memory_says_how_much_it_holds(self, nursery: Nursery, directory: str) -> None:
        """The lease's record says how many values are not shared, and again 0 when they are."""
        process = nursery.start()
        process.call(join, directory)
        process.call(count)
        assert process.call(_count_without_room_elsewhere, 3) == 3
        assert _values_not_shared(directory) == 3
        process.call(_until_shared)
        assert _values_not_shared(directory) == 0


def _close_all() -> None:
    prometheus_values.close_all_multiprocess_files()  # type: ignore[no-untyped-call]


def _install_twice() -> list[bool]:
    installed = [values.is_installed()]
    for _ in range(2):
        values.install()
        installed.append(values.is_installed())
    return installed


def _count_without_room_elsewhere(number: int) -> int:
    error = OSError(errno.ENOSPC, "full")
    with mock.patch.object(os, "posix_fallocate", side_effect=error):
        for index in range(number):
            act("gauge_max", f"g{index}", "set", 1)
    return values.not_shared()


def _values_not_shared(directory: str) -> int:
    record = SlotDirectory(directory).records()["slot0"]
    assert record is not None
    return int(record["values_not_shared"])


class TestDamagedFiles:
    """What a damaged file means to the process that finds it."""

    @pytest.mark.parametrize(
        "change",
        [
            lambda content: struct.pack("i", 1 << 20) + content[4:],
            lambda content: content[:3],
            lambda content: content[:8] + struct.pack("i", 1 << 30) + content[12:],
            lambda content: content[:20] + b"\xff" + content[21:],
        ],
        ids=["used beyond size", "3 bytes", "bad key length", "not utf8"],
    )
    def test_the_next_holder_goes_on(
        self,
        holder: RemoteProcess,
        nursery: Nursery,
        directory: str,
        change: Callable[[bytes], bytes],
    ) -> None:
        """It counts, what can be read counts on, and one line says what was kept where."""
        holder.call(count, "c", 5)
        holder.kill()
        path = Path(directory, "counter_slot0.db")
        path.write_bytes(change(path.read_bytes()))
        heir = nursery.start()
        heir.call(join, directory)
        heir.call(count, "c", 1)
        heir.call(count, "d", 1)
        assert read(directory)["c_total"] in (1.0, 6.0)
        (line,) = heir.call(log_lines)
        assert "counter_slot0.db.damaged" in line
