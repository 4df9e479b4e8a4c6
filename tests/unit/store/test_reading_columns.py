"""Reading value columns: only one that counts is believed, and no value is shown lower."""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from obskit_gunicorn._store import column
from obskit_gunicorn._store.fileformat import pack_entry
from obskit_gunicorn._store.locks import LockedFile
from obskit_gunicorn._store.reader import MetricFileReader

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

KEYS = [f'["a", "a_total", {{"n": "{n}"}}, "Help."]'.encode() for n in range(600)]


class Writer:
    """A metric file and its column, stored to as their writer does it, step by step."""

    def __init__(self, path: Path, values: list[float]) -> None:
        self.path = path
        self.column_path = Path(column.column_path(str(path)))
        body = b"".join(map(pack_entry, KEYS, values, [0.0] * len(values)))
        content = struct.pack("i", 8 + len(body)) + b"\1\2\3\4" + body
        path.write_bytes(content.ljust(1 << 17, b"\0"))
        self.count = len(values)
        self.claim: LockedFile | None = None

    def make_column(self, values: list[float], *, number: bytes = b"\1\2\3\4") -> None:
        """Make a column as at an opening."""
        self.end()
        unfinished = self.column_path.with_suffix(".col-new")
        header = column.pack_header(self.path.stat().st_ino, number, len(values))
        content = header + struct.pack(f"{len(values)}d", *values)
        unfinished.write_bytes(content.ljust(8192, b"\0"))
        self.claim = LockedFile(str(unfinished), os.O_RDWR)
        assert self.claim.claim(by_flock=False)
        unfinished.rename(self.column_path)

    def end(self) -> None:
        """End the claim, as the end of the process does."""
        if self.claim is not None:
            self.claim.release()
            self.claim = None

    def store(self, number: int, value: float, *, file: bool = True, dense: bool = True) -> None:
        """Store a value: in the metric file, in the column, or both."""
        if file:
            at = 8 + sum(len(pack_entry(key, 0.0, 0.0)) for key in KEYS[: number + 1]) - 16
            self._write(self.path, at, struct.pack("d", value))
        if dense:
            self._write(self.column_path, 32 + 8 * number, struct.pack("d", value))

    def add(self, value: float, *, dense: bool = True) -> None:
        """Add an entry."""
        at = 8 + sum(len(pack_entry(key, 0.0, 0.0)) for key in KEYS[: self.count])
        entry = pack_entry(KEYS[self.count], value, 0.0)
        self._write(self.path, at, entry)
        self._write(self.path, 0, struct.pack("i", at + len(entry)))
        self.count += 1
        if dense:
            self.add_to_column(value)

    def add_to_column(self, value: float) -> None:
        """Add a value to the column, and then to its count."""
        (count,) = struct.unpack("q", self.column_path.read_bytes()[24:32])
        self.store(count, value, file=False)
        self._write(self.column_path, 24, struct.pack("q", count + 1))

    @staticmethod
    def _write(path: Path, at: int, data: bytes) -> None:
        with path.open("r+b") as file:
            file.seek(at)
            file.write(data)


@pytest.fixture(name="writer")
def _writer(tmp_path: Path) -> Iterator[Writer]:
    writer = Writer(tmp_path / "counter_slot0.db", [1.0, 2.0, 3.0])
    yield writer
    writer.end()


def values(reader: MetricFileReader, *, has_column: bool = True) -> list[float]:
    """Read once more, and return all values."""
    reader.refresh(has_column=has_column)
    assert reader.damage is None
    return list(reader.pairs())[::2]


def test_column_is_read(writer: Writer) -> None:
    """The second reading reads the column alone, and says by identity whether a value changed."""
    writer.make_column([1.0, 2.0, 3.0])
    reader = MetricFileReader(str(writer.path))
    assert values(reader) == [1.0, 2.0, 3.0]
    numbers = reader.numbers
    assert values(reader) == [1.0, 2.0, 3.0]
    assert reader.numbers is numbers
    writer.store(1, 5.0, file=False)  # a writer never does this; it shows what was read
    assert values(reader) == [1.0, 5.0, 3.0]
    assert values(reader, has_column=False) == [1.0, 2.0, 3.0]


