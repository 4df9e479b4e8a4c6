"""What the collector adds up of files in which something was removed."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from obskit_gunicorn._scrape.collector import DirectoryCollector
from obskit_gunicorn._scrape.reduced import ReducedFiles
from obskit_gunicorn._store import baselines, note, remains
from obskit_gunicorn._store.baselines import Baselines
from obskit_gunicorn._store.directory import SlotDirectory
from obskit_gunicorn._store.fileformat import LabelSet, encode_key, key_text
from obskit_gunicorn._store.journal import LOCK_NAME
from obskit_gunicorn._store.reader import MetricFileReader
from obskit_gunicorn._store.writer import MetricFile
from tests.support.forks import Nursery, act, flatten, join

if TYPE_CHECKING:
    from collections.abc import Iterable

NAME = "counter_slot0.db"
MANY = 1000


def _key(label: str) -> bytes:
    return encode_key("c", "c_total", ["label"], [label], "Help.")


def _labels(label: str) -> LabelSet:
    return LabelSet.named("c", ["label"], [label])


def _write(directory: str, labels: Iterable[str], name: str = NAME) -> MetricFile:
    file = MetricFile(os.path.join(directory, name))
    for label in labels:
        file.add(_key(label), 5.0, 0.0)
    return file


def _find(collector: DirectoryCollector) -> dict[str, float]:
    return flatten(collector.collect().metrics())


class TestNothingChanges:
    """What stays the same is the same object, so that it is not added up again."""

    def test_files_without_removals(self, directory: str) -> None:
        """A file is added up as it is, if nothing was removed of it."""
        file = _write(directory, "ab")
        reader = MetricFileReader(file.path)
        reader.refresh()
        reduced = ReducedFiles()
        reduced.look(directory)
        assert reduced.shown(reader) is reader
        other = _write(directory, "ab", "counter_slot1.db")
        Baselines(directory).remove("counter", "c", {_labels("a")})
        reduced.look(directory)
        assert reduced.shown(reader) is not reader
        another = MetricFileReader(other.path)
        another.refresh([reader.layout])
        # Files with the same keys, of which the same is hidden, share their layout.
        assert reduced.shown(another).layout is reduced.shown(reader).layout
        for each in (file, other):
            each.release()

    def test_objects_stay(self, directory: str) -> None:
        """Values and layout are those of the last scrape while neither file nor list changes."""
        with_removal = _write(directory, map(str, range(MANY)))
        reader = MetricFileReader(with_removal.path)
        Baselines(directory).remove("counter", "c", {_labels("7"), _labels("8")})
        reduced = ReducedFiles()
        seen = []
        for _ in range(2):
            reduced.look(directory)
            reader.refresh()
            shown = reduced.shown(reader)
            seen.append((shown, shown.layout, shown.numbers))
        assert all(first is second for first, second in zip(*seen, strict=True))
        assert len(shown.layout.keys) == MANY - 2
        with_removal.release()

    def test_new_keys_go_on(self, directory: str) -> None:
        """A file that grows has a layout that goes on, so that what is known stays."""
        file = _write(directory, map(str, range(MANY)))
        reader = MetricFileReader(file.path)
        Baselines(directory).remove("counter", "c", {_labels("7")})
        reduced = ReducedFiles()
        reduced.look(directory)
        reader.refresh()
        before = reduced.shown(reader).layout
        file.add(_key("new"), 1.0, 0.0)
        reader.refresh()
        after = reduced.shown(reader).layout
        assert after.goes_on(before)
        assert key_text(after.keys[-1]) == _key("new")
        assert not before.goes_on(after)
        file.release()


def test_a_late_column(directory: str) -> None:
    """A column that lacks the store that is being made shows nothing of what was removed."""
    file = _write(directory, "a")
    collector = DirectoryCollector(directory)
    assert _find(collector) == {'c_total{label="a"}': 5.0}
    index, number = file.find(_key("a")), file.number(_key("a"))
    assert index is not None
    file.cells[index] = 6.0  # and its column comes later
    Baselines(directory).remove("counter", "c", {_labels("a")})
    assert _find(collector) == {}
    file.column[number] = 6.0
    assert _find(collector) == {}
    file.cells[index] = file.column[number] = 8.0
    assert _find(collector) == {'c_total{label="a"}': 2.0}
    file.release()


def test_when_it_was_removed(directory: str) -> None:
    """Who keeps something with a time beside a file can ask whether it is gone."""
    file = _write(directory, "ab")
    known = Baselines(directory)
    known.remove("counter", "c", {_labels("a")})
    assert known.removed_at("counter", _key("a")) is not None
    assert known.removed_at("counter", _key("b")) is None
    assert known.removed_at("summary", _key("a")) is None
    file.release()


def test_another_file_in_its_place(directory: str) -> None:
    """A baseline is not that of a file that comes later, with the same name and inode or not."""
    _write(directory, "a").release()
    Baselines(directory).remove("counter", "c", {_labels("a")})
    collector = DirectoryCollector(directory)
    assert _find(collector) == {}
    os.unlink(os.path.join(directory, NAME))
    _write(directory, "a").release()
    assert _find(collector) == {'c_total{label="a"}': 5.0}


def test_files_named_after_pids(directory: str) -> None:
    """What writers that know no slots have counted is removed, too."""
    file = _write(directory, "ab", "counter_4711.db")
    file.release()
    path = Path(directory, "counter_4711.db")
    content = bytearray(path.read_bytes())
    content[4:8] = bytes(4)  # they give their files no number
    path.write_bytes(content)
    Baselines(directory).remove("counter", "c", {_labels("a")})
    assert _find(DirectoryCollector(directory)) == {'c_total{label="b"}': 5.0}


def test_a_copy_goes_on(directory: str, tmp_path: Path) -> None:
    """A directory that was copied shows what the first one shows."""
    _write(directory, "ab").release()
    Baselines(directory).remove("counter", "c", {_labels("a")})
    shutil.copytree(directory, tmp_path / "copy")
    assert _find(DirectoryCollector(str(tmp_path / "copy"))) == {'c_total{label="b"}': 5.0}


def test_what_was_not_published(directory: str) -> None:
    """What a killed server has left to be published lacks what was removed."""
    _write(directory, "ab").release()
    Baselines(directory).remove("counter", "c", {_labels("a")})
    note.write(directory, note.Note("generation"))
    remains.keep(directory, directory)
    (path,) = remains.find(directory)
    assert _find(DirectoryCollector(path)) == {'c_total{label="b"}': 5.0}


def test_a_new_generation(directory: str) -> None:
    """The lists go with the counts."""
    _write(directory, "ab").release()
    Baselines(directory).remove("counter", "c", {_labels("a")})
    collector = DirectoryCollector(directory)
    assert _find(collector) == {'c_total{label="b"}': 5.0}
    started = SlotDirectory(directory).start_generation(keep=False)
    assert started.is_wiped
    assert not {baselines.NAME, LOCK_NAME} & set(os.listdir(directory))
    _write(directory, "a", "counter_slot1.db").release()
    assert _find(collector) == {'c_total{label="a"}': 5.0}
    started.lease.release()


def test_files_that_were_removed(nursery: Nursery, directory: str) -> None:
    """An exporter that goes on with removed files leaves out what was removed of them before."""
    process = nursery.start()
    process.call(join, directory)
    for label in ("x", "y"):
        process.call(act, "counter", "m", "inc", 5, labels={"label": label})
    process.call(_remove_x)
    collector = DirectoryCollector(directory)
    collector.keep_removed()
    assert _find(collector) == {'m_total{label="y"}': 5.0}
    os.unlink(os.path.join(directory, NAME))
    assert _find(collector) == {'m_total{label="y"}': 5.0}
    process.kill()
    assert _find(collector) == {'m_total{label="y"}': 5.0}
    assert _find(collector) == {'m_total{label="y"}': 5.0}


def test_a_total_may_fall_when_it_is_removed(nursery: Nursery, directory: str) -> None:
    """What keeps totals from falling while processes move does not keep what was removed."""
    processes = [nursery.start(), nursery.start()]
    for process in processes:
        process.call(join, directory)
        process.call(act, "counter", "m", "inc", 5, labels={"label": "x"})
    collector = DirectoryCollector(directory)
    collector.keep_removed()
    assert _find(collector) == {'m_total{label="x"}': 10.0}
    os.unlink(os.path.join(directory, "counter_slot1.db"))
    assert _find(collector) == {'m_total{label="x"}': 10.0}
    processes[0].call(_remove_x)
    processes[0].call(act, "counter", "m", "inc", 1, labels={"label": "x"})
    assert _find(collector) == {'m_total{label="x"}': 5.0 + 1.0}


def _remove_x() -> None:
    from tests.support import forks

    forks._metrics["counter", "m"].remove("x")


def test_places(directory: str) -> None:
    """Many at once are where they are one by one, in every part of a file."""
    file = _write(directory, map(str, range(MANY)))
    reader = MetricFileReader(file.path)
    reader.refresh()
    file.release()
    layout = reader.layout
    places = list(layout.places())
    assert len(places) == MANY
    assert places == [layout.place(number) for number in range(MANY)]
    assert [layout.number_at(place) for place in places] == [*range(MANY)]
