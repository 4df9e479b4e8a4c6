"""The ``.db`` metric file: its format, writing it, and salvaging a damaged one."""

from __future__ import annotations

import errno
import json
import mmap
import os
import random
import signal
import struct
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from prometheus_client.mmap_dict import MmapedDict, mmap_key
from prometheus_client.multiprocess import MultiProcessCollector as TheirCollector

from obskit_gunicorn._store.column import HEADER_BYTES as COLUMN_HEADER_BYTES
from obskit_gunicorn._store.column import column_path, unpack_header
from obskit_gunicorn._store.fileformat import (
    HEADER_BYTES,
    MetricFileName,
    encode_key,
    is_key,
    key_text,
    pack_entry,
)
from obskit_gunicorn._store.locks import LockedFile, NotAFileError
from obskit_gunicorn._store.reader import Layout, MetricFileReader
from obskit_gunicorn._store.writer import MetricFile, MetricFileInUseError
from tests.support.columns import read_column, read_metric_file
from tests.support.forks import Nursery, RemoteProcess, close_descriptors, read, read_ours

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pytest_mock import MockerFixture


def _key(text: str, plain: bool) -> str:
    """Return a metric's key, in ASCII as prometheus_client writes it or with what text has."""
    return json.dumps(["m", text, {"label": text}, "Help."], ensure_ascii=plain)


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