def not_claimed(writer: Writer) -> None:
    """Its holder was killed."""
    writer.end()


def not_there(writer: Writer) -> None:
    """It was removed."""
    writer.column_path.unlink()


def of_another_file(writer: Writer) -> None:
    """Its inode is another one."""
    header = column.pack_header(writer.path.stat().st_ino + 1, b"\1\2\3\4", 3)
    Writer._write(writer.column_path, 0, header)


def of_an_earlier_file(writer: Writer) -> None:
    """Its inode is the same, and its number another one."""
    writer.make_column([7.0, 7.0, 7.0], number=b"\1\2\3\5")


def of_another_format(writer: Writer) -> None:
    """Its first bytes are others."""
    Writer._write(writer.column_path, 0, b"obskcol2")


def truncated(writer: Writer) -> None:
    """It is too short for its values."""
    os.truncate(writer.column_path, 40)


def empty(writer: Writer) -> None:
    """It has no header."""
    os.truncate(writer.column_path, 0)


def too_few(writer: Writer) -> None:
    """Its count is smaller than it was."""
    Writer._write(writer.column_path, 24, struct.pack("q", 2))


def too_many(writer: Writer) -> None:
    """Its count is absurd."""
    Writer._write(writer.column_path, 24, struct.pack("q", 1 << 60))


def negative(writer: Writer) -> None:
    """Its count is negative."""
    Writer._write(writer.column_path, 24, struct.pack("q", -1))


def a_directory(writer: Writer) -> None:
    """A directory has its name."""
    writer.column_path.unlink()
    writer.column_path.mkdir()


def a_pipe(writer: Writer) -> None:
    """A pipe has its name."""
    writer.column_path.unlink()
    os.mkfifo(writer.column_path)


def a_link(writer: Writer) -> None:
    """A link to a column has its name."""
    other = writer.column_path.with_name("other")
    writer.column_path.rename(other)
    writer.column_path.symlink_to(other)


FAULTS: list[Callable[[Writer], None]] = [
    not_claimed,
    not_there,
    of_another_file,
    of_an_earlier_file,
    of_another_format,
    truncated,
    empty,
    too_few,
    negative,
    a_directory,
    a_pipe,
    a_link,
]


@pytest.mark.parametrize("is_first", [True, False], ids=["at first", "later"])
@pytest.mark.parametrize("fault", FAULTS)
def test_column_that_does_not_count(
    writer: Writer, fault: Callable[[Writer], None], is_first: bool
) -> None:
    """The metric file is read, as if there were no column."""
    writer.make_column([1.0, 2.0, 3.0])
    reader = MetricFileReader(str(writer.path))
    if not is_first:
        assert values(reader) == [1.0, 2.0, 3.0]
        writer.store(0, 1.5, file=False)
        assert values(reader) == [1.5, 2.0, 3.0]
    writer.store(0, 1.5, file=False)
    fault(writer)
    writer.store(0, 6.0, dense=False)
    assert values(reader) == [6.0, 2.0, 3.0]
    assert values(reader) == [6.0, 2.0, 3.0]
    writer.store(2, 8.0, dense=False)
    assert values(reader) == [6.0, 2.0, 8.0]


def test_absurd_count(writer: Writer) -> None:
    """A count that is too large is never allocated; the values that are known are right."""
    writer.make_column([1.0, 2.0, 3.0])
    reader = MetricFileReader(str(writer.path))
    assert values(reader) == [1.0, 2.0, 3.0]
    too_many(writer)
    assert values(reader) == [1.0, 2.0, 3.0]


