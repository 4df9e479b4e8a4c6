"""Exemplars on disk: no reader ever sees half of one, whatever becomes of their writer."""

from __future__ import annotations

import errno
import os
import random
import shutil
import sys
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from obskit_gunicorn._store import exemplars
from obskit_gunicorn._store.exemplars import Exemplar, ExemplarFile, ExemplarReader, digest_of

if TYPE_CHECKING:
    from collections.abc import Iterator

Key = tuple[str, bytes]


def key(number: int = 0) -> Key:
    """Return the key of a sample."""
    return "counter", f'["c", "c_total", {{"n": "{number}"}}, "Help."]'.encode()


def read(path: Path) -> dict[bytes, Exemplar]:
    """Return what a reader finds that has never read the file."""
    reader = ExemplarReader(str(path))
    reader.refresh()
    assert reader.damage is None
    return dict(reader.found)


@pytest.fixture(name="path")
def _path(tmp_path: Path) -> Path:
    return tmp_path / "slot0.exemplars"


@pytest.fixture(name="file")
def _file(path: Path) -> Iterator[ExemplarFile]:
    file = ExemplarFile(str(path))
    yield file
    file.release()


NAMES = st.from_regex(r"[a-z_][a-z0-9_]{0,8}", fullmatch=True)
TEXTS = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=20)
LABELS = st.dictionaries(NAMES, TEXTS, max_size=5).filter(
    lambda labels: sum(map(len, (*labels, *labels.values()))) <= 128
)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.integers(0, 9), LABELS, st.floats(allow_nan=False)),
        st.sampled_from(["reopen", "read"]),
    ),
    max_size=30,
)


@settings(suppress_health_check=list(HealthCheck), deadline=None, max_examples=60)
@given(STEPS)
def test_the_last_of_each_sample_is_found(tmp_path_factory: object, steps: list[object]) -> None:
    """Whatever is written, read in between, and closed and opened again by another holder."""
    assert isinstance(tmp_path_factory, pytest.TempPathFactory)
    path = tmp_path_factory.mktemp("exemplars") / "slot0.exemplars"
    file, reader, clock = ExemplarFile(str(path)), ExemplarReader(str(path)), count()
    expected: dict[bytes, Exemplar] = {}
    for step in steps:
        if step == "reopen":
            file.release()
            file = ExemplarFile(str(path))
            assert file.replaced is None
        elif step == "read":
            reader.refresh()
            assert (reader.found, reader.damage) == (expected, None)
        else:
            assert isinstance(step, tuple)
            number, labels, value = step
            now = float(next(clock))
            assert file.put(key(number), labels, value, now)
            found = Exemplar(tuple(sorted(labels.items())), value, now)
            expected[digest_of(*key(number))] = found
    reader.refresh()
    assert reader.found == expected
    assert read(path) == expected
    file.release()
    shutil.rmtree(path.parent)


@pytest.mark.parametrize(
    "labels",
    [
        {"a": "\ud800"},
        {"a": "x\0y"},
        {"a": b"x"},
        {"a": ["x"]},
        {"a": 1},
        {"a b": "x"},
        {"a\n": "x"},
        {"": "x"},
        {"\ud800": "x"},
        {"a": "x" * 2000},
        {f"n{number}": "" for number in range(200)},
    ],
)
def test_what_no_exposition_can_have(file: ExemplarFile, path: Path, labels: object) -> None:
    """It costs this exemplar, and the one before stays."""
    assert file.put(key(), {"a": "first"}, 1.0, 1.0)
    assert not file.put(key(), labels, 2.0, 2.0)  # type: ignore[arg-type]
    assert read(path) == {digest_of(*key()): Exemplar((("a", "first"),), 1.0, 1.0)}


@pytest.mark.parametrize(
    "labels",
    [
        {"a": "\U0001d11e" * 127},
        {"a" * 128: ""},
        {f"{first}{second}": "\U0001d11e" for first in "abcdef" for second in "abcdefg"},
        dict.fromkeys("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ_", ""),
        {},
    ],
)
def test_the_largest_fit(file: ExemplarFile, path: Path, labels: dict[str, str]) -> None:
    """128 characters fit, whichever they are and however many labels they make."""
    assert file.put(key(), labels, 1.0, 1.0)
    assert read(path) == {digest_of(*key()): Exemplar(tuple(sorted(labels.items())), 1.0, 1.0)}


