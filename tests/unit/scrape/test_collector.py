"""The directory collector beside threads and forks, and what it keeps of files that come and go."""

from __future__ import annotations

import contextlib
import gc
import json
import os
import resource
import struct
import sys
import threading
import tracemalloc
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

import pytest

from obskit_gunicorn._scrape.collector import DirectoryCollector
from obskit_gunicorn._store.fileformat import HEADER_BYTES, pack_entry
from tests.support import forks
from tests.support.forks import DEADLINE_SECONDS, Nursery, fork_call, reap, run_python, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable

    from pytest_mock import MockerFixture

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

KINDS = ("counter", "histogram", "summary", "gauge_sum", "gauge_max", "gauge_all")


def content(name: str, value: float = 1.0, *, series: int = 0, number: bytes = b"good") -> bytes:
    """Return a metric file with a series, or with many."""
    labels: list[dict[str, str]] = [{"label": str(index)} for index in range(series)] or [{}]
    entries = b"".join(
        pack_entry(json.dumps([name, name, each, "Help."]).encode(), value, 0.0) for each in labels
    )
    return struct.pack("i", HEADER_BYTES + len(entries)) + number + entries


def scrape(collector: DirectoryCollector) -> dict[str, float]:
    """Return the samples of a new collection, as text and families agree on them."""
    snapshot = collector.collect()
    flat = forks.flatten(snapshot.metrics())
    lines = snapshot.text().decode().splitlines()
    values = [float(line.rpartition(" ")[2]) for line in lines if line and line[0] != "#"]
    assert sorted(values) == sorted(flat.values())
    return flat


