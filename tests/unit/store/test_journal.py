"""A list that many processes append to."""

from __future__ import annotations

import os
import random
import stat
from pathlib import Path

import pytest

from obskit_gunicorn._store.directory import is_ours
from obskit_gunicorn._store.journal import LOCK_NAME, Journal
from obskit_gunicorn._store.locks import LockedFile
from tests.support.forks import Nursery, wait_until

NAME = "series.removed"


def _append(journal: Journal, *records: bytes) -> None:
    with journal.locked():
        journal.read()
        journal.append(records)


def test_readers_follow(directory: str) -> None:
    """Each reader gets each record once, in the order in which they were written."""
    writer, reader = Journal(directory, NAME), Journal(directory, NAME)
    assert reader.read() == (False, [])
    _append(writer, b"one", b"two")
    assert reader.read() == (False, [b"one", b"two"])
    assert reader.read() == reader.read(by_its_look=True) == (False, [])
    _append(Journal(directory, NAME), b"three")
    assert reader.read(by_its_look=True) == (False, [b"three"])
    assert writer.read() == (False, [b"three"])


def test_who_may_read(directory: str) -> None:
    """The group may read the list; only its owner may open the lock."""
    _append(Journal(directory, NAME), b"one")
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in Path(directory).iterdir()}
    assert modes == {NAME: 0o640, LOCK_NAME: 0o600}
    assert all(map(is_ours, modes))


def test_half_a_record(directory: str) -> None:
    """Wherever a writer was killed, readers stop there, and the next writer writes over it."""
    _append(Journal(directory, NAME), b"one")
    path = Path(directory, NAME)
    begin = path.read_bytes()
    _append(Journal(directory, NAME), b"two" * 9)
    whole = path.read_bytes()
    for size in range(len(begin), len(whole)):
        path.write_bytes(whole[:size])
        reader = Journal(directory, NAME)
        assert reader.read() == (False, [b"one"])
        _append(Journal(directory, NAME), b"3")
        assert reader.read() == (False, [b"3"])
        assert path.stat().st_size == len(begin) + 9


def test_any_bytes(directory: str) -> None:
    """Whatever is in the file, reading it ends, and gives whole records only."""
    _append(Journal(directory, NAME), *[bytes([number]) * number for number in range(1, 20)])
    path = Path(directory, NAME)
    whole = path.read_bytes()
    rng = random.Random(1)
    for _ in range(300):
        damaged = bytearray(whole)
        for _ in range(rng.randrange(1, 5)):
            damaged[rng.randrange(16, len(whole))] = rng.randrange(256)
        path.write_bytes(damaged)
        _, records = Journal(directory, NAME).read()
        assert all(
            record == bytes([number + 1]) * (number + 1) for number, record in enumerate(records)
        )
    path.write_bytes(b"something else")
    with pytest.raises(OSError, match="not a list of series"):
        Journal(directory, NAME).read()


def test_replaced_and_removed(directory: str) -> None:
    """A reader is told that a list has begun anew, also if the other one looks the same."""
    writer, reader = Journal(directory, NAME), Journal(directory, NAME)
    _append(writer, b"one")
    reader.read()
    with writer.locked():
        writer.read()
        writer.replace([b"two"])
    assert reader.read() == (True, [b"two"])
    os.unlink(reader.path)
    _append(Journal(directory, NAME), b"six")
    assert reader.read() == (True, [b"six"])
    os.unlink(reader.path)
    assert reader.read() == (True, [])
    assert reader.read() == (False, [])


def test_a_lock_that_is_held(directory: str) -> None:
    """Who cannot have the lock in time says so."""
    with LockedFile(os.path.join(directory, LOCK_NAME), os.O_RDWR | os.O_CREAT) as file:
        assert file.lock()
        with pytest.raises(TimeoutError), Journal(directory, NAME).locked(wait_seconds=0.01):
            pass


def _append_for_ever(directory: str, number: int) -> None:
    journal = Journal(directory, NAME)
    count = 0
    while True:
        _append(journal, b"%d %d" % (number, count))
        count += 1


def test_kills(nursery: Nursery, directory: str) -> None:
    """Writers that are killed at any moment lose nothing that is in the list."""
    reader = Journal(directory, NAME)
    found: dict[int, int] = {}

    def read() -> int:
        is_anew, records = reader.read()
        assert not is_anew
        for record in records:
            number, count = map(int, record.split())
            assert count == found.get(number, -1) + 1
            found[number] = count
        return len(records)

    for number in range(0, 12, 2):
        writers = [nursery.start(), nursery.start()]
        for at, writer in enumerate(writers):
            writer.tell(_append_for_ever, directory, number + at)
        wait_until(lambda: read() > 5, "something is appended")
        for writer in writers:
            writer.kill()
    _append(Journal(directory, NAME), b"99 0")
    read()
    assert found[99] == 0
