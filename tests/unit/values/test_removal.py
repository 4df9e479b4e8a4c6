"""remove(), remove_by_labels() and clear() under several processes."""

from __future__ import annotations

import errno
import gc
import os
import warnings
import weakref
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import pytest
from prometheus_client import Counter

from tests.support.forks import (
    Nursery,
    RemoteProcess,
    act,
    fill_volume,
    join,
    log_lines,
    metric,
    mount_small,
    read,
    read_ours,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

X = {"label": "x"}
Y = {"label": "y"}

_kept: list[Any] = []


def _use(kind: str, action: str, *values: float, labels: Mapping[str, str]) -> None:
    act(kind, "m", action, *values, labels=labels)


def _make(kind: str, labels: Mapping[str, str]) -> None:
    metric(kind, "m", labels)


def _remove(kind: str, labels: Mapping[str, str]) -> None:
    """Remove a label set, with any warning an error."""
    _make(kind, labels)
    with warnings.catch_warnings(record=True) as caught:
        _parent(kind).remove(*labels.values())
    assert not caught


def _parent(kind: str) -> Any:
    from tests.support import forks

    return forks._metrics[kind, "m"]


def _clear(kind: str) -> None:
    _parent(kind).clear()


def _remove_by_labels(kind: str, labels: dict[str, str]) -> None:
    _parent(kind).remove_by_labels(labels)


def _keep(kind: str) -> None:
    _kept.append(metric(kind, "m", X))


def _use_kept(action: str, value: float) -> float:
    getattr(_kept[-1], action)(value)
    return float(_kept[-1]._value.get())


@pytest.fixture(name="one")
def _one(nursery: Nursery, directory: str) -> RemoteProcess:
    """A process that shares its metrics."""
    process = nursery.start()
    process.call(join, directory)
    return process


@pytest.fixture(name="other")
def _other(nursery: Nursery, one: RemoteProcess, directory: str) -> RemoteProcess:
    """Another one."""
    process = nursery.start()
    process.call(join, directory)
    return process


def _find(directory: str) -> dict[str, float]:
    """Return what is found, without buckets but the last."""
    return {
        name: value
        for name, value in read_ours(directory).items()
        if "le=" not in name or "+Inf" in name
    }


class TestSums:
    """Counters, histograms and summaries."""

    def test_what_all_have_counted_is_gone(
        self, one: RemoteProcess, other: RemoteProcess, directory: str
    ) -> None:
        """When remove() returns, nothing of the label set is left; of others everything is."""
        for process in (one, other):
            for kind, action in (
                ("counter", "inc"),
                ("histogram", "observe"),
                ("summary", "observe"),
            ):
                process.call(act, kind, kind, action, 3, labels=X)
                process.call(act, kind, kind, action, 4, labels=Y)
        one.call(_remove_named, "counter")
        one.call(_remove_named, "histogram")
        one.call(_remove_named, "summary")
        assert _find(directory) == {
            'counter_total{label="y"}': 8.0,
            'histogram_bucket{label="y",le="+Inf"}': 2.0,
            'histogram_count{label="y"}': 2.0,
            'histogram_sum{label="y"}': 8.0,
            'summary_count{label="y"}': 2.0,
            'summary_sum{label="y"}': 8.0,
        }

    @pytest.mark.parametrize("kind", ["histogram", "summary"])
    def test_observations_come_back_whole(
        self, one: RemoteProcess, other: RemoteProcess, directory: str, kind: str
    ) -> None:
        """Of another worker's next observation all is shown, also if the sum is what it was."""
        for value in (5, -2):
            other.call(_use, kind, "observe", value, labels=X)
        one.call(_remove, kind, X)
        assert _find(directory) == {}
        other.call(_use, kind, "observe", 0, labels=X)
        found = _find(directory)
        assert found['m_count{label="x"}'] == 1
        assert found['m_sum{label="x"}'] == 0
        other.call(_use, kind, "observe", -7, labels=X)
        found = _find(directory)
        assert found['m_count{label="x"}'] == 2
        assert found['m_sum{label="x"}'] == -7

    def test_counts_from_zero(
        self, one: RemoteProcess, other: RemoteProcess, directory: str
    ) -> None:
        """Whoever uses it again counts from zero; for its remover it is there at once, at 0."""
        one.call(_use, "counter", "inc", 5, labels=X)
        other.call(_use, "counter", "inc", 7, labels=X)
        one.call(_remove, "counter", X)
        one.call(_make, "counter", X)
        assert read_ours(directory) == {'m_total{label="x"}': 0.0}
        other.call(_use, "counter", "inc", 2, labels=X)
        assert read_ours(directory) == {'m_total{label="x"}': 2.0}
        one.call(_use, "counter", "inc", 1, labels=X)
        assert read_ours(directory) == {'m_total{label="x"}': 3.0}
        assert read(directory) == {'m_total{label="x"}': 15.0}  # who knows of no removals

    def test_the_later_removal_counts(
        self, one: RemoteProcess, other: RemoteProcess, directory: str
    ) -> None:
        """What was counted between two removals goes with the second one."""
        for process in (one, other, one):
            process.call(_use, "counter", "inc", 5, labels=X)
            process.call(_remove, "counter", X)
        assert read_ours(directory) == {}
        other.call(_use, "counter", "inc", labels=X)
        assert read_ours(directory) == {'m_total{label="x"}': 1.0}

    def test_the_next_holder_goes_on(
        self, nursery: Nursery, one: RemoteProcess, other: RemoteProcess, directory: str
    ) -> None:
        """A process that takes the slot of one that was killed counts from zero, too."""
        other.call(_use, "counter", "inc", 7, labels=X)
        one.call(_remove, "counter", X)
        other.kill()
        third = nursery.start()
        third.call(join, directory)
        third.call(_make, "counter", X)
        assert read_ours(directory) == {'m_total{label="x"}': 0.0}
        third.call(_use, "counter", "inc", 2, labels=X)
        assert read_ours(directory) == {'m_total{label="x"}': 2.0}
        one.kill()
        assert read_ours(directory) == {'m_total{label="x"}': 2.0}

    def test_a_fork_goes_on(self, one: RemoteProcess, directory: str) -> None:
        """A forked child may remove what its parent has counted, and count on itself."""
        one.call(_use, "counter", "inc", 5, labels=X)
        child = one.fork()
        child.call(_remove, "counter", X)
        assert read_ours(directory) == {}
        child.call(_use, "counter", "inc", 1, labels=X)
        one.call(_use, "counter", "inc", 2, labels=X)
        assert read_ours(directory) == {'m_total{label="x"}': 3.0}

    def test_a_forked_child_shows_all_buckets(self, one: RemoteProcess, directory: str) -> None:
        """Of a histogram that only a forked child goes on with all buckets are shown."""
        one.call(_make, "histogram", X)
        child = one.fork()
        one.call(_remove, "histogram", X)
        assert read_ours(directory) == {}
        child.call(_use, "histogram", "observe", 1.5, labels=X)
        found = read_ours(directory)
        bounds = ("1.0", "2.0", "5.0", "+Inf")
        assert [found[f'm_bucket{{label="x",le="{le}"}}'] for le in bounds] == [0, 1, 1, 1]
        child.call(_remove, "histogram", X)
        assert read_ours(directory) == {}

    def test_buckets_that_come_later(
        self, nursery: Nursery, one: RemoteProcess, directory: str
    ) -> None:
        """A forked child that uses a bucket for the first time shows its histogram again, whole."""
        one.call(_make, "histogram", X)
        child = one.fork()
        child.call(_use, "histogram", "observe", 0.5, labels=X)
        one.call(_remove, "histogram", X)
        child.call(_use, "histogram", "observe", 1.5, labels=X)
        found = read_ours(directory)
        assert found['m_sum{label="x"}'] == 1.5
        bounds = ("1.0", "2.0", "5.0", "+Inf")
        assert [found[f'm_bucket{{label="x",le="{le}"}}'] for le in bounds] == [0, 1, 1, 1]
        one.call(_remove, "histogram", X)
        assert read_ours(directory) == {}
        child.kill()
        other = nursery.start()
        other.call(join, directory)
        other.call(_use, "histogram", "observe", 4, labels=X)
        found = read_ours(directory)
        assert found['m_sum{label="x"}'] == 4
        assert [found[f'm_bucket{{label="x",le="{le}"}}'] for le in bounds] == [0, 0, 1, 1]

    def test_reset_after_a_removal(
        self, one: RemoteProcess, other: RemoteProcess, directory: str
    ) -> None:
        """A worker that takes back what it has counted, part of which was removed, counts on."""
        other.call(_use, "counter", "inc", 10, labels=X)
        one.call(_remove, "counter", X)
        other.call(_use, "counter", "inc", 1, labels=X)
        other.call(_use, "counter", "reset", labels=X)
        assert read_ours(directory) == {'m_total{label="x"}': 0.0}
        other.call(_use, "counter", "inc", 4, labels=X)
        assert read_ours(directory) == {'m_total{label="x"}': 4.0}

    def test_a_kept_child_counts_into_nothing(self, one: RemoteProcess, directory: str) -> None:
        """A child that somebody has kept works on, as in one process, and nobody sees it."""
        one.call(_keep, "counter")
        assert one.call(_use_kept, "inc", 3) == 3
        one.call(_remove, "counter", X)
        assert one.call(_use_kept, "inc", 4) == 4
        assert read_ours(directory) == {}
        one.call(_use, "counter", "inc", 1, labels=X)
        assert one.call(_use_kept, "inc", 4) == 8
        assert read_ours(directory) == {'m_total{label="x"}': 1.0}
        assert one.call(_own_value_of_x) == 1

    def test_clear(self, one: RemoteProcess, other: RemoteProcess, directory: str) -> None:
        """clear() removes what only others have, and leaves other metrics alone."""
        one.call(_use, "histogram", "observe", 1, labels=X)
        other.call(_use, "histogram", "observe", 1, labels=Y)
        other.call(act, "histogram", "m_too", "observe", 1, labels=X)
        one.call(_clear, "histogram")
        assert set(_find(directory)) == {
            'm_too_bucket{label="x",le="+Inf"}',
            'm_too_count{label="x"}',
            'm_too_sum{label="x"}',
        }
        other.call(_use, "histogram", "observe", 4, labels=X)
        assert _find(directory)['m_sum{label="x"}'] == 4

    def test_clear_in_a_process_that_has_nothing(
        self, nursery: Nursery, one: RemoteProcess, directory: str
    ) -> None:
        """Metrics of the default registry are watched before they have a label set."""
        one.call(_count_registered)
        fresh = nursery.start()
        fresh.call(join, directory)
        fresh.call(_clear_registered)
        assert read_ours(directory) == {}

    def test_remove_by_labels(
        self, one: RemoteProcess, other: RemoteProcess, directory: str
    ) -> None:
        """It removes what only others have, too."""
        if not one.call(_can_remove_by_labels):
            pytest.skip("this release of prometheus_client has no remove_by_labels()")
        one.call(_use, "counter", "inc", labels={"a": "1", "b": "1"})
        other.call(_use, "counter", "inc", labels={"a": "1", "b": "2"})
        other.call(_use, "counter", "inc", labels={"a": "2", "b": "2"})
        one.call(_remove_by_labels, "counter", {"a": "1"})
        assert read_ours(directory) == {'m_total{a="2",b="2"}': 1.0}

    def test_awkward_labels(self, one: RemoteProcess, other: RemoteProcess, directory: str) -> None:
        """Labels that look like a part of a key are only labels."""
        values = ['x"}, "', '["m", ', '{"le": "1"', "ü\n\\", ", ", "le"]
        for process in (one, other):
            for value in values:
                labels = {"a": value, "z": "1"}
                process.call(_use, "histogram", "observe", 1, labels=labels)
        for at, value in enumerate(values):
            one.call(_remove, "histogram", {"a": value, "z": "1"})
            counts = [name for name in read_ours(directory) if name.startswith("m_count")]
            assert len(counts) == len(values) - at - 1

    def test_a_metric_that_goes_is_not_cleared(self, one: RemoteProcess, directory: str) -> None:
        """What a metric has counted stays when nobody needs the metric any more."""
        one.call(_use, "counter", "inc", 5, labels=X)
        one.call(_forget)
        assert read_ours(directory) == {'m_total{label="x"}': 5.0}

    def test_what_only_others_have(
        self, one: RemoteProcess, other: RemoteProcess, directory: str
    ) -> None:
        """remove() removes a label set that this process has never used."""
        one.call(_use, "counter", "inc", labels=Y)
        other.call(_use, "counter", "inc", labels=X)
        one.call(_remove_without_making, "x")
        assert read_ours(directory) == {'m_total{label="y"}': 1.0}
        assert one.call(_remove_without_making, "z") == one.call(_what_theirs_says)

    def test_wrong_arguments(self, one: RemoteProcess, directory: str) -> None:
        """They raise what prometheus_client raises, and remove nothing."""
        one.call(_use, "counter", "inc", labels=X)
        assert one.call(_remove_without_making, "x", "y") == "ValueError"
        assert read_ours(directory) == {'m_total{label="x"}': 1.0}

    def test_a_class_of_the_users(self, one: RemoteProcess, directory: str) -> None:
        """A subclass that overrides remove() goes on to be asked."""
        assert one.call(_remove_of_a_subclass) == [("x",)]
        assert read_ours(directory) == {}

    def test_a_parent_is_freed_at_once(self, one: RemoteProcess) -> None:
        """What notices removals keeps no metric alive."""
        assert one.call(_is_freed)

    def test_salvage(self, nursery: Nursery, one: RemoteProcess, directory: str) -> None:
        """A damaged file goes on without what was removed of it."""
        one.call(_use, "counter", "inc", 7, labels=X)
        one.call(_use, "counter", "inc", 2, labels=Y)
        one.call(_remove, "counter", X)
        one.kill()
        path = Path(directory, "counter_slot0.db")
        content = bytearray(path.read_bytes())
        used = int.from_bytes(content[:4], "little")
        content[used : used + 4] = (1 << 20).to_bytes(4, "little")
        content[:4] = (used + 64).to_bytes(4, "little")
        path.write_bytes(content)
        other = nursery.start()
        other.call(join, directory)
        other.call(_use, "counter", "inc", labels=Y)
        assert Path(directory, "counter_slot0.db.damaged").exists()
        assert read_ours(directory) == {'m_total{label="y"}': 3.0}


class TestGauges:
    """Gauges of other workers stay hidden until they change, then show whole."""

    @pytest.mark.parametrize("mode", ["sum", "livesum", "max", "min", "livemax"])
    def test_hidden_until_they_change(
        self, one: RemoteProcess, other: RemoteProcess, directory: str, mode: str
    ) -> None:
        """The remover's is gone; another one's comes back with its next value."""
        kind = f"gauge_{mode}"
        one.call(_use, kind, "set", 5, labels=X)
        other.call(_use, kind, "set", 7, labels=X)
        one.call(_remove, kind, X)
        assert read_ours(directory) == {}
        other.call(_use, kind, "set", 7, labels=X)
        assert read_ours(directory) == {}
        other.call(_use, kind, "set", 3, labels=X)
        assert read_ours(directory) == {'m{label="x"}': 3.0}
        other.call(_use, kind, "set", 7, labels=X)
        assert read_ours(directory) == {'m{label="x"}': 7.0}  # it has changed, so it is shown

    def test_the_remover_begins_anew(self, one: RemoteProcess, directory: str) -> None:
        """A gauge that is made again has forgotten what it was, whatever its mode."""
        for mode, value in (("max", 9), ("min", -9), ("sum", 9), ("all", 9)):
            kind = f"gauge_{mode}"
            one.call(act, kind, mode, "set", value, labels=X)
            one.call(_remove_named, kind, mode)
        assert read_ours(directory) == {}
        for mode in ("max", "min", "sum", "all"):
            one.call(act, f"gauge_{mode}", mode, "set", 1, labels=X)
        assert set(read_ours(directory).values()) == {1.0}

    def test_most_recent(self, one: RemoteProcess, other: RemoteProcess, directory: str) -> None:
        """The same value at another time is a change."""
        other.call(_use, "gauge_mostrecent", "set_at", 7, 1.0, labels=X)
        one.call(_remove, "gauge_mostrecent", X)
        assert read_ours(directory) == {}
        other.call(_use, "gauge_mostrecent", "set_at", 7, 2.0, labels=X)
        assert read_ours(directory) == {'m{label="x"}': 7.0}

    def test_zero_at_once(self, one: RemoteProcess, directory: str) -> None:
        """A gauge of 0 that is made again is shown, although its number has not changed."""
        one.call(_use, "gauge_sum", "set", 0, labels=X)
        one.call(_remove, "gauge_sum", X)
        assert read_ours(directory) == {}
        one.call(_make, "gauge_sum", X)
        assert read_ours(directory) == {'m{label="x"}': 0.0}


class TestTrouble:
    """What may be in the way."""

    def test_without_a_directory(self, nursery: Nursery) -> None:
        """Values in memory are forgotten."""
        process = nursery.start()
        process.call(_use, "counter", "inc", 5, labels=X)
        process.call(_remove, "counter", X)
        process.call(_make, "counter", X)
        assert process.call(_own_value_of_x) == 0

    @pytest.mark.skipif(os.geteuid() != 0, reason="needs a volume of its own")
    def test_a_full_volume(self, nursery: Nursery, directory: str) -> None:
        """The removal is then local, and says so in one line."""
        process = nursery.start()
        process.call(mount_small, directory, 256)
        process.call(join, directory)
        process.call(_use, "counter", "inc", 5, labels=X)
        process.call(_use, "counter", "inc", 5, labels=Y)
        ballast = process.call(fill_volume, directory)
        process.call(_remove, "counter", X)
        process.call(_remove, "counter", Y)
        lines = [line for line in process.call(log_lines) if "in this process only" in line]
        assert len(lines) == 1
        assert os.strerror(errno.ENOSPC) in lines[0]
        assert process.call(_ours_in, directory) == {
            'm_total{label="x"}': 0.0,
            'm_total{label="y"}': 0.0,
        }
        process.call(os.unlink, ballast)
        process.call(_remove, "counter", X)
        assert process.call(_ours_in, directory) == {'m_total{label="y"}': 0.0}

    def test_a_torn_record(self, one: RemoteProcess, directory: str) -> None:
        """Half a record that a killed process has left is nothing, and is written over."""
        for labels in (X, Y):
            one.call(_use, "counter", "inc", 5, labels=labels)
        one.call(_remove, "counter", X)
        with Path(directory, "series.removed").open("ab") as file:
            file.write(b"\x40\0\0\0half a record")
        assert read_ours(directory) == {'m_total{label="y"}': 5.0}
        one.call(_remove, "counter", Y)
        assert read_ours(directory) == {}
        assert b"half a record" not in Path(directory, "series.removed").read_bytes()

    def test_folded(self, one: RemoteProcess, directory: str) -> None:
        """The list does not grow with every removal."""
        one.call(_remove_often, 2000)
        assert Path(directory, "series.removed").stat().st_size < 100_000
        one.call(_use, "counter", "inc", 3, labels=X)
        assert read_ours(directory) == {'m_total{label="x"}': 3.0}


def _remove_named(kind: str, name: str = "") -> None:
    metric(kind, name or kind, X)
    from tests.support import forks

    forks._metrics[kind, name or kind].remove(*X.values())


def _remove_often(times: int) -> None:
    for _ in range(times):
        _use("counter", "inc", labels=X)
        _parent("counter").remove(*X.values())


def _own_value_of_x() -> float:
    return float(metric("counter", "m", X)._value.get())


def _count_registered() -> None:
    Counter("registered", "", ["label"]).labels("x").inc()


def _clear_registered() -> None:
    """Do what happens to the metrics of an application when it is loaded, and clear one."""
    from obskit_gunicorn._values import sharing

    made = Counter("registered", "", ["label"])
    assert sharing.put_back() == []
    made.clear()


def _can_remove_by_labels() -> bool:
    return hasattr(Counter, "remove_by_labels")


def _forget() -> None:
    from tests.support.forks import forget_metrics

    forget_metrics()
    gc.collect()


def _remove_without_making(*values: str) -> str:
    """Remove a label set; return the name of what is raised."""
    try:
        _parent("counter").remove(*values)
    except Exception as error:
        return type(error).__name__
    return ""


def _what_theirs_says() -> str:
    """Return what prometheus_client raises for a label set that is not there."""
    theirs = Counter("theirs", "", ["label"], registry=None)
    try:
        Counter.remove(theirs, "z")
    except KeyError as error:
        return type(error).__name__
    return ""


class _Mine(Counter):
    removed: ClassVar[list[tuple[str, ...]]] = []

    def remove(self, *labelvalues: str) -> None:
        self.removed.append(labelvalues)
        super().remove(*labelvalues)


def _remove_of_a_subclass() -> list[tuple[str, ...]]:
    mine = _Mine("mine", "", ["label"], registry=None)
    mine.labels("x").inc()
    mine.remove("x")
    return mine.removed


def _is_freed() -> bool:
    gc.disable()
    made = Counter("made", "", ["label"], registry=None)
    made.labels("x").inc()
    known = weakref.ref(made)
    del made
    return known() is None


def _ours_in(path: str) -> dict[str, float]:
    return read_ours(path)
