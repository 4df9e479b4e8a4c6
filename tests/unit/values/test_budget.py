"""A budget for label sets: who comes first has a place, everything else is counted together."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from obskit_gunicorn._store.admissions import OTHER, Admissions, digest_of
from obskit_gunicorn._values.budget import Budget, budget_of, parse
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

MOST = 3
DIVERTED = {"path": OTHER}


def _limit(most: int = MOST, size: int | None = None, **by_metric: int) -> None:
    from obskit_gunicorn._values import values

    values.limit(Budget({"*": most, **by_metric}, size))


def _use(kind: str, path: str, action: str, *amounts: float) -> None:
    act(kind, "m", action, *amounts, labels={"path": path})


def _use_many(kind: str, first: int, end: int, action: str, amount: float = 1) -> None:
    for number in range(first, end):
        _use(kind, f"/{number}", action, amount)


def _own(kind: str, path: str) -> float:
    return float(metric(kind, "m", {"path": path})._value.get())


def _children(kind: str) -> int:
    from tests.support import forks

    return len(forks._metrics[kind, "m"]._metrics)


def _remove(kind: str, path: str) -> None:
    from tests.support import forks

    forks._metrics[kind, "m"].remove(path)


def _start(nursery: Nursery, directory: str, **limits: Any) -> RemoteProcess:
    process = nursery.start()
    process.call(_limit, **limits)
    process.call(join, directory)
    return process


def _counts(directory: str, kind: str) -> dict[str, float]:
    """Return how often the metric ``m`` was used, by its only label."""
    suffix = {"counter": "_total", "gauge_sum": ""}.get(kind, "_count")
    return {
        name.removeprefix(f'm{suffix}{{path="').removesuffix('"}'): value
        for name, value in read_ours(directory).items()
        if name.startswith(f"m{suffix}{{")
    }


@pytest.fixture(name="one")
def _one(nursery: Nursery, directory: str) -> RemoteProcess:
    """A process with a budget."""
    return _start(nursery, directory)


@pytest.fixture(name="other")
def _other(nursery: Nursery, one: RemoteProcess, directory: str) -> RemoteProcess:
    """Another one of the same directory."""
    return _start(nursery, directory)


class TestSharing:
    """The budget is the directory's."""

    @pytest.mark.parametrize("kind", ["counter", "histogram", "summary", "gauge_sum"])
    def test_older_label_sets_came_first(self, nursery: Nursery, directory: str, kind: str) -> None:
        """What is in the directory before there is a budget goes on, as far as that allows."""
        action = "observe" if kind in ("histogram", "summary") else "inc"
        older = nursery.start()
        older.call(join, directory)
        older.call(_use_many, kind, 0, 2, action)
        one = _start(nursery, directory)
        one.call(_use_many, kind, 0, 20, action)
        assert _counts(directory, kind) == {"/0": 2, "/1": 2, "/2": 1, OTHER: 17}

    @pytest.mark.parametrize("kind", ["counter", "histogram", "summary", "gauge_sum"])
    def test_first_come(
        self, one: RemoteProcess, other: RemoteProcess, directory: str, kind: str
    ) -> None:
        """All processes agree on which label sets have a place, and every count is there."""
        action = "observe" if kind in ("histogram", "summary") else "inc"
        one.call(_use_many, kind, 0, 2, action)
        other.call(_use_many, kind, 1, 20, action)
        one.call(_use_many, kind, 0, 20, action)
        assert _counts(directory, kind) == {"/0": 2, "/1": 3, "/2": 2, OTHER: 17 + 17}
        assert read(directory) == read_ours(directory)

    def test_buckets_stay(self, one: RemoteProcess, directory: str) -> None:
        """What is diverted of a histogram has its buckets."""
        one.call(_use_many, "histogram", 0, 9, "observe", 1.5)
        found = read_ours(directory)
        buckets = [f'm_bucket{{le="{le}",path="{OTHER}"}}' for le in ("1.0", "2.0", "5.0", "+Inf")]
        assert [found[name] for name in buckets] == [0, 6, 6, 6]

    def test_a_metric_of_its_own(self, nursery: Nursery, directory: str) -> None:
        """A metric that is named has its own budget, and one without labels needs no place."""
        process = _start(nursery, directory, m=5)
        process.call(_use_many, "counter", 0, 9, "inc")
        process.call(_use_other_metrics)
        found = read_ours(directory)
        assert len([name for name in found if name.startswith("m_total")]) == 5 + 1
        assert len([name for name in found if name.startswith("n_total")]) == MOST + 1
        assert found["h_count"] == 1

    def test_a_kill_frees_nothing(
        self, nursery: Nursery, one: RemoteProcess, directory: str
    ) -> None:
        """A process that takes the slot of one that was killed has the places of before."""
        one.call(_use_many, "counter", 0, 5, "inc")
        one.kill()
        other = _start(nursery, directory)
        other.call(_use_many, "counter", 0, 5, "inc")
        assert read_ours(directory) == {
            'm_total{path="/0"}': 2,
            'm_total{path="/1"}': 2,
            'm_total{path="/2"}': 2,
            f'm_total{{path="{OTHER}"}}': 4,
        }

    def test_full_is_final(self, one: RemoteProcess, directory: str) -> None:
        """Once a metric is full nobody looks at the list for it any more."""
        one.call(_use_many, "counter", 0, 5, "inc")
        for name in ("series.admitted", "series.lock"):
            Path(directory, name).unlink()
        one.call(_use_many, "counter", 0, 9, "inc")
        assert len(read_ours(directory)) == MOST + 1
        assert not Path(directory, "series.lock").exists()

    def test_a_removal_frees_no_place(self, one: RemoteProcess, directory: str) -> None:
        """A removed label set has its place when it is used again."""
        one.call(_use_many, "counter", 0, 5, "inc")
        one.call(_remove, "counter", "/0")
        one.call(_use_many, "counter", 5, 7, "inc")
        one.call(_use_many, "counter", 0, 1, "inc")
        assert read_ours(directory) == {
            'm_total{path="/0"}': 1,
            'm_total{path="/1"}': 1,
            'm_total{path="/2"}': 1,
            f'm_total{{path="{OTHER}"}}': 4,
        }