def test_column_returns(writer: Writer) -> None:
    """The next holder's column counts again, and so does that of a file that was replaced."""
    writer.make_column([1.0, 2.0, 3.0])
    reader = MetricFileReader(str(writer.path))
    values(reader)
    writer.end()
    writer.store(0, 4.0, dense=False)
    assert values(reader) == [4.0, 2.0, 3.0]
    writer.make_column([4.0, 2.0, 3.0])
    assert values(reader) == [4.0, 2.0, 3.0]
    writer.store(0, 9.0, file=False)
    assert values(reader) == [9.0, 2.0, 3.0]
    writer.end()
    other = Writer(writer.path.with_name("new"), [2.0])
    other.path.rename(writer.path)
    other.path, other.column_path = writer.path, writer.column_path
    other.make_column([2.0])
    assert values(reader) == [2.0]
    other.store(0, 3.0, file=False)
    assert values(reader) == [3.0]
    other.end()


def test_store_that_is_being_made(writer: Writer) -> None:
    """What the metric file has shown is shown until the column has it."""
    writer.make_column([1.0, 2.0, 3.0])
    reader = MetricFileReader(str(writer.path))
    writer.store(1, 7.0, dense=False)  # its writer is stopped here
    assert values(reader) == [1.0, 7.0, 3.0]
    assert values(reader) == [1.0, 7.0, 3.0]
    writer.store(0, 4.0)
    assert values(reader) == [4.0, 7.0, 3.0]
    writer.store(1, 7.0, file=False)
    assert values(reader) == [4.0, 7.0, 3.0]
    writer.store(1, 2.0)  # a gauge may return to where it was
    assert values(reader) == [4.0, 2.0, 3.0]
    writer.store(1, 6.0, file=False)
    assert values(reader) == [4.0, 6.0, 3.0]


@pytest.mark.parametrize("known", [3, 255, 256, 257, 511, 600 - 45])
@pytest.mark.parametrize("added", [1, 2, 44])
def test_keys_that_are_added(tmp_path: Path, known: int, added: int) -> None:
    """Only what was appended is read of the metric file, and compared with what others have."""
    first = [float(number) for number in range(known)]
    writers = [Writer(tmp_path / f"counter_slot{slot}.db", first) for slot in range(2)]
    readers = [MetricFileReader(str(writer.path)) for writer in writers]
    for writer, reader in zip(writers, readers, strict=True):
        writer.make_column(first)
        assert values(reader) == first
        writer.store(0, 5.0)
        for number in range(added):
            writer.add(100.0 + number)
        Writer._write(writer.path, 16, b"#")  # the keys that are known are not read again
        reader.refresh([each.layout for each in readers if each is not reader], has_column=True)
        assert reader.damage is None
        assert list(reader.pairs())[::2] == [
            5.0,
            *first[1:],
            *(100.0 + number for number in range(added)),
        ]
        assert len(reader.layout.keys) == known + added
    assert readers[0].layout is readers[1].layout
    for writer in writers:
        writer.end()


def test_entry_that_is_being_added(writer: Writer) -> None:
    """An entry that the metric file has and the column does not have yet is shown."""
    writer.make_column([1.0, 2.0, 3.0])
    reader = MetricFileReader(str(writer.path))
    assert values(reader) == [1.0, 2.0, 3.0]
    writer.add(4.0, dense=False)  # its writer is stopped here
    assert values(reader) == [1.0, 2.0, 3.0]  # nobody has said that there is more
    fresh = MetricFileReader(str(writer.path))
    assert values(fresh) == [1.0, 2.0, 3.0, 4.0]
    writer.store(0, 8.0)
    assert values(fresh) == [8.0, 2.0, 3.0, 4.0]
    assert values(reader) == [8.0, 2.0, 3.0]
    writer.add_to_column(4.0)
    for each in (reader, fresh):
        assert values(each) == [8.0, 2.0, 3.0, 4.0]
    writer.store(3, 9.0, file=False)
    for each in (reader, fresh):
        assert values(each) == [8.0, 2.0, 3.0, 9.0]