class _Gate:
    """Stops callers of a function until it is opened."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function
        self._is_open = threading.Event()
        self.has_come = threading.Event()

    def __call__(self, *arguments: Any) -> Any:
        found = self._function(*arguments)
        self.has_come.set()
        assert self._is_open.wait(DEADLINE_SECONDS)
        return found

    def open(self) -> None:
        self._is_open.set()


_scandir = os.scandir


def _listed(path: str) -> contextlib.AbstractContextManager[list[os.DirEntry[str]]]:
    """Return what a directory has now; ``os.scandir`` reads on when it is asked for more."""
    with _scandir(path) as entries:
        return contextlib.nullcontext(list(entries))


class TestThreads:
    """Collections that overlap."""

    def test_those_who_wait_share_one(self, directory: str, mocker: MockerFixture) -> None:
        """Threads that come while another one collects take one further snapshot, all the same."""
        Path(directory, "counter_slot0.db").write_bytes(content("c"))
        collector = DirectoryCollector(directory)
        gate = _Gate(_listed)
        scandir = mocker.patch("os.scandir", side_effect=gate)
        found: list[Any] = []

        def run() -> None:
            found.append(collector.collect())

        first = threading.Thread(target=run)
        first.start()
        assert gate.has_come.wait(DEADLINE_SECONDS)
        others = [threading.Thread(target=run) for _ in range(8)]
        for thread in others:
            thread.start()
        polls = iter(range(25))
        # Who is inside needs some turns at most to be waiting.
        wait_until(lambda: _are_waiting(others) and next(polls, 25) == 25, "all wait")
        # It is written after the first has begun, and before the others are let in.
        Path(directory, "counter_slot1.db").write_bytes(content("c", 2.0))
        gate.open()
        for thread in (first, *others):
            thread.join(DEADLINE_SECONDS)
        assert scandir.call_count == 2
        assert len(found) == 9
        assert len(set(map(id, found))) == 2
        totals = [forks.flatten(snapshot.metrics())["c"] for snapshot in found]
        assert sorted(totals) == [1.0] + [3.0] * 8

    def test_one_after_the_other_never_share(self, directory: str, mocker: MockerFixture) -> None:
        """A collection that begins when all others are over sees what was written until then."""
        path = Path(directory, "counter_slot0.db")
        collector = DirectoryCollector(directory)
        scandir = mocker.spy(os, "scandir")
        for number in range(5):
            path.write_bytes(content("c", float(number)))
            assert scrape(collector) == {"c": number}
        assert scandir.call_count == 5

    def test_snapshots_do_not_change(self, directory: str) -> None:
        """A snapshot says the same for ever, whatever is collected after it, and in any thread."""
        for kind in KINDS:
            Path(directory, f"{kind}_slot0.db").write_bytes(content(kind, series=3))
        collector = DirectoryCollector(directory)
        snapshot = collector.collect()
        before = forks.flatten(snapshot.metrics())
        for kind in KINDS:
            Path(directory, f"{kind}_slot0.db").write_bytes(content(kind, 5.0, series=4))
        scrape(collector)
        found: list[bytes] = []
        threads = [threading.Thread(target=lambda: found.append(snapshot.text())) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(DEADLINE_SECONDS)
        assert forks.flatten(snapshot.metrics()) == before
        assert len(set(found)) == 1
        assert b" 5.0" not in found[0]

    def test_families_belong_to_the_caller(self, directory: str) -> None:
        """What a caller does to the families it was given does not reach the next scrape."""
        for kind in KINDS:
            Path(directory, f"{kind}_slot0.db").write_bytes(content(kind, series=3))
        collector = DirectoryCollector(directory)
        before = scrape(collector)
        for family in collector.collect().metrics():
            for sample in family.samples:
                sample.labels["label"] = "changed"
            family.samples.clear()
            family.name = family.documentation = "changed"
        assert scrape(collector) == before

    def test_a_failed_collection_is_no_hindrance(self, directory: str) -> None:
        """A directory that cannot be listed for a while is an error for that while only."""
        Path(directory, "counter_slot0.db").write_bytes(content("c"))
        collector = DirectoryCollector(directory)
        assert scrape(collector) == {"c": 1.0}
        os.rename(directory, directory + ".away")
        for _ in range(2):
            with pytest.raises(FileNotFoundError):
                collector.collect()
        os.rename(directory + ".away", directory)
        assert scrape(collector) == {"c": 1.0}


def _are_waiting(threads: list[threading.Thread]) -> bool:
    """Return whether all threads stand inside ``collect``, and go no further."""
    frames = sys._current_frames()
    inside = [frames.get(thread.ident or 0) for thread in threads]
    return all(frame is not None and frame.f_code.co_name == "collect" for frame in inside)


class TestForks:
    """A child that is forked in the middle of a collection."""

    def test_a_child_collects_at_once(self, nursery: Nursery, directory: str) -> None:
        """A fork while another thread collects leaves the child able to collect."""
        Path(directory, "counter_slot0.db").write_bytes(content("c"))
        assert nursery.start().call(_fork_in_collection, directory) == 0

    def test_forks_at_any_moment(self, nursery: Nursery, directory: str) -> None:
        """The same for forks at any moment of collections that go on and on."""
        for number in range(20):
            name = f"{KINDS[number % len(KINDS)]}_slot{number}.db"
            Path(directory, name).write_bytes(content(f"m{number % len(KINDS)}", series=20))
        # Live gauges make each collection ask who holds a lease.
        Path(directory, "gauge_livesum_slot0.db").write_bytes(content("live"))
        Path(directory, "slot0.lease").touch()
        Path(directory, "slots.lock").touch()
        assert nursery.start().call(_fork_often, directory, 30) == {0}


def _collect_shared(path: str) -> None:
    assert forks.read_ours(path)


def _fork_in_collection(path: str) -> int:
    gate = _Gate(_listed)
    thread = threading.Thread(target=_collect_shared, args=[path])
    with mock.patch("os.scandir", gate):
        thread.start()
        assert gate.has_come.wait(DEADLINE_SECONDS)
    try:
        return reap(fork_call(_collect_shared, path), 20.0)
    finally:
        gate.open()
        thread.join()


def _fork_often(path: str, times: int) -> set[int]:
    is_over = threading.Event()

    def collect() -> None:
        while not is_over.is_set():
            _collect_shared(path)

    threads = [threading.Thread(target=collect) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        return {reap(fork_call(_collect_shared, path), 20.0) for _ in range(times)}
    finally:
        is_over.set()
        for thread in threads:
            thread.join()


_CUTTING = """if True:
    import os, sys, threading, time
    from pathlib import Path
    from obskit_gunicorn._scrape.collector import DirectoryCollector

    directory = sys.argv[1]
    paths = sorted(Path(directory).glob("*_slot0.db"))
    whole = {path: path.read_bytes() for path in paths}
    is_over = threading.Event()

    def cut():
        number = 0
        while not is_over.is_set():
            for path in paths:
                data = whole[path]
                os.truncate(path, (0, 3, 8, 100, len(data) // 2, len(data) - 8)[number % 6])
                os.truncate(path, len(data))
                with path.open("r+b") as file:
                    file.write(data)
            number += 1

    threads = [threading.Thread(target=cut) for _ in range(2)]
    for thread in threads:
        thread.start()
    collector = DirectoryCollector(directory)
    deadline = time.monotonic() + 1.5
    scrapes = 0
    try:
        while time.monotonic() < deadline or scrapes < 20:
            snapshot = collector.collect()
            text = snapshot.text()
            list(snapshot.metrics())
            assert b"\\ngood 5.0\\n" in text, text
            fresh = DirectoryCollector(directory).collect()
            assert b"\\ngood 5.0\\n" in fresh.text()
            scrapes += 1
    finally:
        is_over.set()
        for thread in threads:
            thread.join()
    for path in paths:
        path.write_bytes(whole[path])
    assert collector.collect().text().count(b"} 1.0\\n") == 200 * len(paths)
    assert not collector.skipped
"""


class TestFiles:
    """Files that come, go and are damaged."""

    def test_files_that_are_cut_while_they_are_read(self, directory: str) -> None:
        """Files that are cut short and made longer at any moment are no SIGBUS and no error."""
        for kind in ("counter", "gauge_max", "summary"):
            Path(directory, f"{kind}_slot0.db").write_bytes(content(kind, series=200))
        Path(directory, "counter_slot1.db").write_bytes(content("good", 5.0))
        run_python(_CUTTING, directory)

    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize(
        "damage",
        ["empty", "short", "header", "beyond the end", "a directory", "a pipe", "a link"],
    )
    def test_last_good_values_are_kept(self, directory: str, kind: str, damage: str) -> None:
        """A file that cannot be read any more keeps the values it had, until it can again."""
        path = Path(directory, f"{kind}_slot0.db")
        good = content("m", 7.0, series=3)
        path.write_bytes(good)
        Path(directory, f"{kind}_slot1.db").write_bytes(content("other", 2.0))
        collector = DirectoryCollector(directory)
        before = scrape(collector)
        assert len(before) == 4
        _damage(path, damage)
        for _ in range(2):
            assert scrape(collector) == before
            assert collector.skipped.total() == 1
            assert collector.file_count == 2
        if path.is_dir():
            path.rmdir()
        elif damage not in ("empty", "short", "header", "beyond the end"):
            path.unlink()
        path.write_bytes(content("m", 8.0, series=3))
        after = scrape(collector)
        assert after == {
            name: 8.0 if name.startswith("m") else value for name, value in before.items()
        }
        assert collector.skipped.total() == 0

    @needs_root
    def test_values_of_files_that_may_not_be_read_any_more(self, nursery: Nursery) -> None:
        """A file that its reader may not open any more keeps the values it had."""
        with forks.public_directory() as directory:
            path = directory / "counter_slot0.db"
            path.write_bytes(content("c", 7.0))
            path.chmod(0o644)
            reader = nursery.start()
            reader.call(forks.become_nobody)
            assert reader.call(_scrape_kept, str(directory)) == ({"c": 7.0}, 0)
            path.chmod(0)
            assert reader.call(_scrape_kept, str(directory)) == ({"c": 7.0}, 1)
            path.chmod(0o644)
            path.write_bytes(content("c", 8.0))
            assert reader.call(_scrape_kept, str(directory)) == ({"c": 8.0}, 0)

    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize("number", [b"good", b"else", bytes(4)])
    def test_files_that_vanish_are_forgotten(
        self, directory: str, kind: str, number: bytes
    ) -> None:
        """What was in a file goes with it; what is in one that comes back is what counts."""
        path = Path(directory, f"{kind}_slot0.db")
        collector = DirectoryCollector(directory)
        path.write_bytes(content("m", 7.0, series=3))
        assert len(scrape(collector)) == 3
        path.unlink()
        assert scrape(collector) == {}
        assert (collector.file_count, collector.byte_count) == (0, 0)
        path.write_bytes(content("n", 1.0, series=2, number=number))
        found = scrape(collector)
        assert list(found.values()) == [1.0, 1.0]
        assert all(name.startswith("n{") for name in found)

    def test_a_damaged_file_that_vanishes(self, directory: str) -> None:
        """Values that were kept of a damaged file go when the file does, and do not come back."""
        path = Path(directory, "counter_slot0.db")
        collector = DirectoryCollector(directory)
        path.write_bytes(content("c", 7.0))
        scrape(collector)
        os.truncate(path, 0)
        assert scrape(collector) == {"c": 7.0}
        path.unlink()
        assert scrape(collector) == {}
        path.write_bytes(b"")
        assert scrape(collector) == {}
        assert collector.skipped == {"empty": 1}

    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize("number", [b"else", bytes(4)], ids=["numbered", "without a number"])
    def test_a_file_replaced_between_scrapes(
        self, directory: str, kind: str, number: bytes
    ) -> None:
        """A file in the place of another is read anew, also where it gets the other's inode."""
        path = Path(directory, f"{kind}_slot0.db")
        collector = DirectoryCollector(directory)
        first = bytes(4) if number == bytes(4) else b"good"
        for other in ("n", "m", "k"):
            path.write_bytes(content("m", 7.0, series=3, number=first))
            assert set(scrape(collector).values()) == {7.0}
            path.write_bytes(content(other, 1.0, series=3, number=number))
            found = scrape(collector)
            assert set(found.values()) == {1.0}
            assert {name[0] for name in found} == {other}


def _damage(path: Path, damage: str) -> None:
    if damage == "empty":
        os.truncate(path, 0)
    elif damage == "short":
        os.truncate(path, 5)
    elif damage in ("header", "beyond the end"):
        with path.open("r+b") as file:
            file.write(struct.pack("i", 17 if damage == "header" else 1 << 20))
    else:
        path.unlink()
        if damage == "a directory":
            path.mkdir()
        elif damage == "a pipe":
            os.mkfifo(path)
        else:
            path.symlink_to("nowhere")


_kept: dict[str, DirectoryCollector] = {}


def _scrape_kept(path: str) -> tuple[dict[str, float], int]:
    """Scrape through a collector that lives as long as the process."""
    collector = _kept.setdefault(path, DirectoryCollector(path))
    return scrape(collector), collector.skipped.total()


class TestResources:
    """What a collector holds between scrapes."""

    def test_no_descriptors(self, nursery: Nursery, directory: str) -> None:
        """No descriptor is open between scrapes, whatever was met in the directory."""
        for kind in KINDS:
            Path(directory, f"{kind}_slot0.db").write_bytes(content(kind))
        Path(directory, "counter_slot1.db").write_bytes(b"")
        Path(directory, "counter_slot2.db").write_bytes(b"\xff" * 100)
        Path(directory, "gauge_livesum_slot3.db").write_bytes(content("live"))
        Path(directory, "slot3.lease").touch()
        Path(directory, "slots.lock").touch()
        os.mkfifo(Path(directory, "counter_slot4.db"))
        os.mkdir(Path(directory, "counter_slot5.db"))
        Path(directory, "counter_slot6.db").symlink_to("nowhere")
        before, after = nursery.start().call(_descriptors_around_scrapes, directory)
        assert after == before

    def test_more_files_than_descriptors(self, nursery: Nursery, directory: str) -> None:
        """More files are scraped than the process may open at once."""
        for number in range(300):
            kind = KINDS[number % 4]
            Path(directory, f"{kind}_slot{number}.db").write_bytes(content(kind))
        found = nursery.start().call(_scrape_with_few_descriptors, directory)
        assert found == dict.fromkeys(KINDS[:4], 75.0)

    @pytest.mark.parametrize(("kind", "series"), [("counter", 2000), ("gauge_max", 300)])
    def test_memory_of_vanished_files(self, directory: str, kind: str, series: int) -> None:
        """What is kept of files is let go of when they have vanished."""
        collector = DirectoryCollector(directory)
        Path(directory, f"{kind}_slot0.db").write_bytes(content("stays", series=10))
        _add_and_remove(collector, directory, kind, "first", series=10)
        gc.collect()
        tracemalloc.start()
        try:
            before, _ = tracemalloc.get_traced_memory()
            most = _add_and_remove(collector, directory, kind, "second", series=series)
            gc.collect()
            after, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert most - before > 1 << 20
        assert after - before < 1 << 18

    def test_memory_of_a_file_that_is_made_again_and_again(self, directory: str) -> None:
        """New label sets in ever new files cost nothing once they are gone."""
        collector = DirectoryCollector(directory)
        path = Path(directory, "counter_slot0.db")

        def make(first: int, times: int) -> None:
            for number in range(first, first + times):
                path.unlink(missing_ok=True)
                path.write_bytes(content(f"m{number}", series=100))
                scrape(collector)

        make(0, 20)
        gc.collect()
        tracemalloc.start()
        try:
            before, _ = tracemalloc.get_traced_memory()
            make(20, 100)
            gc.collect()
            after, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        # The files hold a MiB together.
        assert after - before < 1 << 18


def _descriptors_around_scrapes(path: str) -> tuple[int, int]:
    collector = DirectoryCollector(path)
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        scrape(collector)
        forks.read_ours(path)
    return before, len(os.listdir("/proc/self/fd"))


def _scrape_with_few_descriptors(path: str) -> dict[str, float]:
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
    collector = DirectoryCollector(path)
    scrape(collector)
    assert not collector.skipped
    return scrape(collector)


def _add_and_remove(
    collector: DirectoryCollector, path: str, kind: str, label: str, *, series: int
) -> int:
    """Add 50 files, scrape, and remove them again.

    Args:
        collector: What scrapes.
        path: The directory, which holds ten series beside.
        kind: The prefix of the files.
        label: What their metrics' names begin with.
        series: How many series each has.

    Returns:
        The traced memory while the files were there.
    """
    paths = [Path(path, f"{kind}_slot{number}.db") for number in range(1, 51)]
    for number, each in enumerate(paths):
        each.write_bytes(content(f"{label}{number // 10}", series=series))
    collector.collect().text()
    most, _ = tracemalloc.get_traced_memory()
    for each in paths:
        each.unlink()
    for _ in range(2):
        assert len(scrape(collector)) == 10
    return most


def test_a_label_with_too_many_values_is_named_once(
    directory: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A metric that has become large is one line, which names the label that makes it so."""
    path = Path(directory, "counter_slot0.db")
    collector = DirectoryCollector(directory)
    path.write_bytes(content("big", series=9_999))
    collector.collect()
    assert not caplog.records
    for series in (10_000, 10_001):
        path.write_bytes(content("big", series=series, number=b"%04d" % (series - 10_000)))
        collector.collect()
    (record,) = caplog.records
    assert "big has 10000 series, because its label 'label' has 10000 values" in record.getMessage()