def _use_other_metrics() -> None:
    for number in range(9):
        act("counter", "n", "inc", labels={"path": str(number)})
    act("histogram", "h", "observe", 1)


class TestParts:
    """What each diverted child has counted itself."""

    def test_reset_takes_back_its_own(
        self, one: RemoteProcess, other: RemoteProcess, directory: str
    ) -> None:
        """A reset of one diverted child leaves what others have counted."""
        for process in (one, other):
            process.call(_use_many, "counter", 0, 10, "inc")
        one.call(_use, "counter", "/8", "inc", 5)
        assert one.call(_own, "counter", "/8") == 6
        one.call(_use, "counter", "/8", "reset")
        name = f'm_total{{path="{OTHER}"}}'
        assert read_ours(directory)[name] == 13
        assert one.call(_own, "counter", "/8") == 0
        assert one.call(_own, "counter", "/9") == 1

    def test_a_forked_child_has_no_part(self, one: RemoteProcess, directory: str) -> None:
        """What the parent has counted is not a child's to take back."""
        one.call(_use_many, "counter", 0, 5, "inc")
        child = one.fork()
        child.call(_use, "counter", "/4", "reset")
        assert read_ours(directory)[f'm_total{{path="{OTHER}"}}'] == 2
        child.call(_use, "counter", "/4", "inc", 3)
        child.call(_use, "counter", "/4", "reset")
        assert read_ours(directory)[f'm_total{{path="{OTHER}"}}'] == 2

    def test_parts_move_into_the_file(self, nursery: Nursery, directory: str) -> None:
        """What was counted in memory is still a child's own when it is in a file."""
        process = nursery.start()
        process.call(_limit)
        process.call(_use_many, "counter", 0, 6, "inc")
        process.call(join, directory)
        process.call(_use, "counter", "/4", "reset")
        assert read_ours(directory)[f'm_total{{path="{OTHER}"}}'] == 2

    def test_removal_takes_back_its_own(self, one: RemoteProcess, directory: str) -> None:
        """Removing a diverted label set takes out what this process has counted of it."""
        one.call(_use_many, "counter", 0, 6, "inc")
        one.call(_remove, "counter", "/5")
        assert read_ours(directory)[f'm_total{{path="{OTHER}"}}'] == 2

    def test_gauges(self, one: RemoteProcess, directory: str) -> None:
        """inc() and dec() are exact; set() shows what was set last."""
        one.call(_use_many, "gauge_sum", 0, 6, "inc")
        one.call(_use, "gauge_sum", "/5", "dec", 1)
        name = f'm{{path="{OTHER}"}}'
        assert read_ours(directory)[name] == 2
        one.call(_use, "gauge_sum", "/4", "set", 7)
        assert read_ours(directory)[name] == 7
        one.call(_use, "gauge_sum", "/5", "inc", 1)
        assert read_ours(directory)[name] == 8

    @pytest.mark.parametrize("mode", ["sum", "livesum", "all"])
    def test_removal_of_gauges_that_were_set(
        self, one: RemoteProcess, directory: str, mode: str
    ) -> None:
        """What another one has set over is nobody's to take back."""
        kind = f"gauge_{mode}"
        for number in range(6):
            one.call(_use, kind, f"/{number}", "set", 10 + number)

        def other() -> float:
            return next(each for name, each in read_ours(directory).items() if OTHER in name)

        assert other() == 15
        one.call(_use, kind, "/4", "inc", 2)
        assert one.call(_own, kind, "/5") == 15
        one.call(_remove, kind, "/3")
        assert other() == 17
        one.call(_remove, kind, "/5")
        assert other() == 2
        one.call(_remove, kind, "/4")
        assert other() == 0

    @pytest.mark.parametrize("action", ["reset", "remove"])
    def test_exemplars_leave_parts(self, one: RemoteProcess, directory: str, action: str) -> None:
        """What was counted with an exemplar is a child's own too."""
        one.call(_use_many, "counter", 0, 6, "inc")
        one.call(_with_exemplar, "/5")
        one.call(_with_exemplar, "/4")
        name = f'm_total{{path="{OTHER}"}}'
        assert read_ours(directory)[name] == 5
        assert one.call(_own, "counter", "/5") == 2
        if action == "remove":
            one.call(_remove, "counter", "/5")
        else:
            one.call(_use, "counter", "/5", "reset")
        assert read_ours(directory)[name] == 3
        assert one.call(_own, "counter", "/4") == 2

    def test_memory_is_bounded(self, one: RemoteProcess, directory: str) -> None:
        """A metric keeps few of its diverted children, and a kept one goes on."""
        one.call(_use_many, "counter", 0, 4, "inc")
        assert one.call(_use_a_kept_one)
        assert one.call(_children, "counter") < 100
        assert read_ours(directory)[f'm_total{{path="{OTHER}"}}'] == 1 + 1 + 500 + 1


