"""What is kept of a killed server when the next one wipes."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from obskit_gunicorn._store import note, remains
from obskit_gunicorn._store.directory import SlotDirectory
from obskit_gunicorn._store.note import Note
from obskit_gunicorn._store.writer import MetricFile

if TYPE_CHECKING:
    from pathlib import Path

KEY = b'["c", "c_total", {}, "C."]'


def begin(directory: Path, *, keeps: bool = True) -> str:
    """Begin a generation, count something, and end; return what tells the generation."""
    slots = SlotDirectory(str(directory))
    started = slots.start_generation(keep=False, keep_unpublished=keeps)
    for prefix in ("counter", "gauge_max"):
        file = MetricFile(started.lease.metric_file_path(prefix))
        file.add(KEY, 7.0, 0.0)
        file.release()
    started.lease.release()
    return str(slots.generation()["id"])


def test_kept_if_nothing_was_published(tmp_path: Path) -> None:
    """The arbiter's note is there from the beginning; gauges are not kept."""
    generation = begin(tmp_path)
    assert note.read(str(tmp_path)) == Note(generation)
    begin(tmp_path)
    (kept,) = remains.find(str(tmp_path))
    assert kept.endswith(generation)
    assert sorted(os.listdir(kept)) == ["counter_slot0.db", note.NAME]
    assert note.read(kept) == Note(generation)
    assert os.stat(kept).st_mode & 0o077 == 0


@pytest.mark.parametrize("last", [Note("", ended=True), None], ids=["published", "no note"])
def test_not_kept(tmp_path: Path, last: Note | None) -> None:
    """There is nothing to publish, or nobody who publishes."""
    generation = begin(tmp_path, keeps=last is not None)
    if last is not None:
        note.write(str(tmp_path), last._replace(generation=generation))
    begin(tmp_path)
    assert remains.find(str(tmp_path)) == []


def test_dropped_where_nobody_publishes(tmp_path: Path) -> None:
    """Without a store a wipe is a wipe."""
    begin(tmp_path)
    begin(tmp_path)
    assert remains.find(str(tmp_path))
    begin(tmp_path, keeps=False)
    assert remains.find(str(tmp_path)) == []
    assert note.read(str(tmp_path)) is None


def test_of_very_many_the_oldest_go(tmp_path: Path) -> None:
    """A store that is away for long does not fill the volume."""
    generations = [begin(tmp_path) for _ in range(8)]
    kept = remains.find(str(tmp_path))
    assert len(kept) == 4
    assert {path.rpartition("-")[2] for path in kept} <= set(generations[:-1])


def test_move_that_was_cut_short_is_finished(tmp_path: Path) -> None:
    """The note moves last: until then the next start goes on."""
    generation = begin(tmp_path)
    partly = tmp_path / f"{remains.PREFIX}{generation}"
    partly.mkdir()
    (tmp_path / "counter_slot0.db").rename(partly / "counter_slot0.db")
    begin(tmp_path)
    (kept,) = remains.find(str(tmp_path))
    assert sorted(os.listdir(kept)) == ["counter_slot0.db", note.NAME]


def test_one_exporter_has_it(tmp_path: Path) -> None:
    """Whoever comes later neither publishes nor removes it, and does not wait."""
    begin(tmp_path)
    begin(tmp_path)
    (path,) = remains.find(str(tmp_path))
    with remains.claimed(path) as first, remains.claimed(path) as second:
        assert first
        assert not second
    with remains.claimed(path) as again:
        assert again
        os.rename(path, f"{path}.gone")
    with remains.claimed(path) as gone:
        assert not gone


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"generation": "../x", "ended": false}'])
def test_note_of_another_kind(tmp_path: Path, content: bytes) -> None:
    """What is no note keeps nothing, and a name leads nowhere else."""
    begin(tmp_path)
    (tmp_path / note.NAME).write_bytes(content)
    begin(tmp_path)
    assert remains.find(str(tmp_path)) == []
    assert not (tmp_path.parent / "x").exists()
