"""Columns of every kind, damaged in every way: what is shown is what the metric files hold.

A history follows from its seed alone; a failure names the seed. Its writers are this test: it holds
the claims, and stores as a writer does it, or as one of a release without columns.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import struct
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from obskit_gunicorn._scrape.collector import DirectoryCollector
from obskit_gunicorn._store import column
from obskit_gunicorn._store.fileformat import pack_entry
from obskit_gunicorn._store.locks import LockedFile
from obskit_gunicorn._values import sharing
from tests.support.forks import Nursery, act

if TYPE_CHECKING:
    from collections.abc import Callable


def begin(path: str) -> None:
    """Begin as an arbiter; in a remote process."""
    sharing.install()
    sharing.begin(path, keep=False, user=os.geteuid(), group=os.getegid())


def use_metrics(series: int) -> None:
    """Use metrics of several types; in a remote process."""
    for number in range(series):
        labels = {"n": str(number)}
        act("counter", "c", "inc", number, labels=labels)
        act("histogram", "h", "observe", number % 7, labels=labels)
        act("gauge_sum", "s", "set", -number, labels=labels)
        act("gauge_max", "m", "set", number, labels=labels)
        act("gauge_mostrecent", "r", "set", number, labels=labels)


@pytest.fixture(name="corpus")
def _corpus(nursery: Nursery, tmp_path: Path) -> Path:
    """Return a directory with the files of two slots."""
    path = tmp_path / "real"
    arbiter = nursery.start()
    arbiter.call(begin, str(path))
    for series in (3, 40):
        arbiter.fork().call(use_metrics, series)
    return path


class File:
    """A metric file with its column, and whether this test holds the claim."""

    def __init__(self, path: Path, rng: random.Random) -> None:
        self.path, self._rng = path, rng
        self.column_path = Path(column.column_path(str(path)))
        self.claim: LockedFile | None = None
        self.is_whole = False

    def places(self) -> list[int]:
        """Return the offsets of all values."""
        data, at, found = self.path.read_bytes(), 8, []
        (used,) = struct.unpack_from("i", data)
        while at < used:
            (length,) = struct.unpack_from("i", data, at)
            at += 4 + length + 8 - (length + 4) % 8
            found.append(at)
            at += 16
        return found

    def open(self) -> None:
        """Make a new column, as at an opening."""
        self.end()
        data = self.path.read_bytes()
        values = [struct.unpack_from("d", data, at)[0] for at in self.places()]
        header = column.pack_header(self.path.stat().st_ino, data[4:8], len(values))
        unfinished = self.column_path.with_suffix(".unfinished")
        content = header + struct.pack(f"{len(values)}d", *values)
        unfinished.write_bytes(content.ljust(4096 * (1 + len(content) // 4096), b"\0"))
        self.claim = LockedFile(str(unfinished), os.O_RDWR)
        assert self.claim.claim(by_flock=False)
        with contextlib.suppress(IsADirectoryError):
            unfinished.rename(self.column_path)
            self.is_whole = True

    def end(self) -> None:
        """End the claim: the holder was killed."""
        if self.claim is not None:
            self.claim.release()
            self.claim = None
        self.is_whole = False

    def store(self) -> None:
        """Change a value, in the column as well if it is in order."""
        places = self.places()
        number = self._rng.randrange(len(places))
        value = struct.pack("d", self._rng.choice([0.0, 1.0, 1e7, -3.0, self._rng.random()]))
        self._write(self.path, places[number], value)
        if self.is_whole:
            self._write(self.column_path, column.HEADER_BYTES + 8 * number, value)

    def add(self) -> None:
        """Add an entry, in the column as well if it is in order."""
        prefix = self.path.name.rpartition("_")[0]
        name = {"counter": "c_total", "histogram": "h_sum"}.get(prefix, prefix)
        label = self._rng.randrange(1 << 40)
        metric = {"counter": "c", "histogram": "h"}.get(prefix, prefix)
        key = f'["{metric}", "{name}", {{"n": "x{label}"}}, "Help of {metric}."]'.encode()
        data = self.path.read_bytes()
        (used,) = struct.unpack_from("i", data)
        entry = pack_entry(key, 5.0, 0.0)
        if used + len(entry) > len(data):
            os.truncate(self.path, len(data) + 4096)
        count = len(self.places())
        self._write(self.path, used, entry)
        self._write(self.path, 0, struct.pack("i", used + len(entry)))
        if self.is_whole and column.HEADER_BYTES + 8 * (count + 1) <= 4096:
            self._write(self.column_path, column.HEADER_BYTES + 8 * count, struct.pack("d", 5.0))
            self._write(self.column_path, 24, struct.pack("q", count + 1))
        else:
            self.is_whole = False  # it lags behind, as that of a writer whose volume is full

    @staticmethod
    def _write(path: Path, at: int, data: bytes) -> None:
        with path.open("r+b") as file:
            file.seek(at)
            file.write(data)


def truncate(file: File, rng: random.Random) -> None:
    """It ends somewhere, and so does its writer, with a SIGBUS."""
    file.end()
    os.truncate(file.column_path, rng.choice([0, 1, 8, 31, 32, 33, 40, 100]))


def change_header(file: File, rng: random.Random) -> None:
    """Bytes of what names its file are others."""
    at = rng.randrange(24)
    before = file.column_path.read_bytes()[at : at + 1]
    File._write(
        file.column_path, at, bytes([before[0] ^ rng.randrange(1, 256)]) if before else b"x"
    )


def change_count(file: File, rng: random.Random) -> None:
    """It has more or fewer values than it says."""
    count = rng.choice([-(1 << 63), -1, 0, 1, 2, 1 << 20, (1 << 63) - 1])
    File._write(file.column_path, 24, struct.pack("q", count))


def go_stale(file: File, rng: random.Random) -> None:
    """Its holder is killed, and one of a release without columns goes on."""
    file.end()
    for _ in range(rng.randrange(1, 4)):
        file.store()


def take_away(file: File, rng: random.Random) -> None:
    """It is removed, or something else has its name."""
    file.is_whole = False
    file.column_path.unlink()
    kind = rng.randrange(5)
    if kind == 1:
        file.column_path.mkdir()
    elif kind == 2:
        os.mkfifo(file.column_path)
    elif kind == 3:
        file.column_path.symlink_to(file.path)
    elif kind == 4:
        file.column_path.write_bytes(rng.randbytes(rng.randrange(9000)))


def replace_file(file: File, rng: random.Random) -> None:
    """Its metric file is another one now, with another inode or only another number."""
    file.is_whole = False
    data = bytearray(file.path.read_bytes())
    data[4:8] = rng.randbytes(4)
    if rng.random() < 0.5:
        file.path.with_suffix(".other").write_bytes(data)
        file.path.with_suffix(".other").rename(file.path)
    else:
        file.end()  # who has the claim has the file open, so that no other one gets its inode
        File._write(file.path, 0, bytes(data))


DAMAGES: list[Callable[[File, random.Random], None]] = [
    truncate,
    change_header,
    change_count,
    go_stale,
    take_away,
    replace_file,
]


def swap(files: list[File], rng: random.Random) -> None:
    """A column has the name of another one."""
    one, other = rng.sample(files, 2)
    if not all(_is_there(file) for file in (one, other)):
        return
    header = column.unpack_header(one.column_path.read_bytes())
    # An earlier state of itself, put into a column by somebody who may write to it, is believed, as
    # it is in a metric file.
    if header is None or header.inode != other.path.stat().st_ino:
        other.is_whole = False
        shutil.copy(one.column_path, other.column_path)


def _is_there(file: File) -> bool:
    return file.column_path.is_file() and not file.column_path.is_symlink()


def damage(files: list[File], rng: random.Random) -> None:
    """Damage something."""
    if rng.random() < 0.1:
        swap(files, rng)
        return
    file = rng.choice(files)
    how = rng.choice(DAMAGES)
    if _is_there(file) or how in (go_stale, replace_file):
        how(file, rng)


def step(files: list[File], rng: random.Random) -> None:
    """Do what writers do, or damage something."""
    file = rng.choice(files)
    for _ in range(rng.randrange(3)):
        what = rng.random()
        if what < 0.5:
            file.store()
        elif what < 0.7:
            file.add()
        elif what < 0.85:
            if file.column_path.is_dir():
                file.column_path.rmdir()
            file.open()
        else:
            file.end()
    if rng.random() < 0.5:
        damage(files, rng)


def as_without_columns(directory: Path, other: Path) -> list[bytes]:
    """Return the lines that are shown of the metric files alone."""
    shutil.rmtree(other, ignore_errors=True)
    other.mkdir()
    for path in directory.glob("*.db"):
        shutil.copy(path, other)
    return sorted(DirectoryCollector(str(other)).collect().text().split(b"\n"))


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    "histories",
    [pytest.param(20, id="some"), pytest.param(600, id="many", marks=pytest.mark.load)],
)
def test_what_is_shown(corpus: Path, tmp_path: Path, histories: int) -> None:
    """Whatever happens to columns, a long-lived collector shows what the metric files hold."""
    for seed in range(histories):
        rng = random.Random(seed)
        directory = tmp_path / "metrics"
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir()
        for path in corpus.glob("*.db"):
            shutil.copy(path, directory)
        files = [File(path, rng) for path in sorted(directory.glob("*.db"))]
        files = [file for file in files if "mostrecent" not in file.path.name]
        for file in files:
            if rng.random() < 0.8:
                file.open()
        collector = DirectoryCollector(str(directory))
        try:
            for number in range(12):
                step(files, rng)
                shown = sorted(collector.collect().text().split(b"\n"))
                wanted = as_without_columns(directory, tmp_path / "other")
                assert shown == wanted, (
                    f"seed {seed}, step {number}: {sorted({*shown} ^ {*wanted})[:6]}"
                )
        finally:
            for file in files:
                file.end()