def _with_exemplar(path: str) -> None:
    metric("counter", "m", {"path": path}).inc(exemplar={"trace_id": path[1:]})


def _use_a_kept_one() -> bool:
    kept = metric("counter", "m", {"path": "/kept"})
    kept.inc()
    _use_many("counter", 4, 504, "inc")
    kept.inc()
    return metric("counter", "m", {"path": "/kept"}) is not kept


class TestWords:
    """What is said about it."""

    def test_one_line(self, one: RemoteProcess, other: RemoteProcess) -> None:
        """One line of one process names the metric and the label that makes them."""
        for process in (one, other):
            process.call(_use_two_labels)
        lines = one.call(log_lines) + other.call(log_lines)
        lines = [line for line in lines if "budget" in line]
        assert len(lines) == 1
        assert lines[0].startswith("obskit: two has used up its budget")
        assert "its label 'path' makes more" in lines[0]

    def test_the_gauge(self, nursery: Nursery, one: RemoteProcess, directory: str) -> None:
        """The collector knows which metrics are full."""
        from obskit_gunicorn._scrape.collector import DirectoryCollector

        collector = DirectoryCollector(directory)
        one.call(_use_many, "counter", 0, MOST, "inc")
        collector.collect()
        assert collector.over_budget == frozenset()
        one.call(_use_many, "counter", 0, MOST + 1, "inc")
        collector.collect()
        assert collector.over_budget == {"m"}

    def test_a_budget_that_is_raised(
        self, nursery: Nursery, one: RemoteProcess, directory: str
    ) -> None:
        """There are places again, and when they are used up that is said again."""
        from obskit_gunicorn._scrape.collector import DirectoryCollector

        collector = DirectoryCollector(directory)
        one.call(_use_many, "counter", 0, MOST + 1, "inc")
        two = _start(nursery, directory, most=MOST + 2)
        two.call(_use_many, "counter", 0, MOST + 1, "inc")
        collector.collect()
        assert collector.over_budget == frozenset()
        two.call(_use_many, "counter", 0, MOST + 3, "inc")
        collector.collect()
        assert collector.over_budget == {"m"}
        for process in (one, two):
            assert len([line for line in process.call(log_lines) if "budget" in line]) == 1
        found = read_ours(directory)
        assert len(found) == MOST + 2 + 1
        assert sum(found.values()) == 3 * MOST + 5


