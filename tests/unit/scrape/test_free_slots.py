"""Slots that nobody holds: their files are read once, and again when somebody has held them."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from obskit_gunicorn._scrape.collector import DirectoryCollector
from obskit_gunicorn._store.directory import SlotDirectory
from obskit_gunicorn._store.reader import MetricFileReader
from obskit_gunicorn._values import sharing
from tests.support.forks import Nursery, RemoteProcess, act, flatten

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pytest_mock import MockerFixture


def begin(path: str) -> None:
    """Begin as an arbiter."""
    sharing.install()
    sharing.begin(path, keep=False, user=os.geteuid(), group=os.getegid())


def count(times: int) -> None:
    """Count; in a remote process."""
    for _ in range(times):
        act("counter", "c", "inc")
        act("gauge_mostrecent", "m", "set", times)


class Slots:
    """An arbiter whose workers come and go, and a collector."""

    def __init__(self, nursery: Nursery, path: str) -> None:
        self.path = path
        self.arbiter = nursery.start()
        self.arbiter.call(begin, path)
        self.collector = DirectoryCollector(path)

    def start(self, times: int) -> RemoteProcess:
        """Fork a worker that has counted."""
        worker = self.arbiter.fork()
        worker.call(count, times)
        return worker

    def shown(self) -> dict[str, float]:
        """Scrape."""
        return flatten(self.collector.collect().metrics())

    def counted(self) -> float:
        """Scrape, and return what was counted."""
        return self.shown()["c_total"]


@pytest.fixture(name="slots")
def _slots(nursery: Nursery) -> Iterator[Slots]:
    # On a tmpfs, if there is one: there no store changes the times of a file.
    place = "/dev/shm" if os.path.isdir("/dev/shm") else None
    with tempfile.TemporaryDirectory(dir=place) as directory:
        yield Slots(nursery, os.path.join(directory, "metrics"))


def test_files_are_read_once(slots: Slots, mocker: MockerFixture) -> None:
    """A file is not read while its slot is free; each holder in between makes it read again."""
    slots.start(5).kill()
    assert slots.counted() == 5
    reading = mocker.spy(MetricFileReader, "read")
    for _ in range(3):
        assert slots.counted() == 5
    assert reading.call_count == 0
    total = 5
    for times in (1, 2, 1, 1):
        slots.start(times).kill()  # it came and went between two scrapes
        total += times
        assert slots.counted() == total
        reading.reset_mock()
        assert slots.counted() == total
        assert reading.call_count == 0


def test_holder_that_is_there(slots: Slots) -> None:
    """Files of a slot that is held are read, whenever its holder came."""
    slots.start(5).kill()
    assert slots.counted() == 5
    worker = slots.start(2)
    assert slots.counted() == 7
    worker.call(count, 3)
    assert slots.counted() == 10
    worker.kill()
    assert slots.counted() == 10


def test_lease_that_was_removed(slots: Slots, mocker: MockerFixture) -> None:
    """Whoever writes files whose lease is gone, or is another one, is seen."""
    slots.start(5).kill()
    assert slots.counted() == 5
    worker = slots.start(1)
    (lease,) = (path for path in Path(slots.path).glob("*.lease") if path.name != "slot0.lease")
    lease.unlink()
    assert slots.counted() == 6
    worker.call(count, 1)
    assert slots.counted() == 7
    other = slots.start(1)  # it takes the name of the lease, and finds the files in use
    assert slots.counted() == 8
    worker.call(count, 1)
    assert slots.counted() == 9
    other.kill()
    for times, total in ((3, 12), (4, 16)):  # its lease is free, and names somebody else
        worker.call(count, times)
        assert slots.shown() == {"c_total": total, "m": times}
    worker.kill()
    assert slots.shown() == {"c_total": 16.0, "m": 4.0}
    slots.start(1).kill()
    assert slots.counted() == 17
    assert slots.counted() == 17


def test_file_that_was_replaced(slots: Slots) -> None:
    """A file that has taken its place is read, although nobody has held the slot."""
    slots.start(5).kill()
    assert slots.counted() == 5
    (path,) = Path(slots.path).glob("counter_slot1.db")
    content = bytearray(path.read_bytes())
    shutil.copy(path, path.with_suffix(".other"))
    used = int.from_bytes(content[:4], "little")
    content[used - 16 : used - 8] = bytes(8)
    path.with_suffix(".other").write_bytes(content)
    path.with_suffix(".other").rename(path)
    assert slots.counted() == 0


def test_what_stays_the_same(slots: Slots) -> None:
    """The answer is one for a free slot, none for a held one, and another one for each holder."""
    directory = SlotDirectory(slots.path)
    assert directory.untouched("slot0") is None
    assert directory.untouched("slot1") is None
    worker = slots.start(1)
    assert directory.untouched("slot1") is None
    worker.kill()
    answers = [directory.untouched("slot1")]
    assert answers[0] is not None
    assert directory.untouched("slot1") == answers[0]
    for _ in range(3):
        slots.start(1).kill()
        answers.append(directory.untouched("slot1"))
    assert len({*answers}) == 4
    assert None not in answers
    os.truncate(os.path.join(slots.path, "slot1.lease"), 0)
    assert directory.untouched("slot1") is None