def writes(path: Path, *steps: tuple[int, str]) -> list[bytes]:
    """Return what the file holds before any, and after each of these exemplars."""
    file = ExemplarFile(str(path))
    contents = [path.read_bytes()]
    for now, (number, text) in enumerate(steps, start=1):
        assert file.put(key(number), {"trace_id": text}, float(now), float(now))
        contents.append(path.read_bytes())
    file.release()
    return contents


@pytest.mark.parametrize("before", [0, 1, 2, 3])
def test_a_writer_that_is_killed_at_any_byte(path: Path, before: int) -> None:
    """The exemplar before is found, or the new one; and the next holder goes on with either."""
    *_, first, second = writes(path, *[(0, f"{number:032}") for number in range(before + 1)])
    path.write_bytes(first)
    found_before = read(path)
    path.write_bytes(second)
    found_after = read(path)
    changed = [at for at, pair in enumerate(zip(first, second, strict=True)) if pair[0] != pair[1]]
    start = min(at for at in changed if at >= exemplars.HEADER_BYTES)
    end = max(changed) + 1
    for at in range(start, end + 1):
        header = first[:16] + (2 * before + 1).to_bytes(8, sys.byteorder) + first[24:start]
        path.write_bytes(header + second[start:at] + first[at:])
        found = read(path)
        assert found == (found_after if second[start:at] == second[start:end] else found_before)
        file = ExemplarFile(str(path))
        assert file.put(key(), {"trace_id": "next"}, 9.0, 9.0)
        file.release()
        assert read(path) == {digest_of(*key()): Exemplar((("trace_id", "next"),), 9.0, 9.0)}


def test_a_damaged_byte_costs_that_half(path: Path) -> None:
    """Whichever byte of the newest half is another one, the half before counts."""
    *_, content = writes(path, (0, "first"), (0, "second"))
    newest = exemplars.HEADER_BYTES + exemplars.HALF_BYTES
    size = 48 + 2 + len("trace_id") + 1 + len("second")
    for at in range(newest, newest + size):
        changed = bytearray(content)
        changed[at] ^= 0xFF
        path.write_bytes(changed)
        (found,) = read(path).values()
        assert found.labels == (("trace_id", "first"),)


def test_a_damaged_cell(path: Path) -> None:
    """Both halves of it are damaged: said, the others are found, and it is used again."""
    *_, content = writes(path, (0, "a"), (0, "b"), (1, "c"))
    changed = bytearray(content)
    for half in (0, exemplars.HALF_BYTES):
        changed[exemplars.HEADER_BYTES + half] ^= 0xFF
    path.write_bytes(changed)
    reader = ExemplarReader(str(path))
    for _ in range(2):
        reader.refresh()
        assert reader.damage is not None
        assert reader.damage.reason == "corrupted"
        assert list(reader.found) == [digest_of(*key(1))]
    file = ExemplarFile(str(path))
    assert file.put(key(0), {"a": "d"}, 1.0, 1.0)
    file.release()
    reader.refresh()
    assert reader.damage is None
    assert reader.found.keys() == {digest_of(*key(0)), digest_of(*key(1))}


def test_the_oldest_makes_room(path: Path) -> None:
    """Of more samples than there are cells those stay that were written last, by any holder."""
    file = ExemplarFile(str(path))
    for number in range(exemplars.MOST_CELLS):
        assert file.put(key(number), {"n": str(number)}, 1.0, 1.0)
    assert file.put(key(0), {"n": "again"}, 1.0, 2.0)
    assert file.put(key(1000), {"n": "1000"}, 1.0, 2.0)  # in the place of 1
    file.release()
    assert path.stat().st_size == (
        exemplars.HEADER_BYTES + exemplars.MOST_CELLS * exemplars.CELL_BYTES
    )
    file = ExemplarFile(str(path))
    assert file.put(key(3), {"n": "again"}, 1.0, 3.0)
    assert file.put(key(1001), {"n": "1001"}, 1.0, 3.0)  # in the place of 2
    file.release()
    there = {*range(exemplars.MOST_CELLS), 1000, 1001} - {1, 2}
    found = read(path)
    assert found.keys() == {digest_of(*key(number)) for number in there}
    assert found[digest_of(*key(0))].labels == (("n", "again"),)


