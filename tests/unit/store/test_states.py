"""States on disk: what was said last is found, whatever becomes of who says it."""

from __future__ import annotations

import errno
import random
import shutil
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from obskit_gunicorn._store import states
from obskit_gunicorn._store.states import Removal, Said, State, StatesFile, StatesReader, shown

if TYPE_CHECKING:
    from pathlib import Path


def said(time: float, content: str = "x", label: str = "", *, is_set: bool = True) -> Said:
    """Return that an Info has said something."""
    labels = (("n", label),) if label else ()
    return Said(time, State("info", "build", "Help.", labels, (("version", content),), is_set))


def removed(time: float, label: str = "") -> Said:
    """Return that series of it were removed."""
    return Said(time, Removal("info", "build", (("n", label),) if label else ()))


def write(path: Path, *records: Said) -> None:
    """Be a holder of the slot who says this."""
    file = StatesFile(str(path))
    assert file.replaced is None
    file.put(records)
    file.release()


def read(*paths: Path) -> dict[str, str]:
    """Return what is shown, as label and content, by a reader that has never read the files."""
    found: list[Said] = []
    for path in paths:
        reader = StatesReader(str(path))
        reader.refresh()
        assert reader.damage is None
        found += reader.said.values()
    return as_shown(found)


def as_shown(found: list[Said]) -> dict[str, str]:
    """Return what is shown of records, as label and content."""
    return {
        dict(state.labels).get("n", ""): dict(state.content)["version"] for state in shown(found)
    }


@pytest.fixture(name="path")
def _path(tmp_path: Path) -> Path:
    return tmp_path / "slot0.states"


LABELS = st.sampled_from(["a", "b", "c"])
REMOVED = st.sampled_from(["a", "b", ""])
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("set"), st.integers(0, 2), LABELS, st.text(max_size=5)),
        st.tuples(st.just("made"), st.integers(0, 2), LABELS, st.just("")),
        st.tuples(
            st.just("remove"), st.integers(0, 2), st.sampled_from(["a", "b", ""]), st.just("")
        ),
        st.tuples(st.sampled_from(["die", "anew", "read"]), st.integers(0, 2), LABELS, st.just("")),
    ),
    max_size=40,
)


@settings(suppress_health_check=list(HealthCheck), deadline=None, max_examples=80)
@given(STEPS)
def test_histories(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, int, str, str]]
) -> None:
    """Three slots, whose holders set, make, remove, end and write their files anew."""
    directory = tmp_path_factory.mktemp("states")
    paths = [directory / f"slot{slot}.states" for slot in range(3)]
    files = [StatesFile(str(path)) for path in paths]
    readers = [StatesReader(str(path)) for path in paths]
    model: dict[str, tuple[bool, str]] = {}
    for now, (action, slot, label, text) in enumerate(steps, start=1):
        text = text if text.encode("utf-8", "replace").decode() == text else "?"  # noqa: PLW2901
        if action == "set":
            files[slot].put([said(now, text, label)])
            model[label] = True, text
        elif action == "made":
            files[slot].put([said(now, "", label, is_set=False)])
            if not model.get(label, (False, ""))[0]:
                model[label] = False, ""
        elif action == "remove":
            files[slot].put([removed(now, label)])
            for gone in [each for each in model if label in ("", each)]:
                del model[gone]
        elif action == "die":
            files[slot].release()
            files[slot] = StatesFile(str(paths[slot]))
        elif action == "anew":
            files[slot]._write_anew()
        else:
            for reader in readers:
                reader.refresh()
                assert reader.damage is None
            found = [each for reader in readers for each in reader.said.values()]
            assert as_shown(found) == {each: content for each, (_set, content) in model.items()}
    assert read(*paths) == {each: content for each, (_set, content) in model.items()}
    for file in files:
        file.release()
    shutil.rmtree(directory)


def test_a_writer_that_is_killed_at_any_byte(path: Path) -> None:
    """What was said before is found, or what is said now; and the next holder goes on."""
    write(path, said(1, "before"), said(1, "other", "a"))
    before = path.read_bytes()
    write(path, said(2, "after"))
    after = path.read_bytes()
    assert after.startswith(before)
    for size in range(len(before), len(after) + 1):
        path.write_bytes(after[:size])
        expected = "after" if size == len(after) else "before"
        assert read(path) == {"": expected, "a": "other"}
        write(path, said(3, "next"))
        assert read(path) == {"": "next", "a": "other"}


def test_a_damaged_byte(path: Path) -> None:
    """What stands before it is found, and what is wrong is said unless it looks cut off."""
    write(path, said(1, "first"))
    start = path.stat().st_size
    write(path, said(2, "second"))
    end = path.stat().st_size
    write(path, said(3, "third"))
    content = path.read_bytes()
    reported = 0
    for at in range(start, end):
        changed = bytearray(content)
        changed[at] ^= 0x01
        path.write_bytes(changed)
        reader = StatesReader(str(path))
        reader.refresh()
        assert as_shown(list(reader.said.values())) == {"": "first"}
        reported += reader.damage is not None
    assert reported >= end - start - 4  # of its length the bytes that make it larger