bounded = settings(
    max_examples=150,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


def key(name: str, **labels: str) -> bytes:
    """Return the key of a counter's sample, as prometheus_client makes it."""
    made: str = mmap_key(name, f"{name}_total", list(labels), list(labels.values()), "Help.")
    return made.encode()


@pytest.fixture(name="path")
def _path(directory: str) -> str:
    return os.path.join(directory, "counter_slot0.db")


@pytest.fixture(name="content")
def _content() -> bytes:
    """A file with the counters a, b and c at 1, 2 and 3."""
    return abc()


def abc() -> bytes:
    """Return the bytes of a file with the counters a, b and c at 1, 2 and 3."""
    entries = b"".join(
        pack_entry(key(name), float(number), 0.0) for number, name in enumerate("abc", start=1)
    )
    whole = struct.pack("i", HEADER_BYTES + len(entries)) + bytes(4) + entries
    return whole + bytes(4096 - len(whole))


def files_of(path: str) -> list[str]:
    """Return the names of the files in the directory of a metric file."""
    return sorted(os.listdir(os.path.dirname(path)))


def used(content: bytes) -> int:
    """Return what the header says of how much is used."""
    return int(struct.unpack_from("i", content)[0])


def theirs(path: str) -> dict[bytes, tuple[float, float]]:
    """Return the entries of a file as prometheus_client reads them."""
    found = MmapedDict.read_all_values_from_file(path)  # type: ignore[no-untyped-call]
    return {name.encode(): (value, timestamp) for name, value, timestamp, _ in found}


def ours(path: str) -> dict[bytes, tuple[float, float]]:
    """Return the entries of a file as we read them, and check that none is damaged."""
    found, damage = read_what_is_whole(path)
    assert damage is None
    return found


def read_what_is_whole(path: str) -> tuple[dict[bytes, tuple[float, float]], str | None]:
    """Return what can be read of a file, and what is wrong with it."""
    reader = MetricFileReader(path)
    reader.refresh()
    numbers = list(reader.pairs())
    pairs = zip(numbers[::2], numbers[1::2], strict=True)
    entries = dict(zip(reader.layout.keys, pairs, strict=True))
    found = {key_text(key): pair for key, pair in entries.items() if is_key(key)}
    damage = None if reader.damage is None else reader.damage.text
    return found, damage or (None if len(found) == len(entries) else "a key is not a metric's")


class TestName:
    """Which files are metric files, and whose."""

    @pytest.mark.parametrize(
        ("name", "prefix", "holder", "is_live", "belongs_to_one"),
        [
            ("counter_slot0.db", "counter", "slot0", False, False),
            ("histogram_123.db", "histogram", "123", False, False),
            ("summary_slot12.db", "summary", "slot12", False, False),
            ("gauge_all_slot3.db", "gauge_all", "slot3", False, True),
            ("gauge_liveall_slot3.db", "gauge_liveall", "slot3", True, True),
            ("gauge_livesum_77.db", "gauge_livesum", "77", True, True),
            ("gauge_mostrecent_slot3.db", "gauge_mostrecent", "slot3", False, False),
        ],
    )
    def test_parts(
        self, name: str, prefix: str, holder: str, is_live: bool, belongs_to_one: bool
    ) -> None:
        """A metric file's name says type, mode and holder."""
        parsed = MetricFileName.parse(name)
        assert parsed == (prefix, holder)
        assert parsed is not None
        assert parsed.is_live_gauge is is_live
        assert parsed.belongs_to_one_holder is belongs_to_one

    @pytest.mark.parametrize(
        "name",
        [
            "app.db",
            "db",
            "counter.db",
            "counter_.db",
            "counter_slot0.new",
            "counter_slot0.db.damaged",
            "counter_slot_0.db",
            "gauge_slot0.db",
            "mycounter_slot0.db",
            "counter_slot0.db-journal",
            "slot0.lease",
            "slots.lock",
        ],
    )
    def test_foreign_files_have_none(self, name: str) -> None:
        """Whatever else lies in the directory is no metric file."""
        assert MetricFileName.parse(name) is None


class TestFormat:
    """The bytes are prometheus_client's."""

    @bounded
    @given(
        st.dictionaries(
            st.builds(_key, st.text(max_size=70).filter(_is_utf8), st.booleans()),
            st.tuples(st.floats(), st.floats(allow_nan=False)),
            max_size=30,
        )
    )
    def test_prometheus_client_reads_what_we_write(
        self, tmp_path: Path, entries: dict[str, tuple[float, float]]
    ) -> None:
        """Every entry that is written is read back the same by prometheus_client and by us."""
        path = str(tmp_path / "counter_slot0.db")
        Path(path).unlink(missing_ok=True)
        file = MetricFile(path)
        for text, (value, timestamp) in entries.items():
            file.add(text.encode(), value, timestamp)
        expected = {text.encode(): pair for text, pair in entries.items()}
        assert repr(theirs(path)) == repr(expected)
        # Timestamps of counters mean nothing, and are not read.
        assert repr(ours(path)) == repr({key: (pair[0], 0.0) for key, pair in expected.items()})
        file.release()

    @bounded
    @given(
        st.dictionaries(
            st.builds(_key, st.text(max_size=70).filter(_is_utf8), st.booleans()),
            st.tuples(st.floats(), st.floats(allow_nan=False)),
            max_size=30,
        )
    )
    def test_we_read_what_prometheus_client_writes(
        self, tmp_path: Path, entries: dict[str, tuple[float, float]]
    ) -> None:
        """A file of prometheus_client's is whole for us, and we go on writing it."""
        path = str(tmp_path / "counter_1.db")
        Path(path).unlink(missing_ok=True)
        their_file = MmapedDict(path)  # type: ignore[no-untyped-call]
        for text, (value, timestamp) in entries.items():
            their_file.write_value(text, value, timestamp)  # type: ignore[no-untyped-call]
        their_file.close()  # type: ignore[no-untyped-call]
        file = MetricFile(path)
        assert file.salvaged is None
        for text, pair in entries.items():
            index = file.find(text.encode())
            assert index is not None
            assert repr(file.read(index)) == repr(pair)
        new = _key("new", True)
        if new.encode() not in ours(path):
            file.add(new.encode(), 1.0, 2.0)
        assert len(theirs(path)) == len(ours(path)) == len(entries.keys() | {new})
        file.release()

    @pytest.mark.parametrize("length", range(1, 17))
    def test_entries_are_aligned(self, length: int) -> None:
        """A key is padded with at least one space, and its value stands at a multiple of 8."""
        entry = pack_entry(b"k" * length, 1.0, 2.0)
        assert len(entry) % 8 == 0
        assert entry[4 + length : -16].strip(b" ") == b""
        assert len(entry) > 4 + length + 16

    def test_a_new_file_is_whole_pages(self, path: str) -> None:
        """A new file has a header, no entries, and no unfinished twin."""
        MetricFile(path).release()
        content = Path(path).read_bytes()
        assert used(content) == HEADER_BYTES
        assert len(content) % 4096 == 0
        assert files_of(path) == ["counter_slot0.col", "counter_slot0.db"]

    def test_a_zeroed_header_is_an_empty_file(self, path: str) -> None:
        """A header that says 0 is that of a file that nobody has written to yet."""
        Path(path).write_bytes(bytes(4096))
        assert ours(path) == {}


_TEXTS = st.text(max_size=30) | st.sampled_from(["%", "%s", "%%d", "{}", '"', "\\", "\ud800"])


class TestKeys:
    """Keys are spelt as prometheus_client spells them."""

    @bounded
    @given(_TEXTS, _TEXTS, st.dictionaries(_TEXTS, _TEXTS, max_size=5), _TEXTS)
    def test_any_text(self, metric: str, sample: str, labels: dict[str, str], help_: str) -> None:
        """Whatever the texts are, and in whatever order, the key is that of json.dumps."""
        made = encode_key(metric, sample, tuple(labels), tuple(labels.values()), help_)
        assert made == mmap_key(metric, sample, list(labels), list(labels.values()), help_).encode()
        reverse = dict(reversed(labels.items()))
        assert made == encode_key(metric, sample, [*reverse], [*reverse.values()], help_)

    @pytest.mark.parametrize(
        ("names", "values"),
        [
            (("a", "a"), ("x", "y")),
            (("b", "a"), ("x",)),
            (("a",), ("x", "y")),
            (("a", "b"), (1, None)),
            (("a",), (1.5,)),
        ],
    )
    def test_unusual_labels(self, names: tuple[str, ...], values: tuple[Any, ...]) -> None:
        """What prometheus_client would refuse is spelt as it would spell it."""
        made = encode_key("m", "m", names, values, "Help.")
        assert made == mmap_key("m", "m", list(names), list(values), "Help.").encode()


class TestWriting:
    """Cells, entries and growth."""

    def test_values_are_found_again(self, path: str) -> None:
        """What was written is there for the next one who opens the file."""
        file = MetricFile(path)
        index = file.add(key("a"), 1.0, 0.0)
        file.cells[index] = 5.5
        mostrecent = file.add(key("b"), 0.0, 0.0)
        file.write_pair(mostrecent, 7.0, 123.0)
        file.release()
        again = MetricFile(path)
        assert again.find(key("a")) == index
        assert again.read(index) == (5.5, 0.0)
        assert again.read(mostrecent) == (7.0, 123.0)
        assert again.find(key("c")) is None
        again.release()

    def test_growth_keeps_everything(self, path: str) -> None:
        """A file grows as often as it must, in steps that readers never see half done."""
        file = MetricFile(path)
        keys = [key("many", label=str(number)) for number in range(3000)]
        indexes = [file.add(one, float(number), 0.0) for number, one in enumerate(keys)]
        assert [file.cells[index] for index in indexes] == list(map(float, range(3000)))
        assert len(theirs(path)) == 3000
        file.release()
        again = MetricFile(path)
        assert [again.find(one) for one in keys] == indexes
        again.release()

    def test_one_entry_may_be_larger_than_the_file(self, path: str) -> None:
        """A key of any length finds room."""
        file = MetricFile(path)
        long = key("long", label="x" * 300_000)
        file.add(key("first"), 1.0, 0.0)
        file.add(long, 2.0, 0.0)
        file.add(key("last"), 3.0, 0.0)
        assert theirs(path)[long] == (2.0, 0.0)
        assert [value for value, _ in theirs(path).values()] == [1.0, 2.0, 3.0]
        file.release()

    def test_one_writer_at_a_time(self, path: str) -> None:
        """A second writer is refused until the first lets go."""
        file = MetricFile(path)
        with pytest.raises(MetricFileInUseError) as caught:
            MetricFile(path)
        assert caught.value.errno == errno.EBUSY
        assert caught.value.filename == path
        file.release()
        MetricFile(path).release()

    def test_removal_is_noticed(self, path: str) -> None:
        """A file whose name is gone says so, and its name is free for another one."""
        file = MetricFile(path)
        assert file.is_linked()
        os.unlink(path)
        assert not file.is_linked()
        MetricFile(path).release()
        assert not file.is_linked()
        file.release()

    def test_release_may_be_called_twice(self, path: str) -> None:
        """Releasing again does nothing."""
        file = MetricFile(path)
        file.release()
        file.release()

    def test_release_spares_reused_descriptors(self, nursery: Nursery, directory: str) -> None:
        """An application that closed all descriptors and took their numbers keeps its own open."""
        process = nursery.start()
        assert process.call(_release_after_closerange, directory) == []

    def test_a_link_is_refused(self, path: str) -> None:
        """A symbolic link in the place of a file is an error and leads nowhere."""
        Path(path + ".target").write_bytes(b"precious")
        os.symlink(path + ".target", path)
        with pytest.raises(NotAFileError):
            MetricFile(path)
        assert Path(path + ".target").read_bytes() == b"precious"

    def test_a_leftover_unfinished_file_is_replaced(self, path: str) -> None:
        """What a process that was killed in the making has left is in nobody's way."""
        Path(path).with_suffix(".new").write_bytes(b"half")
        MetricFile(path).release()
        assert files_of(path) == ["counter_slot0.col", "counter_slot0.db"]

    def test_works_without_fallocate(self, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
        """Where the system cannot reserve room, writing zeros does."""
        monkeypatch.delattr(os, "posix_fallocate")
        file = MetricFile(path)
        for number in range(300):
            file.add(key("many", label=str(number)), float(number), 0.0)
        file.release()
        assert [value for value, _ in theirs(path).values()] == list(map(float, range(300)))


class TestColumn:
    """The column beside a metric file: the same values once more, while its writer lives."""

    def test_it_has_every_value(self, path: str) -> None:
        """What is stored is in the column too, in the order of the entries, however many."""
        file = MetricFile(path)
        assert read_column(path) == []
        for number in range(1500):
            file.add(key("many", label=str(number)), float(number), 0.0)
        assert read_column(path) == list(map(float, range(1500)))
        file.column[file.number(key("many", label="1200"))] = 0.5
        changed = read_column(path)
        assert changed is not None
        assert changed[1200] == 0.5
        assert os.path.getsize(column_path(path)) >= 32 + 8 * 1500
        file.release()

    def test_it_counts_while_its_writer_lives(self, path: str) -> None:
        """Who opens the file next makes another one, from what the file says."""
        first = MetricFile(path)
        first.add(key("a"), 1.0, 0.0)
        before = os.stat(column_path(path)).st_ino
        kept = os.open(column_path(path), os.O_RDONLY)  # so that the inode is not used again
        first.release()
        assert read_column(path) is None
        heir = MetricFile(path)
        assert os.stat(column_path(path)).st_ino != before
        assert read_column(path) == [1.0]
        os.close(kept)
        heir.release()

    def test_a_stranger_cannot_fake_it(self, path: str) -> None:
        """A column that is claimed, and was another file's, does not count."""
        file = MetricFile(path)
        file.add(key("a"), 1.0, 0.0)
        other = path.replace("slot0", "slot1")
        MetricFile(other).release()
        os.rename(column_path(path), column_path(other))
        assert read_column(path) is None
        assert read_column(other) is None
        file.release()

    def test_a_replaced_file_has_none(self, path: str) -> None:
        """A copy in the place of the file is not what the column belongs to."""
        file = MetricFile(path)
        file.add(key("a"), 1.0, 0.0)
        Path(path + ".copy").write_bytes(Path(path).read_bytes())
        os.rename(path + ".copy", path)
        assert read_column(path) is None
        file.release()

    def test_twins_have_a_value_each(self, path: str) -> None:
        """A key that occurs twice has two places; the writer goes on in the last."""
        entries = pack_entry(key("a"), 1.0, 0.0) + pack_entry(key("a"), 2.0, 0.0)
        Path(path).write_bytes(struct.pack("i4x", HEADER_BYTES + len(entries)) + entries)
        file = MetricFile(path)
        assert read_column(path) == [1.0, 2.0]
        file.column[file.number(key("a"))] = 3.0
        assert read_column(path) == [1.0, 3.0]
        file.release()

    def test_a_salvaged_file_has_one(self, path: str, content: bytes) -> None:
        """The column of a file that was damaged belongs to the file in its place."""
        Path(path).write_bytes(struct.pack("i", 1 << 20) + content[4:])
        file = MetricFile(path)
        assert file.salvaged
        assert read_column(path) == [1.0, 2.0, 3.0]
        file.release()

    @pytest.mark.parametrize("mode", ["mostrecent", "livemostrecent"])
    def test_timestamps_have_none(self, directory: str, mode: str) -> None:
        """Where value and timestamp are stored at once there is no column."""
        path = os.path.join(directory, f"gauge_{mode}_slot0.db")
        file = MetricFile(path)
        file.add(key("g"), 1.0, 2.0)
        file.release()
        assert len(os.listdir(directory)) == 1

    def test_mode(self, path: str) -> None:
        """Whoever may read the metric file may read its column."""
        file = MetricFile(path)
        assert os.stat(column_path(path)).st_mode == os.stat(path).st_mode
        file.release()

    def test_what_a_killed_process_leaves(self, path: str) -> None:
        """An unfinished column is in nobody's way."""
        Path(column_path(path) + ".new").write_bytes(b"half")
        file = MetricFile(path)
        assert read_column(path) == []
        file.release()
        assert files_of(path) == ["counter_slot0.col", "counter_slot0.db"]

    def test_a_directory_in_its_place(self, path: str) -> None:
        """What cannot be replaced stays, and the file goes on without a column."""
        os.mkdir(column_path(path))
        file = MetricFile(path)
        file.add(key("a"), 1.0, 0.0)
        file.column[file.number(key("a"))] = 1.0
        assert files_of(path) == ["counter_slot0.col", "counter_slot0.db"]
        file.release()

    @pytest.mark.parametrize("number", [errno.ENOSPC, errno.EMFILE, errno.EIO, errno.EROFS])
    @pytest.mark.parametrize("call", ["os.posix_fallocate", "os.rename", "mmap.mmap", "os.pwrite"])
    def test_none_is_no_error(
        self, path: str, content: bytes, mocker: MockerFixture, call: str, number: int
    ) -> None:
        """Whatever keeps a column from being made, the file is open and its values are stored."""
        Path(path).write_bytes(content)
        module, name = call.split(".")
        act = getattr(sys.modules[module], name)
        mocker.patch(call, side_effect=_fails_for_columns(act, path, number))
        file = MetricFile(path)
        for one in range(600):
            file.add(key("many", label=str(one)), 1.0, 0.0)
        index = file.find(key("a"))
        assert index is not None
        file.cells[index] = file.column[file.number(key("a"))] = 4.0
        mocker.stopall()
        assert read_column(path) is None
        assert files_of(path) == ["counter_slot0.db"]
        assert len(ours(path)) == 603
        assert ours(path)[key("a")] == (4.0, 0.0)
        file.release()

    @pytest.mark.parametrize("call", ["os.posix_fallocate", "mmap.mmap"])
    def test_a_column_that_cannot_grow(self, path: str, mocker: MockerFixture, call: str) -> None:
        """It is given up, so that readers take the metric file, which goes on."""
        file = MetricFile(path)
        for one in range(500):
            file.add(key("many", label=str(one)), 1.0, 0.0)
        assert read_column(path) is not None
        held = os.open(column_path(path), os.O_RDONLY)
        module, name = call.split(".")
        act = getattr(sys.modules[module], name)
        mocker.patch(call, side_effect=_fails_for_columns(act, path, errno.ENOSPC))
        for one in range(500, 600):
            file.add(key("many", label=str(one)), 1.0, 0.0)
        mocker.stopall()
        assert not os.path.exists(column_path(path))
        # Nor for who has it open, whoever else has a copy of the descriptor.
        assert unpack_header(os.pread(held, COLUMN_HEADER_BYTES, 0)) is None
        os.close(held)
        file.column[file.number(key("many", label="599"))] = 1.0
        file.add(key("last"), 1.0, 0.0)
        assert len(ours(path)) == 601
        file.release()
        again = MetricFile(path)
        assert read_column(path) == [1.0] * 601
        again.release()

    def test_an_interrupted_entry(self, path: str, mocker: MockerFixture) -> None:
        """An entry whose writer was interrupted before the column is filled in later."""
        file = MetricFile(path)
        for name, number in (("a", 1.0), ("b", 3.0)):
            mocker.patch.object(MetricFile, "_fill_column", side_effect=KeyboardInterrupt)
            with pytest.raises(KeyboardInterrupt):
                file.add(key(name), number, 0.0)
            mocker.stopall()
            if name == "a":
                file.add(key("between"), 2.0, 0.0)  # either the next entry does it
        assert read_column(path) == [1.0, 2.0]
        assert file.number(key("b")) == 4 + 2  # or whoever asks for the place
        assert read_column(path) == [1.0, 2.0, 3.0]
        file.release()

    def test_signal_handlers_that_raise(self, nursery: Nursery, directory: str) -> None:
        """Wherever a time-out interrupts the writer, file and column stay one and the same."""
        process = nursery.start()
        interrupted = process.call(_add_under_signals, directory, 1.0)
        path = os.path.join(directory, "counter_slot0.db")
        keys, values = read_metric_file(path)
        assert len(set(keys)) == len(keys) > 1000
        assert [float(json.loads(key_text(key))[2]["label"]) for key in keys] == values
        assert read_column(path) == values
        assert interrupted > 10

    def test_a_forked_child_keeps_no_claim(self, nursery: Nursery, directory: str) -> None:
        """A column that was given up counts for nobody, though a child has its descriptor."""
        process = nursery.start()
        child = process.call(_give_up_beside_child, directory)
        assert read_column(os.path.join(directory, "counter_slot0.db")) is None
        process.call(_end_child, child)

    def test_closed_descriptors(self, nursery: Nursery, directory: str) -> None:
        """A column whose descriptor somebody closed does not grow into the application's file."""
        process = nursery.start()
        assert process.call(_grow_after_closing_column, directory) == b"precious"


def _fails_for_columns(act: Any, path: str, number: int) -> Callable[..., Any]:
    """Return a function that fails for the column of a file, by path or descriptor."""

    def fail_or_act(first: Any, *rest: Any) -> Any:
        name = os.readlink(f"/proc/self/fd/{first}") if isinstance(first, int) else first
        if isinstance(name, str) and name.startswith(column_path(path)):
            raise OSError(number, os.strerror(number))
        return act(first, *rest)

    return fail_or_act


class _TimeOutError(Exception):
    """What a signal handler raises, at any place."""


def _add_under_signals(directory: str, seconds: float) -> int:
    def raise_it(*_: object) -> None:
        raise _TimeOutError

    file = MetricFile(os.path.join(directory, "counter_slot0.db"))
    signal.signal(signal.SIGALRM, raise_it)
    chance, deadline = random.Random(4711), time.monotonic() + seconds
    interrupted = number = 0
    while time.monotonic() < deadline:
        try:
            signal.setitimer(signal.ITIMER_REAL, chance.uniform(0.0001, 0.001))
            while True:
                number += 1
                file.add(key("many", label=str(number)), float(number), 0.0)
        except _TimeOutError:
            interrupted += 1
    file.add(key("many", label="0"), 0.0, 0.0)
    _kept.append(file)
    return interrupted


_kept: list[MetricFile] = []


def _give_up_beside_child(directory: str) -> int:
    file = MetricFile(os.path.join(directory, "counter_slot0.db"))
    file.add(key("a"), 1.0, 0.0)
    assert read_column(file.path) == [1.0]
    pid = os.fork()
    if pid == 0:
        signal.pause()
    with LockedFile(column_path(file.path), os.O_RDONLY) as held:
        assert held.is_claimed(by_flock=False)
        assert file.give_up_column()
        assert not held.is_claimed(by_flock=False)
    assert not file.give_up_column()
    return pid


def _end_child(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def _grow_after_closing_column(directory: str) -> bytes:
    path = os.path.join(directory, "counter_slot0.db")
    file = MetricFile(path)
    (number,) = [
        int(name)
        for name in os.listdir("/proc/self/fd")
        if os.path.exists(f"/proc/self/fd/{name}")
        and os.readlink(f"/proc/self/fd/{name}") == column_path(path)
    ][:1]
    os.close(number)
    precious = os.path.join(directory, "application")
    mine = os.open(precious, os.O_RDWR | os.O_CREAT)
    os.dup2(mine, number)
    os.write(mine, b"precious")
    for one in range(600):
        file.add(key("many", label=str(one)), 1.0, 0.0)
    file.release()
    return Path(precious).read_bytes()


class TestTimestamps:
    """Files with timestamps, whose values and timestamps are written at once."""

    _KEYS = tuple(key("g", label="x" * length) for length in range(70))

    @pytest.fixture(name="path", params=["gauge_mostrecent", "gauge_livemostrecent"])
    def _path(self, request: pytest.FixtureRequest, directory: str) -> str:
        return os.path.join(directory, f"{request.param}_slot0.db")

    def test_no_pair_crosses_a_cache_line(self, path: str) -> None:
        """Whatever the lengths of keys, value and timestamp begin at a multiple of 16 bytes."""
        file = MetricFile(path)
        offsets = [8 * file.add(one, 1.0, 2.0) for one in self._KEYS]
        assert {offset % 16 for offset in offsets} == {0}
        assert len({offset % 64 for offset in offsets}) == 4
        file.release()

    def test_keys_are_found_again(self, path: str) -> None:
        """Spaces behind a key are no part of it: not for its writer, and for no reader."""
        file = MetricFile(path)
        indexes = [file.add(one, float(at), 1.0) for at, one in enumerate(self._KEYS)]
        assert [file.find(one) for one in self._KEYS] == indexes
        file.release()
        again = MetricFile(path)
        assert [again.find(one) for one in self._KEYS] == indexes
        again.release()
        values = {one: (float(at), 1.0) for at, one in enumerate(self._KEYS)}
        assert ours(path) == values
        assert {one.rstrip(): pair for one, pair in theirs(path).items()} == values
        assert len(theirs(path).keys() - values) >= 30
        assert read_ours(os.path.dirname(path)) == read(os.path.dirname(path))

    def test_two_spellings_are_one_series(self, directory: str) -> None:
        """A key with spaces and the same without, in other files or in one, are one series."""
        path = os.path.join(directory, "gauge_mostrecent_slot0.db")
        plain = b"".join(pack_entry(one, float(at), 1.0) for at, one in enumerate(self._KEYS))
        Path(path).write_bytes(struct.pack("ii", HEADER_BYTES + len(plain), 1) + plain)
        file = MetricFile(path.replace("slot0", "slot1"))
        for at, one in enumerate(self._KEYS):
            file.add(one, 100.0 + at, 2.0 if at % 2 else 0.5)
            file.add(one, 200.0 + at, 3.0 if at % 3 else 0.5)  # as an older release would
        file.release()
        expected = {
            f'g_total{{label="{"x" * at}"}}': at + 100.0 * (2 if at % 3 else at % 2)
            for at in range(len(self._KEYS))
        }
        assert read_ours(directory) == read(directory) == expected

    def test_files_of_older_releases_go_on(self, path: str) -> None:
        """Entries that cross a cache line are found and written where they are."""
        plain = b"".join(pack_entry(one, float(at), 1.0) for at, one in enumerate(self._KEYS))
        content = struct.pack("ii", HEADER_BYTES + len(plain), 1) + plain
        Path(path).write_bytes(content)
        file = MetricFile(path)
        for at, one in enumerate(self._KEYS):
            index = file.find(one)
            assert index is not None
            assert file.read(index) == (float(at), 1.0)
        new = file.add(key("new"), 5.0, 6.0)
        assert 8 * new % 16 == 0
        file.release()
        assert Path(path).read_bytes()[8 : len(content)] == content[8:]

    def test_what_is_salvaged_is_aligned(self, path: str) -> None:
        """What is saved of a damaged file is laid out anew."""
        bad = pack_entry(b"what is this", 1.0, 0.0)
        entries = b"".join(bad + pack_entry(one, 1.0, 2.0) for one in self._KEYS)
        Path(path).write_bytes(struct.pack("ii", HEADER_BYTES + len(entries), 1) + entries)
        file = MetricFile(path)
        assert file.salvaged
        assert {8 * (file.find(one) or 1) % 16 for one in self._KEYS} == {0}
        assert ours(path) == dict.fromkeys(self._KEYS, (1.0, 2.0))
        file.release()

    def test_other_files_have_no_spaces(self, directory: str) -> None:
        """Keys of files without timestamps are spelt alike in all, wherever they stand."""
        path = os.path.join(directory, "counter_slot0.db")
        file = MetricFile(path)
        for one in self._KEYS:
            file.add(one, 1.0, 0.0)
        file.release()
        assert theirs(path).keys() == set(self._KEYS)


class TestNoRoom:
    """Errors of the kernel leave the file as it was."""

    def test_a_new_file_leaves_nothing(self, path: str, mocker: MockerFixture) -> None:
        """When there is no room for a file it is an error, and there is none, not even half."""
        mocker.patch.object(os, "posix_fallocate", side_effect=OSError(errno.ENOSPC, "full"))
        with pytest.raises(OSError, match="full"):
            MetricFile(path)
        mocker.stopall()
        assert os.listdir(os.path.dirname(path)) == []
        MetricFile(path).release()

    def test_an_entry_that_finds_no_room_changes_nothing(
        self, path: str, mocker: MockerFixture
    ) -> None:
        """An entry without room is an error; those before it are whole and can be written."""
        file = MetricFile(path)
        index = file.add(key("a"), 1.0, 0.0)
        before = Path(path).read_bytes()
        mocker.patch.object(os, "posix_fallocate", side_effect=OSError(errno.ENOSPC, "full"))
        with pytest.raises(OSError, match="full"):
            file.add(key("b", label="x" * 5000), 2.0, 0.0)
        mocker.stopall()
        assert Path(path).read_bytes() == before
        file.cells[index] = 4.0
        file.add(key("b", label="x" * 5000), 2.0, 0.0)
        assert [value for value, _ in theirs(path).values()] == [4.0, 2.0]
        file.release()

    def test_no_descriptor_for_the_mapping(self, path: str, mocker: MockerFixture) -> None:
        """When the file cannot be mapped the lock is let go of, and the next try succeeds."""
        mocker.patch("mmap.mmap", side_effect=OSError(errno.EMFILE, "too many"))
        with pytest.raises(OSError, match="too many"):
            MetricFile(path)
        mocker.stopall()
        MetricFile(path).release()

    def test_a_file_cut_while_it_grows(self, path: str, mocker: MockerFixture) -> None:
        """Somebody who cuts the file between reserving and mapping causes an error, no crash."""
        file = MetricFile(path)
        index = file.add(key("a"), 1.0, 0.0)
        mocker.patch("mmap.mmap", side_effect=ValueError("mmap length is greater than file size"))
        with pytest.raises(OSError, match="greater than file size"):
            file.add(key("b", label="x" * 5000), 2.0, 0.0)
        mocker.stopall()
        file.cells[index] = 2.0
        assert list(theirs(path).values()) == [(2.0, 0.0)]
        file.release()

    @pytest.mark.parametrize("has_links", [True, False], ids=["links", "no links"])
    def test_salvaging_without_room_loses_nothing(
        self, path: str, content: bytes, mocker: MockerFixture, has_links: bool
    ) -> None:
        """A damaged file that is met on a full volume is salvaged in full once there is room."""
        Path(path).write_bytes(struct.pack("i", len(content) + 4096) + content[4:])
        if not has_links:
            mocker.patch.object(os, "link", side_effect=PermissionError(errno.EPERM, "no links"))
        reserve = os.posix_fallocate

        def only_for_what_is_there(descriptor: int, offset: int, length: int) -> None:
            if offset + length > os.fstat(descriptor).st_size:
                raise OSError(errno.ENOSPC, "full")
            reserve(descriptor, offset, length)

        mocker.patch.object(os, "posix_fallocate", side_effect=only_for_what_is_there)
        with pytest.raises(OSError, match="full"):
            MetricFile(path)
        mocker.patch.object(os, "posix_fallocate", side_effect=reserve)
        file = MetricFile(path)
        file.release()
        assert sorted(value for value, _ in theirs(path).values()) == [1.0, 2.0, 3.0]


def _corrupt_key(content: bytes, number: int, change: Callable[[bytearray, int], None]) -> bytes:
    """Change an entry of a file: the function gets the bytes and where the entry starts."""
    changed = bytearray(content)
    at = HEADER_BYTES
    for _ in range(number):
        (length,) = struct.unpack_from("i", changed, at)
        at += 4 + length + (8 - (length + 4) % 8) + 16
    change(changed, at)
    return bytes(changed)


def _set_length(length: int) -> Callable[[bytearray, int], None]:
    def change(content: bytearray, at: int) -> None:
        struct.pack_into("i", content, at, length)

    return change


def _spoil_text(content: bytearray, at: int) -> None:
    content[at + 8] = 0xFF


DAMAGES: dict[str, tuple[Callable[[bytes], bytes], int]] = {
    # The four of the experiments that made a service unbootable.
    "used beyond size": (lambda content: struct.pack("i", 1 << 20) + content[4:], 3),
    "3 bytes": (lambda content: content[:3], 0),
    "bad key length": (lambda content: _corrupt_key(content, 1, _set_length(1 << 30)), 1),
    "not utf8": (lambda content: _corrupt_key(content, 2, _spoil_text), 2),
    # And more of their kind.
    "empty": (lambda content: b"", 0),
    "half a header": (lambda content: content[:7], 0),
    "used is negative": (lambda content: struct.pack("i", -8) + content[4:], 3),
    "used is odd": (lambda content: struct.pack("i", used(content) - 3) + content[4:], 3),
    "used is inside the header": (lambda content: struct.pack("i", 4) + content[4:], 3),
    "used ends inside an entry": (
        lambda content: struct.pack("i", used(content) - 8) + content[4:],
        2,
    ),
    "cut inside the last value": (lambda content: content[: used(content) - 9], 2),
    "cut inside a key": (lambda content: content[: HEADER_BYTES + 10], 0),
    "key length is negative": (lambda content: _corrupt_key(content, 1, _set_length(-1)), 1),
    "key length is zero": (lambda content: _corrupt_key(content, 1, _set_length(0)), 1),
    "garbage": (lambda content: b"\xde\xad\xbe\xef" * 1024, 0),
    "text": (lambda content: b"Lorem ipsum dolor sit amet\n" * 100, 0),
    "zeros behind a header that lies": (lambda content: struct.pack("i", 800) + bytes(4092), 0),
}


@pytest.fixture(name="damage", params=DAMAGES)
def _damage(request: pytest.FixtureRequest, content: bytes) -> tuple[bytes, int]:
    """A damaged file's bytes, and how many of its entries can be read."""
    change, whole = DAMAGES[request.param]
    return change(content), whole


class TestDamage:
    """A damaged file is never an error: what can be read of it counts on."""

    def test_reading_never_raises(self, path: str, damage: tuple[bytes, int]) -> None:
        """Reading gives the whole entries in front of the damage and says what it is."""
        content, whole = damage
        Path(path).write_bytes(content)
        found, problem = read_what_is_whole(path)
        assert len(found) == whole
        assert problem

    def test_opening_salvages(self, path: str, damage: tuple[bytes, int]) -> None:
        """The next writer goes on from the whole entries; the old bytes are kept beside."""
        content, whole = damage
        Path(path).write_bytes(content)
        file = MetricFile(path)
        assert file.salvaged
        assert [value for value, _ in theirs(path).values()] == [1.0, 2.0, 3.0][:whole]
        index = file.find(key("a"))
        assert (index is not None) == (whole > 0)
        file.add(key("new"), 4.0, 0.0)
        file.release()
        assert files_of(path) == [
            "counter_slot0.col",
            "counter_slot0.db",
            "counter_slot0.db.damaged",
        ]
        # It may have been filled up to whole pages.
        assert Path(path + ".damaged").read_bytes().rstrip(b"\0") == content.rstrip(b"\0")

    def test_the_result_is_whole(self, path: str, damage: tuple[bytes, int]) -> None:
        """A salvaged file needs no salvaging, and prometheus_client's collector reads it."""
        content, whole = damage
        Path(path).write_bytes(content)
        MetricFile(path).release()
        again = MetricFile(path)
        assert again.salvaged is None
        again.release()
        names = ("a_total", "b_total", "c_total")
        assert read(os.path.dirname(path)) == dict(
            zip(names[:whole], (1.0, 2.0, 3.0), strict=False)
        )

    def test_the_lock_moves_along(self, path: str, damage: tuple[bytes, int]) -> None:
        """Whoever has salvaged a file is its only writer."""
        Path(path).write_bytes(damage[0])
        file = MetricFile(path)
        with pytest.raises(MetricFileInUseError):
            MetricFile(path)
        file.release()

    def test_works_without_hard_links(
        self, path: str, damage: tuple[bytes, int], mocker: MockerFixture
    ) -> None:
        """On a file system without hard links the same is kept."""
        content, whole = damage
        Path(path).write_bytes(content)
        mocker.patch.object(os, "link", side_effect=PermissionError(errno.EPERM, "no links"))
        file = MetricFile(path)
        assert file.salvaged
        file.release()
        assert len(theirs(path)) == whole
        assert os.path.exists(path + ".damaged")

    def test_the_newest_damage_is_kept(self, path: str, content: bytes) -> None:
        """A file that is damaged again replaces what was kept before."""
        for number in (1, 2):
            damaged = _corrupt_key(content, number, _spoil_text)
            Path(path).write_bytes(damaged)
            MetricFile(path).release()
            assert Path(path + ".damaged").read_bytes() == damaged

    def test_another_writers_file_is_not_salvaged(self, path: str, content: bytes) -> None:
        """A file that looks damaged is left alone while somebody has it open for writing."""
        file = MetricFile(path)
        with open(path, "r+b") as raw:
            raw.write(struct.pack("i", 1 << 20))
        with pytest.raises(MetricFileInUseError):
            MetricFile(path)
        assert not os.path.exists(path + ".damaged")
        file.release()

    def test_a_scrape_finds_the_file_at_every_moment(self, path: str, content: bytes) -> None:
        """While a file is salvaged there is no moment without a file of its name."""
        Path(path).write_bytes(content)
        missing: list[OSError] = []
        ends = threading.Event()

        def look() -> None:
            while not ends.is_set():
                try:
                    os.stat(path)
                except OSError as error:
                    missing.append(error)

        reader = threading.Thread(target=look)
        reader.start()
        try:
            for _ in range(200):
                with open(path, "r+b") as raw:
                    raw.write(struct.pack("i", 1 << 20))
                file = MetricFile(path)
                assert file.salvaged
                file.release()
        finally:
            ends.set()
            reader.join()
        assert not missing

    @bounded
    @given(st.binary(max_size=600))
    def test_random_bytes(self, tmp_path: Path, content: bytes) -> None:
        """Whatever the bytes are, opening never raises, and prometheus_client reads the result."""
        path = str(tmp_path / "counter_slot0.db")
        Path(path).write_bytes(content)
        file = MetricFile(path)
        file.add(key("new"), 1.0, 0.0)
        file.release()
        assert theirs(path)[key("new")] == (1.0, 0.0)
        assert len(ours(path)) == len(theirs(path))

    def test_a_key_that_nests_too_deep(self, path: str) -> None:
        """Text that Python's JSON reader cannot follow is a damaged key like any other."""
        entry = pack_entry(b"[" * 50_000 + b"x", 1.0, 0.0)
        Path(path).write_bytes(struct.pack("i", 1 << 20) + bytes(4) + entry)
        file = MetricFile(path)
        assert file.salvaged
        file.release()

    @bounded
    @given(st.data())
    def test_random_damage(self, tmp_path: Path, data: st.DataObject) -> None:
        """Entries in front of the first changed byte are kept with their values."""
        content = abc()
        whole = content[: used(content)]
        at = data.draw(st.integers(HEADER_BYTES, len(whole) - 1))
        junk = data.draw(st.binary(min_size=1, max_size=40))
        is_cut = data.draw(st.booleans())
        changed = whole[:at] + (b"" if is_cut else junk + whole[at + len(junk) :])
        path = str(tmp_path / "counter_slot0.db")
        Path(path).write_bytes(changed)
        MetricFile(path).release()
        found = theirs(path)
        end = HEADER_BYTES
        for name, number in zip("abc", (1.0, 2.0, 3.0), strict=True):
            end += len(pack_entry(key(name), number, 0.0))
            if end <= at:
                assert found[key(name)][0] == number

    @bounded
    @given(st.data())
    def test_a_flipped_bit_in_a_key(self, tmp_path: Path, data: st.DataObject) -> None:
        """A key that is text but no metric's does not make prometheus_client's collector fail."""
        content = abc()
        (length,) = struct.unpack_from("i", content, HEADER_BYTES)
        # What makes a good metric name is not the file's to know, and depends on the release.
        places = st.integers(0, length - 1).filter(lambda place: place != len('["'))
        at = HEADER_BYTES + 4 + data.draw(places)
        changed = bytearray(content)
        changed[at] ^= 1 << data.draw(st.integers(0, 7))
        place = tmp_path / "flipped"
        place.mkdir(exist_ok=True)
        path = str(place / "counter_slot0.db")
        Path(path).write_bytes(changed)
        MetricFile(path).release()
        TheirCollector.merge([path])  # type: ignore[no-untyped-call]


class TestReaders:
    """A reader beside a writer sees whole files only."""

    def test_files_appear_and_grow_whole(self, nursery: Nursery, directory: str) -> None:
        """prometheus_client never fails on a file that is being made or is growing."""
        writers = [nursery.start() for _ in range(2)]
        for number, writer in enumerate(writers):
            writer.tell(_make_and_grow, directory, number, 60)
        scrapes = list(_scrapes_while_alive(directory, writers))
        for writer in writers:
            writer.answer()
        assert len(scrapes) > 1
        assert read(directory)["c_total"] == 2 * 60 * 40

    def test_totals_never_fall(self, nursery: Nursery, directory: str) -> None:
        """While values are written each scrape finds at least what the one before found."""
        writer = nursery.start()
        writer.tell(_make_and_grow, directory, 0, 120)
        totals = [
            scrape.get("c_total", 0.0) for scrape in _scrapes_while_alive(directory, [writer])
        ]
        writer.answer()
        assert totals == sorted(totals)


def _scrapes_while_alive(
    directory: str, writers: list[RemoteProcess]
) -> Iterator[dict[str, float]]:
    done = os.path.join(directory, "done")
    while len([name for name in os.listdir(directory) if name.startswith("done")]) < len(writers):
        yield read(directory)
        assert not any(writer.has_ended() for writer in writers), done


def _make_and_grow(directory: str, number: int, files: int) -> None:
    for slot in range(files):
        file = MetricFile(os.path.join(directory, f"counter_slot{number}x{slot}.db"))
        index = file.add(mmap_key("c", "c_total", [], [], "Help.").encode(), 0.0, 0.0)
        for count in range(1, 41):
            file.cells[index] = float(count)
            file.add(key("many", label=str(count) * 30), 1.0, 0.0)
        file.release()
    Path(directory, f"done{number}").touch()


def _release_after_closerange(directory: str) -> list[int]:
    """Return the descriptors of the application that letting go of a file has closed."""
    file = MetricFile(os.path.join(directory, "counter_slot0.db"))
    file.add(key("a"), 1.0, 0.0)
    close_descriptors()
    mine = [os.open(directory, os.O_RDONLY) for _ in range(8)]
    file.release()
    return [number for number in mine if not _is_open(number)]


def _is_open(number: int) -> bool:
    try:
        os.fstat(number)
    except OSError:
        return False
    return True


def test_file_without_a_number(path: str, content: bytes, mocker: MockerFixture) -> None:
    """prometheus_client's files are compared key by key only when something has changed them."""
    Path(path).write_bytes(content)
    reader = MetricFileReader(path)
    time.sleep(0.15)  # its time is not that of a change just now any more
    reader.refresh()
    compared = mocker.spy(Layout, "fits")
    with open(path, "r+b") as file, mmap.mmap(file.fileno(), 0) as writer:
        at = used(content) - 16
        for value in (4.0, 5.0):
            writer[at : at + 8] = struct.pack("d", value)
            reader.refresh()
            assert list(reader.pairs())[::2] == [1.0, 2.0, value]
    time.sleep(0.15)
    reader.refresh()
    before = compared.call_count
    reader.refresh()
    reader.refresh()
    assert compared.call_count == before
    other = content.replace(b'"a', b'"z')
    Path(path).write_bytes(other)  # the same inode, size and number
    reader.refresh()
    assert [key for key in reader.layout.keys if b'"z' in key]
