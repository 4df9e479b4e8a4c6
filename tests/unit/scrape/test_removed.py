"""Files that are removed while processes write them: nothing is lost, and nothing counts twice."""

from __future__ import annotations

import contextlib
import os
import shutil
import threading
from pathlib import Path

import pytest

from obskit_gunicorn._scrape.collector import DirectoryCollector
from obskit_gunicorn._store import kept
from obskit_gunicorn._store.directory import SlotDirectory
from obskit_gunicorn._values import sharing
from tests.support.forks import Nursery, RemoteProcess, act, flatten, listen, slot, wait_until


def begin(path: str) -> None:
    """Begin, or begin anew, as an arbiter."""
    listen()
    sharing.install()
    sharing.begin(path, keep=False, user=os.geteuid(), group=os.getegid())


def use(times: int) -> None:
    """Use one metric of each kind that adds up in its own way; in a remote process."""
    for _ in range(times):
        act("counter", "c", "inc")
        act("histogram", "h", "observe", 3)
        act("gauge_sum", "s", "inc")
        act("gauge_livesum", "live", "inc")
        act("gauge_max", "most", "set", 7)


def move() -> str | None:
    """Make a series, which shows a process that its files are gone; in a remote process."""
    act("counter", "moved", "inc")
    return slot()


def count_for(seconds: float) -> int:
    """Count, and make a series now and then; in a remote process."""
    import time

    deadline, times = time.monotonic() + seconds, 0
    while time.monotonic() < deadline:
        for _ in range(50):
            act("counter", "c", "inc")
            times += 1
        act("counter", "series", "inc", labels={"n": str(times % 1000)})
        time.sleep(0.001)
    return times


class Server:
    """An arbiter and a worker, and a collector that keeps what it reads open."""

    def __init__(self, nursery: Nursery, path: str) -> None:
        self.path = path
        self.arbiter = nursery.start()
        self.arbiter.call(begin, path)
        self.worker = self.start_worker()
        self.collector = DirectoryCollector(path)
        self.collector.keep_removed()

    def start_worker(self, times: int = 5) -> RemoteProcess:
        """Fork a worker that has counted."""
        worker = self.arbiter.fork()
        worker.call(use, times)
        return worker

    def read(self) -> dict[str, float]:
        """Scrape."""
        return flatten(self.collector.collect().metrics())


@pytest.fixture(name="server")
def _server(nursery: Nursery, directory: str) -> Server:
    return Server(nursery, directory)


def expected(count: float, live: float | None = None) -> dict[str, float]:
    """Return what a scrape shows of so many calls of :func:`use`."""
    return {
        "c_total": count,
        "h_count": count,
        "h_sum": 3 * count,
        "s": count,
        "most": 7,
        "live": count if live is None else live,
    }


def assert_shows(server: Server, wanted: dict[str, float]) -> None:
    """Check a new scrape."""
    found = server.read()
    assert {name: found.get(name, 0.0) for name in wanted} == wanted


@pytest.mark.parametrize("is_anew", [False, True], ids=["gone", "anew"])
def test_writers_are_read_on(server: Server, is_anew: bool) -> None:
    """What a process counts in removed files shows, whether there is a new directory or none."""
    assert_shows(server, expected(5))
    server.collector.records()
    shutil.rmtree(server.path)
    if is_anew:
        server.arbiter.call(begin, server.path)
    server.worker.call(use, 3)
    assert_shows(server, expected(8))
    # Its lease is seen too.
    roles = [record["role"] for record in server.collector.records().values() if record]
    assert sorted(roles) == ["arbiter", "process"]
    assert server.collector.is_lost != is_anew


def test_who_moves_takes_its_counts_along_once(server: Server) -> None:
    """A process that finds its files gone goes on elsewhere; the sum is right at each step."""
    assert_shows(server, expected(5))
    shutil.rmtree(server.path)
    server.arbiter.call(begin, server.path)
    assert server.worker.call(move) == "slot1"
    assert_shows(server, expected(5))
    server.worker.call(use, 2)
    assert_shows(server, expected(7))
    server.worker.kill()
    assert_shows(server, expected(7, live=0))
    server.start_worker(1)
    assert_shows(server, expected(8, live=1))


def test_what_former_holders_counted_stays(server: Server) -> None:
    """Removed files whose slot is free, or whose holder ends later, go on counting."""
    server.worker.kill()
    worker = server.start_worker(2)
    other = server.start_worker(4)
    assert_shows(server, expected(11, live=6))
    other.kill()
    shutil.rmtree(server.path)
    assert_shows(server, expected(11, live=2))
    server.arbiter.call(begin, server.path)
    assert worker.call(move) == "slot1"
    assert_shows(server, expected(11, live=2))
    worker.kill()
    assert_shows(server, expected(11, live=0))
    # Once nobody writes them, they are one file for each type, however many they were.
    for _ in range(3):
        worker = server.start_worker(1)
        server.read()
        shutil.rmtree(server.path)
        server.arbiter.call(begin, server.path)
        worker.kill()
        server.read()
    assert_shows(server, expected(14, live=0))
    removed = server.collector._removed
    assert removed is not None
    assert not removed._files
    assert set(removed._sums) == {"counter", "histogram", "gauge_sum", "gauge_max"}