@pytest.mark.parametrize(
    "text",
    [
        "[]",
        "{}",
        "1",
        '["info", "a", {"b": 1}]',
        '["gauge", "a", {}]',
        '["info", 5, {}]',
        '["info", "a", "help", {}, {"b": "\\ud800"}, true]',
        '["info", "a", "help", {}, ["b"], true]',
        '["info", "a", null, {}, {}, true]',
    ],
)
def test_a_record_that_nobody_can_have_written(path: Path, text: str) -> None:
    """It is left out and said; what stands before and behind it is found."""
    write(path, said(1, "before"))

    class Odd(Removal):
        def text(self) -> bytes:
            return text.encode()

    file = StatesFile(str(path))
    file.put([Said(2, Odd("info", "odd", ())), said(3, "behind", "a")])
    file.release()
    reader = StatesReader(str(path))
    for _ in range(2):
        reader.refresh()
        assert reader.damage is not None
        assert reader.damage.reason == "corrupted"
        assert as_shown(list(reader.said.values())) == {"": "before", "a": "behind"}
    write(path, said(4, "next"))


def test_files_stay_small(path: Path) -> None:
    """However often something is said; and removals go when nothing is left to be removed."""
    file, reader = StatesFile(str(path)), StatesReader(str(path))
    largest = 0
    for number in range(3000):
        file.put([said(number, str(number)), said(number, "x", str(number))])
        file.put([removed(number + 0.5, str(number))])
        largest = max(largest, path.stat().st_size)
    reader.refresh()
    assert as_shown(list(reader.said.values())) == {"": "2999"}
    assert largest < 100_000
    file._write_anew()
    assert path.stat().st_size < 200
    reader.refresh()
    assert as_shown(list(reader.said.values())) == {"": "2999"}
    file.release()


def test_a_removal_stays_while_another_slot_needs_it(path: Path) -> None:
    """What another process has said must not come back."""
    other = path.with_name("slot1.states")
    write(other, said(1, "old", "a"))
    file = StatesFile(str(path))
    file.put([removed(2, "a")])
    file._write_anew()
    assert read(path, other) == {}
    write(other, said(3, "new", "a"))
    assert read(path, other) == {"a": "new"}
    file._write_anew()
    assert read(path, other) == {"a": "new"}
    file.release()
    assert len(path.read_bytes()) == states.HEADER_BYTES


def test_a_file_that_is_not_one(path: Path) -> None:
    """A reader says what is wrong, and a writer puts a new one in its place."""
    for content, reason in ((b"", "truncated"), (b"x" * 9000, "foreign")):
        path.write_bytes(content)
        reader = StatesReader(str(path))
        reader.refresh()
        assert reader.damage is not None
        assert (reader.damage.reason, reader.said) == (reason, {})
        file = StatesFile(str(path))
        assert file.replaced
        file.put([said(1)])
        file.release()
        reader.refresh()
        assert as_shown(list(reader.said.values())) == {"": "x"}
    path.unlink()
    path.mkdir()
    reader.refresh()
    assert reader.damage is not None
    assert reader.damage.reason == "foreign"


def test_one_writer(path: Path) -> None:
    """A second one is refused."""
    file = StatesFile(str(path))
    file.put([said(1)])
    with pytest.raises(OSError, match="another process writes this file") as raised:
        StatesFile(str(path))
    assert raised.value.errno == errno.EBUSY
    assert read(path) == {"": "x"}
    file.release()


def test_what_did_not_change_is_not_read_again(path: Path) -> None:
    """What was found is the same object then."""
    write(path, said(1, "first"))
    reader = StatesReader(str(path))
    reader.refresh()
    found = reader.said
    reader.refresh()
    assert reader.said is found
    write(path, said(2, "second"))
    reader.refresh()
    assert reader.said is not found
    assert as_shown(list(reader.said.values())) == {"": "second"}


def test_random_bytes(path: Path) -> None:
    """Whatever a file holds, reading and writing it raises nothing."""
    rng = random.Random(5)
    write(path, said(1, "first"), said(1, "x" * 500, "a"))
    content = path.read_bytes()
    for _ in range(200):
        changed = bytearray(content)
        for _ in range(rng.randrange(1, 4)):
            changed[rng.randrange(16, len(changed))] = rng.randrange(256)
        path.write_bytes(changed[: rng.randrange(len(changed))] if rng.random() < 0.3 else changed)
        StatesReader(str(path)).refresh()
        file = StatesFile(str(path))
        file.put([said(2, "next")])
        file.release()
        reader = StatesReader(str(path))
        reader.refresh()
        assert as_shown(list(reader.said.values()))[""] == "next"