def test_a_file_that_is_not_one(path: Path) -> None:
    """A reader says what is wrong, and a writer puts a new one in its place."""
    for content, reason in ((b"", "empty"), (b"x" * 9000, "foreign"), (b"obskexm1", "truncated")):
        path.write_bytes(content)
        reader = ExemplarReader(str(path))
        reader.refresh()
        assert reader.damage is not None
        assert (reader.damage.reason, reader.found) == (reason, {})
        file = ExemplarFile(str(path))
        assert file.replaced
        assert file.put(key(), {"a": "b"}, 1.0, 1.0)
        file.release()
        reader.refresh()
        assert len(reader.found) == 1
        assert reader.damage is None


@pytest.mark.parametrize("kind", ["directory", "link", "pipe"])
def test_a_name_that_is_taken(path: Path, kind: str) -> None:
    """Neither reader nor writer touches what is no regular file."""
    if kind == "directory":
        path.mkdir()
    elif kind == "link":
        path.symlink_to(path.with_name("elsewhere"))
    else:
        os.mkfifo(path)
    reader = ExemplarReader(str(path))
    reader.refresh()
    assert reader.damage is not None
    assert reader.damage.reason == "foreign"
    with pytest.raises(OSError, match="not a regular file"):
        ExemplarFile(str(path))


def test_one_writer(file: ExemplarFile, path: Path) -> None:
    """A second one is refused, and the first one's exemplars stay."""
    assert file.put(key(), {"a": "b"}, 1.0, 1.0)
    with pytest.raises(OSError, match="another process writes this file") as raised:
        ExemplarFile(str(path))
    assert raised.value.errno == errno.EBUSY
    assert len(read(path)) == 1


def test_a_replaced_file_is_read_anew(path: Path) -> None:
    """Also if it was written as often, and with the same samples."""
    reader = ExemplarReader(str(path))
    for text in ("first", "second"):
        path.unlink(missing_ok=True)
        file = ExemplarFile(str(path))
        assert file.put(key(), {"a": text}, 1.0, 1.0)
        file.release()
        reader.refresh()
        assert [found.labels for found in reader.found.values()] == [(("a", text),)]
    path.unlink()
    with pytest.raises(FileNotFoundError):
        reader.refresh()


def test_what_did_not_change_is_not_read_again(file: ExemplarFile, path: Path) -> None:
    """What was found is the same object then, and what it cost is a look at the header."""
    assert file.put(key(), {"a": "b"}, 1.0, 1.0)
    reader = ExemplarReader(str(path))
    reader.refresh()
    found = reader.found
    reader.refresh()
    assert reader.found is found
    assert file.put(key(), {"a": "c"}, 1.0, 1.0)
    reader.refresh()
    assert reader.found is not found


def test_what_a_killed_writer_has_left_is_read_once(path: Path) -> None:
    """Also if it was killed in the middle; its next holder is noticed."""
    *_, content = writes(path, (0, "a"), (0, "b"))
    path.write_bytes(content[:16] + (5).to_bytes(8, sys.byteorder) + content[24:])
    reader = ExemplarReader(str(path))
    reader.refresh()
    found = reader.found
    reader.refresh()
    assert reader.found is found
    file = ExemplarFile(str(path))
    assert file.put(key(), {"a": "c"}, 1.0, 1.0)
    reader.refresh()
    assert [each.labels for each in reader.found.values()] == [(("a", "c"),)]
    file.release()


def test_random_bytes(path: Path) -> None:
    """Whatever a file holds, reading and writing it raises nothing."""
    rng = random.Random(5)
    header = b"obskexm1" + bytes(exemplars.HEADER_BYTES - 8)
    for _ in range(40):
        content = bytearray(header + rng.randbytes(exemplars.CELL_BYTES * 4))
        for cell in range(4):  # some of them with small numbers and sizes
            at = exemplars.HEADER_BYTES + cell * exemplars.CELL_BYTES
            content[at + 4 : at + 16] = rng.choice([bytes(12), b"\1\0\0\0\1" + bytes(7)])
        path.write_bytes(content)
        reader = ExemplarReader(str(path))
        reader.refresh()
        assert reader.found == {}
        file = ExemplarFile(str(path))
        assert file.put(key(), {"a": "b"}, 1.0, 1.0)
        file.release()
        reader.refresh()
        assert list(reader.found) == [digest_of(*key())]
