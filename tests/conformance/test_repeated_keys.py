"""A key that stands twice in a file: reader and writer agree, prometheus_client is the judge."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
from prometheus_client.multiprocess import MultiProcessCollector as TheirCollector

from obskit_gunicorn._scrape.collector import DirectoryCollector, MultiProcessCollector
from obskit_gunicorn._store.fileformat import HEADER_BYTES, encode_key, pack_entry
from obskit_gunicorn._store.writer import MetricFile

KEY = encode_key("hits", "hits_total", (), (), "Help.")
OTHER = encode_key("misses", "misses_total", (), (), "Help.")


@pytest.fixture(name="path")
def _path(directory: str) -> str:
    """A file in which one key stands twice, with 5 and 7, and another one between them."""
    entries = pack_entry(KEY, 5.0, 0.0) + pack_entry(OTHER, 1.0, 0.0) + pack_entry(KEY, 7.0, 0.0)
    header = struct.pack("i", HEADER_BYTES + len(entries)) + b"good"
    path = Path(directory, "counter_slot0.db")
    path.write_bytes((header + entries).ljust(4096, b"\0"))
    return str(path)


def values(families: object) -> dict[str, float]:
    """Return each sample's value."""
    found: list[tuple[str, float]] = [
        (sample.name, sample.value)
        for family in families  # type: ignore[attr-defined]
        for sample in family.samples
    ]
    assert len(found) == len(dict(found))
    return dict(found)


def check(path: str, expected: dict[str, float]) -> None:
    """Compare all collectors."""
    assert values(TheirCollector.merge([path])) == expected  # type: ignore[no-untyped-call]
    assert values(MultiProcessCollector.merge([path])) == expected
    collector = DirectoryCollector(str(Path(path).parent))
    for _ in range(2):
        assert values(collector.collect().metrics()) == expected
    assert not collector.skipped


def test_both_entries_count(path: str) -> None:
    """A reader adds up both."""
    check(path, {"hits_total": 12.0, "misses_total": 1.0})


def test_a_writer_continues_with_the_last_one(path: str) -> None:
    """The next holder of the slot finds nothing damaged, and what it counts is read."""
    file = MetricFile(path)
    assert file.salvaged is None
    index = file.find(KEY)
    assert index is not None
    assert file.read(index) == (7.0, 0.0)
    file.cells[index] = 100.0
    file.release()
    check(path, {"hits_total": 105.0, "misses_total": 1.0})


def test_beside_a_file_in_order(path: str) -> None:
    """Files with and without the repeated key are added up key by key."""
    other = path.replace("slot0", "slot1")
    file = MetricFile(other)
    file.add(OTHER, 2.0, 0.0)
    file.add(KEY, 3.0, 0.0)
    file.release()
    collector = DirectoryCollector(str(Path(path).parent))
    theirs = TheirCollector.merge([path, other])  # type: ignore[no-untyped-call]
    assert values(collector.collect().metrics()) == values(theirs)
    assert values(theirs) == {"hits_total": 15.0, "misses_total": 3.0}