def test_counters_wait_for_who_has_not_arrived(server: Server) -> None:
    """Counts that are on the way between two places do not make a counter go backwards."""
    assert_shows(server, expected(5))
    shutil.rmtree(server.path)
    server.worker.call(move)  # there is no new place yet: it counts in memory
    server.worker.call(use, 1)
    found = server.read()
    assert (found["c_total"], found["h_sum"]) == (5, 15)
    server.arbiter.call(begin, server.path)

    def has_arrived() -> bool:
        server.worker.call(use, 0)
        server.worker.call(act, "counter", "moved", "inc")
        return server.read().get("moved_total", 0) > 0

    wait_until(has_arrived, "the process has found the new place")
    assert_shows(server, expected(6))


def test_sums_may_still_fall(server: Server) -> None:
    """A sum of negative observations is not held up while nothing is on the way."""
    server.read()
    shutil.rmtree(server.path)
    server.arbiter.call(begin, server.path)
    server.worker.call(act, "histogram", "h", "observe", -100)
    assert server.read()["h_sum"] == 15 - 100


def test_a_wipe_is_a_wipe(server: Server, nursery: Nursery) -> None:
    """The next arbiter's generation begins at zero for a reader that was there before."""
    assert_shows(server, expected(5))
    server.worker.kill()
    server.arbiter.kill()
    arbiter = nursery.start()
    arbiter.call(begin, server.path)
    arbiter.call(act, "counter", "c", "inc")
    found = server.read()
    assert found["c_total"] == 1
    assert "h_sum" not in found


def test_a_directory_that_is_cleared_goes_on_in_its_generation(server: Server) -> None:
    """Counting began when it began, not when the directory was made again."""
    from obskit_gunicorn._store.directory import SlotDirectory

    before = SlotDirectory(server.path).generation()
    shutil.rmtree(server.path)
    server.arbiter.call(begin, server.path)
    assert SlotDirectory(server.path).generation() == before


def test_without_descriptors_files_are_opened_by_name(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What cannot be kept open is read as ever, and is gone when it is removed."""
    monkeypatch.setattr(kept, "_SHARE", 1 << 40)
    server.collector = DirectoryCollector(server.path)
    server.collector.keep_removed()
    assert_shows(server, expected(5))
    for path in Path(server.path).glob("*.db"):
        path.unlink()
    assert "c_total" not in server.read()


def test_nothing_stays_open(server: Server) -> None:
    """Once nobody holds what was removed, its descriptors are closed."""
    server.read()
    server.collector.records()
    for _ in range(3):
        shutil.rmtree(server.path)
        server.arbiter.call(begin, server.path)
        server.worker.kill()
        server.worker = server.start_worker(1)
        server.read()
        server.collector.records()
    open_files = []
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # that of the listing itself
            open_files.append(os.readlink(f"/proc/self/fd/{name}"))
    kept_open = [path for path in open_files if path.startswith(server.path)]
    assert kept_open
    assert not [path for path in kept_open if path.endswith("(deleted)")]


def test_no_counter_goes_backwards_in_a_race(server: Server) -> None:
    """Scrapes beside removals and moves never see a counter fall, or more than was counted."""
    workers = [server.start_worker(0) for _ in range(2)]
    is_over = threading.Event()
    seen: list[float] = []

    def scrape() -> None:
        while not is_over.wait(0.001):
            seen.append(server.read()["c_total"])

    server.read()
    thread = threading.Thread(target=scrape)
    thread.start()
    for worker in workers:
        worker.tell(count_for, 2.0)
    for _ in range(5):
        is_over.wait(0.35)
        shutil.rmtree(server.path, ignore_errors=True)
        server.arbiter.call(begin, server.path)
    total = 5 + sum(worker.answer() for worker in workers)
    for worker in workers:
        worker.call(move)
    is_over.set()
    thread.join()
    assert seen == sorted(seen)
    assert max(seen) <= total
    assert server.read()["c_total"] == total


def test_removed_record_of_the_generation(server: Server) -> None:
    """Where only what tells the generation is removed, the arbiter is told, and records it again.

    So a cleaner of old files does it, for the record is written once; and a worker that takes the
    lock first makes one that does not say which generation it is.
    """
    assert_shows(server, expected(5))
    generation = SlotDirectory(server.path).generation()
    for path in Path(server.path).glob("slots.*"):
        path.unlink()
    other = server.start_worker(2)
    assert "started" not in SlotDirectory(server.path).generation()
    told: list[bool] = []
    server.collector.keep_removed(lambda: told.append(True))
    assert_shows(server, expected(7))
    server.collector.records()
    assert told == [True, True]  # by the scrape, and by the question
    assert server.collector.is_lost
    server.arbiter.call(begin, server.path)
    assert SlotDirectory(server.path).generation() == generation
    assert_shows(server, expected(7))
    server.collector.records()
    assert told == [True, True]
    assert not server.collector.is_lost
    other.call(use, 1)
    assert_shows(server, expected(8))