def _use_two_labels() -> None:
    for number in range(5):
        act("counter", "two", "inc", labels={"path": str(number), "method": "GET"})


class TestSize:
    """A budget of bytes."""

    def test_diverts(self, nursery: Nursery, directory: str) -> None:
        """From a size of the metric files on nothing more has a place, and all is counted."""
        process = _start(nursery, directory, most=10_000, size=64 * 1024)
        process.call(_use_many, "counter", 0, 2000, "inc")
        found = read_ours(directory)
        assert sum(found.values()) == 2000
        assert found[f'm_total{{path="{OTHER}"}}'] > 1000
        files = [path for path in Path(directory).iterdir() if path.suffix in (".db", ".col")]
        assert sum(path.stat().st_size for path in files) <= 2 * 64 * 1024
        lines = [line for line in process.call(log_lines) if "metrics_max_bytes" in line]
        assert len(lines) == 1

    def test_is_raised(self, nursery: Nursery, directory: str) -> None:
        """What has no place by its size has one when the budget is larger."""
        older = nursery.start()
        older.call(join, directory)
        older.call(_use_many, "counter", 0, 1000, "inc")
        process = _start(nursery, directory, most=10_000, size=16 * 1024)
        process.call(_use_many, "counter", 0, 10, "inc")
        process.call(act, "counter", "n", "inc", labels={"path": "/0"})
        found = read_ours(directory)
        assert found['m_total{path="/0"}'] == 2
        assert found[f'n_total{{path="{OTHER}"}}'] == 1
        process.call(_limit, 10_000, 1024 * 1024)
        child = process.fork()
        child.call(act, "counter", "n", "inc", labels={"path": "/1"})
        assert read_ours(directory)['n_total{path="/1"}'] == 1


@pytest.mark.skipif(os.geteuid() != 0, reason="needs a volume of its own")
def test_a_full_volume(nursery: Nursery, directory: str) -> None:
    """Where the list cannot be written the places are a process's own, and go into it later."""
    process = nursery.start()
    process.call(_limit)
    process.call(mount_small, directory, 64)
    ballast = process.call(fill_volume, directory)
    process.call(join, directory)
    process.call(_use_many, "counter", 0, 5, "inc")
    process.call(os.unlink, ballast)
    process.call(_share)
    found = process.call(_ours_in, directory)
    assert len(found) == MOST + 1
    assert sum(found.values()) == 5


def _share() -> None:
    from obskit_gunicorn._values import values

    values.share()


def _ours_in(path: str) -> dict[str, float]:
    return read_ours(path)


def test_label_values_are_told_apart() -> None:
    """Whatever is in them."""
    values = [("a", "b"), ("ab",), ("a\0b",), ("a", "b", ""), ("a'", "b"), ("\ud800",)]
    names = [f"label{number}" for number in range(3)]
    assert len({digest_of(names, each) for each in values}) == len(values)
    assert digest_of(("b", "a"), ("1", "2")) == digest_of(("a", "b"), ("2", "1"))


def test_a_list_that_was_removed(directory: str) -> None:
    """What a process knows is in the new list first."""
    first = Admissions(directory)
    assert first.admit("m", b"1" * 16, 2, None) == (True, False)
    Path(directory, "series.admitted").unlink()
    second = Admissions(directory)
    assert second.admit("m", b"2" * 16, 2, None) == (True, False)
    assert first.admit("m", b"3" * 16, 2, None) == (False, True)
    assert second.admit("m", b"3" * 16, 2, None) == (False, False)


def test_the_environment_of_other_processes() -> None:
    """A process that Gunicorn did not start reads the variables."""
    assert budget_of({}) == Budget()
    assert not budget_of({})
    found = budget_of({"OBSKIT_METRICS_MAX_SERIES": "9", "OBSKIT_METRICS_MAX_BYTES": "4096"})
    assert found == Budget({"*": 9}, 4096)
    for wrong in ({"OBSKIT_METRICS_MAX_SERIES": "x"}, {"OBSKIT_METRICS_MAX_BYTES": "x"}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            budget_of(wrong)
    assert parse({"*": 1, "m": 2}) == {"*": 1, "m": 2}
    named = Budget(parse({"*": 1, "m_total": 2}))
    assert named.of("m") == named.of("m_total") == 2  # a counter, and a gauge of that name
    assert named.of("n_total") == 1
